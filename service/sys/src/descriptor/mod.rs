//! Open file descriptions of other processes: taking them (pidfd_getfd), telling which are the same (kcmp), what the kernel
//! says of them (fdinfo, sock_diag), and the calls that make them again.
//!
//! Nothing here is injected: a duplicate taken with `pidfd_getfd` is the same description, so getsockopt(2), MSG_PEEK or
//! tee(2) on it tell all there is. Needs ptrace access to the process (PTRACE_MODE_ATTACH_REALCREDS).

pub mod diag;
pub mod fdinfo;
pub mod lingering;
pub mod make;
pub mod message;
pub mod socket;
pub mod tcp_diag;
mod tentative;
pub mod terminal;

use std::cmp::Ordering;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::CloneFlags;
use nix::sys::stat::Mode;

use crate::namespace::aside;

/// The result of a call on a descriptor; the caller knows the subject.
pub type Result<T> = std::result::Result<T, Errno>;

const KCMP_FILE: libc::c_int = 0;
const KCMP_FILES: libc::c_int = 2;
const KCMP_EPOLL_TFD: libc::c_int = 7;

/// A descriptor by its number in the table of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place {
    /// The process.
    pub pid: i32,
    /// The number.
    pub fd: RawFd,
}

/// Turns the result of a call that makes a descriptor into one.
pub(crate) fn owned(result: i64) -> Result<OwnedFd> {
    let fd = Errno::result(result)?;
    // SAFETY: the kernel has just made this descriptor for us and nothing else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// A pidfd of a process (pidfd_open(2), Linux 5.3). Errors: ESRCH.
pub fn open_process(pid: i32) -> Result<OwnedFd> {
    let open = |flags: libc::c_int| {
        // SAFETY: takes two integers.
        owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, flags) })
    };
    open(0).or_else(|e| match e {
        // A thread of a process whose leader has ended: ENOENT, before Linux 6.9 EINVAL. PIDFD_THREAD is O_EXCL.
        Errno::ENOENT | Errno::EINVAL => open(libc::O_EXCL),
        e => Err(e),
    })
}

/// A duplicate, with FD_CLOEXEC, of descriptor `fd` of the process (pidfd_getfd(2), Linux 5.6). Errors: EBADF, EPERM, ESRCH.
pub fn take(process: BorrowedFd<'_>, fd: RawFd) -> Result<OwnedFd> {
    // SAFETY: takes three integers.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) })
}

fn kcmp(a: i32, b: i32, what: libc::c_int, x: usize, y: usize) -> Result<Ordering> {
    // SAFETY: kcmp(2) only reads; for KCMP_EPOLL_TFD `y` points to a kcmp_epoll_slot that outlives the call.
    match Errno::result(unsafe { libc::syscall(libc::SYS_kcmp, a, b, what, x, y) })? {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        _ => Err(Errno::EINVAL),
    }
}

/// The order of two open file descriptions, `Equal` if they are one (kcmp(2), KCMP_FILE): total among all that are open, so
/// that equal ones are found by binary search. Errors: EBADF, ESRCH, EPERM.
pub fn compare(a: Place, b: Place) -> Result<Ordering> {
    kcmp(a.pid, b.pid, KCMP_FILE, a.fd as usize, b.fd as usize)
}

/// The order of the descriptor tables of two processes, `Equal` if they share one (CLONE_FILES). Errors: ESRCH, EPERM.
pub fn compare_tables(a: i32, b: i32) -> Result<Ordering> {
    kcmp(a, b, KCMP_FILES, 0, 0)
}

#[repr(C)]
struct EpollSlot {
    efd: u32,
    tfd: u32,
    toff: u32,
}

/// Whether `candidate` is the description that item number `nth` with target number `target` of an epoll instance is for
/// (kcmp(2), KCMP_EPOLL_TFD, Linux 4.13). Errors: ENOENT if there is no such item, EBADF.
pub fn is_epoll_target(epoll: Place, target: RawFd, nth: u32, candidate: Place) -> Result<bool> {
    let slot = EpollSlot { efd: epoll.fd as u32, tfd: target as u32, toff: nth };
    let order =
        kcmp(candidate.pid, epoll.pid, KCMP_EPOLL_TFD, candidate.fd as usize, (&raw const slot) as usize)?;
    Ok(order.is_eq())
}

/// A duplicate with FD_CLOEXEC at the lowest free number that is not below `floor`. Errors: EMFILE, EINVAL past RLIMIT_NOFILE.
pub fn duplicate_above(fd: BorrowedFd<'_>, floor: RawFd) -> Result<OwnedFd> {
    // SAFETY: takes integers.
    owned(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, floor) }.into())
}

/// Runs `work` while `fd` is at `number` too; what was there before is put back after it. Only for processes with one thread, or where
/// no other uses that number. Errors: EBADF past RLIMIT_NOFILE, or those of `work`.
pub fn at_number<T>(fd: BorrowedFd<'_>, number: RawFd, work: impl FnOnce() -> Result<T>) -> Result<T> {
    if fd.as_raw_fd() == number {
        return work();
    }
    // SAFETY: takes integers; a number that is not open is EBADF.
    let flags = Errno::result(unsafe { libc::fcntl(number, libc::F_GETFD) });
    let before = match flags {
        // SAFETY: takes integers.
        Ok(flags) => Some((owned(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 0) }.into())?, flags)),
        Err(_) => None,
    };
    // SAFETY: what is at the number is kept in `before` and nobody uses it until it is back, as the caller promises.
    Errno::result(unsafe { libc::dup3(fd.as_raw_fd(), number, libc::O_CLOEXEC) })?;
    let result = work();
    match before {
        Some((before, flags)) => {
            let cloexec = if flags & libc::FD_CLOEXEC != 0 { libc::O_CLOEXEC } else { 0 };
            // SAFETY: puts back what was there.
            Errno::result(unsafe { libc::dup3(before.as_raw_fd(), number, cloexec) })?;
        }
        // SAFETY: the number is the duplicate made above, which nobody owns.
        None => Errno::result(unsafe { libc::close(number) }).map(drop)?,
    }
    result
}

/// Our own descriptors as a directory (/proc/self/fd), which opens them anew in any mount namespace.
#[derive(Debug)]
pub struct OwnDescriptors(OwnedFd);

impl OwnDescriptors {
    /// Opens the directory at a number not below `floor`. Errors: ENOENT where /proc is not there.
    pub fn open(floor: RawFd) -> Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = nix::fcntl::open("/proc/self/fd", flags, Mode::empty())?;
        duplicate_above(directory.as_fd(), floor).map(Self)
    }

    /// A new description of the file under a descriptor, with flags of open(2) and O_CLOEXEC.
    pub fn reopen(&self, fd: BorrowedFd<'_>, flags: i32) -> Result<OwnedFd> {
        let name = fd.as_raw_fd().to_string();
        let flags = OFlag::from_bits_retain(flags) | OFlag::O_CLOEXEC;
        nix::fcntl::openat(&self.0, name.as_str(), flags, Mode::empty())
    }
}

/// A duplicate of one of our own descriptors by number; for tests and tools that look at themselves. Errors: EBADF.
pub fn take_own(fd: RawFd) -> Result<OwnedFd> {
    // SAFETY: takes integers; a bad number is EBADF.
    owned(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) }.into())
}

/// Runs `work` in another network namespace: [`aside`]. What sockets it makes stay there. Errors: EPERM.
pub fn in_net_namespace<T: Send>(
    namespace: BorrowedFd<'_>,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    aside(namespace, CloneFlags::CLONE_NEWNET, work)?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(fd: &impl AsFd) -> Place {
        Place { pid: std::process::id() as i32, fd: fd.as_fd().as_raw_fd() }
    }

    #[test]
    fn a_duplicate_is_the_same_description_and_the_order_is_total() {
        let files: Vec<_> = (0..8).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        let copy = files[3].try_clone().unwrap();
        assert!(compare(own(&files[3]), own(&copy)).unwrap().is_eq());
        let mut sorted: Vec<_> = files.iter().collect();
        sorted.sort_by(|a, b| compare(own(*a), own(*b)).unwrap());
        for (i, a) in sorted.iter().enumerate() {
            for (j, b) in sorted.iter().enumerate() {
                assert_eq!(compare(own(*a), own(*b)).unwrap(), i.cmp(&j));
            }
        }
    }

    #[test]
    fn the_target_of_an_epoll_item_is_told_apart_from_another_description() {
        let epoll = make::epoll().unwrap();
        let a = make::eventfd(0, false).unwrap();
        let b = make::eventfd(0, false).unwrap();
        make::epoll_add(epoll.as_fd(), a.as_raw_fd(), 1, 7).unwrap();
        assert!(is_epoll_target(own(&epoll), a.as_raw_fd(), 0, own(&a)).unwrap());
        assert!(!is_epoll_target(own(&epoll), a.as_raw_fd(), 0, own(&b)).unwrap());
        assert_eq!(is_epoll_target(own(&epoll), b.as_raw_fd(), 0, own(&b)), Err(Errno::ENOENT));
    }

    #[test]
    fn what_was_at_a_number_comes_back() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let zero = std::fs::File::open("/dev/zero").unwrap();
        let number = null.as_raw_fd();
        let here =
            |name: &str| std::fs::read_link(format!("/proc/self/fd/{number}")).unwrap().ends_with(name);
        let inside = at_number(zero.as_fd(), number, || Ok(here("zero"))).unwrap();
        assert!(inside && here("null"));
        assert!(at_number(zero.as_fd(), 777, || take_own(777)).is_ok());
        assert_eq!(take_own(777).map(drop), Err(Errno::EBADF));
    }

    #[test]
    fn a_descriptor_of_a_process_is_taken_by_its_pidfd() {
        let process = open_process(std::process::id() as i32).unwrap();
        let file = std::fs::File::open("/dev/zero").unwrap();
        let taken = take(process.as_fd(), file.as_raw_fd()).unwrap();
        assert!(compare(own(&file), own(&taken)).unwrap().is_eq());
    }
}
