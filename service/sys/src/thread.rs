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

use std::cell::RefCell;
use std::fmt;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::Pid;

use crate::error::{Error, Result};
use crate::ptrace::{self, Options, Registers};

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

/// A traced thread in ptrace-stop.
#[derive(Debug)]
pub struct Stopped {
    tid: Pid,
    care: Care,
    stop: Stop,
    /// Read before; they change by its own requests only.
    registers: RefCell<Option<Box<Registers>>>,
    here: NotSend,
}

impl Stopped {
    fn new(tid: Pid, care: Care, stop: Stop) -> Self {
        Self { tid, care, stop, registers: RefCell::new(None), here: PhantomData }
    }
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

impl Stopped {
    /// Its id.
    #[must_use]
    pub fn tid(&self) -> Pid {
        self.tid
    }

    /// Why it stopped.
    #[must_use]
    pub fn reason(&self) -> Stop {
        self.stop
    }

    /// Says what becomes of it if this handle is dropped.
    pub fn set_care(&mut self, care: Care) {
        self.care = care;
    }

    /// An error of a request on this thread: ESRCH means that it is gone.
    fn error(&self, op: &'static str, e: Errno) -> Error {
        if e == Errno::ESRCH { Error::Gone(self.tid) } else { Error::task(op, self.tid, e) }
    }

    /// PTRACE_SETOPTIONS: replaces all options.
    pub fn set_options(&self, options: Options) -> Result<()> {
        ptrace::set_options(self.tid, options).map_err(|e| self.error("PTRACE_SETOPTIONS", e))
    }

    /// The general registers.
    pub fn registers(&self) -> Result<Registers> {
        let mut known = self.registers.borrow_mut();
        if let Some(registers) = known.as_deref() {
            return Ok(*registers);
        }
        let registers = ptrace::registers(self.tid).map_err(|e| self.error("PTRACE_GETREGSET", e))?;
        *known = Some(Box::new(registers));
        Ok(registers)
    }

    /// Sets all general registers.
    pub fn set_registers(&self, regs: &Registers) -> Result<()> {
        self.registers.replace(None);
        ptrace::set_registers(self.tid, regs).map_err(|e| self.error("PTRACE_SETREGSET", e))
    }

    /// The extended state, XSAVE's standard format.
    pub fn extended_state(&self) -> Result<Vec<u8>> {
        ptrace::extended_state(self.tid).map_err(|e| self.error("PTRACE_GETREGSET (NT_X86_XSTATE)", e))
    }

    /// Sets the extended state.
    pub fn set_extended_state(&self, state: &[u8]) -> Result<()> {
        ptrace::set_extended_state(self.tid, state)
            .map_err(|e| self.error("PTRACE_SETREGSET (NT_X86_XSTATE)", e))
    }

    /// The blocked signals of user mode, bit n−1 is signal n.
    pub fn signal_mask(&self) -> Result<u64> {
        ptrace::signal_mask(self.tid).map_err(|e| self.error("PTRACE_GETSIGMASK", e))
    }

    /// Sets the blocked signals; see the warning at [`ptrace::set_signal_mask`].
    pub fn set_signal_mask(&self, mask: u64) -> Result<()> {
        ptrace::set_signal_mask(self.tid, mask).map_err(|e| self.error("PTRACE_SETSIGMASK", e))
    }

    /// Signals pending for this thread, or (`shared`) for its process.
    pub fn pending_signals(&self, shared: bool) -> Result<Vec<[u8; 128]>> {
        ptrace::pending_signals(self.tid, shared).map_err(|e| self.error("PTRACE_PEEKSIGINFO", e))
    }

    /// The registered rseq(2) area; `None` if there is none.
    pub fn rseq(&self) -> Result<Option<ptrace::RseqConfiguration>> {
        let conf = ptrace::rseq_configuration(self.tid)
            .map_err(|e| self.error("PTRACE_GET_RSEQ_CONFIGURATION", e))?;
        Ok((conf.address != 0).then_some(conf))
    }

    /// Syscall User Dispatch, if it is on. `None` also where the kernel cannot tell (before Linux 6.4).
    pub fn dispatch(&self) -> Result<Option<ptrace::DispatchConfiguration>> {
        match ptrace::dispatch_configuration(self.tid) {
            Ok(conf) => Ok((conf.mode == 1).then_some(conf)),
            Err(Errno::EIO | Errno::EINVAL) => Ok(None),
            Err(e) => Err(self.error("PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG", e)),
        }
    }

    /// Switches Syscall User Dispatch on. A call that it does before it is let go would be dispatched.
    pub fn set_dispatch(&self, conf: ptrace::DispatchConfiguration) -> Result<()> {
        ptrace::set_dispatch_configuration(self.tid, conf)
            .map_err(|e| self.error("PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG", e))
    }

    /// All seccomp filters, oldest first, each raw struct sock_filter.
    pub fn seccomp_filters(&self) -> Result<Vec<Vec<u8>>> {
        let mut filters = Vec::new();
        while let Some(filter) = ptrace::seccomp_filter(self.tid, filters.len())
            .map_err(|e| self.error("PTRACE_SECCOMP_GET_FILTER", e))?
        {
            filters.push(filter);
        }
        filters.reverse();
        Ok(filters)
    }

    /// The id of the child it just made ([`Stop::Child`]).
    pub fn child(&self) -> Result<Pid> {
        let message = ptrace::event_message(self.tid).map_err(|e| self.error("PTRACE_GETEVENTMSG", e))?;
        Ok(Pid::from_raw(message as i32))
    }

    /// siginfo_t of the signal that is about to be delivered, raw.
    pub fn siginfo(&self) -> Result<[u8; 128]> {
        ptrace::siginfo(self.tid).map_err(|e| self.error("PTRACE_GETSIGINFO", e))
    }

    /// Turns into a running thread once a request has set it going.
    fn went(self) -> Running {
        let this = ManuallyDrop::new(self);
        Running { tid: this.tid, care: this.care, here: PhantomData }
    }

    /// Lets it run on, with the given signal (0: none; only in a signal stop).
    pub fn resume(self, signal: i32) -> Step<Running, Self> {
        match ptrace::cont(self.tid, signal) {
            Ok(()) => Ok(self.went()),
            Err(e) => {
                let error = self.error("PTRACE_CONT", e);
                Err((self, error))
            }
        }
    }

    /// Lets it execute one instruction; it stops with SIGTRAP after it.
    pub fn step(self) -> Step<Running, Self> {
        match ptrace::single_step(self.tid, 0) {
            Ok(()) => Ok(self.went()),
            Err(e) => {
                let error = self.error("PTRACE_SINGLESTEP", e);
                Err((self, error))
            }
        }
    }

    /// Delivers a signal; it stops with SIGTRAP before the first instruction of the handler.
    pub(crate) fn step_with(self, signal: i32) -> Step<Running, Self> {
        match ptrace::single_step(self.tid, signal) {
            Ok(()) => Ok(self.went()),
            Err(e) => {
                let error = self.error("PTRACE_SINGLESTEP", e);
                Err((self, error))
            }
        }
    }

    /// Lets it run to the entry of its next system call, or from there to its end; it stops with SIGTRAP.
    pub(crate) fn step_to_call(self) -> Step<Running, Self> {
        match ptrace::to_call(self.tid) {
            Ok(()) => Ok(self.went()),
            Err(e) => {
                let error = self.error("PTRACE_SYSCALL", e);
                Err((self, error))
            }
        }
    }

    /// Has it stop by an interrupt as soon as it runs.
    pub(crate) fn interrupt(&self) -> Result<()> {
        ptrace::interrupt(self.tid).map_err(|e| self.error("PTRACE_INTERRUPT", e))
    }

    /// The handle again, unless the thread was killed meanwhile.
    pub fn unless_ended(self) -> Option<Self> {
        let mut status = 0;
        // SAFETY: status outlives the call.
        let found =
            unsafe { libc::waitpid(self.tid.as_raw(), &raw mut status, libc::__WALL | libc::WNOHANG) };
        let ended = found == -1 || (found != 0 && !libc::WIFSTOPPED(status));
        if ended {
            std::mem::forget(self);
            return None;
        }
        Some(self)
    }

    /// Ends the tracing: it goes on with the signal it was about to get, or stays stopped by job control if it was.
    pub fn detach(self) -> Result<()> {
        let signal = if let Stop::Signal(signal) = self.stop { signal } else { 0 };
        self.detach_with(signal)
    }

    /// Ends the tracing; it goes on with this signal (0: none).
    pub fn detach_with(self, signal: i32) -> Result<()> {
        let this = ManuallyDrop::new(self);
        ptrace::detach(this.tid, signal).map_err(|e| this.error("PTRACE_DETACH", e))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        match self.care {
            Care::Kill => kill(self.tid),
            Care::Release => {
                let signal = if let Stop::Signal(signal) = self.stop { signal } else { 0 };
                let _ = ptrace::detach(self.tid, signal);
            }
        }
    }
}
