//! Threads of a process and the few lines of /proc/PID/status that stopping and driving them needs.

use std::fs;

use nix::unistd::Pid;

use crate::error::{Error, Result};
use crate::{VirtAddr, proc_file, remote};

/// The state letter of a task and what else /proc/PID/status tells of it that matters here.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Status {
    /// `R`, `S`, `D`, `T`, `t`, `Z`, `X`, …
    pub state: char,
    /// The process it is a thread of.
    pub process: i32,
    /// Process that traces it, 0 if none.
    pub tracer: i32,
    /// Parent.
    pub parent: i32,
    /// Signals pending for the thread, bit n−1 is signal n.
    pub pending: u64,
    /// Signals pending for the process.
    pub shared_pending: u64,
    /// Ignored signals (SIG_IGN).
    pub ignored: u64,
    /// Signals with a handler.
    pub caught: u64,
    /// Seccomp mode: 0 none, 1 strict, 2 filter.
    pub seccomp: u32,
    /// How often it has gone to sleep.
    pub sleeps: u64,
}

/// Reads a text of /proc/PID/status; what is missing stays zero.
#[must_use]
pub fn parse_status(text: &str) -> Status {
    let mut status = Status { state: '?', ..Status::default() };
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        let mask = || u64::from_str_radix(value, 16).unwrap_or(0);
        match key {
            "State" => status.state = value.chars().next().unwrap_or('?'),
            "Tgid" => status.process = value.parse().unwrap_or(0),
            "TracerPid" => status.tracer = value.parse().unwrap_or(0),
            "PPid" => status.parent = value.parse().unwrap_or(0),
            "SigPnd" => status.pending = mask(),
            "ShdPnd" => status.shared_pending = mask(),
            "SigIgn" => status.ignored = mask(),
            "SigCgt" => status.caught = mask(),
            "voluntary_ctxt_switches" => status.sleeps = value.parse().unwrap_or(0),
            "Seccomp" => status.seccomp = value.parse().unwrap_or(0),
            _ => {}
        }
    }
    status
}

/// The status of a process or thread. [`Error::Gone`] if there is none.
pub fn status(tid: Pid) -> Result<Status> {
    let path = format!("/proc/{tid}/status");
    match proc_file::read_text(&path) {
        Ok(text) => Ok(parse_status(&text)),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => Err(Error::Gone(tid)),
        Err(e) => Err(Error::io("read", path, &e)),
    }
}

/// A system call that a thread waits in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockedCall {
    /// Its number.
    pub nr: u64,
    /// Its arguments.
    pub args: [u64; 6],
    /// The stack pointer.
    pub rsp: u64,
    /// The address behind the call.
    pub rip: u64,
}

/// Whether a thread waits for a child that shares its memory to execute a program or to end. It cannot be stopped meanwhile.
#[must_use]
pub fn waits_in_vfork(tid: Pid) -> bool {
    let Some(call) = blocked_in(tid) else { return false };
    let is_vfork = |flags: u64| flags & libc::CLONE_VFORK as u64 != 0;
    match call.nr as i64 {
        libc::SYS_vfork => true,
        libc::SYS_clone => is_vfork(call.args[0]),
        libc::SYS_clone3 => remote::read_u64(tid, VirtAddr(call.args[0])).is_ok_and(is_vfork),
        _ => false,
    }
}

/// The threads of a process, the leader first. [`Error::Gone`] if there is no such process.
pub fn threads(pid: Pid) -> Result<Vec<Pid>> {
    let path = format!("/proc/{pid}/task");
    let entries = match fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => {
            return Err(Error::Gone(pid));
        }
        Err(e) => return Err(Error::io("list", path, &e)),
    };
    let mut tids: Vec<Pid> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .map(Pid::from_raw)
        .collect();
    tids.sort_by_key(|tid| (*tid != pid, tid.as_raw()));
    Ok(tids)
}

/// Whether a thread is one of the kernel's that work for io_uring(7): PF_IO_WORKER in its flags (field 9 of proc_pid_stat(5)), Linux 5.12.
#[must_use]
pub fn is_io_worker(pid: Pid, tid: Pid) -> bool {
    const PF_IO_WORKER: u64 = 0x10;
    let stat = fs::read(format!("/proc/{pid}/task/{tid}/stat")).unwrap_or_default();
    let after_name = stat.iter().rposition(|byte| *byte == b')').map_or(&[][..], |at| &stat[at..]);
    let flags = std::str::from_utf8(after_name).ok().and_then(|text| text.split(' ').nth(7)?.parse().ok());
    flags.is_some_and(|flags: u64| flags & PF_IO_WORKER != 0)
}

/// When a process began, in clock ticks since boot (field 22 of proc_pid_stat(5)): with its id, what it is.
///
/// Errors: Io where it is gone, Parse.
pub fn start_time(pid: Pid) -> Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let stat = proc_file::read(&path).map_err(|e| Error::io("read", &path, &e))?;
    parse_start_time(&stat).ok_or_else(|| Error::Parse { path: path.into(), what: "no start time".into() })
}

fn parse_start_time(stat: &[u8]) -> Option<u64> {
    // The name in field 2 may hold anything, the last parenthesis ends it.
    let name_ends = stat.iter().rposition(|byte| *byte == b')')?;
    let fields = std::str::from_utf8(&stat[name_ends + 1..]).ok()?;
    fields.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// What kcmp(2) compares.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shared {
    /// Address space (CLONE_VM).
    Space = 1,
    /// Descriptor table (CLONE_FILES).
    Files = 2,
    /// Working directory, root, umask (CLONE_FS).
    Fs = 3,
    /// Signal handlers (CLONE_SIGHAND).
    Sighand = 4,
    /// I/O context (CLONE_IO).
    Io = 5,
    /// System V semaphore adjustments (CLONE_SYSVSEM).
    SysvSem = 6,
}

/// How two tasks' resources of one kind relate: equal, or an order that is stable while both live (kcmp(2)).
pub fn compare(one: Pid, other: Pid, what: Shared) -> Result<std::cmp::Ordering> {
    // SAFETY: kcmp takes numbers only for these types.
    let ret =
        unsafe { libc::syscall(libc::SYS_kcmp, one.as_raw(), other.as_raw(), what as libc::c_int, 0, 0) };
    match nix::errno::Errno::result(ret).map_err(|e| Error::task("kcmp", one, e))? {
        0 => Ok(std::cmp::Ordering::Equal),
        1 => Ok(std::cmp::Ordering::Less),
        _ => Ok(std::cmp::Ordering::Greater),
    }
}

/// The system call a sleeping task is in (proc_pid_syscall(5)); `None` if it runs or is in none.
#[must_use]
pub fn blocked_in(tid: Pid) -> Option<BlockedCall> {
    parse_syscall(&proc_file::read_text(format!("/proc/{tid}/syscall")).ok()?)
}

/// Reads a text of /proc/PID/syscall: number, arguments, stack pointer, program counter.
fn parse_syscall(text: &str) -> Option<BlockedCall> {
    let mut words = text.split_ascii_whitespace();
    let nr = words.next()?.parse().ok()?; // -1: in none
    let mut hex = || u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
    let args = [hex()?, hex()?, hex()?, hex()?, hex()?, hex()?];
    Some(BlockedCall { nr, args, rsp: hex()?, rip: hex()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_lines_are_read() {
        let text = "Name:\tx: y\nState:\tt (tracing stop)\nPPid:\t7\nTracerPid:\t42\nSigPnd:\t0000000000000200\n\
                    ShdPnd:\t0000000000004000\nSigIgn:\t0000000000001000\nSigCgt:\t0000000180014a03\nSeccomp:\t2\nvoluntary_ctxt_switches:\t9\n";
        let status = parse_status(text);
        assert_eq!((status.state, status.tracer, status.parent, status.seccomp), ('t', 42, 7, 2));
        assert_eq!((status.pending, status.shared_pending), (0x200, 0x4000));
        assert_eq!((status.ignored, status.caught, status.sleeps), (0x1000, 0x1_8001_4a03, 9));
    }

    #[test]
    fn syscall_file_is_read() {
        let line = "58 0x1 0x2 0x3 0x4 0x5 0xff 0x7ffe 0x7f00\n";
        let call = BlockedCall { nr: 58, args: [1, 2, 3, 4, 5, 255], rsp: 0x7ffe, rip: 0x7f00 };
        assert_eq!(parse_syscall(line), Some(call));
        let line = "7 0x5595deff9330 0x0 0x7530 0x0 0x0 0x0 0x7ffdf00cf868 0x7f402191a230\n";
        let call = parse_syscall(line).unwrap();
        assert_eq!(
            (call.nr, call.args[2], call.rsp, call.rip),
            (7, 30_000, 0x7ffd_f00c_f868, 0x7f40_2191_a230)
        );
        assert_eq!(parse_syscall("running\n"), None);
        assert_eq!(parse_syscall("-1 0x7ffe 0x7f00\n"), None);
        assert!(!waits_in_vfork(Pid::this()));
    }

    #[test]
    fn threads_of_a_process_share_their_space() {
        let here = Pid::this();
        let other = std::thread::spawn(nix::unistd::gettid).join();
        assert!(other.is_ok());
        assert_eq!(compare(here, here, Shared::Space).unwrap(), std::cmp::Ordering::Equal);
        assert_eq!(threads(here).unwrap()[0], here);
    }
}
