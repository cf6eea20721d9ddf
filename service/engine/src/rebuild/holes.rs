//! Free places in address spaces.

use ckpt_sys::VirtAddr;
use ckpt_sys::nursery::PAGE;

/// Where nothing of ours lies: the runner is in the lowest hole above 4 GiB.
const FAR: u64 = 1 << 44;
const LAST: u64 = 0x7000_0000_0000;

/// The lowest hole from `first` on that has room for `len` bytes, with a page of distance on both sides, between what is used.
pub fn find(mut used: Vec<(u64, u64)>, first: u64, len: u64) -> Option<VirtAddr> {
    let need = len.checked_next_multiple_of(PAGE)?.checked_add(2 * PAGE)?;
    used.sort_unstable();
    let mut at = first;
    for (start, end) in used {
        if start >= at.checked_add(need)? {
            break;
        }
        at = at.max(end.checked_next_multiple_of(PAGE)?);
    }
    at.checked_add(need).filter(|end| *end <= LAST).map(|_| VirtAddr(at + PAGE))
}

/// A hole for something that is mapped for a moment.
pub fn for_a_moment(used: Vec<(u64, u64)>, len: u64) -> Option<VirtAddr> {
    find(used, FAR, len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_fits_between_what_is_used() {
        let find = |used| find(used, 1 << 32, 16 * PAGE);
        assert_eq!(find(vec![]), Some(VirtAddr((1 << 32) + 4096)));
        let used = vec![(0x1000, 1 << 33), ((1 << 33) + 0x1000, 1 << 34)];
        assert_eq!(find(used), Some(VirtAddr((1 << 34) + 4096)));
        assert_eq!(find(vec![(0, 0x7fff_ffff_f000)]), None);
        assert_eq!(super::find(vec![], 0, u64::MAX), None);
    }
}
