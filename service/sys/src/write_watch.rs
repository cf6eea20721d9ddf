//! userfaultfd(2) write protection in the asynchronous mode (Linux 6.7): the kernel itself lets the first write to a protected page
//! through and forgets its protection; PAGEMAP_SCAN tells which pages have lost it ([`crate::pagemap`]). Nobody waits for anybody.
//!
//! ```text
//!  stopped member:  userfaultfd ─ UFFDIO_API ─ sleep a little ───────────── close     one batch, no descriptor stays behind
//!                                                   │
//!  we:                                         pidfd_getfd ─► WriteWatch              register mappings from outside
//! ```
//! When the last descriptor is closed, by us and whoever else has it, or because we died, the kernel unregisters everything and lifts the protection.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use linux_raw_sys::general as raw;
use nix::errno::Errno;
use nix::unistd::Pid;

use crate::batch::{Batch, Call};
use crate::error::{Error, Result, Subject};
use crate::inject::Live;
use crate::thread::Deadline;
use crate::{AddrRange, descriptor};

/// _IOWR(0xaa, 0x3f, struct uffdio_api).
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
/// _IOWR(0xaa, 0x00, struct uffdio_register).
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
/// _IOWR(0xaa, 0x06, struct uffdio_writeprotect).
const UFFDIO_WRITEPROTECT: libc::c_ulong = 0xc018_aa06;
/// UFFDIO_REGISTER_MODE_WP.
const MODE_WP: u64 = 1 << 1;
/// UFFDIO_WRITEPROTECT_MODE_DONTWAKE.
const DONT_WAKE: u64 = 1 << 1;

const FLAGS: u64 = (libc::O_CLOEXEC as u64) | raw::UFFD_USER_MODE_ONLY as u64;
const FEATURES: u64 = (raw::UFFD_FEATURE_WP_ASYNC | raw::UFFD_FEATURE_WP_UNPOPULATED) as u64;

/// How long the descriptor stays open in the member for us to take it; longer when we were not quick enough.
const OPEN_FOR: [Duration; 3] =
    [Duration::from_micros(500), Duration::from_millis(5), Duration::from_millis(50)];

/// A userfaultfd of a member's address space, in the asynchronous mode.
#[derive(Debug)]
pub struct WriteWatch {
    pid: Pid,
    fd: OwnedFd,
}

fn request() -> raw::uffdio_api {
    raw::uffdio_api { api: u64::from(raw::UFFD_API), features: FEATURES, ioctls: 0 }
}

/// Whether the kernel has it: tried on ourselves. Errors are answers here: `Err(errno)` says why not.
pub fn probe() -> std::result::Result<(), Errno> {
    open_here().map(drop)
}

/// One of this process itself.
fn open_here() -> std::result::Result<OwnedFd, Errno> {
    // SAFETY: takes flags only, gives a new descriptor or an error.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_userfaultfd, FLAGS) })?;
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
    let mut api = request();
    // SAFETY: api is a valid uffdio_api that outlives the call.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, &raw mut api) })?;
    Ok(fd)
}

impl WriteWatch {
    /// Makes one inside each of these prepared members ([`Live::prepare`]), side by side; they come in the same order. `None` where a member's
    /// seccomp filter, its limit of descriptors or the kernel's policy does not allow it: then its writes cannot be watched.
    ///
    /// Errors: those of running a batch; the members are as they were.
    pub fn create(members: &mut [&mut Live], deadline: Deadline) -> Result<Vec<Option<Self>>> {
        let mut made: Vec<Option<Self>> = members.iter().map(|_| None).collect();
        let mut late: Vec<usize> = (0..members.len()).collect();
        for time in OPEN_FOR {
            let mut openings = Vec::with_capacity(late.len());
            for place in std::mem::take(&mut late) {
                let opening = Opening::begin(members[place], time)?;
                openings.extend(opening.map(|opening| (place, opening)));
            }
            for (place, opening) in openings {
                match opening.end(members[place], deadline)? {
                    Attempt::Taken(watch) => made[place] = Some(watch),
                    Attempt::No => {}
                    Attempt::Late => late.push(place),
                }
            }
        }
        Ok(made)
    }

    /// One that another process has made and that was kept for us. `None`: it is no userfaultfd.
    #[must_use]
    pub fn of_owned(pid: Pid, fd: OwnedFd) -> Option<Self> {
        is_userfaultfd(fd.as_fd()).then_some(Self { pid, fd })
    }

    /// Watches a mapping; what is watched already stays as it is. Its pages count as written until they are armed.
    ///
    /// Errors: EBUSY if another userfaultfd has it, EINVAL if it cannot be watched, ENOENT if it is gone, ENOMEM if the process is.
    pub fn register(&self, range: AddrRange) -> Result<()> {
        let range = raw::uffdio_range { start: range.start.0, len: range.len() };
        let mut arg = raw::uffdio_register { range, mode: MODE_WP, ioctls: 0 };
        // SAFETY: arg is a valid uffdio_register that outlives the call.
        let done = unsafe { libc::ioctl(self.fd.as_raw_fd(), UFFDIO_REGISTER, &raw mut arg) };
        self.result("UFFDIO_REGISTER", range, done)
    }

    /// Makes every page of a watched range count as written, whatever bits a move of the mapping left behind (before Linux 6.13).
    pub fn forget(&self, range: AddrRange) -> Result<()> {
        let range = raw::uffdio_range { start: range.start.0, len: range.len() };
        let mut arg = raw::uffdio_writeprotect { range, mode: DONT_WAKE };
        // SAFETY: arg is a valid uffdio_writeprotect that outlives the call.
        let done = unsafe { libc::ioctl(self.fd.as_raw_fd(), UFFDIO_WRITEPROTECT, &raw mut arg) };
        self.result("UFFDIO_WRITEPROTECT", range, done)
    }

    fn result(&self, op: &'static str, range: raw::uffdio_range, done: libc::c_int) -> Result<()> {
        let subject = Subject::Memory(self.pid, crate::VirtAddr(range.start));
        Errno::result(done).map(drop).map_err(|source| Error::Kernel { op, subject, source })
    }
}

impl AsFd for WriteWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A batch that makes a userfaultfd in a member, which sleeps with it open for a moment; and what we took of it.
struct Opening {
    batch: Batch,
    made: Call,
    agreed: Call,
    taken: Option<OwnedFd>,
}

impl Opening {
    /// Sends the member to make it, and takes it. `None`: it is not possible there.
    fn begin(live: &mut Live, time: Duration) -> Result<Option<Self>> {
        let pid = live.pid();
        let number = lowest_free(pid)?;
        let mut batch = live.batch(0)?;
        let api = request();
        let words: Vec<u8> = [api.api, api.features, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
        let api_at = batch.data(&words).get();
        let span: Vec<u8> = [0, time.as_nanos() as u64].iter().flat_map(|word| word.to_le_bytes()).collect();
        let span_at = batch.data(&span).get();
        let sleep = [
            (libc::SYS_ppoll, [0, 0, span_at, 0, 0, 0]),
            (libc::SYS_nanosleep, [span_at, 0, 0, 0, 0, 0]),
            (libc::SYS_clock_nanosleep, [libc::CLOCK_MONOTONIC as u64, 0, span_at, 0, 0, 0]),
        ];
        let Some((sleep, sleep_args)) = sleep.into_iter().find(|(nr, args)| live.allows(*nr, args)) else {
            return Ok(None);
        };
        let make = [FLAGS, 0, 0, 0, 0, 0];
        let agree = [number as u64, UFFDIO_API, api_at, 0, 0, 0];
        let close = [number as u64, 0, 0, 0, 0, 0];
        let allowed = live.allows(libc::SYS_userfaultfd, &make)
            && live.allows(libc::SYS_ioctl, &agree)
            && live.allows(libc::SYS_close, &close);
        if !allowed {
            return Ok(None);
        }
        let made = batch.must(libc::SYS_userfaultfd, make);
        // Fails, and so ends the batch, if `number` is not what was just made: what is closed is ours.
        let agreed = batch.must(libc::SYS_ioctl, agree);
        batch.push(sleep, sleep_args);
        batch.push(libc::SYS_close, close);
        let process =
            descriptor::open_process(pid.as_raw()).map_err(|e| Error::task("pidfd_open", pid, e))?;
        live.begin_run(&[(0, &batch)])?;
        let taken = take(&process, number, time);
        Ok(Some(Self { batch, made, agreed, taken }))
    }

    /// Waits until the member is back.
    fn end(self, live: &mut Live, deadline: Deadline) -> Result<Attempt> {
        let pid = live.pid();
        let outcome = live.end_run(&[(0, &self.batch)], deadline)?;
        let outcome = outcome.first().ok_or(Error::Gone(pid))?;
        match (outcome.result(self.made), outcome.result(self.agreed), self.taken) {
            (Ok(_), Ok(_), Some(fd)) => Ok(Attempt::Taken(WriteWatch { pid, fd })),
            (Ok(_), Ok(_), None) => Ok(Attempt::Late),
            (Ok(at), Err(_), _) => {
                close_stray(live, at, deadline)?;
                Ok(Attempt::No)
            }
            _ => Ok(Attempt::No),
        }
    }
}

/// The kernel gave another number than the lowest free one, or does not know the mode: what was made is closed again.
fn close_stray(live: &mut Live, number: u64, deadline: Deadline) -> Result<()> {
    let mut batch = live.batch(0)?;
    let _: Call = batch.push(libc::SYS_close, [number, 0, 0, 0, 0, 0]);
    live.run(&[(0, &batch)], deadline).map(drop)
}

enum Attempt {
    Taken(WriteWatch),
    /// It is not possible there.
    No,
    /// It was closed before we took it.
    Late,
}

/// The number that the next descriptor made in a stopped process gets.
fn lowest_free(pid: Pid) -> Result<i32> {
    let path = format!("/proc/{pid}/fd");
    let entries = std::fs::read_dir(&path).map_err(|e| Error::io("list", path, &e))?;
    let mut numbers: Vec<i32> =
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    let free = numbers.iter().enumerate().find(|(place, number)| *place as i32 != **number);
    Ok(free.map_or(numbers.len(), |(place, _)| place) as i32)
}

fn is_userfaultfd(fd: BorrowedFd<'_>) -> bool {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    link.is_ok_and(|name| name.as_os_str() == "anon_inode:[userfaultfd]")
}

/// Takes the descriptor as soon as it is there.
fn take(process: &OwnedFd, number: i32, time: Duration) -> Option<OwnedFd> {
    const YIELDS: u32 = 100;
    let end = Deadline::after(time + Duration::from_millis(5));
    for turn in 0.. {
        if let Ok(fd) = descriptor::take(process.as_fd(), number)
            && is_userfaultfd(fd.as_fd())
        {
            return Some(fd);
        }
        if end.passed() {
            break;
        }
        match turn < YIELDS {
            true => std::thread::yield_now(),
            false => std::thread::sleep(Duration::from_micros(20)),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::VirtAddr;
    use crate::pagemap::{Pagemap, Span, Tracked, Wanted};

    const PAGE: u64 = 4096;
    const PAGES: u64 = 3000;

    /// What both ways of taking a census tell of a range.
    fn told(map: &mut Pagemap, range: AddrRange) -> [Tracked; 2] {
        [true, false].map(|watched| {
            let mut found = Tracked::default();
            map.census(&[Span { range, watched }]).unwrap().tracked(range, Wanted::Own, &mut found);
            found
        })
    }

    #[test]
    fn a_look_at_what_may_be_written_tells_the_same_as_one_at_every_page() {
        let watch = match open_here() {
            Ok(fd) => WriteWatch { pid: Pid::this(), fd },
            Err(e) => return eprintln!("skipped: no asynchronous write protection here: {e}"),
        };
        let len = (PAGES * PAGE) as usize;
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new private mapping at an address that the kernel chooses.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
        assert_ne!(base, libc::MAP_FAILED);
        let range = AddrRange::new(VirtAddr(base as u64), len as u64);
        let at = |page: u64| base.wrapping_byte_add((page * PAGE) as usize);
        let advise = |page, pages: u64, advice| {
            // SAFETY: advice on pages of the mapping just made, which nothing else uses.
            unsafe { libc::madvise(at(page), (pages * PAGE) as usize, advice) }
        };
        advise(0, PAGES, libc::MADV_NOHUGEPAGE);
        let mut map = Pagemap::open(Pid::this()).unwrap();
        let mut seed = 7_u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % below
        };
        let mut written = Vec::new();
        for step in 0..400 {
            if step == 20 {
                watch.register(range).unwrap();
            }
            for _ in 0..random(30) {
                let (page, pages) = (random(PAGES - 40), 1 + random(40));
                match random(6) {
                    // SAFETY: reads and writes inside the mapping, which nothing else uses.
                    0 => drop(unsafe { at(page).cast::<u8>().read_volatile() }),
                    1 => drop(advise(page, pages, libc::MADV_DONTNEED)),
                    // SAFETY: as above.
                    2 => (page..page + pages).for_each(|p| unsafe { at(p).cast::<u8>().write_volatile(1) }),
                    // SAFETY: as above.
                    _ => unsafe { at(page).cast::<u8>().write_volatile(2) },
                }
            }
            let [quick, slow] = told(&mut map, range);
            assert_eq!(quick, slow, "step {step}");
            assert!(step < 20 || !slow.unwatched);
            let bytes: u64 = slow.written.iter().map(AddrRange::len).sum();
            if step >= 20 {
                assert_eq!(map.written_bytes(range, Wanted::Own).unwrap(), bytes);
            }
            match random(3) {
                0 if step >= 20 => {
                    written.clear();
                    map.take_written(range, Wanted::Own, &mut written).unwrap();
                    assert_eq!(written, slow.written, "step {step}");
                }
                1 => map.arm_all(&slow.written, Wanted::Own).unwrap(),
                _ => continue,
            }
            let [quick, slow] = told(&mut map, range);
            assert_eq!(quick, slow, "armed, step {step}");
            assert!(step < 20 || slow.written.is_empty());
        }
        // SAFETY: the mapping just made, which nothing else uses.
        unsafe { libc::munmap(base, len) };
    }
}
