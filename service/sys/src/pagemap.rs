//! Which pages of a process are its own: PAGEMAP_SCAN (Linux 6.7, ioctl_pagemap_scan(2)) on /proc/PID/pagemap.

use std::fs::File;
use std::os::fd::AsRawFd;

use linux_raw_sys::general as raw;
use nix::errno::Errno;
use nix::unistd::Pid;

use crate::error::{Error, Result, Subject};
use crate::{AddrRange, VirtAddr};

/// _IOWR('f', 16, struct pm_scan_arg).
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
/// Ranges taken by one call.
const BATCH: usize = 4096;
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

/// /proc/PID/pagemap, open.
#[derive(Debug)]
pub struct Pagemap {
    pid: Pid,
    file: File,
    buffer: Vec<raw::page_region>,
    guards: bool,
}

impl Pagemap {
    /// Opens it. Needs what ptrace(2) needs.
    pub fn open(pid: Pid) -> Result<Self> {
        let path = format!("/proc/{pid}/pagemap");
        let file = File::open(&path).map_err(|e| Error::io("open", path, &e))?;
        let empty = raw::page_region { start: 0, end: 0, categories: 0 };
        Ok(Self { pid, file, buffer: vec![empty; BATCH], guards: true })
    }

    /// What lies inside `range`, appended to `found`.
    ///
    /// Errors: ENOTTY before Linux 6.7.
    pub fn scan(&mut self, range: AddrRange, wanted: Wanted, found: &mut Found) -> Result<()> {
        let mut from = range.start;
        while from < range.end {
            let regions = match self.call(from, range.end, wanted) {
                Err(Errno::EINVAL) if self.guards => {
                    self.guards = false;
                    continue;
                }
                Err(e) => {
                    let subject = Subject::Memory(self.pid, from);
                    return Err(Error::Kernel { op: "PAGEMAP_SCAN", subject, source: e });
                }
                Ok(count) => &self.buffer[..count],
            };
            for region in regions {
                let list = if region.categories & GUARD != 0 { &mut found.guards } else { &mut found.pages };
                push(list, VirtAddr(region.start), VirtAddr(region.end));
            }
            // Not walk_end: up to Linux 6.18 it can lie before pages that were told already.
            match regions.last() {
                Some(last) if regions.len() == BATCH && last.end > from.0 => from = VirtAddr(last.end),
                _ => break,
            }
        }
        Ok(())
    }

    /// One ioctl: the number of regions in the buffer; fewer than fit means that the walk came to its end.
    fn call(&mut self, start: VirtAddr, end: VirtAddr, wanted: Wanted) -> std::result::Result<usize, Errno> {
        let bits = |names: &[u32]| names.iter().fold(0, |set, bit| set | u64::from(*bit));
        let guard = if self.guards { GUARD } else { 0 };
        let absent = match wanted {
            Wanted::Own => bits(&[raw::PAGE_IS_FILE, raw::PAGE_IS_PFNZERO]),
            Wanted::OwnOrZero => bits(&[raw::PAGE_IS_FILE]),
        };
        let mut arg = raw::pm_scan_arg {
            size: std::mem::size_of::<raw::pm_scan_arg>() as u64,
            flags: 0,
            start: start.0,
            end: end.0,
            walk_end: 0,
            vec: self.buffer.as_mut_ptr() as u64,
            vec_len: self.buffer.len() as u64,
            max_pages: 0,
            category_inverted: absent,
            category_mask: absent,
            category_anyof_mask: bits(&[raw::PAGE_IS_PRESENT, raw::PAGE_IS_SWAPPED]) | guard,
            // With nothing but the guard told, neighbours that differ only in being swapped are one region.
            return_mask: if guard == 0 { bits(&[raw::PAGE_IS_PRESENT, raw::PAGE_IS_SWAPPED]) } else { guard },
        };
        // SAFETY: arg is a valid pm_scan_arg that outlives the call; vec points to vec_len regions that only the kernel
        // writes during it.
        let count = unsafe { libc::ioctl(self.file.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) };
        Ok(Errno::result(count)? as usize)
    }
}

/// Appends a range, joined to the last one where they touch (categories differ, or a batch ended there).
fn push(found: &mut Vec<AddrRange>, start: VirtAddr, end: VirtAddr) {
    match found.last_mut() {
        Some(last) if last.end == start => last.end = end,
        _ => found.push(AddrRange { start, end }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous};
    use std::num::NonZeroUsize;

    const PAGE: u64 = 4096;

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
    }
}
