//! userfaultfd(2) for pages that are not there yet: whoever touches one waits until it is put there. Changes of the address space are told,
//! so that what is put where stays right (Linux 4.11; `UFFDIO_API`, `ioctl_userfaultfd`(2)).
//!
//! ```text
//!  member (being rebuilt):  userfaultfd ──────────────► close
//!                               │
//!  we:                      pidfd_getfd ─► Missing ─► register ranges ─► copy, zero, wake
//!                                             └ read: faults, fork, mremap, madvise, munmap   ([`crate::event_log`])
//! ```
//! While an event of a change waits to be read, nothing can be copied ([`Put::Changing`]): the kernel keeps the order right. When the last
//! descriptor is closed everything is unregistered: pages that are not there then read as zeros.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};

use linux_raw_sys::general as raw;
use nix::errno::Errno;

use crate::error::{Error, Result, Subject};
use crate::{AddrRange, VirtAddr};

/// _IOWR(0xaa, 0x3f, struct uffdio_api).
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
/// _IOWR(0xaa, 0x00, struct uffdio_register).
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
/// _IOR(0xaa, 0x02, struct uffdio_range).
const UFFDIO_WAKE: libc::c_ulong = 0x8010_aa02;
/// _IOWR(0xaa, 0x03, struct uffdio_copy).
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
/// _IOWR(0xaa, 0x04, struct uffdio_zeropage).
const UFFDIO_ZEROPAGE: libc::c_ulong = 0xc020_aa04;

const FEATURES: u64 = (raw::UFFD_FEATURE_EVENT_FORK
    | raw::UFFD_FEATURE_EVENT_REMAP
    | raw::UFFD_FEATURE_EVENT_REMOVE
    | raw::UFFD_FEATURE_EVENT_UNMAP) as u64;

/// The flags with which a process makes one for itself. Without UFFD_USER_MODE_ONLY: the kernel, too, waits for pages that it touches
/// for the process, in read(2) for example. That needs CAP_SYS_PTRACE.
pub const FLAGS: u64 = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64;

/// A userfaultfd of a process's address space, which tells missing pages and all changes.
///
/// It stays open when this is dropped, until [`Missing::close`] or the end of the process: processes that share their descriptors
/// share it, and none may close it for the others by mistake.
#[derive(Debug, Clone, Copy)]
pub struct Missing {
    fd: RawFd,
}

/// How far putting pages came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// All of it is there.
    Done,
    /// So many bytes; then comes a page that is there already. Whoever waited for it has been woken.
    Present(u64),
    /// So many bytes; then the process changes its address space: read what it tells, then try again.
    Changing(u64),
    /// So many bytes; what follows is no registered range, or reaches past one.
    Elsewhere(u64),
    /// The process is gone.
    Gone,
}

impl Missing {
    /// Agrees with the kernel on the events. `fd` is fresh from userfaultfd(2), made with [`FLAGS`] by the process whose memory it is.
    /// EPERM without CAP_SYS_PTRACE, EINVAL where the kernel lacks an event.
    pub fn agree(fd: OwnedFd) -> Result<Self> {
        let mut api = raw::uffdio_api { api: u64::from(raw::UFFD_API), features: FEATURES, ioctls: 0 };
        // SAFETY: api is a valid uffdio_api that outlives the call.
        let done = unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, &raw mut api) };
        Errno::result(done).map_err(|source| Error::Kernel {
            op: "UFFDIO_API",
            subject: Subject::Here,
            source,
        })?;
        Ok(Self { fd: fd.into_raw_fd() })
    }

    /// One that has been agreed upon: a child's, as its parent's was, that a fork event brought, or one of another process.
    #[must_use]
    pub fn of_number(fd: RawFd) -> Self {
        Self { fd }
    }

    /// The same; it stays open.
    #[must_use]
    pub fn of_owned(fd: OwnedFd) -> Self {
        Self { fd: fd.into_raw_fd() }
    }

    /// Its number here.
    #[must_use]
    pub fn number(&self) -> RawFd {
        self.fd
    }

    /// Closes it.
    pub fn close(self) {
        // SAFETY: no pointers; whoever has a copy of this gets EBADF.
        unsafe { libc::close(self.fd) };
    }

    /// Pages of the range that are not there are waited for from now on. It must be anonymous and private.
    /// Errors: EINVAL, EBUSY if another userfaultfd has it, ENOMEM.
    pub fn register(&self, range: AddrRange) -> Result<()> {
        let mode = u64::from(raw::UFFDIO_REGISTER_MODE_MISSING);
        let mut arg = raw::uffdio_register { range: span(range), mode, ioctls: 0 };
        // SAFETY: arg is a valid uffdio_register that outlives the call.
        let done = unsafe { libc::ioctl(self.fd, UFFDIO_REGISTER, &raw mut arg) };
        Errno::result(done).map(drop).map_err(|source| fail("UFFDIO_REGISTER", range.start, source))
    }

    /// Puts pages there, as long as none of them is there already, and wakes who waits for them. `bytes` are whole pages.
    /// Errors: ENOMEM and the like.
    pub fn copy(&self, to: VirtAddr, bytes: &[u8]) -> Result<Put> {
        let len = bytes.len() as u64;
        let mut arg = raw::uffdio_copy { dst: to.0, src: bytes.as_ptr() as u64, len, mode: 0, copy: 0 };
        // SAFETY: the kernel reads `len` bytes of the slice and writes to the member's memory only; arg outlives the call.
        let done = unsafe { libc::ioctl(self.fd, UFFDIO_COPY, &raw mut arg) };
        self.put("UFFDIO_COPY", AddrRange::new(to, len), done, arg.copy)
    }

    /// Puts pages of zeros there, as long as none of them is there already, and wakes who waits for them.
    pub fn zero(&self, range: AddrRange) -> Result<Put> {
        let mut arg = raw::uffdio_zeropage { range: span(range), mode: 0, zeropage: 0 };
        // SAFETY: arg is a valid uffdio_zeropage that outlives the call.
        let done = unsafe { libc::ioctl(self.fd, UFFDIO_ZEROPAGE, &raw mut arg) };
        self.put("UFFDIO_ZEROPAGE", range, done, arg.zeropage)
    }

    fn put(&self, op: &'static str, range: AddrRange, done: libc::c_int, came: i64) -> Result<Put> {
        let Err(errno) = Errno::result(done) else { return Ok(Put::Done) };
        let before = came.max(0) as u64;
        let why = if came < 0 { Errno::from_raw(-came as i32) } else { errno };
        match why {
            // Part of it was done: the next call tells why no more.
            Errno::EAGAIN => Ok(Put::Changing(before)),
            Errno::EEXIST => {
                self.wake(AddrRange::new(range.start.add(before), PAGE))?;
                Ok(Put::Present(before))
            }
            Errno::ENOENT => Ok(Put::Elsewhere(before)),
            Errno::ESRCH => Ok(Put::Gone),
            source => Err(fail(op, range.start, source)),
        }
    }

    /// Lets who waits for pages of the range look again.
    pub fn wake(&self, range: AddrRange) -> Result<()> {
        let mut arg = span(range);
        // SAFETY: arg is a valid uffdio_range that outlives the call.
        let done = unsafe { libc::ioctl(self.fd, UFFDIO_WAKE, &raw mut arg) };
        Errno::result(done).map(drop).map_err(|source| fail("UFFDIO_WAKE", range.start, source))
    }
}

impl AsFd for Missing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: it is open as long as the process that agreed on it does not close it, which ends all use of it.
        unsafe { BorrowedFd::borrow_raw(self.fd) }
    }
}

const PAGE: u64 = 4096;

fn span(range: AddrRange) -> raw::uffdio_range {
    raw::uffdio_range { start: range.start.0, len: range.len() }
}

fn fail(op: &'static str, at: VirtAddr, source: Errno) -> Error {
    Error::Kernel { op, subject: Subject::Memory(nix::unistd::Pid::from_raw(0), at), source }
}
