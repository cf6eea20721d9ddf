//! The value of LD_PRELOAD, as the preload library reads and writes it.

#[path = "../../preload/src/preload_value.rs"]
mod preload_value;

use preload_value::{entry_length, names, write_entry, write_entry_without};

const PATH: &[u8] = b"/usr/lib/ckpt/libckpt_preload.so";

fn written(write: fn(&mut [u8], &[u8], &[u8]) -> usize, list: &str) -> String {
    let mut to = vec![0xff; entry_length(list.as_bytes(), PATH)];
    let length = write(&mut to, list.as_bytes(), PATH);
    assert!(length == 0 || to[length] == 0, "a C string");
    String::from_utf8(to[..length].to_vec()).unwrap()
}

#[test]
fn the_library_is_found_in_a_list_wherever_it_was_loaded_from() {
    for list in
        ["/usr/lib/ckpt/libckpt_preload.so", "a.so:/x/libckpt_preload.so", "a.so libckpt_preload.so b.so"]
    {
        assert!(names(list.as_bytes(), PATH), "{list}");
    }
    for list in ["", ":", "/usr/lib/ckpt", "libckpt_preload.so.1", "xlibckpt_preload.so"] {
        assert!(!names(list.as_bytes(), PATH), "{list}");
    }
}

#[test]
fn the_library_is_added_last() {
    assert_eq!(written(write_entry, ""), "LD_PRELOAD=/usr/lib/ckpt/libckpt_preload.so");
    assert_eq!(written(write_entry, "a.so b.so"), "LD_PRELOAD=a.so b.so:/usr/lib/ckpt/libckpt_preload.so");
}

#[test]
fn what_else_is_in_the_list_stays_when_it_is_taken_out() {
    assert_eq!(
        written(write_entry_without, "a.so:/usr/lib/ckpt/libckpt_preload.so b.so"),
        "LD_PRELOAD=a.so:b.so"
    );
    assert_eq!(written(write_entry_without, "/usr/lib/ckpt/libckpt_preload.so"), "");
    assert_eq!(written(write_entry_without, ""), "");
}

#[test]
fn nothing_is_written_without_room() {
    for write in [write_entry, write_entry_without] {
        let mut to = [0xff; 8];
        assert_eq!((write(&mut to, b"a.so", PATH), to), (0, [0xff; 8]));
    }
}
