//! The runner: the position-independent code that executes a batch inside a member.
//!
//! Registers at its entry: rbx is the slot's base ([`crate::batch`] has the drawing); rsp is the thread's own and is not used.
//! In a process that is being rebuilt it ends in a trap (int3) that the tracer waits for. In a live one it sends itself
//! the sign, an ignored signal that only a tracer sees, and then puts mask and registers back by itself: if the tracer
//! is gone, the thread goes on where it was. Extended state is not touched, nor the stack, nor what
//! restart_syscall(2) needs (so it must not end in rt_sigreturn(2), which forgets that).
//!
//! ```text
//!  code ─ 0 batch    the loop over the calls
//!         sign       the stop at which a live batch is complete (rip just after tgkill)
//!         trap       the stop at which a restore batch is complete (rip just after int3)
//!         boot       one call from registers, sign, and the way back from the words below; needs no writable page
//!         boot_sign  the stop of boot; the result is in rbp
//!         words      what boot puts back: registers (struct user_regs_struct), mask, selector
//! ```
//!
//! A call may make a copy of the process ([`crate::inject`], copy.rs): in its helper and in the copy the code goes another way, which
//! never comes back: both do their few calls, without memory or stack, and end.
//!
//! A thread whose system calls are dispatched to user space (Syscall User Dispatch, Linux 5.11) has a selector byte: the
//! runner itself sets it to let its calls pass, and back, so that this too is right if the tracer is gone.

mod code;

use nix::unistd::Pid;

use crate::VirtAddr;
use crate::batch::{Batch, Mode, Outcome, Slot};
use crate::error::{Error, Result};
use crate::ptrace::Registers;
use crate::remote;
use crate::thread::{Deadline, Running, Step, Stop, Stopped};

pub use code::code;
pub(crate) use code::offsets;

/// The runner in a process that is being rebuilt: its code and one slot, mapped there at known places.
///
/// The process is killed if anything goes wrong ([`crate::thread::Care::Kill`], PTRACE_O_EXITKILL), so nothing is put back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RestoreRunner {
    code: VirtAddr,
    slot: Slot,
    /// The slots are memory that this process shares with the rebuilt one, at the same addresses.
    shared: bool,
}

/// A batch that runs in a process that is being rebuilt.
#[derive(Debug)]
pub struct Begun {
    running: Running,
    children: Vec<Pid>,
}

/// A batch that ran in a process that is being rebuilt.
#[derive(Debug)]
pub struct Ran {
    /// The thread, stopped again, ready for the next batch.
    pub thread: Stopped,
    /// The results.
    pub outcome: Outcome,
    /// Threads and processes that its calls made, in order, each traced and about to stop at its beginning.
    pub children: Vec<Pid>,
}

impl RestoreRunner {
    /// The runner whose [`code`] lies at an address of the process, executable, with a slot that is writable there.
    #[must_use]
    pub const fn new(code: VirtAddr, slot: Slot) -> Self {
        Self { code, slot, shared: false }
    }

    /// Same, where all slots are memory of this process, too, at the same addresses; only [`crate::nursery`] can say so.
    pub(crate) const fn shared(code: VirtAddr, slot: Slot) -> Self {
        Self { code, slot, shared: true }
    }

    /// Where [`code`] lies in the process.
    #[must_use]
    pub const fn code(&self) -> VirtAddr {
        self.code
    }

    /// The slot for batches that run one after another.
    #[must_use]
    pub const fn slot(&self) -> Slot {
        self.slot
    }

    /// Runs a batch made for one of this runner's slots. The thread's registers are lost (they are set at the end of a restore).
    ///
    /// Children are left to their initial stop ([`Running::adopt`]): give them registers of their own before they run.
    pub fn run(&self, thread: Stopped, batch: &Batch, deadline: Deadline) -> Step<Ran, Option<Stopped>> {
        let begun = self.begin(thread, batch).map_err(|(thread, e)| (Some(thread), e))?;
        self.end(begun, batch, deadline)
    }

    /// Sets a batch going. Its slot is nobody else's until [`RestoreRunner::end`].
    pub fn begin(&self, thread: Stopped, batch: &Batch) -> Step<Begun, Stopped> {
        match self.launch(&thread, batch) {
            Ok(()) => {
                let running = thread.resume(0)?;
                Ok(Begun { running, children: Vec::new() })
            }
            Err(e) => Err((thread, e)),
        }
    }

    /// Writes the slot and points the thread at the code.
    fn launch(&self, thread: &Stopped, batch: &Batch) -> Result<()> {
        let (head, data) = batch.encode(Mode::Restore)?;
        self.write(thread.tid(), batch.slot().base, &head)?;
        self.write(thread.tid(), batch.slot().data(), data)?;
        let mut regs = thread.registers()?;
        set_entry(&mut regs, self.code, batch.slot());
        thread.set_registers(&regs)
    }

    /// Waits until the batch has come to the trap, past the events on the way.
    pub fn end(&self, begun: Begun, batch: &Batch, deadline: Deadline) -> Step<Ran, Option<Stopped>> {
        let Begun { mut running, mut children } = begun;
        loop {
            let tid = running.tid();
            let thread = wait_stopped(running, tid, deadline)?;
            let step = match thread.reason() {
                Stop::Child => thread.child().map(|pid| children.push(pid)).map(|()| false),
                Stop::Signal(libc::SIGTRAP) => self.check_trap(&thread).map(|()| true),
                stop => Err(Error::UnexpectedStop { tid, stop: describe(&thread, stop, batch.slot()) }),
            };
            match step {
                Ok(false) => running = thread.resume(0).map_err(|(t, e)| (Some(t), e))?,
                Ok(true) => {
                    return match self.results(tid, batch) {
                        Ok(outcome) => Ok(Ran { thread, outcome, children }),
                        Err(e) => Err((Some(thread), e)),
                    };
                }
                Err(e) => return Err((Some(thread), e)),
            }
        }
    }

    /// The trap must be ours.
    fn check_trap(&self, thread: &Stopped) -> Result<()> {
        let rip = thread.registers()?.rip;
        if rip == self.code.0 + offsets().trap {
            return Ok(());
        }
        Err(Error::UnexpectedStop { tid: thread.tid(), stop: format!("trap at {rip:#x}") })
    }

    /// Reads the slot back.
    fn results(&self, tid: Pid, batch: &Batch) -> Result<Outcome> {
        let (head, data) = batch.lengths();
        let (mut head, mut data) = (vec![0; head], vec![0; data]);
        self.read(tid, batch.slot().base, &mut head)?;
        self.read(tid, batch.slot().data(), &mut data)?;
        Ok(batch.decode(&head, data))
    }

    fn write(&self, tid: Pid, at: VirtAddr, bytes: &[u8]) -> Result<()> {
        match self.shared {
            true => crate::nursery::write(at, bytes),
            false => remote::write(tid, at, bytes),
        }
    }

    fn read(&self, tid: Pid, at: VirtAddr, bytes: &mut [u8]) -> Result<()> {
        match self.shared {
            true => crate::nursery::read(at, bytes),
            false => remote::read(tid, at, bytes),
        }
    }
}

/// The stop with the place and the call it happened at.
fn describe(thread: &Stopped, stop: Stop, slot: Slot) -> String {
    let rip = thread.registers().map_or(0, |r| r.rip);
    let done = remote::read_u64(thread.tid(), slot.base.add(8)).unwrap_or(u64::MAX);
    format!("{stop} at {rip:#x} after {done} calls of the batch")
}

/// Reads a batch's results out of its slot.
pub(crate) fn read_outcome(tid: Pid, batch: &Batch) -> Result<Outcome> {
    let (head, data) = batch.lengths();
    let (mut head, mut data) = (vec![0; head], vec![0; data]);
    remote::read_both(tid, (batch.slot().base, &mut head), (batch.slot().data(), &mut data))?;
    Ok(batch.decode(&head, data))
}

/// Registers with which a thread enters the runner.
pub(crate) fn set_entry(regs: &mut Registers, code: VirtAddr, slot: Slot) {
    regs.rip = code.0;
    regs.rbx = slot.base.0;
    regs.orig_rax = u64::MAX; // no system call to be restarted
    regs.eflags &= !0x500; // neither single-step nor direction
}

/// Waits for a stop; the end of the thread is an error.
pub(crate) fn wait_stopped(running: Running, tid: Pid, deadline: Deadline) -> Step<Stopped, Option<Stopped>> {
    match running.wait(deadline) {
        Ok(waited) => waited.stopped(tid).map_err(|e| (None, e)),
        Err((running, e)) => {
            drop(running);
            Err((None, e))
        }
    }
}

/// One system call made by a `syscall` instruction that lies somewhere in the member (the vDSO has one), by a single step.
///
/// For the last call of a restore, which unmaps the runner. Gives the thread stopped behind the instruction and the raw result.
pub fn step_call(
    thread: Stopped,
    instruction: VirtAddr,
    nr: libc::c_long,
    args: [u64; 6],
    deadline: Deadline,
) -> Step<(Stopped, i64), Option<Stopped>> {
    let stepping = begin_step(thread, instruction, nr, args).map_err(|(thread, e)| (Some(thread), e))?;
    end_step(stepping, instruction, deadline)
}

/// Sets such a call going.
pub fn begin_step(
    thread: Stopped,
    instruction: VirtAddr,
    nr: libc::c_long,
    args: [u64; 6],
) -> Step<Running, Stopped> {
    let set = thread.registers().and_then(|mut regs| {
        (regs.rax, regs.orig_rax, regs.rip) = (nr as u64, u64::MAX, instruction.0);
        (regs.rdi, regs.rsi, regs.rdx) = (args[0], args[1], args[2]);
        (regs.r10, regs.r8, regs.r9) = (args[3], args[4], args[5]);
        thread.set_registers(&regs)
    });
    match set {
        Ok(()) => thread.step(),
        Err(e) => Err((thread, e)),
    }
}

/// Waits for the end of such a call.
pub fn end_step(
    stepping: Running,
    instruction: VirtAddr,
    deadline: Deadline,
) -> Step<(Stopped, i64), Option<Stopped>> {
    let tid = stepping.tid();
    let thread = wait_stopped(stepping, tid, deadline)?;
    let regs = match thread.registers() {
        Ok(regs) => regs,
        Err(e) => return Err((Some(thread), e)),
    };
    if thread.reason() != Stop::Signal(libc::SIGTRAP) || regs.rip != instruction.0 + 2 {
        let stop = format!("{} at {:#x}", thread.reason(), regs.rip);
        return Err((Some(thread), Error::UnexpectedStop { tid, stop }));
    }
    Ok((thread, regs.rax as i64))
}
