//! `write-protect`: a tracker of written pages in user space alone.
//!
//! ```text
//!  the daemon, all threads stopped      the library, while the program runs
//!  ─────────────────────────────────    ──────────────────────────────────────────────────────────────────
//!  arm    handlers of SIGSEGV, SIGSYS   write to a closed page ─► SIGSEGV ─► on_fault: mprotect, page opened ─► again
//!         Syscall User Dispatch         system call ─► SIGSYS ─► on_call: what it writes to is opened and pinned,
//!         mprotect of every range                      then the call is made, its result put into the frame
//!  ─ … runs … ─                         mmap, munmap, mprotect, … ─► under the lock; the pages are gone from the table
//!  lift   who is still closed was not   clone ─► the child enters dispatching; sigaction, sigprocmask ─► as believed
//!         written; all as it was        what nobody knows ─► everything is opened first
//! ```
//! The table ([`ckpt_wire::protect`]) is only changed under the lock, with all signals blocked; the daemon looks only while
//! the lock is free. A pin is set before the pages below it are looked at, so what is armed in between leaves it out.
//!
//! Off, it costs nothing: no handler, no dispatching, one page of the control block touched.

mod call;
mod clone;
mod fault;
mod layout;
mod output;
mod pass;
mod pins;
mod signals;
mod table;

use crate::thread;
use ckpt_wire::protect::{
    BELIEVED, CONTROL_MAGIC, CONTROL_SLOTS, CONTROL_VERSION, Control, Dispatch, ON, PASS, RESERVED,
};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};

pub use clone::vfork_child;
pub use pass::raw;

/// The control block.
static CONTROL: Control = Control::new();

/// The kernel's ucontext of a signal frame (x86-64).
#[repr(C)]
pub struct Context {
    flags: u64,
    link: u64,
    /// ss_sp, ss_flags, ss_size.
    stack: [u64; 3],
    /// As the REG_ constants of libc count them.
    regs: [u64; 23],
    fpstate: u64,
    reserved: [u64; 8],
    mask: u64,
}

const _: () = assert!(size_of::<Context>() == 304);

const RAX: usize = libc::REG_RAX as usize;
const RSP: usize = libc::REG_RSP as usize;
const RIP: usize = libc::REG_RIP as usize;

/// Tells the daemon where everything is. Called by the constructor and, for the new table, in a child.
pub fn start() {
    let (text, length) = pass::range();
    CONTROL.slots.store(CONTROL_SLOTS as u32, Relaxed);
    CONTROL.on_fault.store(fault::on_fault as *const () as u64, Relaxed);
    CONTROL.on_call.store(call::on_call as *const () as u64, Relaxed);
    CONTROL.restorer.store(pass::restorer(), Relaxed);
    CONTROL.text.store(text, Relaxed);
    CONTROL.text_len.store(length, Relaxed);
    CONTROL.version.store(CONTROL_VERSION, Relaxed);
    CONTROL.magic.store(CONTROL_MAGIC, Release);
}

/// Where the control block is.
pub fn address() -> u64 {
    &raw const CONTROL as u64
}

/// Whether system calls are dispatched.
pub fn is_on() -> bool {
    CONTROL.state.load(Acquire) & ON != 0
}

/// The calling thread's slot; `None` in a thread that came into being while the tracker was off.
fn mine() -> Option<&'static Dispatch> {
    let block = thread::this();
    let known = block.dispatch.load(Relaxed);
    if !known.is_null() {
        // SAFETY: only slots of CONTROL, which lives for ever, are stored there.
        return Some(unsafe { &*known });
    }
    let id = gettid();
    let slot = CONTROL.threads.iter().find(|slot| slot.thread.load(Relaxed) == id)?;
    block.dispatch.store(core::ptr::from_ref(slot).cast_mut(), Relaxed);
    Some(slot)
}

/// Takes a free slot for a thread that is about to be made.
fn reserve() -> Option<&'static Dispatch> {
    let free = |slot: &&Dispatch| {
        slot.thread.load(Relaxed) == 0 && slot.thread.compare_exchange(0, RESERVED, SeqCst, Relaxed).is_ok()
    };
    let slot = CONTROL.threads.iter().find(free)?;
    let base = &raw const CONTROL.threads as usize;
    let index = (core::ptr::from_ref(slot) as usize - base) / size_of::<Dispatch>();
    slot.index.store(index as u32, Relaxed);
    slot.selector.store(PASS, Relaxed);
    slot.all.store(0, Relaxed);
    slot.frame.store(0, Relaxed);
    Some(slot)
}

/// Gives tracking up until the daemon arms again: everything is opened and no call is dispatched.
fn give_up() {
    table::open_all();
    CONTROL.state.fetch_and(!ON, SeqCst);
    for slot in &CONTROL.threads {
        if slot.thread.load(Relaxed) != 0 {
            slot.selector.store(PASS, SeqCst);
        }
    }
}

fn gettid() -> u32 {
    // SAFETY: no arguments.
    unsafe { pass::raw(libc::SYS_gettid, [0; 6]) as u32 }
}

fn getpid() -> u32 {
    // SAFETY: no arguments.
    unsafe { pass::raw(libc::SYS_getpid, [0; 6]) as u32 }
}

/// Blocks all signals but ours; gives the mask that was.
fn block() -> u64 {
    set_mask(!ckpt_wire::protect::OURS)
}

/// rt_sigprocmask(2), SIG_SETMASK; gives the mask that was.
fn set_mask(mask: u64) -> u64 {
    let mut old = 0u64;
    let args =
        [libc::SIG_SETMASK as usize, &raw const mask as usize, &raw mut old as usize, size_of::<u64>(), 0, 0];
    // SAFETY: both masks outlive the call.
    unsafe { pass::raw(libc::SYS_rt_sigprocmask, args) };
    old
}
