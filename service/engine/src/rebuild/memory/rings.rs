//! Mappings of rings of io_uring(7). Their addresses cannot be asked for (mmap(2) and mremap(2) fail with EINVAL): the kernel chooses, so it is
//! left no choice.
//!
//! ```text
//!  ├ fence (PROT_NONE) ┤ where the ring was ├ fence ┤ vvar, vDSO ├ fence ┤ runner ├ … ┤     mmap(0, length): there is one place
//! ```

use ckpt_image::records::{MappingKind, SpaceRecord};
use ckpt_sys::{AddrRange, VirtAddr};
use nix::libc;

use super::ground::{Ground, LOWEST, TASK_SIZE};
use super::{Arg, FdRef, Script, v};

/// Maps all rings, while nothing but the kernel's own mappings, the runner, and what is `kept` is there.
pub(super) fn map(
    space: &SpaceRecord,
    ground: &Ground,
    kept: impl Iterator<Item = AddrRange>,
    script: &mut Script,
) {
    let mut there = ground.placed(space);
    there.push(ground.runner);
    there.extend(kept);
    for mapping in &space.mappings {
        let MappingKind::Ring { ring, offset } = mapping.kind else { continue };
        there.push(AddrRange { start: VirtAddr(mapping.start), end: VirtAddr(mapping.end) });
        there.sort_by_key(|range| range.start);
        let fences = between(&there);
        let none = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED) as u64;
        for (start, len) in &fences {
            let args = [v(*start), v(*len), v(libc::PROT_NONE as u64), v(none), v(u64::MAX), v(0)];
            script.exactly(libc::SYS_mmap, args, *start);
        }
        let (len, shared) = (mapping.end - mapping.start, libc::MAP_SHARED as u64);
        let fd = Arg::Fd(FdRef::Ring(ring));
        let args = [v(0), v(len), v(u64::from(mapping.prot)), v(shared), fd, v(offset)];
        script.exactly(libc::SYS_mmap, args, mapping.start);
        for (start, len) in &fences {
            script.must(libc::SYS_munmap, [v(*start), v(*len), v(0), v(0), v(0), v(0)]);
        }
    }
}

/// What lies between ranges, ascending, in user space: first address and length.
fn between(ranges: &[AddrRange]) -> Vec<(u64, u64)> {
    let mut from = LOWEST;
    let mut gaps = Vec::new();
    for (start, end) in
        ranges.iter().map(|range| (range.start.0, range.end.0)).chain([(TASK_SIZE, TASK_SIZE)])
    {
        if from < start {
            gaps.push((from, start - from));
        }
        from = from.max(end);
    }
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_else_is_fenced() {
        let range = |start: u64, end: u64| AddrRange { start: VirtAddr(start), end: VirtAddr(end) };
        let gaps =
            between(&[range(0x1_0000, 0x2_0000), range(0x3_0000, 0x4_0000), range(0x4_0000, 0x5_0000)]);
        assert_eq!(gaps, [(0x2_0000, 0x1_0000), (0x5_0000, TASK_SIZE - 0x5_0000)]);
        assert_eq!(between(&[]), [(LOWEST, TASK_SIZE - LOWEST)]);
    }
}
