//! What is left of the time limit of a system call that a thread sleeps in.
//!
//! The kernel keeps the end of such a call to itself, and a call that a stop interrupts with EINTR (epoll_wait(2)) would begin its whole time
//! anew at each checkpoint. But /proc/PID/task/TID/sched tells when a thread last left its CPU (`se.exec_start`), on the clock of that CPU,
//! which runs on its own: it stands still while the hypervisor or an interrupt has the CPU. What a thread of ours reads there after
//! sched_yield(2) on the same CPU says how far that clock is from CLOCK_MONOTONIC.
//!
//! ```text
//!  before the freeze   look    the call, since when, how often the thread has slept so far
//!  in the window       rest    the same call still, and it has not slept in between but for the stop
//! ```

use std::collections::HashMap;
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity, sched_yield};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use crate::proc_file;
use crate::ptrace::Registers;
use crate::task::{self, BlockedCall};

/// How often a thread goes to sleep by being frozen and seized.
const STOPS: u64 = 2;
/// FUTEX_PRIVATE_FLAG and FUTEX_CLOCK_REALTIME are not part of the operation.
const FUTEX_COMMAND: u64 = 0x7f;
const FUTEX_WAIT: u64 = 0;
const TIMER_ABSTIME: u64 = 1;
/// io_pgetevents(2), epoll_pwait2(2).
const SYS_IO_PGETEVENTS: i64 = 333;
const SYS_EPOLL_PWAIT2: i64 = 441;

/// Where a call takes a relative time limit that the kernel does not tell the rest of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Milliseconds, in this argument; negative: none.
    Millis(usize),
    /// A pointer to struct timespec, in this argument; null: none.
    Timespec(usize),
    /// An option of the socket, if it is one; the events of poll(2) that the call waits for.
    Socket {
        /// POLLIN or POLLOUT.
        events: i16,
        /// SO_RCVTIMEO or SO_SNDTIMEO.
        option: i32,
    },
}

impl Limit {
    /// Of a call with these arguments; `None` where it has none, tells the rest itself, or takes an absolute time.
    #[must_use]
    pub fn of(nr: u64, args: &[u64; 6]) -> Option<Self> {
        let limit = match nr as i64 {
            libc::SYS_poll => Self::Millis(2),
            libc::SYS_epoll_wait | libc::SYS_epoll_pwait => Self::Millis(3),
            SYS_EPOLL_PWAIT2 | libc::SYS_semtimedop => Self::Timespec(3),
            libc::SYS_rt_sigtimedwait => Self::Timespec(2),
            libc::SYS_io_getevents | SYS_IO_PGETEVENTS => Self::Timespec(4),
            libc::SYS_futex if args[1] & FUTEX_COMMAND == FUTEX_WAIT => Self::Timespec(3),
            libc::SYS_nanosleep if args[1] == 0 => Self::Timespec(0),
            libc::SYS_clock_nanosleep if args[1] & TIMER_ABSTIME == 0 && args[3] == 0 => Self::Timespec(2),
            libc::SYS_read
            | libc::SYS_readv
            | libc::SYS_recvfrom
            | libc::SYS_recvmsg
            | libc::SYS_accept
            | libc::SYS_accept4 => Self::Socket { events: libc::POLLIN, option: libc::SO_RCVTIMEO },
            libc::SYS_recvmmsg if args[4] == 0 => {
                Self::Socket { events: libc::POLLIN, option: libc::SO_RCVTIMEO }
            }
            libc::SYS_write | libc::SYS_writev | libc::SYS_sendto | libc::SYS_sendmsg => {
                Self::Socket { events: libc::POLLOUT, option: libc::SO_SNDTIMEO }
            }
            _ => return None,
        };
        match limit {
            Self::Socket { .. } => Some(limit),
            Self::Millis(place) => (args[place] as i32 >= 0).then_some(limit),
            Self::Timespec(place) => (args[place] != 0).then_some(limit),
        }
    }
}

/// A call that a thread slept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asleep {
    call: BlockedCall,
    /// On CLOCK_MONOTONIC.
    since: Duration,
    /// How often the thread has slept.
    switches: u64,
}

/// The threads of a group that sleep in calls with a time limit.
#[derive(Debug, Default)]
pub struct Sleepers(HashMap<Pid, Asleep>);

impl Sleepers {
    /// Looks at threads that run. Whose time is not known is not among them.
    #[must_use]
    pub fn look(threads: impl IntoIterator<Item = Pid>) -> Self {
        let mut clocks = Clocks::default();
        let asleep = |tid: Pid| Some((tid, look(tid, &mut clocks)?));
        Self(threads.into_iter().filter_map(asleep).collect())
    }

    /// How long a thread that has stopped since has been in the call that the stop interrupted. `nr` and `args` as it made the call.
    #[must_use]
    pub fn elapsed(&self, tid: Pid, nr: u64, args: &[u64; 6], at_stop: &Registers) -> Option<Duration> {
        let asleep = self.0.get(&tid)?;
        let call = BlockedCall { nr: at_stop.orig_rax, args: *args, rsp: at_stop.rsp, rip: at_stop.rip };
        // One that has slept in between may have made the call anew.
        let slept = || sched(&format!("/proc/{tid}"))?.1.checked_sub(asleep.switches);
        (asleep.call == call && Limit::of(nr, args).is_some() && slept()? <= STOPS)
            .then(|| now().checked_sub(asleep.since))?
    }
}

/// What a thread sleeps in; only if it is, or may be, a call with a time limit.
fn look(tid: Pid, clocks: &mut Clocks) -> Option<Asleep> {
    let call = task::blocked_in(tid)?;
    if call.nr != libc::SYS_restart_syscall as u64 {
        let limit = Limit::of(call.nr, &call.args)?;
        if matches!(limit, Limit::Socket { .. }) && !is_socket(tid, call.args[0] as i32) {
            return None;
        }
    }
    let directory = format!("/proc/{tid}");
    let (left, switches) = sched(&directory)?;
    let since = clocks.monotonic(cpu(&proc_file::read(format!("{directory}/stat")).ok()?)?, left)?;
    Some(Asleep { call, since, switches })
}

fn is_socket(tid: Pid, fd: i32) -> bool {
    std::fs::read_link(format!("/proc/{tid}/fd/{fd}"))
        .is_ok_and(|target| target.as_os_str().as_encoded_bytes().starts_with(b"socket:"))
}

/// When a thread last left its CPU, on that CPU's clock, and how often it has gone to sleep.
fn sched(directory: &str) -> Option<(Duration, u64)> {
    parse_sched(&proc_file::read_text(format!("{directory}/sched")).ok()?)
}

/// Lines of /proc/PID/sched: `se.exec_start : 16588060.166672` (milliseconds), `nr_voluntary_switches : 37`.
fn parse_sched(text: &str) -> Option<(Duration, u64)> {
    let value = |key: &str| {
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim())
    };
    let (millis, nanos) = value("se.exec_start")?.split_once('.')?;
    let left = Duration::from_millis(millis.parse().ok()?) + Duration::from_nanos(nanos.parse().ok()?);
    Some((left, value("nr_voluntary_switches")?.parse().ok()?))
}

/// The CPU that a thread was last on (field 39 of proc_pid_stat(5)).
fn cpu(stat: &[u8]) -> Option<usize> {
    let name_ends = stat.iter().rposition(|byte| *byte == b')')?;
    let fields = std::str::from_utf8(&stat[name_ends + 1..]).ok()?;
    fields.split_ascii_whitespace().nth(36)?.parse().ok()
}

fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

/// By CPU, CLOCK_MONOTONIC and the CPU's own clock at the same instant.
#[derive(Debug, Default)]
struct Clocks(HashMap<usize, Option<(Duration, Duration)>>);

impl Clocks {
    /// An instant of a CPU's clock on CLOCK_MONOTONIC. `None` where we may not run on that CPU.
    fn monotonic(&mut self, cpu: usize, instant: Duration) -> Option<Duration> {
        let (monotonic, own) = (*self.0.entry(cpu).or_insert_with(|| both(cpu)))?;
        monotonic.checked_sub(own.checked_sub(instant)?)
    }
}

/// Reads both clocks on a CPU.
fn both(cpu: usize) -> Option<(Duration, Duration)> {
    let this = Pid::from_raw(0);
    let before = sched_getaffinity(this).ok()?;
    let mut only = CpuSet::new();
    only.set(cpu).ok()?;
    sched_setaffinity(this, &only).ok()?;
    let clocks = sched_yield().ok().and_then(|()| Some((now(), sched("/proc/thread-self")?.0)));
    sched_setaffinity(this, &before).ok()?;
    clocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_with_a_limit_of_their_own() {
        let args = [0, 0, 5000, 7000, 9, 0];
        for (nr, limit) in [
            (libc::SYS_poll, Some(Limit::Millis(2))),
            (libc::SYS_epoll_wait, Some(Limit::Millis(3))),
            (libc::SYS_futex, Some(Limit::Timespec(3))),
            (libc::SYS_rt_sigtimedwait, Some(Limit::Timespec(2))),
            (libc::SYS_nanosleep, None),       // its pointer is null
            (libc::SYS_clock_nanosleep, None), // it tells the rest
            (libc::SYS_recvfrom, Some(Limit::Socket { events: libc::POLLIN, option: libc::SO_RCVTIMEO })),
            (libc::SYS_connect, None),
        ] {
            assert_eq!(Limit::of(nr as u64, &args), limit, "{nr}");
        }
        assert_eq!(Limit::of(libc::SYS_poll as u64, &[0, 0, u64::from(u32::MAX), 0, 0, 0]), None);
        assert_eq!(
            Limit::of(libc::SYS_futex as u64, &[0, 9, 0, 7000, 0, 0]),
            None,
            "FUTEX_WAIT_BITSET is absolute"
        );
    }

    #[test]
    fn the_kernels_lines_are_read() {
        let text = "head (2031, #threads: 1)\n---\nse.exec_start     :      16594658.235257\n\
                    nr_switches   :   9\nnr_voluntary_switches     :       37\n";
        let left = Duration::from_nanos(16_594_658_235_257);
        assert_eq!(parse_sched(text), Some((left, 37)));
        assert_eq!(parse_sched("---\n"), None);
    }

    #[test]
    fn a_sleeping_thread_is_known_to_have_slept() {
        let (told, tid) = std::sync::mpsc::channel();
        let sleeper = std::thread::spawn(move || {
            told.send(nix::unistd::gettid()).unwrap();
            // SAFETY: no descriptor is looked at.
            unsafe { libc::poll(std::ptr::null_mut(), 0, 700) }
        });
        let tid = tid.recv().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        let sleepers = Sleepers::look([tid]);
        if std::fs::metadata("/proc/self/sched").is_ok() {
            let asleep = sleepers.0.get(&tid).unwrap();
            let slept = now().saturating_sub(asleep.since).as_millis();
            assert!(
                asleep.call.nr == libc::SYS_poll as u64 && (250..600).contains(&slept),
                "{slept} ms: {asleep:?}"
            );
        }
        sleeper.join().unwrap();
    }
}
