//! Kernel AIO: io_submit(2) is an operation of the table, and what was submitted to each context is counted, as nobody else can tell
//! what is under way ([`ckpt_wire::aio`]).
use crate::{gate, kernel};
use ckpt_wire::{OpCode, aio::Contexts};

/// The contexts of this process.
static CONTEXTS: Contexts = Contexts::new();

/// Where they are.
pub fn address() -> u64 {
    &raw const CONTEXTS as u64
}

/// A child of fork has no context of its own.
pub fn start_in_child() {
    CONTEXTS.inherit();
}

/// io_setup(2); a negative errno on failure.
///
/// # Safety
/// As for the system call.
pub unsafe extern "C" fn setup(events: usize, place: *mut usize) -> isize {
    CONTEXTS.during(|| {
        // SAFETY: the caller's.
        let result = unsafe { kernel::call(libc::SYS_io_setup, [events, place as usize, 0, 0, 0, 0]) };
        if result == 0 {
            // SAFETY: the kernel has just written there.
            CONTEXTS.add(unsafe { place.read_unaligned() } as u64, events as u32);
        }
        result
    })
}

/// io_destroy(2); a negative errno on failure.
///
/// # Safety
/// As for the system call.
pub unsafe extern "C" fn destroy(context: usize) -> isize {
    CONTEXTS.during(|| {
        // Before the call: the address may be another context's at once when it is done.
        CONTEXTS.remove(context as u64);
        // SAFETY: the caller's.
        unsafe { kernel::call(libc::SYS_io_destroy, [context, 0, 0, 0, 0, 0]) }
    })
}

/// io_submit(2): how many requests the kernel took, or a negative errno.
///
/// # Safety
/// As for the system call.
pub unsafe extern "C" fn submit(context: usize, count: usize, requests: usize) -> isize {
    gate::gated(OpCode::IoSubmit, -1, -1, count as u64, || {
        CONTEXTS.during(|| {
            // SAFETY: the caller's.
            let taken = unsafe { kernel::call(libc::SYS_io_submit, [context, count, requests, 0, 0, 0]) };
            CONTEXTS.count(context as u64, taken.max(0) as u64);
            taken
        })
    })
}
