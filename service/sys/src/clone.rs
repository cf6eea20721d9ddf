//! clone3(2): processes with chosen ids, born stopped.

use std::arch::asm;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::unistd::Pid;

use crate::error::{Error, Result};

/// CLONE_CLEAR_SIGHAND: all handlers are SIG_DFL in the child. Linux 5.5.
pub const CLEAR_SIGHAND: u64 = 0x1_0000_0000;
/// CLONE_INTO_CGROUP: the child is born in the cgroup of [`CloneArgs::cgroup`]. Linux 5.7.
pub const INTO_CGROUP: u64 = 0x2_0000_0000;
/// CLONE_NEWPID.
pub const NEW_PID: u64 = libc::CLONE_NEWPID as u64;

/// Flags of a thread as pthread_create(3) makes it, without what it stores in user memory.
pub const THREAD: u64 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM) as u64;

/// The arguments of clone3(2) that are used here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CloneArgs {
    /// CLONE_* flags; INTO_CGROUP is added where `cgroup` is set.
    pub flags: u64,
    /// The signal its parent gets when it ends. Must be 0 with CLONE_THREAD and CLONE_PARENT.
    pub exit_signal: i32,
    /// Its id in the innermost PID namespace; `None` leaves it to the kernel. Needs CAP_CHECKPOINT_RESTORE. Linux 5.5.
    pub pid: Option<i32>,
    /// Its id in the PID namespace around that one, where `pid` is set; `None` leaves it to the kernel.
    pub outer: Option<i32>,
    /// Descriptor, in the caller, of the cgroup directory it is born in.
    pub cgroup: Option<RawFd>,
}

/// sizeof(struct clone_args), CLONE_ARGS_SIZE_VER2.
pub const CLONE_ARGS_SIZE: usize = 88;

impl CloneArgs {
    /// The ids that it is to have, for clone3(2) to read: in the innermost PID namespace, and in that around it.
    #[must_use]
    pub fn ids(&self) -> [i32; 2] {
        [self.pid.unwrap_or(0), self.outer.unwrap_or(0)]
    }

    /// struct clone_args as it lies in the memory of the process that calls clone3(2); `set_tid` is the address, there, of
    /// [`CloneArgs::ids`].
    #[must_use]
    pub fn encode(&self, set_tid: u64) -> [u8; CLONE_ARGS_SIZE] {
        let into = if self.cgroup.is_some() { INTO_CGROUP } else { 0 };
        let tids = u64::from(self.pid.is_some()) + u64::from(self.pid.and(self.outer).is_some());
        let tid = if tids > 0 { set_tid } else { 0 };
        // flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup
        let cgroup = self.cgroup.map_or(0, |fd| fd as u64);
        let words = [self.flags | into, 0, 0, 0, self.exit_signal as u64, 0, 0, 0, tid, tids, cgroup];
        let mut out = [0; CLONE_ARGS_SIZE];
        for (place, word) in out.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        out
    }
}

/// Makes a copy of this process that does nothing but wait in pause(2), to be traced by PTRACE_SEIZE. It is killed if this
/// thread ends before (prctl(2), PR_SET_PDEATHSIG). Its memory is a copy, so CLONE_VM is not for here.
///
/// Errors: those of clone3(2): EEXIST, the id is taken; EINVAL with CLONE_VM; EBUSY or ENOENT of the cgroup.
pub fn clone_paused(args: &CloneArgs) -> Result<Pid> {
    if args.flags & libc::CLONE_VM as u64 != 0 {
        return Err(Error::task("clone3", Pid::this(), Errno::EINVAL));
    }
    let ids = args.ids();
    let raw = args.encode(&raw const ids as u64);
    let ret: i64;
    // SAFETY: raw and ids outlive the call and are only read. Without CLONE_VM the child has a copy of this stack; it never leaves
    // this block: it makes two system calls that touch no memory and then waits for ever.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 3f",
            "mov eax, 157", // prctl(PR_SET_PDEATHSIG, SIGKILL)
            "mov edi, 1",
            "mov esi, 9",
            "syscall",
            "2:",
            "mov eax, 34", // pause()
            "syscall",
            "jmp 2b",
            "3:",
            inlateout("rax") libc::SYS_clone3 => ret,
            in("rdi") raw.as_ptr(),
            in("rsi") CLONE_ARGS_SIZE,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    if ret < 0 {
        return Err(Error::task("clone3", Pid::from_raw(ids[0]), Errno::from_raw(-ret as i32)));
    }
    Ok(Pid::from_raw(ret as i32))
}

/// What happens in a fork of this process: `child` runs there, and its result is the exit status.
///
/// The process must have one thread only, else the child may meet locks that nobody opens. Errors: EAGAIN where there is a
/// second thread; those of clone3(2).
pub fn fork_with(args: &CloneArgs, child: impl FnOnce() -> i32) -> Result<Pid> {
    let threads =
        std::fs::read_dir("/proc/self/task").map_err(|e| Error::io("open", "/proc/self/task", &e))?;
    if threads.count() != 1 || args.flags & libc::CLONE_VM as u64 != 0 {
        return Err(Error::task("clone3", Pid::this(), Errno::EAGAIN));
    }
    let ids = args.ids();
    let raw = args.encode(&raw const ids as u64);
    // SAFETY: raw and ids outlive the call. Without CLONE_VM the child has a copy of everything, and with one thread no lock is
    // held by a thread that the copy lacks; it leaves by _exit and never returns into the caller.
    unsafe {
        let ret = libc::syscall(libc::SYS_clone3, raw.as_ptr(), CLONE_ARGS_SIZE);
        if ret == 0 {
            let status = child();
            libc::_exit(status);
        }
        Errno::result(ret)
            .map(|pid| Pid::from_raw(pid as i32))
            .map_err(|e| Error::task("clone3", Pid::this(), e))
    }
}

/// In a child that [`fork_with`] made: closes all descriptors but those given and 0, 1, 2 (close_range(2), Linux 5.9). What the child
/// inherited otherwise must not be used any more; its owners in the child are never dropped, for it leaves by _exit.
pub fn close_all_but(keep: &[BorrowedFd<'_>]) -> Result<()> {
    let mut keep: Vec<u32> = keep.iter().map(|fd| fd.as_raw_fd() as u32).filter(|fd| *fd > 2).collect();
    keep.sort_unstable();
    let mut first = 3;
    for fd in keep.into_iter().chain([u32::MAX]) {
        if fd > first {
            let last = if fd == u32::MAX { fd } else { fd - 1 };
            // SAFETY: no pointers. The descriptors that are closed have no user: see above.
            let ret = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
            Errno::result(ret).map_err(|e| Error::task("close_range", Pid::this(), e))?;
        }
        first = fd.saturating_add(1);
    }
    Ok(())
}

/// A descriptor of the process (pidfd_open(2), Linux 5.3). ESRCH if it is gone.
pub fn pidfd(pid: Pid) -> Result<OwnedFd> {
    // SAFETY: no pointers; the result is a new descriptor that nobody else has.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0);
        let fd = Errno::result(fd).map_err(|e| Error::task("pidfd_open", pid, e))?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// Sends a signal to the process of a pidfd (pidfd_send_signal(2), Linux 5.1).
pub fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> std::result::Result<(), Errno> {
    // SAFETY: no pointers but a null siginfo.
    let ret = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<u8>(), 0)
    };
    Errno::result(ret).map(drop)
}

/// The status, as of wait(2), of a process that has ended and was waited for (PIDFD_GET_INFO with PIDFD_INFO_EXIT, Linux 6.15).
/// `None`: it lives or is a zombie, or the kernel does not tell.
pub fn pidfd_exit_status(pidfd: BorrowedFd<'_>) -> Option<i32> {
    const EXIT: u64 = 1 << 3;
    const GET_INFO: libc::c_ulong = 0xC040_FF0B; // _IOWR(0xFF, 11, struct pidfd_info of 64 bytes)
    let mut info = [EXIT, 0, 0, 0, 0, 0, 0, 0];
    // SAFETY: the kernel writes at most the 64 bytes that the request's number tells, which info has.
    let ret = unsafe { libc::ioctl(pidfd.as_raw_fd(), GET_INFO, &mut info) };
    // exit_code is the last of the 32-bit words.
    (ret == 0 && info[0] & EXIT != 0).then_some((info[7] >> 32) as i32)
}

/// Takes a copy of a descriptor of another process (pidfd_getfd(2), Linux 5.6). EBADF if it has none of that number.
pub fn take_descriptor(pidfd: BorrowedFd<'_>, fd: RawFd) -> std::result::Result<OwnedFd, Errno> {
    // SAFETY: no pointers; the result is a new descriptor that nobody else has.
    unsafe {
        let got = libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0);
        Errno::result(got).map(|fd| OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// Queues a signal with this siginfo_t for a process, or for one thread of it where `tid` is given (rt_sigqueueinfo(2),
/// rt_tgsigqueueinfo(2)). EPERM for an si_code that only the kernel may send, unless the target is this process.
pub fn queue_signal(
    pid: Pid,
    tid: Option<Pid>,
    signal: i32,
    siginfo: &[u8; 128],
) -> std::result::Result<(), Errno> {
    #[repr(align(8))]
    struct Aligned([u8; 128]);
    let info = Aligned(*siginfo);
    // SAFETY: info is a whole siginfo_t, aligned, and outlives the calls, which only read it.
    let ret = unsafe {
        match tid {
            Some(tid) => libc::syscall(
                libc::SYS_rt_tgsigqueueinfo,
                pid.as_raw(),
                tid.as_raw(),
                signal,
                info.0.as_ptr(),
            ),
            None => libc::syscall(libc::SYS_rt_sigqueueinfo, pid.as_raw(), signal, info.0.as_ptr()),
        }
    };
    Errno::result(ret).map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::sys::signal::{Signal, kill};
    use nix::sys::wait::{WaitStatus, waitpid};

    use super::*;

    #[test]
    fn a_pidfd_tells_how_its_process_ended() {
        let mut child = std::process::Command::new("sh").args(["-c", "exit 3"]).spawn().unwrap();
        let pidfd = pidfd(Pid::from_raw(child.id() as i32)).unwrap();
        assert_eq!(pidfd_exit_status(pidfd.as_fd()), None);
        child.wait().unwrap();
        // Before Linux 6.15 nobody tells.
        assert!(matches!(pidfd_exit_status(pidfd.as_fd()), Some(0x300) | None));
    }

    #[test]
    fn arguments_lie_as_the_kernel_reads_them() {
        let args = CloneArgs { flags: 0x100, exit_signal: 17, pid: Some(5), outer: None, cgroup: Some(9) };
        let raw = args.encode(0x1234);
        let word = |i: usize| u64::from_le_bytes(raw[i * 8..i * 8 + 8].try_into().unwrap());
        assert_eq!(word(0), 0x100 | INTO_CGROUP);
        assert_eq!((word(4), word(8), word(9), word(10)), (17, 0x1234, 1, 9));
        assert_eq!(CloneArgs::default().encode(0x1234), [0; CLONE_ARGS_SIZE]);
    }

    #[test]
    fn a_paused_copy_waits_until_it_is_killed() {
        let pid = clone_paused(&CloneArgs { exit_signal: libc::SIGCHLD, ..Default::default() }).unwrap();
        let fd = pidfd(pid).unwrap();
        std::thread::yield_now();
        kill(pid, None).unwrap();
        use std::os::fd::AsFd;
        pidfd_signal(fd.as_fd(), libc::SIGKILL).unwrap();
        assert!(matches!(waitpid(pid, None), Ok(WaitStatus::Signaled(p, Signal::SIGKILL, _)) if p == pid));
    }

    #[test]
    fn memory_is_never_shared_with_a_copy() {
        let args = CloneArgs { flags: libc::CLONE_VM as u64, ..Default::default() };
        assert!(clone_paused(&args).is_err());
    }
}
