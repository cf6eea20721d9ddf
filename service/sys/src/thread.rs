//! Traced threads: a running and a stopped one are two types, and a step consumes one and gives the other.
//!
//! ```text
//!   seize ─► Running ──interrupt──► Running ──wait──► Stopped ──resume──► Running
//!                                      │                 │
//!                                      └──► Ended        └──detach──► free
//! ```
//!
//! A handle belongs to the thread that made it (ptrace(2): "the tracer is a thread") and is neither Send nor Sync.
//! What is dropped is repaired: let go unharmed, or, where the thread is half made, killed ([`Care`]).

mod stopped;

use std::fmt;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::Pid;

use crate::error::{Error, Result};
use crate::ptrace::{self, Options};

pub use self::stopped::Stopped;

/// What becomes of a thread whose handle is dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Care {
    /// It goes on as if nothing had been.
    Release,
    /// It is half made and must not run: killed.
    Kill,
}

/// Why a thread stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// By PTRACE_INTERRUPT, or at its beginning where its maker was traced.
    Interrupted,
    /// Job control stopped its process by this signal; to be kept.
    Group(i32),
    /// This signal is about to be delivered.
    Signal(i32),
    /// fork(2), vfork(2), clone(2) or clone3(2) succeeded; the message is the child's id.
    Child,
    /// execve(2) succeeded.
    Exec,
    /// Another event, by its number.
    Event(i32),
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stop::Interrupted => f.write_str("interrupted"),
            Stop::Group(signal) => write!(f, "stopped by job control, signal {signal}"),
            Stop::Signal(signal) => write!(f, "signal {signal}"),
            Stop::Child => f.write_str("made a child"),
            Stop::Exec => f.write_str("executed a program"),
            Stop::Event(event) => write!(f, "event {event}"),
        }
    }
}

impl Stop {
    /// Reads a wait status of a stopped thread.
    #[must_use]
    pub const fn parse(status: i32) -> Self {
        let signal = (status >> 8) & 0x7f;
        match status >> 16 {
            0 => Stop::Signal(signal),
            libc::PTRACE_EVENT_STOP if signal == libc::SIGTRAP => Stop::Interrupted,
            libc::PTRACE_EVENT_STOP => Stop::Group(signal),
            libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE => Stop::Child,
            libc::PTRACE_EVENT_EXEC => Stop::Exec,
            event => Stop::Event(event),
        }
    }
}

/// A point in time past which a wait gives up.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Deadline(Instant);

impl Deadline {
    /// That far from now.
    #[must_use]
    pub fn after(time: Duration) -> Self {
        Self(Instant::now() + time)
    }

    /// What is left, zero once passed.
    #[must_use]
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Whether it has passed.
    #[must_use]
    pub fn passed(self) -> bool {
        self.left().is_zero()
    }
}

/// Makes a handle stay in its thread.
type NotSend = PhantomData<*const ()>;

/// A traced thread that runs (or has not yet reported its stop).
#[derive(Debug)]
pub struct Running {
    tid: Pid,
    care: Care,
    here: NotSend,
}

/// What waiting for a running thread gives.
#[derive(Debug)]
pub enum Waited {
    /// It stopped.
    Stopped(Stopped),
    /// It ended; the status is wait(2)'s.
    Ended(i32),
}

impl Waited {
    /// The stopped thread, or [`Error::Gone`].
    pub fn stopped(self, tid: Pid) -> Result<Stopped> {
        match self {
            Waited::Stopped(stopped) => Ok(stopped),
            Waited::Ended(_) => Err(Error::Gone(tid)),
        }
    }
}

/// A step that failed gives the handle back.
pub type Step<T, From> = std::result::Result<T, (From, Error)>;

impl Running {
    /// Begins to trace a thread, without stopping it. Errors: see [`ptrace::seize`].
    pub fn seize(tid: Pid, options: Options) -> Result<Self> {
        ptrace::seize(tid, options).map_err(|e| Error::task("PTRACE_SEIZE", tid, e))?;
        Ok(Self { tid, care: Care::Release, here: PhantomData })
    }

    /// A thread that is traced already because its maker is (PTRACE_O_TRACECLONE …). It stops at its beginning by itself.
    #[must_use]
    pub fn adopt(tid: Pid, care: Care) -> Self {
        Self { tid, care, here: PhantomData }
    }

    /// Its id.
    #[must_use]
    pub fn tid(&self) -> Pid {
        self.tid
    }

    /// Asks it to stop; [`Running::wait`] tells when it has.
    pub fn interrupt(&self) -> Result<()> {
        ptrace::interrupt(self.tid).map_err(|e| Error::task("PTRACE_INTERRUPT", self.tid, e))
    }

    /// Looks whether it stopped or ended, without waiting. `None`: it runs.
    fn look(&self) -> Result<Option<Waited>> {
        let mut status = 0;
        loop {
            // SAFETY: status is written by the kernel and outlives the call.
            let got =
                unsafe { libc::waitpid(self.tid.as_raw(), &raw mut status, libc::__WALL | libc::WNOHANG) };
            match Errno::result(got) {
                Ok(0) => return Ok(None),
                Ok(_) => break,
                Err(Errno::EINTR) => {}
                Err(Errno::ECHILD) => return Ok(Some(Waited::Ended(0))),
                Err(e) => return Err(Error::task("waitpid", self.tid, e)),
            }
        }
        if !libc::WIFSTOPPED(status) {
            return Ok(Some(Waited::Ended(status)));
        }
        let stop = Stop::parse(status);
        Ok(Some(Waited::Stopped(Stopped::new(self.tid, self.care, stop))))
    }

    /// Waits for its next stop or its end. A stop is microseconds away as a rule, so this yields the CPU first and sleeps only later; where
    /// SIGCHLD can be waited for ([`wait_by_signal`]), it sleeps until one comes.
    pub fn wait(self, deadline: Deadline) -> Step<Waited, Self> {
        const YIELDS: u32 = 150;
        let by_signal = BY_SIGNAL.load(Ordering::Relaxed);
        let mut turns = 0u32;
        loop {
            match self.look() {
                Ok(Some(waited)) => {
                    std::mem::forget(self);
                    return Ok(waited);
                }
                Ok(None) => {}
                Err(e) => return Err((self, e)),
            }
            turns += 1;
            if by_signal && !deadline.passed() {
                await_child(deadline.left().min(NO_SIGNAL));
                continue;
            }
            if turns < YIELDS && !by_signal {
                std::thread::yield_now();
                continue;
            }
            if deadline.passed() {
                let error = Error::Deadline { op: "wait for stop", subject: crate::Subject::Task(self.tid) };
                return Err((self, error));
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Interrupts and waits; what it was about to do is not lost (see [`Stop`]).
    pub fn stop(self, deadline: Deadline) -> Step<Waited, Self> {
        if let Err(e) = self.interrupt() {
            return if e.errno() == Some(Errno::ESRCH) { self.wait(deadline) } else { Err((self, e)) };
        }
        self.wait(deadline)
    }
}

/// A child that was made without a signal for its parent ends without one: looked for that often.
const NO_SIGNAL: Duration = Duration::from_micros(500);

/// Whether SIGCHLD is blocked in this process, which has one thread.
static BY_SIGNAL: AtomicBool = AtomicBool::new(false);

/// From now on waits sleep until SIGCHLD comes, which the kernel sends for each stop and each end. It must stay blocked in all threads of this
/// process, and nobody else may take it.
pub(crate) fn wait_by_signal() {
    BY_SIGNAL.store(true, Ordering::Relaxed);
}

/// Sleeps until SIGCHLD comes, at most that long. One that has come before ends it at once.
fn await_child(most: Duration) {
    let time = libc::timespec { tv_sec: most.as_secs() as i64, tv_nsec: i64::from(most.subsec_nanos()) };
    // SAFETY: set and time outlive the call; nothing is written.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        libc::sigtimedwait(&raw const set, std::ptr::null_mut(), &raw const time);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.care == Care::Kill {
            kill(self.tid);
            return;
        }
        // The kernel detaches stopped threads only: stop it first; if it cannot stop now, our end detaches it.
        let again = Self { tid: self.tid, care: self.care, here: PhantomData };
        let again = ManuallyDrop::new(again);
        if again.interrupt().is_err() {
            return;
        }
        let deadline = Deadline::after(Duration::from_millis(100));
        while !deadline.passed() {
            match again.look() {
                Ok(Some(Waited::Stopped(stopped))) => drop(stopped),
                Ok(Some(Waited::Ended(_))) | Err(_) => {}
                Ok(None) => {
                    std::thread::yield_now();
                    continue;
                }
            }
            return;
        }
    }
}

/// Takes the news of traced threads that have ended, which nobody else gets before their tracer (ptrace(2)); until then their process is not
/// gone either. One that is our own child is left to whoever waits for children. Gives up on what has not ended after some 20 ms.
pub(crate) fn take_ends(tids: &[Pid]) {
    let enough = Deadline::after(Duration::from_millis(20));
    let is_own =
        |tid: Pid| crate::task::status(tid).is_ok_and(|status| status.parent == Pid::this().as_raw());
    for tid in tids.iter().filter(|tid| !is_own(**tid)) {
        loop {
            let mut status = 0;
            // SAFETY: status outlives the call.
            let got = unsafe { libc::waitpid(tid.as_raw(), &raw mut status, libc::__WALL | libc::WNOHANG) };
            if got != 0 && (got == -1 || !libc::WIFSTOPPED(status)) || enough.passed() {
                break;
            }
            std::thread::yield_now();
        }
    }
}

/// SIGKILL to one thread's process.
fn kill(tid: Pid) {
    // SAFETY: no pointers. tkill names a thread; the whole process dies of SIGKILL.
    unsafe { libc::syscall(libc::SYS_tkill, tid.as_raw(), libc::SIGKILL) };
}
