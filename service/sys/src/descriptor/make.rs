//! Making descriptions that are not sockets: eventfd, epoll, timerfd, signalfd, inotify, locks, offsets.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;

use super::{Result, owned};

/// eventfd(2) with a counter of any size. Errors: those of eventfd2 and write.
pub fn eventfd(count: u64, semaphore: bool) -> Result<OwnedFd> {
    let flags = libc::EFD_CLOEXEC | if semaphore { libc::EFD_SEMAPHORE } else { 0 };
    let small = u32::try_from(count).unwrap_or(0);
    // SAFETY: takes integers.
    let fd = owned(unsafe { libc::eventfd(small, flags) }.into())?;
    if count > u64::from(u32::MAX) {
        nix::unistd::write(&fd, &count.to_ne_bytes())?;
    }
    Ok(fd)
}

/// epoll_create1(2).
pub fn epoll() -> Result<OwnedFd> {
    // SAFETY: takes an integer.
    owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }.into())
}

/// epoll_ctl(2) EPOLL_CTL_ADD of whatever is at number `fd` of our table. Errors: EBADF, EEXIST, EPERM, ELOOP.
pub fn epoll_add(epoll: BorrowedFd<'_>, fd: RawFd, events: u32, data: u64) -> Result<()> {
    let mut event = libc::epoll_event { events, u64: data };
    // SAFETY: event outlives the call; a bad number is EBADF.
    let result = unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) };
    Errno::result(result).map(drop)
}

/// Takes one ready event, if there is one, without waiting: its bits and data.
pub fn epoll_take(epoll: BorrowedFd<'_>) -> Result<Option<(u32, u64)>> {
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    // SAFETY: room for one event, which outlives the call.
    let n = Errno::result(unsafe { libc::epoll_wait(epoll.as_raw_fd(), &raw mut event, 1, 0) })?;
    Ok((n == 1).then_some((event.events, event.u64)))
}

/// timerfd_create(2). Errors: EPERM for alarm clocks without CAP_WAKE_ALARM, EINVAL.
pub fn timerfd(clock: i32) -> Result<OwnedFd> {
    // SAFETY: takes integers.
    owned(unsafe { libc::timerfd_create(clock, libc::TFD_CLOEXEC) }.into())
}

fn timespec(ns: u64) -> libc::timespec {
    libc::timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as i64 }
}

/// timerfd_settime(2), nanoseconds; `value` is absolute where `flags` has TFD_TIMER_ABSTIME.
pub fn timerfd_set(timer: BorrowedFd<'_>, flags: u32, value: u64, interval: u64) -> Result<()> {
    let setting = libc::itimerspec { it_value: timespec(value), it_interval: timespec(interval) };
    // SAFETY: setting outlives the call; the old setting is not asked for.
    let result = unsafe {
        libc::timerfd_settime(timer.as_raw_fd(), flags as i32, &raw const setting, std::ptr::null_mut())
    };
    Errno::result(result).map(drop)
}

/// Sets the expirations not read yet (TFD_IOC_SET_TICKS, Linux 3.17). Errors: ENOTTY on kernels without CONFIG_CHECKPOINT_RESTORE,
/// EINVAL for 0.
pub fn timerfd_set_ticks(timer: BorrowedFd<'_>, ticks: u64) -> Result<()> {
    const TFD_IOC_SET_TICKS: libc::c_ulong = 0x4008_5400;
    // SAFETY: the ioctl reads eight bytes, which outlive the call.
    let result = unsafe { libc::ioctl(timer.as_raw_fd(), TFD_IOC_SET_TICKS, &raw const ticks) };
    Errno::result(result).map(drop)
}

/// signalfd(2) for a mask (bit n-1 is signal n).
pub fn signalfd(mask: u64) -> Result<OwnedFd> {
    // SAFETY: the mask is eight bytes, as told, and outlives the call.
    owned(unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const mask, 8, libc::SFD_CLOEXEC) })
}

/// inotify_init1(2), not blocking.
pub fn inotify() -> Result<OwnedFd> {
    // SAFETY: takes an integer.
    owned(unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) }.into())
}

/// inotify_add_watch(2): the watch descriptor.
pub fn inotify_add(inotify: BorrowedFd<'_>, path: &CStr, mask: u32) -> Result<i32> {
    // SAFETY: path is a C string that outlives the call.
    Errno::result(unsafe { libc::inotify_add_watch(inotify.as_raw_fd(), path.as_ptr(), mask) })
}

/// inotify_rm_watch(2).
pub fn inotify_remove(inotify: BorrowedFd<'_>, wd: i32) -> Result<()> {
    // SAFETY: takes integers.
    Errno::result(unsafe { libc::inotify_rm_watch(inotify.as_raw_fd(), wd) }).map(drop)
}

/// fanotify_init(2), not blocking.
pub fn fanotify(flags: u32, event_flags: u32) -> Result<OwnedFd> {
    let flags = flags | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK;
    // SAFETY: takes integers.
    owned(unsafe { libc::fanotify_init(flags, event_flags) }.into())
}

/// fanotify_mark(2) of a path.
pub fn fanotify_mark(fanotify: &OwnedFd, flags: u32, mask: u64, path: &CStr) -> Result<()> {
    // SAFETY: path is a C string that outlives the call.
    let ret =
        unsafe { libc::fanotify_mark(fanotify.as_raw_fd(), flags, mask, libc::AT_FDCWD, path.as_ptr()) };
    Errno::result(ret).map(drop)
}

/// Takes what waits to be read, with the descriptors that come with it. Never waits, whatever the descriptor's flags.
pub fn fanotify_drain(fanotify: BorrowedFd<'_>) -> Result<()> {
    let mut buffer = [0u8; 8192];
    while super::socket::readable(fanotify)? > 0 {
        let read = nix::unistd::read(fanotify, &mut buffer)?;
        let mut rest = &buffer[..read];
        // struct fanotify_event_metadata: length, version, mask at 8, descriptor at 16, pid.
        while rest.len() >= 24 {
            let word = |at: usize| i32::from_ne_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
            let (len, fd) = (word(0), word(16));
            if fd >= 0 {
                let _ = nix::unistd::close(fd);
            }
            rest = rest.get((len.max(24) as usize)..).unwrap_or(&[]);
        }
    }
    Ok(())
}

/// flock(2), not waiting: LOCK_SH, LOCK_EX. Errors: EWOULDBLOCK.
pub fn flock(fd: BorrowedFd<'_>, operation: i32) -> Result<()> {
    // SAFETY: takes integers.
    Errno::result(unsafe { libc::flock(fd.as_raw_fd(), operation | libc::LOCK_NB) }).map(drop)
}

/// struct flock as its bytes, for fcntl(2) F_SETLK in a member and F_OFD_SETLK here. `kind` is F_RDLCK or F_WRLCK.
pub fn flock_bytes(kind: i32, start: u64, len: u64) -> [u8; 32] {
    // short type, short whence, (pad), off_t start, off_t len, pid_t, (pad): x86_64.
    let mut bytes = [0; 32];
    bytes[0..2].copy_from_slice(&(kind as i16).to_ne_bytes());
    bytes[2..4].copy_from_slice(&(libc::SEEK_SET as i16).to_ne_bytes());
    bytes[8..16].copy_from_slice(&start.to_ne_bytes());
    bytes[16..24].copy_from_slice(&len.to_ne_bytes());
    bytes
}

/// fcntl(2) F_OFD_SETLK (Linux 3.15), not waiting. Errors: EAGAIN, EBADF by the access mode.
pub fn ofd_lock(fd: BorrowedFd<'_>, kind: i32, start: u64, len: u64) -> Result<()> {
    let bytes = flock_bytes(kind, start, len);
    // SAFETY: bytes is a struct flock (the test holds the layout to libc's) and outlives the call.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, bytes.as_ptr()) }).map(drop)
}

/// fcntl(2) F_SETFL.
pub fn set_status(fd: BorrowedFd<'_>, flags: u32) -> Result<()> {
    // SAFETY: takes integers.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags) }).map(drop)
}

/// fcntl(2) F_GETFL.
pub fn status(fd: BorrowedFd<'_>) -> Result<u32> {
    // SAFETY: takes integers.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) }).map(|flags| flags as u32)
}

/// fcntl(2) F_GETOWN_EX and F_GETSIG: kind, id, signal; `None` where nobody is told. Ids are those of our PID namespace.
pub fn owner(fd: BorrowedFd<'_>) -> Result<Option<(i32, i32, i32)>> {
    const F_GETSIG: i32 = 11;
    const F_GETOWN_EX: i32 = 16;
    let mut owner = [0i32; 2];
    // SAFETY: struct f_owner_ex is two ints, which outlive the call; F_GETSIG takes integers.
    let signal = unsafe {
        Errno::result(libc::fcntl(fd.as_raw_fd(), F_GETOWN_EX, owner.as_mut_ptr()))?;
        Errno::result(libc::fcntl(fd.as_raw_fd(), F_GETSIG))?
    };
    Ok((owner[1] != 0).then_some((owner[0], owner[1], signal)))
}

/// fcntl(2) F_GETPIPE_SZ.
pub fn pipe_capacity(fd: BorrowedFd<'_>) -> Result<u32> {
    // SAFETY: takes integers.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETPIPE_SZ) }).map(|n| n as u32)
}

/// fcntl(2) F_SETPIPE_SZ. Errors: EPERM past the limit, EBUSY if more lies in it.
pub fn set_pipe_capacity(fd: BorrowedFd<'_>, bytes: u32) -> Result<()> {
    // SAFETY: takes integers.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETPIPE_SZ, bytes) }).map(drop)
}

/// Reading of a clock, nanoseconds.
pub fn clock(id: i32) -> Result<u64> {
    let now = nix::time::clock_gettime(nix::time::ClockId::from_raw(id))?;
    Ok(Duration::from(now).as_nanos() as u64)
}

/// What kind of lease is held through a descriptor, or is to be left of it if it is being broken: F_RDLCK, F_WRLCK, F_UNLCK
/// (fcntl(2), F_GETLEASE).
pub fn lease(fd: BorrowedFd<'_>) -> Result<i32> {
    // SAFETY: no memory is passed.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETLEASE) })
}

/// A pidfd of a process that has ended and was waited for.
pub fn pidfd_gone() -> Result<OwnedFd> {
    let mut pidfd: RawFd = -1;
    let mut args = [0u64; 8]; // struct clone_args of Linux 5.3
    args[0] = libc::CLONE_PIDFD as u64 | libc::CLONE_VFORK as u64;
    args[1] = &raw mut pidfd as u64;
    // SAFETY: args and pidfd outlive the call. The child has memory of its own and ends by the next system call, and since it has no exit
    // signal only a wait with __WALL meets it.
    let pid = unsafe {
        let pid = libc::syscall(libc::SYS_clone3, args.as_ptr(), size_of_val(&args));
        if pid == 0 {
            libc::_exit(0);
        }
        Errno::result(pid)?
    };
    let pidfd = owned(pidfd.into())?;
    nix::sys::wait::waitpid(
        nix::unistd::Pid::from_raw(pid as i32),
        Some(nix::sys::wait::WaitPidFlag::__WALL),
    )?;
    Ok(pidfd)
}

/// Opens a file by its handle below a mount that `mount` lies on (open_by_handle_at(2), O_PATH). Errors: ESTALE if it is gone.
pub fn open_handle(mount: BorrowedFd<'_>, kind: i32, bytes: &[u8]) -> Result<OwnedFd> {
    let mut handle = Vec::with_capacity(8 + bytes.len());
    handle.extend_from_slice(&(bytes.len() as u32).to_ne_bytes());
    handle.extend_from_slice(&kind.to_ne_bytes());
    handle.extend_from_slice(bytes);
    // SAFETY: handle is a struct file_handle: its length says how many bytes follow, and it outlives the call. The kernel
    // reads it unaligned (copy_from_user).
    owned(unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_raw_fd(),
            handle.as_ptr(),
            libc::O_PATH | libc::O_CLOEXEC,
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn the_bytes_of_a_lock_are_those_of_libc() {
        // SAFETY: struct flock is plain data.
        let lock: libc::flock =
            unsafe { std::mem::transmute(flock_bytes(libc::F_WRLCK, 0x1122334455, 0x66778899)) };
        assert_eq!(i32::from(lock.l_type), libc::F_WRLCK);
        assert_eq!(i32::from(lock.l_whence), libc::SEEK_SET);
        assert_eq!((lock.l_start, lock.l_len, lock.l_pid), (0x1122334455, 0x66778899, 0));
    }

    #[test]
    fn a_counter_beyond_32_bits_survives() {
        let fd = eventfd(1 << 40, false).unwrap();
        let mut bytes = [0; 8];
        nix::unistd::read(&fd, &mut bytes).unwrap();
        assert_eq!(u64::from_ne_bytes(bytes), 1 << 40);
    }

    #[test]
    fn ticks_of_a_timer_can_be_set_or_the_kernel_says_no() {
        let fd = timerfd(libc::CLOCK_MONOTONIC).unwrap();
        match timerfd_set_ticks(fd.as_fd(), 3) {
            Ok(()) => {
                let mut bytes = [0; 8];
                nix::unistd::read(&fd, &mut bytes).unwrap();
                assert_eq!(u64::from_ne_bytes(bytes), 3);
            }
            Err(e) => assert_eq!(e, Errno::ENOTTY),
        }
    }
}
