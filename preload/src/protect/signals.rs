//! What the application believes of signals: SIGSEGV and SIGSYS are never blocked and their handlers are ours, and it is
//! told what it set.
use super::{BELIEVED, CONTROL, Context, RSP, mine, pass, table};
use ckpt_wire::protect::{Dispatch, OURS, STACK};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

const EFAULT: isize = -(libc::EFAULT as isize);
const EINVAL: isize = -(libc::EINVAL as isize);
/// What the kernel never blocks.
const NEVER: u64 = 1 << (libc::SIGKILL - 1) | 1 << (libc::SIGSTOP - 1);

/// The bits of a mask that a wish stands for.
pub fn believed(wish: u8) -> u64 {
    u64::from(wish & 1) << (libc::SIGSEGV - 1) | u64::from(wish >> 1 & 1) << (libc::SIGSYS - 1)
}

/// The wish in a mask.
pub fn wish_of(mask: u64) -> u8 {
    (mask >> (libc::SIGSEGV - 1) & 1) as u8 | ((mask >> (libc::SIGSYS - 1) & 1) as u8) << 1
}

/// rt_sigprocmask(2): the mask is that of the signal frame, which is put in place at its end.
pub fn procmask(args: &[usize; 6], context: &mut Context) -> isize {
    let [how, set, old, size, ..] = *args;
    if size != size_of::<u64>() {
        return EINVAL;
    }
    let wish = mine().map_or(0, |slot| slot.wish.load(Relaxed));
    let was = context.mask | believed(wish);
    if set != 0 {
        let mut given = 0u64;
        if !pass::copy(&raw mut given as usize, set, size) {
            return EFAULT;
        }
        let new = match how as i32 {
            libc::SIG_BLOCK => was | given,
            libc::SIG_UNBLOCK => was & !given,
            libc::SIG_SETMASK => given,
            _ => return EINVAL,
        };
        if let Some(slot) = mine() {
            slot.wish.store(wish_of(new), Relaxed);
        }
        context.mask = new & !OURS & !NEVER;
    }
    if old != 0 && !pass::copy(old, &raw const was as usize, size) {
        return EFAULT;
    }
    0
}

/// rt_sigaction(2).
pub fn action(args: &[usize; 6]) -> isize {
    let [signal, new, old, size, ..] = *args;
    if size != size_of::<u64>() || !(1..=64).contains(&signal) {
        return EINVAL;
    }
    let mut given = [0u64; 4];
    if new != 0 && !pass::copy(&raw mut given as usize, new, size_of_val(&given)) {
        return EFAULT;
    }
    let borrows = super::clone::is_borrower();
    let lock = table::lock(false);
    let bit = 1u64 << (signal - 1);
    let was = if bit & OURS != 0 {
        own_action(signal as i32, (new != 0 && !borrows).then_some(&given))
    } else {
        let mut was = [0u64; 4];
        let stripped = [given[0], given[1], given[2], given[3] & !OURS];
        let new = if new == 0 { 0 } else { &raw const stripped as usize };
        // SAFETY: both are kernel_sigactions that outlive the call; the handler is the application's.
        let result =
            unsafe { pass::raw(libc::SYS_rt_sigaction, [signal, new, &raw mut was as usize, size, 0, 0]) };
        if result != 0 {
            return result;
        }
        for (which, masked) in CONTROL.masked.iter().enumerate() {
            let ours = believed(1 << which);
            if masked.load(Relaxed) & bit != 0 {
                was[3] |= ours;
            }
            if new != 0 && !borrows {
                let set = |all: &AtomicU64, on: bool| {
                    let kept = all.load(Relaxed) & !bit;
                    all.store(if on { kept | bit } else { kept }, Relaxed);
                };
                set(masked, given[3] & ours != 0);
            }
        }
        was
    };
    drop(lock);
    if old != 0 && !pass::copy(old, &raw const was as usize, size_of_val(&was)) {
        return EFAULT;
    }
    0
}

/// The believed action of SIGSEGV or SIGSYS, and a new one; ours stays.
fn own_action(signal: i32, new: Option<&[u64; 4]>) -> [u64; 4] {
    let ours = &CONTROL.actions[usize::from(signal == libc::SIGSYS)];
    let was = [0, 1, 2, 3].map(|at| ours[at].load(Relaxed));
    if let Some(new) = new {
        for (to, from) in ours.iter().zip(new) {
            to.store(*from, Relaxed);
        }
    }
    was
}

/// A mask that a call is given for its time, without ours. `None`: it cannot be read; `Some(0)` for a null pointer.
pub fn stripped(mask: usize, place: &mut u64) -> Option<usize> {
    if mask == 0 {
        return Some(0);
    }
    pass::copy(core::ptr::from_mut(place) as usize, mask, size_of::<u64>()).then(|| {
        *place &= !OURS;
        core::ptr::from_ref(place) as usize
    })
}

/// rt_sigreturn(2) of a handler of the application: its frame begins where its stack pointer is.
///
/// # Safety
/// `context` is that of the running handler.
pub unsafe fn leave(context: &Context) -> ! {
    let frame = context.regs[RSP] as *mut Context;
    // SAFETY: a program that makes this call has a context there, or dies of it, as without us. A fault of these writes is
    // answered as one of the application's.
    unsafe {
        let believed = (*frame).flags & BELIEVED != 0;
        let wish = wish_of((*frame).mask);
        if let Some(slot) = mine()
            && (believed || wish != 0)
        {
            slot.wish.store(wish, Relaxed);
        }
        (*frame).flags &= !BELIEVED;
        (*frame).mask &= !OURS;
        pass::return_to(frame)
    }
}

/// What a thread has without an alternate stack.
const NO_STACK: [u64; 3] = [0, libc::SS_DISABLE as u64, 0];

/// The alternate stack of ours that belongs to a slot, as a stack_t.
pub fn own_stack(slot: usize) -> [u64; 3] {
    let stacks = CONTROL.stacks.load(Relaxed);
    if stacks == 0 {
        return NO_STACK;
    }
    let index = (slot - &raw const CONTROL.threads as usize) / size_of::<Dispatch>();
    [stacks + (index * STACK) as u64, 0, STACK as u64]
}

/// sigaltstack(2): the new stack is never protected, and becomes part of the signal frame, which would bring the old one back.
pub fn altstack(args: &[usize; 6], context: &mut Context) -> isize {
    let [new, old, ..] = *args;
    let (mut given, mut was) = ([0u64; 3], [0u64; 3]);
    if new != 0 {
        if !pass::copy(&raw mut given as usize, new, size_of_val(&given)) {
            return EFAULT;
        }
        let _lock = table::lock(false);
        table::release(given[0], given[0].saturating_add(given[2]));
    }
    let own = mine().map_or(NO_STACK, |slot| own_stack(core::ptr::from_ref(slot) as usize));
    if given[1] as i32 & libc::SS_DISABLE != 0 {
        given = own;
    }
    let new = if new == 0 { 0 } else { &raw const given as usize };
    // SAFETY: both are stack_ts that outlive the call; the stack is the application's.
    let result = unsafe { pass::raw(libc::SYS_sigaltstack, [new, &raw mut was as usize, 0, 0, 0, 0]) };
    if result != 0 {
        return result;
    }
    if new != 0 {
        context.stack = given;
    }
    if was[0] == own[0] {
        was = NO_STACK;
    }
    if old != 0 && !pass::copy(old, &raw const was as usize, size_of_val(&was)) {
        return EFAULT;
    }
    0
}
