//! Holds the drawing at the head of the crate to the code.
use crate::{GATE_WORD, Gate, HEADER, Header, MAPS_NAME, NAME, Overflow, Slot};
use core::mem::offset_of;
use std::{collections::BTreeMap, format, string::String, vec::Vec};

/// The line of the drawing that begins with `in the …:`, as names and offsets.
fn told(head: &str) -> BTreeMap<String, usize> {
    let text = include_str!("lib.rs");
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("//! {head}:"))).unwrap();
    let line = line.split("      ").next().unwrap();
    line.split('·')
        .map(|field| {
            let (name, offset) = field.trim().rsplit_once(' ').unwrap();
            (name.into(), offset.parse().unwrap())
        })
        .collect()
}

macro_rules! offsets {
    ($type:ty: $($field:ident)*) => {
        BTreeMap::from([$((String::from(stringify!($field)), offset_of!($type, $field)),)*])
    };
}

#[test]
fn the_drawing_tells_the_offsets() {
    assert_eq!(
        told("in the header"),
        offsets!(Header: magic version size pid used control resume contexts gate overflow)
    );
    assert_eq!(told("in the gate"), offsets!(Gate: word waiting beat lease owner owner_start closings));
    assert_eq!(told("in the overflow"), offsets!(Overflow: added executing expired waits));
    assert_eq!(told("in a slot"), offsets!(Slot: word thread code fd other offset length));
}

#[test]
fn the_drawing_tells_where_the_parts_begin() {
    let rows: Vec<usize> = include_str!("lib.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("//! ")?.split_once('│')?.0.trim().parse().ok())
        .collect();
    let header = [0, offset_of!(Header, gate), offset_of!(Header, overflow), size_of::<Header>()];
    assert_eq!(rows[..4], header);
    assert_eq!(rows[4..], [HEADER, HEADER + size_of::<Slot>()]);
    assert_eq!(GATE_WORD, offset_of!(Header, gate) + offset_of!(Gate, word));
}

#[test]
fn the_name_in_maps_is_the_memfds() {
    assert_eq!(MAPS_NAME, format!("/memfd:{} (deleted)", NAME.to_str().unwrap()));
}
