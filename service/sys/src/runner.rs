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

use std::arch::global_asm;

use nix::unistd::Pid;

use crate::VirtAddr;
use crate::batch::{Batch, Mode, Outcome, Slot};
use crate::error::{Error, Result};
use crate::ptrace::Registers;
use crate::remote;
use crate::thread::{Deadline, Running, Step, Stop, Stopped};

global_asm!(
    ".pushsection .rodata.ckpt_runner,\"a\",@progbits",
    // Whoever names a label may be compiled into another object file than this.
    ".globl ckpt_runner_start",
    ".hidden ckpt_runner_start",
    ".globl ckpt_runner_sign",
    ".hidden ckpt_runner_sign",
    ".globl ckpt_runner_trap",
    ".hidden ckpt_runner_trap",
    ".globl ckpt_runner_boot",
    ".hidden ckpt_runner_boot",
    ".globl ckpt_runner_boot_sign",
    ".hidden ckpt_runner_boot_sign",
    ".globl ckpt_runner_words",
    ".hidden ckpt_runner_words",
    ".globl ckpt_runner_end",
    ".hidden ckpt_runner_end",
    ".balign 64",
    "ckpt_runner_start:",
    "mov rcx, [rbx + 56]",
    "jrcxz 6f",
    "mov byte ptr [rcx], 0",
    "6:",
    // -- the loop: r12 the call, r13 how many are left
    "lea r12, [rbx + 64]",
    "mov r13, [rbx]",
    "2:",
    "test r13, r13",
    "jz 4f",
    "mov eax, [r12]",
    "mov r14d, [r12 + 4]",
    "mov rdi, [r12 + 8]",
    "mov rsi, [r12 + 16]",
    "mov rdx, [r12 + 24]",
    "mov r10, [r12 + 32]",
    "mov r8, [r12 + 40]",
    "mov r9, [r12 + 48]",
    "syscall",
    "test r14d, 2",
    "jnz 22f",
    "5:",
    "mov [r12 + 56], rax",
    "inc qword ptr [rbx + 8]",
    "cmp rax, -4095",
    "jb 3f",
    "test r14d, 1",
    "jnz 4f",
    "3:",
    "add r12, 64",
    "dec r13",
    "jmp 2b",
    "4:",
    "cmp qword ptr [rbx + 16], 1",
    "je ckpt_runner_end_of_restore",
    // -- the sign: tgkill(getpid(), gettid(), signal)
    "mov eax, 39",
    "syscall",
    "mov ebp, eax",
    "mov eax, 186",
    "syscall",
    "mov edi, ebp",
    "mov esi, eax",
    "mov edx, [rbx + 24]",
    "mov eax, 234",
    "syscall",
    "ckpt_runner_sign:",
    // -- the way back: rt_sigprocmask(SIG_SETMASK, &mask, NULL, 8), while rsp is still the thread's own
    "mov edi, 2",
    "lea rsi, [rbx + 40]",
    "xor edx, edx",
    "mov r10d, 8",
    "mov eax, 14",
    "syscall",
    "mov rcx, [rbx + 56]",
    "jrcxz 7f",
    "mov byte ptr [rcx], 1",
    "7:",
    // -- then all registers at once; struct user_regs_struct ends as iretq wants it
    "mov rsp, [rbx + 32]",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rax",
    "pop rcx",
    "pop rdx",
    "pop rsi",
    "pop rdi",
    "lea rsp, [rsp + 8]", // orig_rax
    "iretq",
    "ckpt_runner_end_of_restore:",
    "int3",
    "ckpt_runner_trap:",
    "jmp ckpt_runner_end_of_restore",
    // -- a copy: the member waits for its helper, which has the member's memory, and goes on with the loop
    "22:",
    "test rax, rax",
    "js 5b",
    "jz 24f",
    "mov r15, rax",
    "23:", // wait4(helper, NULL, __WALL, NULL)
    "mov edi, r15d",
    "xor esi, esi",
    "mov edx, 0x40000000",
    "xor r10d, r10d",
    "mov eax, 61",
    "syscall",
    "cmp rax, -4", // EINTR
    "je 23b",
    "mov rax, r15",
    "jmp 5b",
    // -- the helper: clone(CLONE_FILES), tells what came of it, and ends; the copy is an orphan then
    "24:",
    "mov edi, 0x400",
    "xor esi, esi",
    "xor edx, edx",
    "xor r10d, r10d",
    "xor r8d, r8d",
    "mov eax, 56",
    "syscall",
    "test rax, rax",
    "jz 25f",
    "mov [rbx + 48], rax",
    "jmp 26f",
    // -- the copy: close_range(0, ~0, CLOSE_RANGE_UNSHARE), so that it keeps nothing open; stopped before it ends
    "25:",
    "xor edi, edi",
    "mov esi, -1",
    "mov edx, 2",
    "mov eax, 436",
    "syscall",
    "26:", // exit_group(0)
    "xor edi, edi",
    "mov eax, 231",
    "syscall",
    "jmp 26b",
    // -- boot: the call is in the registers already; r12 is the signal
    "ckpt_runner_boot:",
    "mov rcx, [rip + ckpt_runner_words + 224]",
    "jrcxz 8f",
    "mov byte ptr [rcx], 0",
    "8:",
    "syscall",
    "mov rbp, rax",
    "mov eax, 39",
    "syscall",
    "mov ebx, eax",
    "mov eax, 186",
    "syscall",
    "mov edi, ebx",
    "mov esi, eax",
    "mov edx, r12d",
    "mov eax, 234",
    "syscall",
    "ckpt_runner_boot_sign:",
    // -- block everything: popfq needs a stack pointer that no handler could use
    "mov edi, 2",
    "lea rsi, [rip + ckpt_runner_all]",
    "xor edx, edx",
    "mov r10d, 8",
    "mov eax, 14",
    "syscall",
    "lea rsp, [rip + ckpt_runner_words + 144]",
    "popfq",
    "mov rsp, [rip + ckpt_runner_words + 152]",
    "mov r15, [rip + ckpt_runner_words]",
    "mov r14, [rip + ckpt_runner_words + 8]",
    "mov r13, [rip + ckpt_runner_words + 16]",
    "mov r12, [rip + ckpt_runner_words + 24]",
    "mov rbp, [rip + ckpt_runner_words + 32]",
    "mov rbx, [rip + ckpt_runner_words + 40]",
    "mov r9, [rip + ckpt_runner_words + 64]",
    "mov r8, [rip + ckpt_runner_words + 72]",
    "mov edi, 2",
    "lea rsi, [rip + ckpt_runner_words + 216]",
    "mov edx, 0", // no xor from here on: the flags are the thread's
    "mov r10d, 8",
    "mov eax, 14",
    "syscall",
    "mov rcx, [rip + ckpt_runner_words + 224]",
    "jrcxz 9f",
    "mov byte ptr [rcx], 1",
    "9:",
    "mov r11, [rip + ckpt_runner_words + 48]",
    "mov r10, [rip + ckpt_runner_words + 56]",
    "mov rax, [rip + ckpt_runner_words + 80]",
    "mov rcx, [rip + ckpt_runner_words + 88]",
    "mov rdx, [rip + ckpt_runner_words + 96]",
    "mov rsi, [rip + ckpt_runner_words + 104]",
    "mov rdi, [rip + ckpt_runner_words + 112]",
    "jmp qword ptr [rip + ckpt_runner_words + 128]",
    ".balign 8",
    "ckpt_runner_all:",
    ".quad -1",
    "ckpt_runner_words:",
    ".fill 29, 8, 0",
    "ckpt_runner_end:",
    ".popsection",
);

unsafe extern "C" {
    static ckpt_runner_start: u8;
    static ckpt_runner_sign: u8;
    static ckpt_runner_trap: u8;
    static ckpt_runner_boot: u8;
    static ckpt_runner_boot_sign: u8;
    static ckpt_runner_words: u8;
    static ckpt_runner_end: u8;
}

/// The distance of a label from the code's start.
fn offset(label: *const u8) -> u64 {
    (label as usize - &raw const ckpt_runner_start as usize) as u64
}

/// The code, to be copied into a page that the member may execute. The batch entry is its first byte.
#[must_use]
pub fn code() -> &'static [u8] {
    let len = offset(&raw const ckpt_runner_end) as usize;
    // SAFETY: both labels delimit one read-only section of this program, initialized in full.
    unsafe { std::slice::from_raw_parts(&raw const ckpt_runner_start, len) }
}

/// Where things lie in the code, in bytes from its first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offsets {
    pub(crate) sign: u64,
    pub(crate) trap: u64,
    pub(crate) boot: u64,
    pub(crate) boot_sign: u64,
    pub(crate) words: u64,
}

/// See [`Offsets`].
pub(crate) fn offsets() -> Offsets {
    Offsets {
        sign: offset(&raw const ckpt_runner_sign),
        trap: offset(&raw const ckpt_runner_trap),
        boot: offset(&raw const ckpt_runner_boot),
        boot_sign: offset(&raw const ckpt_runner_boot_sign),
        words: offset(&raw const ckpt_runner_words),
    }
}

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
