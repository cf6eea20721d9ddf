//! Huge pages for programs in the machine: the host's pool may grow by some while the machine is there, and shrinks again as they are given back.
//! /proc/sys belongs to the host and cannot be written in the machine.

use std::fs;

const OVERCOMMIT: &str = "/proc/sys/vm/nr_overcommit_hugepages";
const PAGES: u64 = 16;

/// Lets the pool grow. Where that is not allowed, tests that need huge pages say that there are none.
pub(crate) fn lend() {
    change(|pages| pages + PAGES);
}

/// The opposite.
pub(crate) fn take_back() {
    change(|pages| pages.saturating_sub(PAGES));
}

fn change(to: impl Fn(u64) -> u64) {
    let pages = fs::read_to_string(OVERCOMMIT).ok().and_then(|text| text.trim().parse().ok());
    if let Some(pages) = pages {
        let _ = fs::write(OVERCOMMIT, to(pages).to_string());
    }
}
