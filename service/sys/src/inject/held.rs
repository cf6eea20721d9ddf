//! One stopped thread of a live member: into the runner and back to where it was.

use std::cell::OnceCell;
use std::mem;
use std::time::Duration;

use nix::unistd::Pid;

use super::Facts;
use super::rest::Rest;
use crate::error::{Error, Result};
use crate::ptrace::{DispatchConfiguration, Registers, RseqConfiguration};
use crate::restart::{self, CriticalSection};
use crate::task;
use crate::thread::{Deadline, Running, Stop, Stopped};
use crate::{AddrRange, VirtAddr, remote};

/// A stopped thread of a live member.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) at: At,
    pub(super) tid: Pid,
    pub(super) stop: Stop,
    /// As the kernel showed them at the stop.
    pub(super) at_stop: Registers,
    /// With which it goes on.
    pub(super) registers: Registers,
    pub(super) mask: u64,
    /// A signal that it does not block waited for it; looked at only where it matters (EINTR).
    pub(super) signal_pending: bool,
    /// Syscall User Dispatch as it was at the stop, if it was on.
    pub(super) dispatch: Option<DispatchConfiguration>,
    /// The selector byte of Syscall User Dispatch, if its calls are dispatched now; else 0.
    pub(super) selector: u64,
    /// The selector byte of Syscall User Dispatch; 0 if there is none.
    pub(super) slot: u64,
    /// What is left of the time limit of the call that was interrupted.
    pub(super) rest: Option<Rest>,
    rseq: OnceCell<Option<RseqConfiguration>>,
    /// The critical section of rseq(2) that it was in at the stop, or had been in.
    section: OnceCell<Option<CriticalSection>>,
}

/// Where a held thread is.
#[derive(Debug)]
pub(super) enum At {
    /// In ptrace-stop.
    Stopped(Stopped),
    /// In its batch.
    Running(Running),
    /// Ended, or let go after a failure; it goes on by itself.
    Lost,
}

/// What a thread in a batch came to.
pub(super) enum Met {
    /// The end of the batch; the registers there.
    Sign(Box<Registers>),
    /// A child.
    Child(Pid),
}

/// The signal that is the sign. As long as we live it never reaches the process; if we die it does, so it is one that means nothing there:
///
/// 1. ignored, by default or by its will, and not blocked, so that none can be pending;
/// 2. ignored, blocked (C libraries block all for moments), and `pending` holds none;
/// 3. caught (Go catches every signal), one whose handlers must bear that it comes for nothing, and none is pending.
fn sign(facts: &Facts, mask: u64, pending: impl FnOnce() -> u64) -> Option<i32> {
    let bit = |signal: i32| 1u64 << (signal - 1);
    let quiet = [libc::SIGURG, libc::SIGWINCH, libc::SIGCHLD];
    let ignored =
        (1..32).filter(|s| facts.ignored & bit(*s) != 0 && !matches!(*s, libc::SIGCONT | libc::SIGCHLD));
    let is_caught = |signal: &i32| facts.caught & bit(*signal) != 0;
    let all: Vec<i32> = quiet.into_iter().chain(ignored).filter(|s| !is_caught(s)).collect();
    let open = all.iter().find(|s| mask & bit(**s) == 0).copied();
    open.or_else(|| {
        let pending = pending();
        all.into_iter().chain(quiet).find(|s| pending & bit(*s) == 0)
    })
}

/// Lets a thread end what a dead predecessor made it do.
pub(super) fn run_out(thread: Stopped, code: AddrRange, deadline: Deadline) -> Result<Stopped> {
    let mut thread = thread;
    while code.contains(VirtAddr(thread.registers()?.rip)) {
        let tid = thread.tid();
        let signal = match thread.reason() {
            Stop::Signal(signal) if !matches!(signal, libc::SIGURG | libc::SIGWINCH | libc::SIGCHLD) => {
                signal
            }
            _ => 0,
        };
        let running = thread.resume(signal).map_err(|(_, e)| e)?;
        std::thread::sleep(Duration::from_micros(50));
        thread = running.stop(deadline).map_err(|(_, e)| e)?.stopped(tid)?;
    }
    Ok(thread)
}

/// Where the selector byte of a thread is if its calls are dispatched now, and where it is; 0 if there is none.
fn selector(tid: Pid, dispatch: Option<DispatchConfiguration>) -> (u64, u64) {
    let Some(dispatch) = dispatch else { return (0, 0) };
    let mut byte = [0];
    let blocks = remote::read(tid, VirtAddr(dispatch.selector), &mut byte).is_ok() && byte[0] == 1;
    (if blocks { dispatch.selector } else { 0 }, dispatch.selector)
}

impl Held {
    /// Reads registers and mask; a call that answered EINTR to our stop alone will restart.
    pub(super) fn new(thread: Stopped) -> Result<Self> {
        let (tid, stop) = (thread.tid(), thread.reason());
        let at_stop = thread.registers()?;
        let mask = thread.signal_mask()?;
        let (registers, signal_pending) = restart::go_on(&thread, &at_stop, mask)?;
        let dispatch = thread.dispatch()?;
        let (selector, slot) = selector(tid, dispatch);
        Ok(Self {
            at: At::Stopped(thread),
            tid,
            stop,
            at_stop,
            registers,
            mask,
            signal_pending,
            dispatch,
            selector,
            slot,
            rest: None,
            rseq: OnceCell::new(),
            section: OnceCell::new(),
        })
    }

    /// The registered rseq(2) area; `None` if there is none.
    pub(super) fn rseq(&self) -> Result<Option<RseqConfiguration>> {
        if let Some(known) = self.rseq.get() {
            return Ok(*known);
        }
        let rseq = self.stopped()?.rseq()?;
        Ok(*self.rseq.get_or_init(|| rseq))
    }

    pub(super) fn stopped(&self) -> Result<&Stopped> {
        match &self.at {
            At::Stopped(thread) => Ok(thread),
            _ => Err(Error::Gone(self.tid)),
        }
    }

    /// The signal that is the sign in this thread.
    pub(super) fn sign(&self, facts: &Facts) -> Result<i32> {
        let pending = || task::status(self.tid).map_or(u64::MAX, |s| s.pending | s.shared_pending);
        let why = "every signal that could be the sign is in use";
        sign(facts, self.mask, pending).ok_or(Error::NoRunner { pid: self.tid, why })
    }

    /// The kernel aborts a critical section of rseq(2) when it sees the thread leave it; in the runner it would see it too late.
    pub(super) fn leave_critical_section(&mut self) {
        if let Ok(rip) = self.section_aborted(self.registers.rip) {
            self.registers.rip = rip;
        }
    }

    /// Where a thread at `rip` must go on, given the critical section it may be in.
    pub(super) fn section_aborted(&self, rip: u64) -> Result<u64> {
        let Some(rseq) = self.rseq()? else { return Ok(rip) };
        let section = self.section.get_or_init(|| {
            let section = remote::read_u64(self.tid, VirtAddr(rseq.address).add(8)).unwrap_or(0);
            let mut bytes = [0; 32];
            let found = section != 0 && remote::read(self.tid, VirtAddr(section), &mut bytes).is_ok();
            found.then(|| CriticalSection::parse(&bytes))
        });
        Ok(section.as_ref().map_or(rip, |section| section.resume_at(rip)))
    }

    /// Sends the thread into the runner. From the first request on it finds its way back alone.
    pub(super) fn launch(&mut self, regs: &Registers, signal: i32) -> Result<()> {
        let thread = self.stopped()?;
        thread.set_registers(regs)?;
        thread.set_signal_mask(!(1 << (signal - 1)))?;
        self.resume(0)
    }

    /// Lets it run; if that fails it is let go.
    pub(super) fn resume(&mut self, signal: i32) -> Result<()> {
        match mem::replace(&mut self.at, At::Lost) {
            At::Stopped(thread) => {
                self.at = At::Running(thread.resume(signal).map_err(|(_, e)| e)?);
                Ok(())
            }
            other => {
                self.at = other;
                Err(Error::Gone(self.tid))
            }
        }
    }

    /// Waits for the sign at this place, puts the thread back as it was, and gives the registers of the runner's end.
    pub(super) fn collect(
        &mut self,
        signal: i32,
        sign_at: VirtAddr,
        deadline: Deadline,
    ) -> Result<Registers> {
        match self.meet(signal, sign_at, deadline)? {
            Met::Sign(registers) => Ok(*registers),
            Met::Child(child) => {
                let stop = format!("made process {child} in a batch");
                Err(Error::UnexpectedStop { tid: self.tid, stop })
            }
        }
    }

    /// Waits for the sign as [`Held::collect`] does, or until the thread has made a child; then it is stopped where it did.
    pub(super) fn meet(&mut self, signal: i32, sign_at: VirtAddr, deadline: Deadline) -> Result<Met> {
        loop {
            let At::Running(running) = mem::replace(&mut self.at, At::Lost) else {
                return Err(Error::Gone(self.tid));
            };
            let thread = match running.wait(deadline) {
                Ok(waited) => waited.stopped(self.tid)?,
                Err((running, e)) => {
                    self.at = At::Running(running);
                    return Err(e);
                }
            };
            let reason = thread.reason();
            let regs = thread.registers()?;
            if reason == Stop::Signal(signal) && regs.rip == sign_at.0 {
                thread.set_signal_mask(self.mask)?;
                thread.set_registers(&self.registers)?;
                if self.selector != 0 {
                    remote::write(self.tid, VirtAddr(self.selector), &[1])?;
                }
                self.at = At::Stopped(thread);
                return Ok(Met::Sign(Box::new(regs)));
            }
            let child = if reason == Stop::Child { Some(thread.child()?) } else { None };
            self.at = At::Stopped(thread);
            if let Some(child) = child {
                return Ok(Met::Child(child));
            }
            match reason {
                Stop::Signal(libc::SIGSTOP) => self.resume(libc::SIGSTOP)?,
                Stop::Signal(other) if other == signal => self.resume(0)?,
                Stop::Interrupted | Stop::Group(_) => self.resume(0)?,
                stop => {
                    let stop = format!("{stop} at {:#x} in a batch", regs.rip);
                    return Err(Error::UnexpectedStop { tid: self.tid, stop });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sign_is_a_signal_without_meaning() {
        let bit = |s: i32| 1u64 << (s - 1);
        let mut status = Facts::default();
        let none = || 0;
        assert_eq!(sign(&status, 0, none), Some(libc::SIGURG));
        assert_eq!(sign(&status, bit(libc::SIGURG), none), Some(libc::SIGWINCH));
        assert_eq!(sign(&status, u64::MAX, || bit(libc::SIGURG)), Some(libc::SIGWINCH));
        status.caught = bit(libc::SIGURG) | bit(libc::SIGWINCH) | bit(libc::SIGCHLD);
        assert_eq!(sign(&status, 0, none), Some(libc::SIGURG), "Go");
        assert_eq!(sign(&status, 0, || bit(libc::SIGURG)), Some(libc::SIGWINCH));
        assert_eq!(sign(&status, 0, || u64::MAX), None);
        status.ignored = bit(libc::SIGPIPE);
        assert_eq!(sign(&status, 0, none), Some(libc::SIGPIPE));
    }
}
