//! Which pages of a process are its own: PAGEMAP_SCAN (Linux 6.7, ioctl_pagemap_scan(2)) on /proc/PID/pagemap.

mod census;
mod written;

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use linux_raw_sys::general as raw;
use nix::errno::Errno;
use nix::unistd::Pid;

use crate::error::{Error, Result, Subject};
use crate::{AddrRange, VirtAddr};

pub use census::{Census, Span};

/// _IOWR('f', 16, struct pm_scan_arg).
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
/// Ranges taken by one call.
const BATCH: usize = 4096;
const PAGE: u64 = 4096;
/// PAGE_IS_GUARD is known from Linux 6.15 on; older kernels answer EINVAL.
const GUARD: u64 = raw::PAGE_IS_GUARD as u64;

/// Which pages count as the process's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Present or swapped pages that belong to the process and not to a file, the kernel's zero page excepted.
    Own,
    /// The same with the zero page: in a private mapping of a file it hides the file.
    OwnOrZero,
}

/// What a scan found: ranges, ascending, merged where they touch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// The wanted pages.
    pub pages: Vec<AddrRange>,
    /// Pages with a guard marker (MADV_GUARD_INSTALL, Linux 6.13; told from Linux 6.15 on).
    pub guards: Vec<AddrRange>,
}

/// The same with what [`crate::write_watch`] knows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tracked {
    /// Wanted pages that were written since they were armed, or are not watched.
    pub written: Vec<AddrRange>,
    /// Wanted pages that were not written since they were armed.
    pub clean: Vec<AddrRange>,
    /// Pages with a guard marker.
    pub guards: Vec<AddrRange>,
    /// Some wanted page is not watched.
    pub unwatched: bool,
}

/// /proc/PID/pagemap, open.
#[derive(Debug)]
pub struct Pagemap {
    pid: Pid,
    file: File,
    guards: bool,
}

thread_local! {
    /// What one call tells.
    static REGIONS: RefCell<Vec<raw::page_region>> =
        RefCell::new(vec![raw::page_region { start: 0, end: 0, categories: 0 }; BATCH]);
}

/// The masks of one PAGEMAP_SCAN.
#[derive(Debug, Clone, Copy)]
struct Masks {
    flags: u64,
    /// Must not be.
    not: u64,
    /// Must be.
    all: u64,
    /// One must be.
    any: u64,
    /// Told.
    told: u64,
}

const PRESENT: u64 = raw::PAGE_IS_PRESENT as u64;
const SWAPPED: u64 = raw::PAGE_IS_SWAPPED as u64;
const FILE: u64 = raw::PAGE_IS_FILE as u64;
const ZERO: u64 = raw::PAGE_IS_PFNZERO as u64;
const WRITTEN: u64 = raw::PAGE_IS_WRITTEN as u64;
const WATCHED: u64 = raw::PAGE_IS_WPALLOWED as u64;
const PROTECT: u64 = raw::PM_SCAN_WP_MATCHING as u64;

impl Masks {
    /// The wanted pages, without those that are guarded.
    fn of(wanted: Wanted) -> Self {
        let not = match wanted {
            Wanted::Own => FILE | ZERO,
            Wanted::OwnOrZero => FILE,
        };
        Self { flags: 0, not, all: 0, any: PRESENT | SWAPPED, told: SWAPPED }
    }

    fn with_guards(self, known: bool) -> Self {
        let guard = if known { GUARD } else { 0 };
        Self { any: self.any | guard, told: self.told | guard, ..self }
    }

    fn without_guards(self, known: bool) -> Self {
        Self { not: self.not | if known { GUARD } else { 0 }, ..self }
    }
}

impl Tracked {
    /// Adds a part of a region of these categories.
    fn add(&mut self, categories: u64, part: AddrRange) {
        if categories & GUARD != 0 {
            part.append_to(&mut self.guards);
            return;
        }
        let watched = categories & WATCHED != 0;
        self.unwatched |= !watched;
        let clean = watched && categories & WRITTEN == 0;
        part.append_to(if clean { &mut self.clean } else { &mut self.written });
    }
}

impl Pagemap {
    /// Opens it. Needs what ptrace(2) needs.
    pub fn open(pid: Pid) -> Result<Self> {
        let path = format!("/proc/{pid}/pagemap");
        let file = File::open(&path).map_err(|e| Error::io("open", path, &e))?;
        Ok(Self { pid, file, guards: true })
    }

    /// What lies inside `range`, appended to `found`.
    ///
    /// Errors: ENOTTY before Linux 6.7.
    pub fn scan(&mut self, range: AddrRange, wanted: Wanted, found: &mut Found) -> Result<()> {
        self.walk(
            range,
            |guards| Masks::of(wanted).with_guards(guards),
            |region, parts| {
                if region.categories & GUARD != 0 {
                    region_range(region).append_to(&mut found.guards);
                } else {
                    parts.iter().for_each(|part| part.append_to(&mut found.pages));
                }
            },
        )
    }

    /// The same, with what was written since it was armed told apart. Nothing is armed.
    pub fn tracked(&mut self, range: AddrRange, wanted: Wanted, found: &mut Tracked) -> Result<()> {
        let masks = |guards| {
            let masks = Masks::of(wanted).with_guards(guards);
            Masks { told: masks.told | WRITTEN | WATCHED, ..masks }
        };
        self.walk(range, masks, |region, parts| {
            parts.iter().for_each(|part| found.add(region.categories, *part));
        })
    }

    /// The same as [`Pagemap::tracked`] for /proc/PID/clear_refs: bit 55 of a page's entry is set by the first write after it.
    pub fn soft_dirty(&mut self, range: AddrRange, wanted: Wanted, found: &mut Tracked) -> Result<()> {
        let mut own = Found::default();
        self.scan(range, wanted, &mut own)?;
        found.guards.append(&mut own.guards);
        for pages in own.pages {
            self.entries(pages, |at, entry| {
                let list = if entry >> 55 & 1 == 0 { &mut found.clean } else { &mut found.written };
                AddrRange::new(at, PAGE).append_to(list);
            })?;
        }
        Ok(())
    }

    /// Calls `each` with every region in `range` that the masks match, and with its parts that are pages indeed: a swap entry can also
    /// be the mere mark that nothing is there (a page of a file mapping that was protected and dropped).
    fn walk(
        &mut self,
        range: AddrRange,
        masks: impl Fn(bool) -> Masks,
        each: impl FnMut(&raw::page_region, &[AddrRange]),
    ) -> Result<()> {
        REGIONS.with_borrow_mut(|buffer| self.walk_by(buffer, range, masks, each))
    }

    fn walk_by(
        &mut self,
        buffer: &mut [raw::page_region],
        range: AddrRange,
        masks: impl Fn(bool) -> Masks,
        mut each: impl FnMut(&raw::page_region, &[AddrRange]),
    ) -> Result<()> {
        let mut from = range.start;
        while from < range.end {
            let count = match self.call(buffer, from, range.end, masks(self.guards)) {
                Err(Errno::EINVAL) if self.guards => {
                    self.guards = false;
                    continue;
                }
                Err(e) => {
                    let subject = Subject::Memory(self.pid, from);
                    return Err(Error::Kernel { op: "PAGEMAP_SCAN", subject, source: e });
                }
                Ok(count) => count,
            };
            for region in &buffer[..count] {
                let whole = region_range(region);
                match region.categories & (SWAPPED | GUARD) {
                    SWAPPED => each(region, &self.without_marks(whole)?),
                    _ => each(region, &[whole]),
                }
            }
            // Not walk_end: up to Linux 6.18 it can lie before pages that were told already.
            match buffer[..count].last() {
                Some(last) if count == BATCH && last.end > from.0 => from = VirtAddr(last.end),
                _ => break,
            }
        }
        Ok(())
    }

    /// The parts of a range of swap entries that are pages: by the entry's type in the file itself (proc_pid_pagemap(5)), of which
    /// the last is the kernel's for marks. Without CAP_SYS_ADMIN the type reads as 0.
    fn without_marks(&self, range: AddrRange) -> Result<Vec<AddrRange>> {
        const MARK: u64 = 31;
        let mut pages = Vec::new();
        self.entries(range, |at, entry| {
            let (present, swapped) = (entry >> 63 != 0, entry >> 62 & 1 != 0);
            if present || swapped && entry & 31 != MARK {
                AddrRange::new(at, PAGE).append_to(&mut pages);
            }
        })?;
        Ok(pages)
    }

    /// Calls `each` with every page of a range and its entry in the file.
    fn entries(&self, range: AddrRange, mut each: impl FnMut(VirtAddr, u64)) -> Result<()> {
        const CHUNK: u64 = 512;
        let mut bytes = [0; 8 * CHUNK as usize];
        let (mut page, end) = (range.start.0 / PAGE, range.end.0 / PAGE);
        while page < end {
            let count = CHUNK.min(end - page);
            let part = &mut bytes[..8 * count as usize];
            self.file.read_exact_at(part, page * 8).map_err(|e| {
                let source = Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO));
                Error::Kernel { op: "read pagemap", subject: Subject::Task(self.pid), source }
            })?;
            for (n, entry) in part.chunks_exact(8).enumerate() {
                each(VirtAddr((page + n as u64) * PAGE), entry.try_into().map_or(0, u64::from_le_bytes));
            }
            page += count;
        }
        Ok(())
    }

    /// One ioctl: the number of regions in the buffer; fewer than fit means that the walk came to its end.
    fn call(
        &self,
        buffer: &mut [raw::page_region],
        start: VirtAddr,
        end: VirtAddr,
        masks: Masks,
    ) -> std::result::Result<usize, Errno> {
        let mut arg = raw::pm_scan_arg {
            size: std::mem::size_of::<raw::pm_scan_arg>() as u64,
            flags: masks.flags,
            start: start.0,
            end: end.0,
            walk_end: 0,
            vec: buffer.as_mut_ptr() as u64,
            vec_len: buffer.len() as u64,
            max_pages: 0,
            category_inverted: masks.not,
            category_mask: masks.not | masks.all,
            category_anyof_mask: masks.any,
            return_mask: masks.told,
        };
        // SAFETY: arg is a valid pm_scan_arg that outlives the call; vec points to vec_len regions that only the kernel
        // writes during it.
        let count = unsafe { libc::ioctl(self.file.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) };
        Ok(Errno::result(count)? as usize)
    }
}

/// Where a region lies.
fn region_range(region: &raw::page_region) -> AddrRange {
    AddrRange { start: VirtAddr(region.start), end: VirtAddr(region.end) }
}

/// Whether this kernel tells soft-dirty pages (CONFIG_MEM_SOFT_DIRTY): a page just written has the bit, and has lost it after
/// `clear_refs`. Tried on ourselves, which only makes our own next writes a little slower.
pub fn probe_soft_dirty() -> Result<bool> {
    let mut page = vec![0u8; 2 * PAGE as usize];
    let at = VirtAddr((page.as_ptr() as u64).next_multiple_of(PAGE));
    let map = Pagemap::open(Pid::this())?;
    let bit = || {
        let mut set = false;
        map.entries(AddrRange::new(at, PAGE), |_, entry| set = entry >> 55 & 1 != 0).map(|()| set)
    };
    page.fill(1);
    std::hint::black_box(&mut page);
    let before = bit()?;
    clear_soft_dirty(Pid::this())?;
    let cleared = !bit()?;
    page.fill(2);
    std::hint::black_box(&mut page);
    Ok(before && cleared && bit()?)
}

/// Clears the soft-dirty bits of a whole address space (proc_pid_clear_refs(5), 4).
pub fn clear_soft_dirty(pid: Pid) -> Result<()> {
    let path = format!("/proc/{pid}/clear_refs");
    std::fs::write(&path, "4").map_err(|e| Error::io("write", path, &e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous};
    use std::num::NonZeroUsize;

    #[test]
    fn written_pages_are_found_and_read_or_guarded_ones_are_not() {
        let pages = 20_000;
        let len = NonZeroUsize::new(pages * PAGE as usize).unwrap();
        // SAFETY: a new private mapping at an address that the kernel chooses.
        let base = unsafe {
            mmap_anonymous(None, len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE)
                .unwrap()
        };
        // SAFETY: advice on the mapping just made.
        unsafe { madvise(base, len.get(), MmapAdvise::MADV_NOHUGEPAGE).unwrap() };
        let first = base.as_ptr() as u64;
        let write = |page: usize| {
            // SAFETY: the page lies inside the mapping just made, which nothing else uses.
            unsafe { base.cast::<u8>().add(page * PAGE as usize).write_volatile(1) }
        };
        // Every second page: more ranges than one call returns.
        (0..pages).step_by(2).for_each(write);
        write(7);
        // SAFETY: reads a byte inside the mapping; makes the zero page present there.
        assert_eq!(unsafe { base.cast::<u8>().add(11 * PAGE as usize).read_volatile() }, 0);
        // SAFETY: advice on a page of the mapping just made (MADV_GUARD_INSTALL); it is not touched afterwards.
        let guarded =
            unsafe { libc::madvise(base.as_ptr().add(13 * PAGE as usize).cast(), PAGE as usize, 102) } == 0;

        let mut map = Pagemap::open(Pid::this()).unwrap();
        let whole = AddrRange::new(VirtAddr(first), len.get() as u64);
        let mut all = Found::default();
        map.scan(whole, Wanted::Own, &mut all).unwrap();
        let found = &all.pages;
        assert_eq!(found.iter().map(AddrRange::len).sum::<u64>(), (pages as u64 / 2 + 1) * PAGE);
        assert_eq!(found[3], AddrRange::new(VirtAddr(first + 6 * PAGE), 3 * PAGE));
        if guarded && map.guards {
            assert_eq!(all.guards, [AddrRange::new(VirtAddr(first + 13 * PAGE), PAGE)]);
        }
        let mut with_zero = Found::default();
        let three = AddrRange::new(VirtAddr(first + 10 * PAGE), 3 * PAGE);
        map.scan(three, Wanted::OwnOrZero, &mut with_zero).unwrap();
        assert_eq!(with_zero.pages, [three]);

        // The same of a walk over more than that.
        let range = AddrRange::new(VirtAddr(first - 16 * PAGE), whole.len() + 32 * PAGE);
        let census = map.census(&[Span { range, watched: false }]).unwrap();
        for (range, wanted) in [(whole, Wanted::Own), (three, Wanted::OwnOrZero)] {
            let (mut found, mut again) = (Found::default(), Found::default());
            map.scan(range, wanted, &mut found).unwrap();
            census.scan(range, wanted, &mut again);
            assert_eq!(found, again);
            let (mut found, mut again) = (Tracked::default(), Tracked::default());
            map.tracked(range, wanted, &mut found).unwrap();
            census.tracked(range, wanted, &mut again);
            assert_eq!(found, again);
        }
    }
}
