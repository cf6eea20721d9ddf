//! New threads and processes: each enters dispatching before it does anything of its own.
use super::{CONTROL, Context, RAX, RSP, getpid, gettid, mine, pass, pins::Pins, reserve, signals, table};
use crate::thread;
use ckpt_wire::protect::{DISPATCH, Dispatch, FREE, OURS};
use core::sync::atomic::Ordering::{Relaxed, SeqCst};

const PR_SET_SYSCALL_USER_DISPATCH: usize = 59;
const PR_SYS_DISPATCH_OFF: usize = 0;
const PR_SYS_DISPATCH_ON: usize = 1;
const CLEAR_SIGHAND: u64 = 1 << 32;
/// Of a new stack whose length is not told, what is opened at most.
const STACK: u64 = 64 << 20;
/// The slot is that of the thread that waits for the child.
const BORROWED: usize = 1;
/// The kernel gave the child default actions.
const CLEARED: usize = 2;
const _: () = assert!(align_of::<Dispatch>() > BORROWED | CLEARED);

/// What a call that makes a thread or a process asks for.
struct Wanted {
    flags: u64,
    /// From the lowest byte, if that is known, to behind the highest; 0 for the maker's own.
    stack: (Option<u64>, u64),
    parent_tid: u64,
    child_tid: u64,
    pidfd: u64,
    tls: u64,
}

/// struct clone_args as far as this program knows it, and what may come.
type CloneArgs = [u64; 16];

impl Wanted {
    fn has(&self, flag: i32) -> bool {
        self.flags & flag as u64 != 0
    }

    fn read(number: i64, args: &[usize; 6], copy: &mut CloneArgs) -> Option<Wanted> {
        let word = |at: usize| args[at] as u64;
        match number {
            libc::SYS_fork => Some(Wanted {
                flags: libc::SIGCHLD as u64,
                stack: (None, 0),
                parent_tid: 0,
                child_tid: 0,
                pidfd: 0,
                tls: 0,
            }),
            libc::SYS_clone => Some(Wanted {
                flags: word(0) & 0xffff_ffff,
                stack: (None, word(1)),
                parent_tid: word(2),
                child_tid: word(3),
                pidfd: word(2),
                tls: word(4),
            }),
            libc::SYS_clone3 => {
                let known = (64..=size_of::<CloneArgs>()).contains(&args[1]);
                if !known || !pass::copy(copy.as_mut_ptr() as usize, args[0], args[1]) {
                    return None;
                }
                let [flags, pidfd, child_tid, parent_tid, _, stack, length, tls, ..] = *copy;
                let stack = if stack == 0 { (None, 0) } else { (Some(stack), stack.wrapping_add(length)) };
                Some(Wanted { flags, stack, parent_tid, child_tid, pidfd, tls })
            }
            _ => None,
        }
    }

    /// What the kernel and the child write before they can be asked; nothing where start and end are the same.
    fn places(&self) -> [(u64, u64); 5] {
        let if_asked = |flag, at: u64| if self.has(flag) { (at, at.saturating_add(4)) } else { (0, 0) };
        let tls = (self.tls.saturating_sub(table::PAGE), self.tls.saturating_add(2 * table::PAGE));
        let (low, high) = self.stack;
        let walk = || {
            let limit = high.saturating_sub(STACK);
            let mut at = high;
            while at > limit && table::state(at - 1).is_some() {
                at -= table::PAGE;
            }
            at
        };
        [
            (if high == 0 { 0 } else { low.unwrap_or_else(walk) }, high),
            if self.has(libc::CLONE_SETTLS) { tls } else { (0, 0) },
            if_asked(libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID, self.child_tid),
            if_asked(libc::CLONE_PARENT_SETTID, self.parent_tid),
            if_asked(libc::CLONE_PIDFD, self.pidfd),
        ]
    }

    /// What is written at once or when the thread ends is the kernel's from here on, and pinned, so that a checkpoint before the
    /// child is there does not close it again.
    fn release(&self, pins: &Pins) {
        let places = self.places();
        for (start, end) in places {
            pins.add(start as usize, (end - start) as usize);
        }
        let _lock = table::lock(true);
        for (start, end) in places {
            table::release(start, end);
        }
    }
}

/// Makes the call. `None`: it cannot be made from here; tracking is to be given up.
pub fn call(number: i64, args: &[usize; 6], context: &mut Context) -> Option<isize> {
    let mut copy: CloneArgs = [0; 16];
    let Some(wanted) = Wanted::read(number, args, &mut copy) else {
        // vfork(2) without its hook, or arguments that the kernel refuses or this program does not know.
        return None;
    };
    let shares = wanted.has(libc::CLONE_VM);
    let waits = wanted.has(libc::CLONE_VFORK);
    if shares && (wanted.stack.1 == 0 || !waits && !wanted.has(libc::CLONE_SETTLS)) {
        return None;
    }
    let slot = if !shares || waits { mine()? } else { reserve()? };
    super::block();
    let pins = Pins::begin(context);
    wanted.release(&pins);
    let wish = slot.wish.load(Relaxed);
    let tag = if waits { BORROWED } else { 0 } | if wanted.flags & CLEAR_SIGHAND != 0 { CLEARED } else { 0 };
    // The table that a child inherits must be that of the memory that it inherits.
    let _lock = (!shares && !waits).then(table::lock_for_a_fork);
    let result = if wanted.stack.1 == 0 {
        // SAFETY: the application's own call; a child of its own memory returns here as its maker does.
        let result = unsafe { pass::raw(number, *args) };
        if result == 0 {
            in_new_process(slot, tag & CLEARED != 0);
        }
        result
    } else {
        if shares && !waits {
            slot.wish.store(mine().map_or(0, |maker| maker.wish.load(Relaxed)), Relaxed);
        }
        with_stack(number, args, &mut copy, context, &wanted, core::ptr::from_ref(slot) as usize | tag)
    };
    if waits {
        slot.wish.store(wish, Relaxed);
    }
    if result < 0 && shares && !waits {
        slot.thread.store(0, Relaxed);
    }
    // The mask comes back with the signal frame.
    Some(result)
}

/// A child on a stack of its own goes on from a copy of the signal frame there.
fn with_stack(
    number: i64,
    args: &[usize; 6],
    copy: &mut CloneArgs,
    context: &Context,
    wanted: &Wanted,
    slot: usize,
) -> isize {
    const EXTENDED: u32 = 0x4650_5853;
    let mut marks = [0u32; 2];
    let known =
        context.fpstate != 0 && pass::copy(marks.as_mut_ptr() as usize, context.fpstate as usize + 464, 8);
    let size = if known && marks[0] == EXTENDED { marks[1] as usize } else { 512 };
    let top = wanted.stack.1 as usize;
    let state = top.wrapping_sub(128 + size) & !63;
    let place = state.wrapping_sub(size_of::<Context>()) & !15;
    let mut regs = context.regs;
    (regs[RAX], regs[RSP]) = (0, wanted.stack.1);
    let child = Context {
        regs,
        fpstate: if context.fpstate == 0 { 0 } else { state as u64 },
        // As the kernel does it: a thread begins without an alternate stack.
        stack: if slot & BORROWED != 0 {
            context.stack
        } else {
            signals::own_stack(slot & !(BORROWED | CLEARED))
        },
        ..*context
    };
    let written = (context.fpstate == 0 || pass::copy(state, context.fpstate as usize, size))
        && pass::copy(place, &raw const child as usize, size_of::<Context>());
    if !written {
        return -(libc::EFAULT as isize);
    }
    let mut args = *args;
    if number == libc::SYS_clone3 {
        copy[6] = place as u64 - copy[5];
        args[0] = copy.as_ptr() as usize;
    } else {
        args[1] = place;
    }
    // SAFETY: the application's own call, with a stack that begins at a whole context of its own.
    unsafe { pass::clone(number, args, slot) }
}

/// The first thing that a child on a stack of its own does; then it leaves by its signal frame.
pub extern "C" fn child_with_stack(tagged: usize) {
    let slot = (tagged & !(BORROWED | CLEARED)) as *const Dispatch;
    // SAFETY: call() gave a slot of CONTROL, which lives for ever.
    let slot = unsafe { &*slot };
    if tagged & BORROWED == 0 {
        let id = gettid();
        if id == getpid() {
            // clone(2) of a process with memory of its own and a stack.
            return in_new_process(slot, tagged & CLEARED != 0);
        }
        slot.thread.store(id, SeqCst);
        thread::this().dispatch.store(core::ptr::from_ref(slot).cast_mut(), Relaxed);
    }
    if tagged & CLEARED != 0 {
        install();
    }
    dispatch(slot);
}

/// A process with a copy of the memory: its only thread is the one that was made.
fn in_new_process(slot: &'static Dispatch, cleared: bool) {
    CONTROL.lock.store(FREE, Relaxed);
    for other in &CONTROL.threads {
        other.thread.store(0, Relaxed);
    }
    slot.thread.store(gettid(), Relaxed);
    if cleared {
        install();
    }
    dispatch(slot);
}

/// Our handlers, where the kernel has put the default in their place.
fn install() {
    let restorer = CONTROL.restorer.load(Relaxed);
    let faults = [CONTROL.on_fault.load(Relaxed), 0x4c00_0004, restorer, !OURS];
    let calls = [CONTROL.on_call.load(Relaxed), 0x4400_0004, restorer, 0];
    for (signal, action) in [(libc::SIGSEGV, faults), (libc::SIGSYS, calls)] {
        let args = [signal as usize, action.as_ptr() as usize, 0, size_of::<u64>(), 0, 0];
        // SAFETY: action is a kernel_sigaction of ours.
        unsafe { pass::raw(libc::SYS_rt_sigaction, args) };
    }
}

/// From here on the system calls of this thread come to us.
fn dispatch(slot: &Dispatch) {
    if !super::is_on() {
        return;
    }
    slot.selector.store(DISPATCH, Relaxed);
    let (text, length) = pass::range();
    let selector = &raw const slot.selector as usize;
    let args =
        [PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON, text as usize, length as usize, selector, 0];
    // SAFETY: the selector lives for ever.
    unsafe { pass::raw(libc::SYS_prctl, args) };
}

/// The last thing that a thread does: its slot is another's from here on.
pub fn leave(slot: &Dispatch) {
    super::block();
    let off = [PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_OFF, 0, 0, 0, 0];
    // SAFETY: only numbers.
    unsafe { pass::raw(libc::SYS_prctl, off) };
    thread::this().dispatch.store(core::ptr::null_mut(), Relaxed);
    slot.thread.store(0, SeqCst);
}

/// In the child of the hook of vfork(2), which borrows its parent's slot.
pub fn vfork_child() {
    if super::is_on()
        && let Some(slot) = mine()
    {
        dispatch(slot);
    }
}

/// Whether the thread borrows its slot from the one that waits for it in vfork(2): what it sets of signals is its own.
pub fn is_borrower() -> bool {
    mine().is_some_and(|slot| slot.thread.load(Relaxed) != gettid())
}
