//! Kernel AIO by libaio's functions, which answer a negative errno and leave errno alone. They are a system call each, which is made
//! here: a program may have loaded libaio later, where dlsym(3) does not find it from here.
use crate::aio;
use libc::{c_int, c_long};

/// Stands before libaio's io_setup.
///
/// # Safety
/// As for libaio's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn io_setup(events: c_int, context: *mut usize) -> c_int {
    // SAFETY: the caller's promises.
    unsafe { aio::setup(events as u32 as usize, context) as c_int }
}

/// Stands before libaio's io_queue_init.
///
/// # Safety
/// As for libaio's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn io_queue_init(events: c_int, context: *mut usize) -> c_int {
    if events <= 0 {
        return -libc::EINVAL;
    }
    // SAFETY: the caller's promises.
    unsafe {
        context.write(0);
        io_setup(events, context)
    }
}

/// Stands before libaio's io_destroy.
///
/// # Safety
/// As for libaio's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn io_destroy(context: usize) -> c_int {
    // SAFETY: the caller's promises.
    unsafe { aio::destroy(context) as c_int }
}

/// Stands before libaio's io_queue_release.
///
/// # Safety
/// As for libaio's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn io_queue_release(context: usize) -> c_int {
    // SAFETY: the caller's promises.
    unsafe { io_destroy(context) }
}

/// Stands before libaio's io_submit.
///
/// # Safety
/// As for libaio's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn io_submit(context: usize, count: c_long, requests: *mut *mut libc::c_void) -> c_int {
    // SAFETY: the caller's promises.
    unsafe { aio::submit(context, count as usize, requests as usize) as c_int }
}
