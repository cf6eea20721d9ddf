//! Memory for a merged environment: one block a thread, kept for the next time, so that a child of vfork (which
//! shares its parent's memory and never comes back) leaks nothing.
use crate::{kernel, thread};
use core::sync::atomic::Ordering::Relaxed;

const PAGE: usize = 4096;

/// At least `length` bytes, the thread's own until the next call; `None` if the kernel gives none.
pub fn reserve(length: usize) -> Option<*mut u8> {
    let thread = thread::this();
    let have = thread.scratch_length.load(Relaxed);
    if have >= length {
        return Some(thread.scratch.load(Relaxed));
    }
    let want = length.checked_next_multiple_of(PAGE)?;
    let block = kernel::map_private(want)?;
    release();
    thread.scratch.store(block, Relaxed);
    thread.scratch_length.store(want, Relaxed);
    Some(block)
}

/// Gives the thread's block back.
pub fn release() {
    let thread = thread::this();
    let block = thread.scratch.swap(core::ptr::null_mut(), Relaxed);
    let length = thread.scratch_length.swap(0, Relaxed);
    if !block.is_null() {
        // SAFETY: the block is this thread's, and it is done with it.
        unsafe { kernel::unmap(block, length) };
    }
}
