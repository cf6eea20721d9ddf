//! What a thread keeps: thread-local storage without `std`, reached by one addition (initial-exec model), so it
//! works in signal handlers, before libc is ready, and in threads that were not made by pthread_create.
use ckpt_wire::{Slot, protect::Dispatch};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize};

/// The thread's own block. Only its thread (and its signal handlers) uses it; a child of vfork borrows it.
#[repr(C, align(64))]
pub struct Thread {
    /// The thread's slot in the table, null before its first operation.
    pub slot: AtomicPtr<Slot>,
    /// The stack address of the operation in progress, 0 if none.
    pub frame: AtomicUsize,
    /// More than 0: the library works for itself; hooks pass straight through.
    pub busy: AtomicU32,
    /// How many operations to count only before a slot is looked for again.
    pub without_slot: AtomicU32,
    /// Memory for merged environments, kept for the next time.
    pub scratch: AtomicPtr<u8>,
    /// Its length in bytes.
    pub scratch_length: AtomicUsize,
    /// The value of `frame` when vfork was called.
    pub vfork_frame: AtomicUsize,
    /// The thread's slot in the control block of write protection, null if it has none or does not know it yet.
    pub dispatch: AtomicPtr<Dispatch>,
}

core::arch::global_asm!(
    ".pushsection .tbss.ckpt_thread,\"awT\",@nobits",
    ".balign 64",
    ".globl ckpt_thread",
    ".hidden ckpt_thread",
    ".type ckpt_thread,@object",
    ".size ckpt_thread,64",
    "ckpt_thread: .zero 64",
    ".popsection",
);

const _: () = assert!(size_of::<Thread>() == 64);

/// The calling thread's block.
#[inline(always)]
pub fn this() -> &'static Thread {
    let block: *const Thread;
    // SAFETY: ld.so has put the offset of ckpt_thread from the thread pointer in the GOT, and fs:0 holds the thread
    // pointer (ELF TLS, x86-64 psABI). The block is 64 zeroed bytes, valid as a Thread, and lives as long as the
    // thread that asks.
    unsafe {
        core::arch::asm!(
            "mov {0}, qword ptr fs:[0]",
            "add {0}, qword ptr [rip + ckpt_thread@GOTTPOFF]",
            out(reg) block, options(pure, nomem, nostack));
        &*block
    }
}
