//! A thread in ptrace-stop: what can be asked of it and set, and the steps that set it going.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;

use nix::errno::Errno;
use nix::unistd::Pid;

use super::{Care, NotSend, Running, Step, Stop, kill};
use crate::error::{Error, Result};
use crate::ptrace::{self, Options, Registers};

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
    pub(super) fn new(tid: Pid, care: Care, stop: Stop) -> Self {
        Self { tid, care, stop, registers: RefCell::new(None), here: PhantomData }
    }

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
