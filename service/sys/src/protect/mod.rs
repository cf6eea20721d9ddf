//! The daemon's side of the `write-protect` tracker: the control block of the preload library in a stopped member.
//!
//! ```text
//!  hold     nobody in the midst of the library's own work: no lock held, no SIGSYS or SIGSEGV on its way    Held::settled
//!  lift     who is closed still was not written ► mprotect ► calls pass ► handlers and masks as believed    lift
//!  …        the checkpoint sees the member as the application made it
//!  arm      handlers ► slots, dispatching ► table ► mprotect                                                  arm
//! ```
//! Each step leaves the member right if we die after it: nothing is closed before faults and calls are answered, and nobody stops
//! answering before everything is open. What is read of the member is its own word; it decides only about calls inside it.

mod arm;
mod control;
mod frames;
mod handlers;
mod lift;

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use nix::errno::Errno;
use nix::unistd::Pid;

pub(crate) use self::control::Control;
use crate::error::{Error, Result};
use crate::gate::Gate;
use crate::runner::wait_stopped;
use crate::seize::settle;
use crate::thread::{Deadline, Stop, Stopped};
use crate::{AddrRange, VirtAddr};

/// Whether the tracker is, or was, in use here: then each process is looked at for it.
static EXPECTED: AtomicBool = AtomicBool::new(false);

/// Says that members may be armed, by this program or by one before it.
pub fn expect() {
    EXPECTED.store(true, Relaxed);
}

/// Whether the kernel has what the tracker needs: Syscall User Dispatch (Linux 5.11), tried on ourselves, and its request of
/// ptrace(2) (Linux 6.4), without which batches could be dispatched.
pub fn probe() -> std::result::Result<(), Errno> {
    const PR_SET_SYSCALL_USER_DISPATCH: libc::c_int = 59;
    // SAFETY: switches off what is off; only numbers.
    Errno::result(unsafe { libc::prctl(PR_SET_SYSCALL_USER_DISPATCH, 0, 0, 0, 0) })?;
    // ESRCH: the request is known and looks for a traced thread; EIO comes for unknown ones of traced threads only, so the
    // release tells.
    match crate::ptrace::dispatch_configuration(Pid::from_raw(0)) {
        Err(Errno::ESRCH) if release() >= (6, 4) => Ok(()),
        Err(Errno::ESRCH) => Err(Errno::ENOSYS),
        Err(e) => Err(e),
        Ok(_) => Ok(()),
    }
}

/// Major and minor number of the kernel's release.
fn release() -> (u32, u32) {
    let text = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
    let text = text.unwrap_or_default();
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// What this program knows of the tracker in a process.
#[derive(Debug, Default)]
pub struct Protection {
    control: Option<Control>,
    /// The tracker was on until [`crate::inject::Live::lift`].
    lifted: bool,
    /// Pages that were armed and not written since; known after [`crate::inject::Live::lift`].
    clean: Vec<AddrRange>,
}

impl Protection {
    /// Looks whether a process's system calls are dispatched to the library, and lets its threads end what they are in the midst of.
    pub(crate) fn settle(threads: Vec<Stopped>, deadline: Deadline) -> Result<(Self, Vec<Stopped>)> {
        let Some(control) = Control::of_threads(&threads)? else { return Ok((Self::default(), threads)) };
        expect();
        let mut settled = Vec::with_capacity(threads.len());
        for thread in threads {
            settled.push(run_out(thread, &control, deadline)?);
        }
        // A thread that ended without giving the lock back: nothing of the table is relied on but what is checked.
        if control.is_locked()? {
            control.unlock()?;
        }
        Ok((Self { control: Some(control), ..Self::default() }, settled))
    }

    /// Whether threads of the process may have run since the stop, to end what they were in the midst of.
    pub(crate) fn has_run(&self) -> bool {
        self.control.is_some()
    }

    /// The control block: known from dispatching, or told by the library's table.
    pub(crate) fn control(&mut self, pid: Pid) -> Result<Option<&Control>> {
        if self.control.is_none()
            && let Some(gate) = Gate::find(pid.as_raw())?
        {
            self.control = Control::at(pid, VirtAddr(gate.control()))?;
        }
        Ok(self.control.as_ref())
    }

    /// Whether an alternate signal stack is not the application's own but given by the tracker to a thread without one.
    #[must_use]
    pub fn is_own_stack(&self, at: u64) -> bool {
        self.control.is_some_and(|control| control.is_own_stack(at))
    }

    /// Whether a selector byte of Syscall User Dispatch is the tracker's.
    #[must_use]
    pub fn is_own_selector(&self, at: u64) -> bool {
        self.control.is_some_and(|control| control.has_slot(at))
    }

    /// The control block of a process that may be armed though no thread of it dispatches: a child of fork(2) that was stopped before
    /// it began to.
    pub(crate) fn expected(&mut self, pid: Pid) -> Result<Option<Control>> {
        if self.control.is_some() || !EXPECTED.load(Relaxed) {
            return Ok(self.control);
        }
        self.control(pid).map(|control| control.copied())
    }

    /// Pages that were armed and not written since, ascending.
    #[must_use]
    pub fn clean(&self) -> &[AddrRange] {
        &self.clean
    }
}

/// System calls that a thread makes at most until it gives the lock back: one for each page in the worst case.
const CALLS: u32 = 20_000;

/// Lets a thread run until it neither holds the library's lock nor has a signal of the library's on its way; not one instruction
/// of the application more.
fn run_out(thread: Stopped, control: &Control, deadline: Deadline) -> Result<Stopped> {
    let tid = thread.tid();
    let mut thread = thread;
    let mut went = false;
    // Into the handler, whose first instruction is not executed.
    for signal in on_their_way(&thread)? {
        if matches!(thread.reason(), Stop::Group(_)) {
            return Ok(thread);
        }
        let running = thread.step().map_err(|(_, e)| e)?;
        thread = wait_stopped(running, tid, deadline).map_err(|(_, e)| e)?;
        if thread.reason() == Stop::Signal(signal) {
            let running = thread.step_with(signal).map_err(|(_, e)| e)?;
            thread = wait_stopped(running, tid, deadline).map_err(|(_, e)| e)?;
        }
        went = true;
    }
    // From call to call: what holds the lock ends in one, the last of which brings the application back.
    for _ in 0..CALLS {
        if deadline.passed() || !control.holds(&thread)? {
            break;
        }
        let running = thread.step_to_call().map_err(|(_, e)| e)?;
        thread = wait_stopped(running, tid, deadline).map_err(|(_, e)| e)?;
        let running = thread.step_to_call().map_err(|(_, e)| e)?;
        thread = wait_stopped(running, tid, deadline).map_err(|(_, e)| e)?;
        went = true;
    }
    if !went {
        return Ok(thread);
    }
    // Stopped again by the interrupt, so that nothing is delivered when it goes on.
    thread.interrupt()?;
    let running = thread.resume(0).map_err(|(_, e)| e)?;
    settle(running, deadline).map_err(|(_, e)| e)?.ok_or(Error::Gone(tid))
}

/// The signals that a fault or a dispatched call of the thread has made and that are not delivered yet.
fn on_their_way(thread: &Stopped) -> Result<Vec<i32>> {
    let pending = thread.pending_signals(false)?;
    let word = |info: &[u8; 128], at: usize| {
        i32::from_ne_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]])
    };
    let ours = pending.iter().filter(|info| word(info, 8) > 0).map(|info| word(info, 0));
    Ok(ours.filter(|signal| matches!(*signal, libc::SIGSYS | libc::SIGSEGV)).collect())
}
