//! Jumps out of a signal handler may leave an operation unfinished: it is told no longer.
use libc::{c_int, c_void};

macro_rules! jumps {
    ($($name:ident)*) => { $(
        hook_with! {
            $name(place: *mut c_void, value: c_int) -> (),
            |real| {
                crate::gate::forget();
                real()
            }
        }
    )* };
}

jumps! { longjmp _longjmp siglongjmp __longjmp_chk }
