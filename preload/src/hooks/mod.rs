//! The symbols that stand before libc's. A hook marshals and nothing more: what is done on the way in and out is
//! in [`crate::gate`].
//!
//! The functions behind are called with the "C" ABI, and the hooks hold no value with a destructor: an unwinding
//! for pthread_cancel(3) passes their frames without a trace (they have unwind tables and no landing pads).

/// Defines hooks. `name(arguments) -> result = operation(descriptor, offset, length) [SYS_number]`: the number is what
/// is called while dlsym is not ready.
macro_rules! hooks {
    ($($name:ident($($arg:ident: $type:ty),*) -> $result:ty
        = $code:ident($fd:expr, $offset:expr, $length:expr) $([$number:ident])?;)*) => { $(
        $crate::hooks::hook_with! {
            $name($($arg: $type),*) -> $result,
            |real| $crate::gate::gated(ckpt_wire::OpCode::$code, $fd, $offset as i64, $length as u64, real)
            $(, $number)?
        }
    )* };
}

/// Defines one hook whose way around the real call (a closure without arguments) is told by an expression.
macro_rules! hook_with {
    ($name:ident($($arg:ident: $type:ty),*) -> $result:ty, |$real:ident| $body:expr $(, $number:ident)?) => {
        $crate::hooks::hook_other! {
            $name($($arg: $type),*) -> $result,
            |behind| {
                // SAFETY: the caller's promises for this very call.
                let $real = || unsafe { behind($($arg),*) };
                $body
            }
            $(, $number)?
        }
    };
}

/// Defines one hook that may call the real function with other arguments.
macro_rules! hook_other {
    ($name:ident($($arg:ident: $type:ty),*) -> $result:ty, |$real:ident| $body:expr $(, $number:ident)?) => {
        #[unsafe(no_mangle)]
        /// Stands before libc's function of this name.
        ///
        /// # Safety
        /// As for libc's.
        pub unsafe extern "C" fn $name($($arg: $type),*) -> $result {
            #[unsafe(link_section = "ckpt_real")]
            static REAL: $crate::real::Real = {
                match core::ffi::CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                    Ok(name) => $crate::real::Real::new(name),
                    Err(_) => panic!("a function's name holds no zero"),
                }
            };
            let address = REAL.address();
            if address.is_null() {
                return $crate::hooks::early!([$($number)?] $result $(, $arg)*);
            }
            // SAFETY: dlsym gave the address of the function of this name, which has this type.
            let $real = unsafe {
                core::mem::transmute::<*const core::ffi::c_void, unsafe extern "C" fn($($type),*) -> $result>(address)
            };
            $body
        }
    };
}

/// The call while dlsym is not ready: the system call itself, or ENOSYS where there is none of the same arguments.
macro_rules! early {
    ([$number:ident] $result:ty $(, $arg:ident)*) => {{
        let mut arguments = [0usize; 6];
        for (to, from) in arguments.iter_mut().zip([$($arg as usize),*]) {
            *to = from;
        }
        // SAFETY: the arguments are the system call's own; errno belongs to the calling thread.
        unsafe {
            let result = $crate::kernel::call(libc::$number, arguments);
            if result < 0 {
                *libc::__errno_location() = -result as i32;
            }
            (if result < 0 { -1 } else { result }) as $result
        }
    }};
    ([] $result:ty $(, $arg:ident)*) => {{
        $(let _ = $arg;)*
        // SAFETY: errno belongs to the calling thread; all ones are -1 in each result type.
        unsafe {
            *libc::__errno_location() = libc::ENOSYS;
            core::mem::transmute_copy::<isize, $result>(&-1)
        }
    }};
}

pub(crate) use {early, hook_other, hook_with};

mod aio;
mod attributes;
mod data;
mod jump;
mod names;
mod process;
mod stdio;
