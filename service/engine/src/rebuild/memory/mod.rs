//! An address space out of its record: the system calls to be made inside the member, in order, as plain data.
//!
//! ```text
//!  munmap    all but the runner, the kernel's pages (vvar, vDSO), and what of its maker's memory is its own too (heritage)
//!  mremap    vvar and vDSO to their old places
//!  prctl     PR_SET_MM_MAP: addresses, auxiliary vector, executable (refused while the old executable is mapped)
//!  mmap      rings of io_uring(7) and contexts of kernel AIO, into the one place that is free meanwhile
//!  shmat     System V segments, cut to what was still attached
//!  mmap      every mapping, writable if it has pages to fill
//!  preadv    pages from the file `pages`, as many places as fit into one call
//!  mprotect  what was writable only for that; then advice, names, guards, locks
//!  mseal     at last
//! ```
//! [`script`] is a pure function of the record and the page index; [`Script::run`] drives it through a [`Member`](super::Member).

mod contexts;
mod fill;
mod ground;
mod heritage;
mod maps;
mod rings;
mod run;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use ckpt_image::PageReader;
use ckpt_image::records::{
    DescriptionId, FileId, LayoutRecord, MappingRecord, ObjectId, ObjectRecord, SemaphoreSetRecord,
    SpaceRecord,
};
use ckpt_sys::{AddrRange, VirtAddr};
use nix::libc;

use super::Failure;
use super::lazy::{Absent, may_be_late};
pub use ground::{Ground, Special};
pub use heritage::{Heritage, Left};
pub use run::Run;

const PAGE: u64 = ckpt_image::PAGE_SIZE;

/// Where a mapping lies.
fn range_of(mapping: &MappingRecord) -> AddrRange {
    AddrRange { start: VirtAddr(mapping.start), end: VirtAddr(mapping.end) }
}

/// A system call to be made inside a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Its number.
    pub nr: i64,
    /// Its arguments.
    pub args: [Arg; 6],
    /// What it must answer.
    pub must: Expect,
}

/// An argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arg {
    /// A number or an address in the member.
    Value(u64),
    /// The address at which this blob of [`Script::blobs`] lies in the member.
    Data(usize),
    /// A descriptor of the member.
    Fd(FdRef),
}

/// A descriptor that the member has, by what it is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FdRef {
    /// The file `pages` of an image of the chain (0 is the newest), open for reading.
    Pages(usize),
    /// /dev/zero, open for reading.
    Zero,
    /// A file, open for reading, or for reading and writing.
    File {
        /// The file.
        file: FileId,
        /// O_RDWR, else O_RDONLY.
        write: bool,
    },
    /// A shared memory object, O_RDWR.
    Object(ObjectId),
    /// A ring of io_uring(7).
    Ring(DescriptionId),
    /// What the record of the mapping that lay at this address of this space holds, O_RDWR: the table of the preload library, the ring of a
    /// context of kernel AIO.
    Mapping {
        /// Index of the space.
        space: u32,
        /// Address of the mapping.
        start: u64,
    },
}

/// What a call must answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Anything but an error.
    Success,
    /// This.
    Value(u64),
    /// It may fail: advice that this kernel does not know.
    Any,
}

/// Bytes that a call's argument points to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Blob {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Descriptors to be written into it: byte offset, u32.
    pub fds: Vec<(usize, FdRef)>,
    /// Addresses of other blobs (of a smaller index) to be written into it: byte offset, u64.
    pub blobs: Vec<(usize, usize)>,
}

/// The calls that make an address space.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Script {
    /// The calls, in order.
    pub calls: Vec<Call>,
    /// What they point to.
    pub blobs: Vec<Blob>,
    /// Runs of the image that the calls read.
    pub filled: Vec<ckpt_image::Run>,
    /// Pages that come after the calls.
    pub absent: Absent,
    /// The mappings they belong to: first address and address after the last.
    pub watched: Vec<(u64, u64)>,
}

/// The calls that make an address space out of what `ground` says is there.
///
/// Errors: Corrupt where the record contradicts itself, IncompatibleKernel where the kernel's pages have another size,
/// NotRestorable where the runner lies where a mapping must be.
pub fn script(
    space: &SpaceRecord,
    objects: &[ObjectRecord],
    pages: &PageReader,
    ground: &Ground,
) -> Result<Script, Failure> {
    script_with(space, objects, pages, ground, (None, None))
}

/// Same, with what is `left` of its maker's memory. Where `hot` is given, only these pages (address divided by 4096) of what may come late are
/// read, and the rest is [`Script::absent`].
pub fn script_with(
    space: &SpaceRecord,
    objects: &[ObjectRecord],
    pages: &PageReader,
    ground: &Ground,
    (left, hot): (Option<&Left>, Option<&BTreeSet<u64>>),
) -> Result<Script, Failure> {
    check(space, ground)?;
    let mut script = Script::default();
    if space.thp_disabled {
        script.must(libc::SYS_prctl, [v(libc::PR_SET_THP_DISABLE as u64), v(1), v(0), v(0), v(0), v(0)]);
    }
    let kept = |mapping| left.map(|left| left.kept(mapping)).unwrap_or_default();
    let kept: Vec<Vec<AddrRange>> = space.mappings.iter().map(kept).collect();
    ground.clear(kept.iter().flatten().copied(), &mut script);
    ground.place(space, &mut script)?;
    set_mm_map(space, &mut script);
    rings::map(space, ground, kept.iter().flatten().copied(), &mut script);
    space.mappings.iter().for_each(|mapping| contexts::wind(space.id, mapping, &mut script));
    maps::attach_segments(space, objects, &mut script)?;
    let mut filled: Vec<Vec<ckpt_image::Run>> =
        space.mappings.iter().map(|mapping| fill::runs(space.id, mapping, pages)).collect();
    for (runs, _) in filled.iter_mut().zip(&kept).filter(|(_, kept)| !kept.is_empty()) {
        *runs = left.map(|left| left.unlike(runs)).unwrap_or_default();
    }
    if let Some(hot) = hot {
        for (mapping, runs) in space.mappings.iter().zip(&mut filled) {
            if !runs.is_empty() && may_be_late(space, mapping) {
                let (now, late) = fill::split(runs, hot);
                late.iter().for_each(|run| script.absent.insert(run));
                *runs = now;
                script.watch(mapping.start, mapping.end);
            }
        }
    }
    for ((mapping, runs), kept) in space.mappings.iter().zip(&filled).zip(&kept) {
        maps::map(space, mapping, (!runs.is_empty() || !kept.is_empty(), kept), objects, &mut script);
        if let Some(left) = left {
            left.drop_stale(kept, runs, &mut script);
        }
    }
    fill::fill(&filled, &mut script);
    for ((mapping, runs), kept) in space.mappings.iter().zip(&filled).zip(&kept) {
        maps::finish(mapping, !runs.is_empty() || !kept.is_empty(), &mut script);
    }
    script.filled = filled.into_iter().flatten().collect();
    if space.mlock_future != 0 {
        script.must(libc::SYS_mlockall, [v(u64::from(space.mlock_future)), v(0), v(0), v(0), v(0), v(0)]);
    }
    maps::seal(&space.mappings, &mut script);
    Ok(script)
}

/// What must hold before addresses are used.
fn check(space: &SpaceRecord, ground: &Ground) -> Result<(), Failure> {
    let mut end = 0;
    for mapping in &space.mappings {
        let object = || format!("mapping {:x}-{:x}", mapping.start, mapping.end);
        let aligned = (mapping.start | mapping.end).is_multiple_of(PAGE);
        if !aligned || mapping.start >= mapping.end || mapping.start < end || mapping.end > ground::TASK_SIZE
        {
            return Err(Failure::corrupt("its addresses are not right").of_object(object()));
        }
        end = mapping.end;
        let range = range_of(mapping);
        if ground::overlap(range, ground.runner) {
            let text = "the restore needs the same addresses for itself";
            return Err(Failure::not_restorable(text).of_object(object()));
        }
        for (from, to) in &mapping.guards {
            if *from < mapping.start || *to > mapping.end || from >= to {
                return Err(Failure::corrupt("its guards lie outside").of_object(object()));
            }
        }
    }
    if space.auxv.len() > 512 || !space.auxv.len().is_multiple_of(16) {
        return Err(Failure::corrupt("the auxiliary vector has a wrong size"));
    }
    Ok(())
}

/// struct prctl_mm_map: eleven addresses, then auxv (pointer), auxv_size (u32), exe_fd (u32).
fn set_mm_map(space: &SpaceRecord, script: &mut Script) {
    let LayoutRecord {
        start_code,
        end_code,
        start_data,
        end_data,
        start_brk,
        brk,
        start_stack,
        arg_start,
        arg_end,
        env_start,
        env_end,
    } = space.layout;
    let auxv = script.blob(Blob { bytes: space.auxv.clone(), ..Blob::default() });
    let mut bytes = Vec::with_capacity(104);
    for word in [
        start_code,
        end_code,
        start_data,
        end_data,
        start_brk,
        brk,
        start_stack,
        arg_start,
        arg_end,
        env_start,
        env_end,
        0,
    ] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend((space.auxv.len() as u32).to_le_bytes());
    bytes.extend([0; 4]);
    let exe = FdRef::File { file: space.exe, write: false };
    let map = script.blob(Blob { bytes, fds: vec![(100, exe)], blobs: vec![(88, auxv)] });
    const PR_SET_MM: u64 = 35;
    const PR_SET_MM_MAP: u64 = 14;
    script.must(libc::SYS_prctl, [v(PR_SET_MM), v(PR_SET_MM_MAP), Arg::Data(map), v(104), v(0), v(0)]);
}

/// Shorthand for a plain argument.
fn v(value: u64) -> Arg {
    Arg::Value(value)
}

impl Script {
    /// The descriptors that it needs, each once.
    pub fn descriptors(&self) -> BTreeSet<FdRef> {
        let arguments = self.calls.iter().flat_map(|call| &call.args).filter_map(|arg| match arg {
            Arg::Fd(fd) => Some(*fd),
            _ => None,
        });
        arguments.chain(self.blobs.iter().flat_map(|blob| blob.fds.iter().map(|(_, fd)| *fd))).collect()
    }

    /// Gives System V semaphores their values from inside a member, so that it is the last who used them, as before: by that the next
    /// checkpoint knows that they are the group's. The set must be there.
    pub fn set_semaphores(&mut self, set: &SemaphoreSetRecord) {
        const SETALL: u64 = 17;
        let bytes = set.values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let values = self.blob(Blob { bytes, ..Blob::default() });
        let args = [v(set.semid as u64), v(0), v(SETALL), Arg::Data(values), v(0), v(0)];
        self.must(libc::SYS_semctl, args);
    }

    fn watch(&mut self, start: u64, end: u64) {
        match self.watched.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => self.watched.push((start, end)),
        }
    }

    fn blob(&mut self, blob: Blob) -> usize {
        self.blobs.push(blob);
        self.blobs.len() - 1
    }

    fn must(&mut self, nr: i64, args: [Arg; 6]) {
        self.calls.push(Call { nr, args, must: Expect::Success });
    }

    fn unmap(&mut self, range: AddrRange) {
        self.must(libc::SYS_munmap, [v(range.start.0), v(range.len()), v(0), v(0), v(0), v(0)]);
    }

    fn exactly(&mut self, nr: i64, args: [Arg; 6], value: u64) {
        self.calls.push(Call { nr, args, must: Expect::Value(value) });
    }

    fn may(&mut self, nr: i64, args: [Arg; 6]) {
        self.calls.push(Call { nr, args, must: Expect::Any });
    }
}
