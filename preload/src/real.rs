//! The functions behind the hooks: the next ones of the same name, found with dlsym(3) once, before main.
use crate::thread;
use core::{
    ffi::{CStr, c_char, c_void},
    sync::atomic::{AtomicPtr, Ordering::Relaxed},
};

/// One function behind a hook. All of them lie in one section, so that the constructor can walk them.
#[repr(C)]
pub struct Real {
    address: AtomicPtr<c_void>,
    name: *const c_char,
}

// SAFETY: name points to a constant, address is atomic.
unsafe impl Sync for Real {}

unsafe extern "C" {
    #[link_name = "__start_ckpt_real"]
    static FIRST: Real;
    #[link_name = "__stop_ckpt_real"]
    static END: Real;
}

impl Real {
    /// The function of this name.
    pub const fn new(name: &'static CStr) -> Real {
        Real { address: AtomicPtr::new(core::ptr::null_mut()), name: name.as_ptr() }
    }

    /// The function's address; null only while dlsym itself calls hooks.
    #[inline(always)]
    pub fn address(&self) -> *const c_void {
        let address = self.address.load(Relaxed);
        if address.is_null() { self.find() } else { address }
    }

    #[cold]
    #[inline(never)]
    fn find(&self) -> *const c_void {
        let thread = thread::this();
        if thread.busy.load(Relaxed) > 0 {
            return core::ptr::null();
        }
        thread.busy.store(1, Relaxed);
        // SAFETY: name is a C string; errno belongs to the calling thread.
        let address = unsafe {
            let errno = *libc::__errno_location();
            let address = libc::dlsym(libc::RTLD_NEXT, self.name);
            *libc::__errno_location() = errno;
            address
        };
        let address = if address.is_null() { missing as *mut c_void } else { address };
        self.address.store(address, Relaxed);
        thread.busy.store(0, Relaxed);
        address
    }
}

/// Stands for a function that this libc does not have.
unsafe extern "C" fn missing() -> isize {
    // SAFETY: errno belongs to the calling thread.
    unsafe { *libc::__errno_location() = libc::ENOSYS };
    -1
}

/// Finds all of them.
pub fn find_all() {
    // SAFETY: the linker puts the section's bounds there; it holds nothing but Real values.
    let all = unsafe {
        let first = &raw const FIRST;
        core::slice::from_raw_parts(first, (&raw const END).offset_from(first) as usize)
    };
    for real in all {
        let _ = real.address();
    }
}
