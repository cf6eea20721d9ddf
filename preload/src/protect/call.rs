//! SIGSYS: every system call of the program comes here, is prepared, made, and its result put into the signal frame.
use super::{Context, RAX, RIP, clone, fault, layout, mine, output, pass, pins::Pins, signals, table};
use core::ffi::c_void;

/// si_code of SIGSYS by Syscall User Dispatch.
const SYS_USER_DISPATCH: i32 = 2;
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
const PR_SET_SYSCALL_USER_DISPATCH: usize = 59;
const ARCH_SET_FS: usize = 0x1002;
const SYS_IO_URING_SETUP: i64 = 425;
const SYS_EPOLL_PWAIT2: i64 = 441;

/// What becomes of a call.
enum Way {
    /// It was made, with this result.
    Made(isize),
    /// It cannot be made from here: tracking is given up, and the program makes it itself.
    Native,
}

/// The handler. The mask is the application's.
pub unsafe extern "C" fn on_call(signal: i32, info: *mut fault::Info, context: *mut c_void) {
    // SAFETY: the kernel has built the signal frame with both, for this handler alone; arch is behind the system call's number.
    let (what, arch) = unsafe { (&*info, (info as *const u32).add(7).read()) };
    // SAFETY: as above.
    let context = unsafe { &mut *context.cast::<Context>() };
    if what.code != SYS_USER_DISPATCH {
        // SAFETY: the frame is the kernel's.
        return unsafe { fault::hand_on(signal, info, context) };
    }
    let number = i64::from(context.regs[RAX] as i32);
    let args = [8, 9, 12, libc::REG_R10 as usize, libc::REG_R8 as usize, libc::REG_R9 as usize]
        .map(|register| context.regs[register] as usize);
    let way = if arch == AUDIT_ARCH_X86_64 { made(number, &args, context) } else { Way::Native };
    match way {
        Way::Made(result) => {
            context.regs[RAX] = result as u64;
            // As the kernel leaves them.
            context.regs[libc::REG_RCX as usize] = context.regs[RIP];
            context.regs[libc::REG_R11 as usize] = context.regs[libc::REG_EFL as usize];
        }
        Way::Native => {
            super::give_up();
            context.regs[RIP] -= 2;
        }
    }
}

fn made(number: i64, args: &[usize; 6], context: &mut Context) -> Way {
    if output::is_quiet(number) {
        return Way::Made(raw(number, args));
    }
    if let Some(result) = layout::call(number, args) {
        return Way::Made(result);
    }
    match number {
        // SAFETY: this handler's own context.
        libc::SYS_rt_sigreturn => unsafe { signals::leave(context) },
        libc::SYS_rt_sigprocmask => Way::Made(signals::procmask(args, context)),
        libc::SYS_rt_sigaction => Way::Made(signals::action(args)),
        libc::SYS_sigaltstack => Way::Made(signals::altstack(args, context)),
        libc::SYS_clone | libc::SYS_clone3 | libc::SYS_fork | libc::SYS_vfork => {
            clone::call(number, args, context).map_or(Way::Native, Way::Made)
        }
        libc::SYS_exit => {
            if let Some(slot) = mine().filter(|_| !clone::is_borrower()) {
                clone::leave(slot);
            }
            Way::Made(raw(number, args))
        }
        libc::SYS_execve | libc::SYS_execveat => Way::Made(raw(number, args)),
        libc::SYS_set_tid_address => registered(number, args, args[0], 4),
        libc::SYS_set_robust_list => registered(number, args, args[0], args[1]),
        libc::SYS_rseq => registered(number, args, args[0], args[1]),
        libc::SYS_prctl if args[0] == PR_SET_SYSCALL_USER_DISPATCH => Way::Native,
        libc::SYS_arch_prctl if args[0] == ARCH_SET_FS => Way::Native,
        libc::SYS_io_setup | libc::SYS_userfaultfd | SYS_IO_URING_SETUP => Way::Native,
        _ => Way::Made(writing(number, args, context)),
    }
}

fn raw(number: i64, args: &[usize; 6]) -> isize {
    // SAFETY: the application's own call.
    unsafe { pass::raw(number, *args) }
}

/// A call after which the kernel writes there whenever it likes.
fn registered(number: i64, args: &[usize; 6], start: usize, length: usize) -> Way {
    {
        let _lock = table::lock(false);
        table::release(start as u64, (start as u64).saturating_add(length as u64));
    }
    Way::Made(raw(number, args))
}

/// A call that writes to memory.
fn writing(number: i64, args: &[usize; 6], context: &Context) -> isize {
    let pins = Pins::begin(context);
    if !output::pin(number, args, &pins) {
        pins.all();
    }
    let (mut args, mut mask, mut pair) = (*args, 0u64, [0usize; 2]);
    let at = match number {
        libc::SYS_rt_sigsuspend => Some(0),
        libc::SYS_ppoll => Some(3),
        libc::SYS_epoll_pwait | SYS_EPOLL_PWAIT2 => Some(4),
        _ => None,
    };
    if let Some(at) = at {
        match signals::stripped(args[at], &mut mask) {
            Some(stripped) => args[at] = stripped,
            None => return -(libc::EFAULT as isize),
        }
    }
    if number == libc::SYS_pselect6 && args[5] != 0 {
        if !pass::copy(pair.as_mut_ptr() as usize, args[5], size_of_val(&pair)) {
            return -(libc::EFAULT as isize);
        }
        match signals::stripped(pair[0], &mut mask) {
            Some(stripped) => pair[0] = stripped,
            None => return -(libc::EFAULT as isize),
        }
        args[5] = pair.as_ptr() as usize;
    }
    // Debug builds would otherwise see no use of what the call only points to.
    core::hint::black_box((&mask, &pair));
    raw(number, &args)
}
