//! Mappings: made, and finished when they are filled.

use ckpt_image::records::{MappingKind, MappingRecord, ObjectId, ObjectKind, ObjectRecord, SpaceRecord};
use ckpt_sys::{AddrRange, VirtAddr};
use nix::libc;

use super::{Arg, Blob, FdRef, Script, range_of, v};
use crate::rebuild::Failure;

/// Linux 6.11.
const MAP_DROPPABLE: i32 = 0x08;
/// Linux 6.13.
const MADV_GUARD_INSTALL: u64 = 102;
const PR_SET_VMA: u64 = 0x5356_4d41;
const PR_SET_VMA_ANON_NAME: u64 = 0;
/// Linux 6.10.
const SYS_MSEAL: i64 = 462;
const SHM_REMAP: u64 = 0o40000;
const SHM_RDONLY: u64 = 0o10000;
const SHM_EXEC: u64 = 0o100000;

/// The segment behind an object.
fn segment(objects: &[ObjectRecord], object: ObjectId) -> Option<(i32, u64)> {
    let record = objects.get(object.index())?;
    match record.kind {
        ObjectKind::SysvShm { shmid, .. } => Some((shmid, record.size)),
        _ => None,
    }
}

/// Attaches System V segments, whole, each once for every place it begins at; then cuts away what is not in the image.
/// shmat(2) rather than mmap(2), so that the segment knows who uses it and shmdt(2) works.
pub(super) fn attach_segments(
    space: &SpaceRecord,
    objects: &[ObjectRecord],
    script: &mut Script,
) -> Result<(), Failure> {
    let mut attached: Vec<(u64, u64)> = Vec::new();
    for mapping in &space.mappings {
        let MappingKind::Object { object, offset } = mapping.kind else { continue };
        let Some((shmid, size)) = segment(objects, object) else { continue };
        let base = mapping.start.checked_sub(offset).filter(|_| mapping.shared).ok_or_else(|| {
            Failure::corrupt("a System V segment is mapped in no way that shmat(2) does")
                .of_object(format!("mapping {:x}-{:x}", mapping.start, mapping.end))
        })?;
        let end = base.saturating_add(size.next_multiple_of(super::PAGE));
        if attached.contains(&(base, end)) {
            continue;
        }
        attached.push((base, end));
        let mut flags = SHM_REMAP;
        if mapping.prot & libc::PROT_WRITE as u32 == 0 {
            flags |= SHM_RDONLY;
        }
        if mapping.prot & libc::PROT_EXEC as u32 != 0 {
            flags |= SHM_EXEC;
        }
        script.exactly(libc::SYS_shmat, [v(shmid as u64), v(base), v(flags), v(0), v(0), v(0)], base);
        let inside = space.mappings.iter().filter(|other| {
            other.kind == (MappingKind::Object { object, offset: other.start.wrapping_sub(base) })
        });
        let inside: Vec<_> = inside.map(range_of).collect();
        let whole = AddrRange { start: VirtAddr(base), end: VirtAddr(end) };
        whole.without(&inside).into_iter().for_each(|gone| script.unmap(gone));
    }
    Ok(())
}

/// Makes a mapping, but for what is `kept` of it (ascending), writable if it has pages to be filled.
pub(super) fn map(
    space: &SpaceRecord,
    mapping: &MappingRecord,
    (filled, kept): (bool, &[AddrRange]),
    objects: &[ObjectRecord],
    script: &mut Script,
) {
    let (fd, offset) = match mapping.kind {
        MappingKind::Vdso | MappingKind::Vvar => return,
        MappingKind::Ring { .. } | MappingKind::Aio { events: 1.., .. } => return,
        MappingKind::Object { object, .. } if segment(objects, object).is_some() => return,
        MappingKind::Anonymous => (v(u64::MAX), 0),
        MappingKind::File { file, offset, may_write } => {
            (Arg::Fd(FdRef::File { file, write: mapping.shared && may_write }), offset)
        }
        MappingKind::Object { object, offset } => (Arg::Fd(FdRef::Object(object)), offset),
        MappingKind::Gate { .. } | MappingKind::Aio { .. } => {
            (Arg::Fd(FdRef::Mapping { space: space.id.0, start: mapping.start }), 0)
        }
    };
    let flags = mapping.flags;
    let mut how = libc::MAP_FIXED;
    how |= match (mapping.shared, flags.droppable) {
        (true, _) => libc::MAP_SHARED,
        (false, true) => MAP_DROPPABLE,
        (false, false) => libc::MAP_PRIVATE,
    };
    for (set, bit) in [
        (mapping.kind == MappingKind::Anonymous, libc::MAP_ANONYMOUS),
        (flags.grows_down, libc::MAP_GROWSDOWN),
        (flags.no_reserve && !flags.droppable, libc::MAP_NORESERVE),
        (flags.hugetlb != 0 && mapping.kind == MappingKind::Anonymous, libc::MAP_HUGETLB),
    ] {
        how |= if set { bit } else { 0 };
    }
    let mut how = how as u64;
    if flags.hugetlb != 0 && mapping.kind == MappingKind::Anonymous {
        how |= u64::from(flags.hugetlb.trailing_zeros()) << libc::MAP_HUGE_SHIFT;
    }
    let prot = if filled { libc::PROT_READ | libc::PROT_WRITE } else { mapping.prot as i32 };
    for part in range_of(mapping).without(kept) {
        let args = [v(part.start.0), v(part.len()), v(prot as u64), v(how), fd, v(offset)];
        script.exactly(libc::SYS_mmap, args, part.start.0);
    }
    // Before it is filled: the pages come as they were.
    if flags.huge {
        advise(mapping, libc::MADV_HUGEPAGE, script);
    }
    if flags.no_huge {
        advise(mapping, libc::MADV_NOHUGEPAGE, script);
    }
}

fn advise(mapping: &MappingRecord, advice: i32, script: &mut Script) {
    let len = mapping.end - mapping.start;
    script.may(libc::SYS_madvise, [v(mapping.start), v(len), v(advice as u64), v(0), v(0), v(0)]);
}

/// What comes after the pages: protection, advice, name, guards, locks.
pub(super) fn finish(mapping: &MappingRecord, filled: bool, script: &mut Script) {
    if matches!(mapping.kind, MappingKind::Vdso | MappingKind::Vvar) {
        return;
    }
    let (start, len) = (mapping.start, mapping.end - mapping.start);
    let by_shmat = matches!(mapping.kind, MappingKind::Object { .. }) && mapping.shared;
    let by_kernel = matches!(mapping.kind, MappingKind::Aio { .. });
    if by_shmat || ((filled || by_kernel) && mapping.prot != (libc::PROT_READ | libc::PROT_WRITE) as u32) {
        script.must(libc::SYS_mprotect, [v(start), v(len), v(u64::from(mapping.prot)), v(0), v(0), v(0)]);
    }
    let flags = mapping.flags;
    let must_advise = [
        (flags.dont_fork, libc::MADV_DONTFORK),
        (flags.wipe_on_fork && !flags.droppable, libc::MADV_WIPEONFORK),
    ];
    for (_, advice) in must_advise.into_iter().filter(|(set, _)| *set) {
        script.must(libc::SYS_madvise, [v(start), v(len), v(advice as u64), v(0), v(0), v(0)]);
    }
    for (set, advice) in [
        (flags.dont_dump && !flags.droppable, libc::MADV_DONTDUMP),
        (flags.mergeable, libc::MADV_MERGEABLE),
        (flags.sequential, libc::MADV_SEQUENTIAL),
        (flags.random, libc::MADV_RANDOM),
    ] {
        if set {
            advise(mapping, advice, script);
        }
    }
    for (from, to) in &mapping.guards {
        script.must(libc::SYS_madvise, [v(*from), v(to - from), v(MADV_GUARD_INSTALL), v(0), v(0), v(0)]);
    }
    if let Some(name) = &mapping.name {
        let mut bytes = name.clone();
        bytes.push(0);
        let blob = script.blob(Blob { bytes, ..Blob::default() });
        let args = [v(PR_SET_VMA), v(PR_SET_VMA_ANON_NAME), v(start), v(len), Arg::Data(blob), v(0)];
        script.may(libc::SYS_prctl, args);
    }
    if flags.locked {
        let how = if flags.lock_on_fault { libc::MLOCK_ONFAULT as u64 } else { 0 };
        // It fails for what cannot be faulted in (guard pages of stacks after mlockall(2)), but locks it nevertheless.
        script.may(libc::SYS_mlock2, [v(start), v(len), v(how), v(0), v(0), v(0)]);
    }
}

/// Seals what was sealed.
pub(super) fn seal(mappings: &[MappingRecord], script: &mut Script) {
    for mapping in mappings.iter().filter(|mapping| mapping.flags.sealed) {
        let len = mapping.end - mapping.start;
        script.must(SYS_MSEAL, [v(mapping.start), v(len), v(0), v(0), v(0), v(0)]);
    }
}
