//! What a member has before its memory is made: the runner and the kernel's own pages.

use ckpt_image::records::{MappingKind, SpaceRecord};
use ckpt_sys::maps::{MapName, read_maps};
use ckpt_sys::{AddrRange, VirtAddr};
use nix::libc;

use super::{Script, range_of, v};
use crate::rebuild::Failure;

/// First address above user space on x86_64 with four-level page tables, and what mmap(2) gives without a hint above.
pub(super) const TASK_SIZE: u64 = 0x7fff_ffff_f000;
/// Below this nothing is mapped (vm.mmap_min_addr).
pub(super) const LOWEST: u64 = 0x1_0000;

/// A mapping of the kernel's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Special {
    /// Where it is.
    pub range: AddrRange,
    /// `[vdso]`, else `[vvar]` or `[vvar_vclock]`.
    pub vdso: bool,
}

/// What is in the member's address space and must outlive the clearing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ground {
    /// The runner: code and slot. Must not lie in any mapping of the image.
    pub runner: AddrRange,
    /// The kernel's mappings, ascending.
    pub special: Vec<Special>,
}

pub(super) fn overlap(a: AddrRange, b: AddrRange) -> bool {
    a.common(b).is_some()
}

impl Ground {
    /// The ground of copies of this process (clone(2) without exec): its own kernel mappings.
    pub fn of_ourselves(runner: AddrRange) -> Result<Self, Failure> {
        let special = read_maps(nix::unistd::Pid::this())?
            .into_iter()
            .filter_map(|mapping| match &mapping.name {
                MapName::Special(name) if name == "vdso" => {
                    Some(Special { range: mapping.range, vdso: true })
                }
                MapName::Special(name) if name.starts_with("vvar") => {
                    Some(Special { range: mapping.range, vdso: false })
                }
                _ => None,
            })
            .collect();
        Ok(Self { runner, special })
    }

    /// Unmaps everything but this and what else is to be kept.
    pub(super) fn clear(&self, also: impl Iterator<Item = AddrRange>, script: &mut Script) {
        let mut kept: Vec<AddrRange> = self.special.iter().map(|special| special.range).collect();
        kept.push(self.runner);
        kept.extend(also);
        kept.sort_by_key(|range| range.start);
        AddrRange::new(VirtAddr(0), TASK_SIZE).without(&kept).into_iter().for_each(|gone| script.unmap(gone));
    }

    /// Moves the kernel's mappings to where the image has them, through a third place if old and new overlap. Where the image
    /// has none they stay.
    pub(super) fn place(&self, space: &SpaceRecord, script: &mut Script) -> Result<(), Failure> {
        let wanted = wanted(space);
        if wanted.is_empty() {
            return self.out_of_the_way(space);
        }
        let shape = |list: &[Special]| -> Vec<(u64, bool)> {
            list.iter().map(|special| (special.range.len(), special.vdso)).collect()
        };
        if shape(&wanted) != shape(&self.special) {
            return Err(Failure::new(
                "IncompatibleKernel",
                "this kernel's vDSO has another size than that of the image",
            ));
        }
        if wanted == self.special {
            return Ok(());
        }
        let clash = wanted.iter().any(|to| self.special.iter().any(|from| overlap(to.range, from.range)));
        let mut at: Vec<VirtAddr> = self.special.iter().map(|special| special.range.start).collect();
        if clash {
            let mut place = self.gap(space, &wanted)?;
            for (special, at) in self.special.iter().zip(&mut at) {
                mremap(script, *at, special.range.len(), place);
                *at = place;
                place = place.add(special.range.len());
            }
        }
        for (to, from) in wanted.iter().zip(at) {
            mremap(script, from, to.range.len(), to.range.start);
        }
        Ok(())
    }

    /// Where the kernel's mappings are after that.
    pub(super) fn placed(&self, space: &SpaceRecord) -> Vec<AddrRange> {
        let wanted = wanted(space);
        let placed = if wanted.is_empty() { &self.special } else { &wanted };
        placed.iter().map(|special| special.range).collect()
    }

    fn out_of_the_way(&self, space: &SpaceRecord) -> Result<(), Failure> {
        let hit = space
            .mappings
            .iter()
            .any(|m| self.special.iter().any(|special| overlap(special.range, range_of(m))));
        match hit {
            true => Err(Failure::unsupported("a process without a vDSO has memory where the vDSO lies now")),
            false => Ok(()),
        }
    }

    /// An address with room for all kernel mappings that nothing uses, neither now nor in the image.
    fn gap(&self, space: &SpaceRecord, wanted: &[Special]) -> Result<VirtAddr, Failure> {
        let len: u64 = wanted.iter().map(|special| special.range.len()).sum();
        let image = space.mappings.iter().map(range_of);
        let ours = self.special.iter().chain(wanted).map(|special| special.range);
        free_range(image.chain(ours).chain([self.runner]), len)
            .ok_or_else(|| Failure::not_restorable("there is no free address"))
    }
}

/// The lowest `len` bytes of user space that none of the ranges touches.
pub(super) fn free_range(used: impl Iterator<Item = AddrRange>, len: u64) -> Option<VirtAddr> {
    let mut used: Vec<AddrRange> = used.collect();
    used.sort_by_key(|range| range.start);
    let mut from = LOWEST;
    for range in used {
        if range.start.0 >= from + len {
            break;
        }
        from = from.max(range.end.0);
    }
    (from + len <= TASK_SIZE).then_some(VirtAddr(from))
}

fn wanted(space: &SpaceRecord) -> Vec<Special> {
    space
        .mappings
        .iter()
        .filter_map(|mapping| {
            let range = range_of(mapping);
            match mapping.kind {
                MappingKind::Vdso => Some(Special { range, vdso: true }),
                MappingKind::Vvar => Some(Special { range, vdso: false }),
                _ => None,
            }
        })
        .collect()
}

fn mremap(script: &mut Script, from: VirtAddr, len: u64, to: VirtAddr) {
    let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
    script.exactly(libc::SYS_mremap, [v(from.0), v(len), v(len), v(flags), v(to.0), v(0)], to.0);
}
