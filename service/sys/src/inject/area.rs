//! The pages of slots in a member.
//!
//! ```text
//!  magic, length ┐
//!  ├ room 8 KiB ┬ slot of the first thread 16 KiB ┬ room 8 KiB ┬ slot of the second 4 KiB ┬ room …
//! ```

use nix::unistd::Pid;

use crate::batch::Slot;
use crate::{AddrRange, VirtAddr, remote};

/// Untouched room below each slot: a signal handler may run there in the one case that nobody expects (we die while a signal waits).
const ROOM: u64 = 8192;
/// The slot of the first thread, for what concerns the whole process.
const FIRST: u64 = 16384;
/// The slots of the other threads.
const OTHER: u64 = 4096;
/// What the first bytes of the area are.
const AREA_MAGIC: &[u8; 16] = b"ckpt-slots\0\0\0\0\0\x01";

/// Whether these pages of a process are the runner's slots: ours, to be left out of an image.
#[must_use]
pub fn is_area(pid: Pid, range: AddrRange) -> bool {
    let mut found = [0; 24];
    remote::read(pid, range.start, &mut found).is_ok() && found == head(range.len())
}

/// The first bytes of an area: what it is, and its length, so that a neighbour that merged with it is not taken for it.
pub(super) fn head(len: u64) -> [u8; 24] {
    let mut head = [0; 24];
    head[..16].copy_from_slice(AREA_MAGIC);
    head[16..].copy_from_slice(&len.to_le_bytes());
    head
}

/// Bytes for the slots of this many threads.
pub(super) fn len(threads: u64) -> u64 {
    ROOM + FIRST + (ROOM + OTHER) * threads.saturating_sub(1)
}

/// The slot of a thread, by its place.
pub(super) fn slot(area: VirtAddr, thread: u64) -> Slot {
    match thread {
        0 => Slot { base: area.add(ROOM), len: FIRST },
        n => Slot { base: area.add(len(n) + ROOM), len: OTHER },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_lie_side_by_side_with_room_below_each() {
        let area = VirtAddr(0x10_0000);
        let mut end = area;
        for n in 0..5 {
            let slot = slot(area, n);
            assert_eq!(slot.base, end.add(ROOM));
            end = slot.base.add(slot.len);
            assert_eq!(end, area.add(len(n + 1)));
        }
    }
}
