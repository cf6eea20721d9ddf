//! Mappings of rings of io_uring(7) and of contexts of kernel AIO. Their addresses cannot be asked for (mmap(2) and mremap(2) fail with EINVAL,
//! io_setup(2) has no argument for it): the kernel chooses, so it is left no choice.
//!
//! ```text
//!  ├ fence (PROT_NONE) ┤ where the ring was ├ fence ┤ vvar, vDSO ├ fence ┤ runner ├ … ┤     mmap(0, length): there is one place
//! ```

use ckpt_image::records::{MappingKind, SpaceRecord};
use ckpt_sys::{AddrRange, VirtAddr};
use nix::libc;

use super::ground::{Ground, LOWEST, TASK_SIZE};
use super::{Arg, FdRef, Script, contexts, range_of, v};

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
        if !matches!(mapping.kind, MappingKind::Ring { .. } | MappingKind::Aio { events: 1.., .. }) {
            continue;
        }
        there.push(range_of(mapping));
        there.sort_by_key(|range| range.start);
        let fences = AddrRange { start: VirtAddr(LOWEST), end: VirtAddr(TASK_SIZE) }.without(&there);
        let none = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED) as u64;
        for fence in &fences {
            let args =
                [v(fence.start.0), v(fence.len()), v(libc::PROT_NONE as u64), v(none), v(u64::MAX), v(0)];
            script.exactly(libc::SYS_mmap, args, fence.start.0);
        }
        match mapping.kind {
            MappingKind::Ring { ring, offset } => {
                let (len, shared) = (mapping.end - mapping.start, libc::MAP_SHARED as u64);
                let fd = Arg::Fd(FdRef::Ring(ring));
                let args = [v(0), v(len), v(u64::from(mapping.prot)), v(shared), fd, v(offset)];
                script.exactly(libc::SYS_mmap, args, mapping.start);
            }
            _ => contexts::make(mapping, script),
        }
        fences.into_iter().for_each(|fence| script.unmap(fence));
    }
}
