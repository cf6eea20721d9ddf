//! SIGSEGV: a write to a closed page is done again once the page is open; everything else goes on to the application.
use super::{BELIEVED, CONTROL, Context, RIP, RSP, getpid, gettid, mine, pass, table};
use ckpt_wire::protect::{CLOSED, OPENED, OURS};
use core::{ffi::c_void, sync::atomic::Ordering::Relaxed};

/// Page fault error code: a write, to a page that is there or is not yet.
const WRITE: u64 = 2;
/// si_code: the kernel itself, where it could not write a signal frame.
const SI_KERNEL: i32 = 0x80;
const SEGV_ACCERR: i32 = 2;
/// How much of a stack is opened below a stack pointer that was found in closed memory.
const BELOW: u64 = 256 << 10;

/// The head of siginfo_t.
#[repr(C)]
pub struct Info {
    pub signo: i32,
    pub errno: i32,
    pub code: i32,
    pub pad: i32,
    pub address: u64,
}

/// The handler. All signals are blocked.
pub unsafe extern "C" fn on_fault(signal: i32, info: *mut Info, context: *mut c_void) {
    // SAFETY: the kernel has built the signal frame with both, for this handler alone.
    let (what, context) = unsafe { (&*info, &mut *context.cast::<Context>()) };
    if answered(what, context) {
        return;
    }
    if let Some(next) = pass::after_fault(context.regs[RIP]) {
        context.regs[RIP] = next;
        return;
    }
    // SAFETY: the frame is the kernel's.
    unsafe { hand_on(signal, info, context) }
}

/// Whether the fault was ours and the instruction can be done again.
fn answered(info: &Info, context: &mut Context) -> bool {
    if info.code == SI_KERNEL {
        return open_stack(context);
    }
    let is_write = context.regs[libc::REG_ERR as usize] & WRITE != 0;
    if info.code != SEGV_ACCERR || !is_write {
        return false;
    }
    let slot = mine();
    if slot.is_some_and(table::is_held_by) {
        return table::unprotect_page(info.address);
    }
    let state = table::state(info.address);
    if state == Some(CLOSED) {
        {
            let _lock = table::lock(true);
            table::open_at(info.address);
            let stack = context.regs[RSP];
            if info.address.abs_diff(stack) < BELOW {
                table::open(stack - BELOW.min(stack), stack.saturating_add(table::PAGE));
            }
        }
        if table::state(info.address) != Some(CLOSED) {
            return true;
        }
    }
    // Another thread, or a checkpoint in between, may have made it writable meanwhile: once more, but not for ever.
    let Some(slot) = slot else { return false };
    let page = info.address & !(table::PAGE - 1);
    if slot.again[0].load(Relaxed) != page {
        slot.again[0].store(page, Relaxed);
        slot.again[1].store(0, Relaxed);
    }
    let limit = if state == Some(OPENED) { 8 } else { 1 };
    if slot.again[1].fetch_add(1, Relaxed) < limit {
        if state == Some(OPENED) {
            let _lock = table::lock(true);
            if table::state(info.address) == Some(OPENED) {
                table::unprotect_page(info.address);
            }
        }
        return true;
    }
    slot.again[0].store(0, Relaxed);
    false
}

/// A signal frame could not be written because the stack is closed memory: opens it. The signal is lost, but for that of a
/// system call's dispatching, which is made again.
fn open_stack(context: &mut Context) -> bool {
    let stack = context.regs[RSP];
    let low = stack - BELOW.min(stack);
    if !table::is_any_closed(low, stack) {
        return false;
    }
    {
        let _lock = table::lock(true);
        table::open(low, stack);
    }
    let mut before = [0u8; 2];
    let instruction = context.regs[RIP].wrapping_sub(2);
    if pass::copy(before.as_mut_ptr() as usize, instruction as usize, 2) && before == [0x0f, 0x05] {
        context.regs[RIP] = instruction;
    }
    true
}

/// Ends the process by a signal's default action, with this siginfo, when the handler returns.
pub fn end_by(signal: i32, info: *const Info) {
    let default = [0u64; 4];
    let action = [signal as usize, &raw const default as usize, 0, size_of::<u64>(), 0, 0];
    let send = [getpid() as usize, gettid() as usize, signal as usize, info as usize, 0, 0];
    // SAFETY: default is a kernel_sigaction, info a siginfo_t; both outlive the calls.
    unsafe {
        pass::raw(libc::SYS_rt_sigaction, action);
        pass::raw(libc::SYS_rt_tgsigqueueinfo, send);
    }
}

/// Hands a SIGSEGV or SIGSYS that is not ours on to what the application believes to have set.
///
/// # Safety
/// `info` and `context` are those of the signal frame of the running handler.
pub unsafe fn hand_on(signal: i32, info: *mut Info, context: *mut Context) {
    const SA_RESETHAND: u64 = 0x8000_0000;
    const SA_NODEFER: u64 = 0x4000_0000;
    let which = usize::from(signal == libc::SIGSYS);
    let action = &CONTROL.actions[which];
    let (handler, flags) = (action[0].load(Relaxed), action[1].load(Relaxed));
    // SAFETY: the caller's.
    let (code, frame) = unsafe { ((*info).code, &mut *context) };
    let wish = mine().map_or(0, |slot| slot.wish.load(Relaxed));
    let is_blocked = wish & (1 << which) != 0;
    let is_sent = code <= 0;
    if is_sent && (is_blocked || handler == libc::SIG_IGN as u64) {
        // Sent by kill(2): ignored, or it would have to wait until it is unblocked, which only the kernel can do.
        if is_blocked {
            super::give_up();
            frame.mask |= 1 << (signal - 1);
            let send = [getpid() as usize, gettid() as usize, signal as usize, info as usize, 0, 0];
            super::set_mask(u64::MAX);
            // SAFETY: info is a siginfo_t.
            unsafe { pass::raw(libc::SYS_rt_tgsigqueueinfo, send) };
        }
        return;
    }
    if is_blocked || handler == libc::SIG_DFL as u64 || handler == libc::SIG_IGN as u64 {
        return end_by(signal, info);
    }
    let own = if flags & SA_NODEFER != 0 { 0 } else { 1 << (signal - 1) };
    let during = frame.mask | action[3].load(Relaxed) | own;
    frame.mask |= super::signals::believed(wish);
    frame.flags |= BELIEVED;
    if let Some(slot) = mine() {
        slot.wish.store(super::signals::wish_of(during | super::signals::believed(wish)), Relaxed);
    }
    if flags & SA_RESETHAND != 0 {
        action[0].store(libc::SIG_DFL as u64, Relaxed);
    }
    super::set_mask(during & !OURS);
    // The frame begins with the address that the handler returns to: the application's restorer.
    let stack = context as usize - size_of::<u64>();
    // SAFETY: the frame of this very handler; nothing of ours is used any more.
    unsafe {
        (stack as *mut u64).write(action[2].load(Relaxed));
        pass::enter(handler as usize, stack, signal, info as usize, context as usize)
    }
}
