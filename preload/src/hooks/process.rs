//! New processes and programs: the library and the gate follow into each.
use crate::{
    environment::{self, Strings, command_with_library, with_library},
    gate, kernel, thread,
};
use core::{
    arch::naked_asm,
    ffi::{c_char, c_int, c_void},
    sync::atomic::Ordering::Relaxed,
};

macro_rules! forks {
    ($($name:ident [$number:ident])*) => { $(
        hook_with! {
            $name() -> c_int,
            |real| {
                gate::pass();
                let child = real();
                if child == 0 {
                    gate::start_in_child();
                }
                child
            },
            $number
        }
    )* };
}

hook_with! {
    getppid() -> libc::pid_t,
    |real| parent_as_before(real()),
    SYS_getppid
}

/// A main process that was restored into a PID namespace of its own has its parent, systemd, outside of it: the kernel says 0. Before, and in
/// every service, that was PID 1. PID 1 of a namespace has none.
fn parent_as_before(told: libc::pid_t) -> libc::pid_t {
    // SAFETY: getpid takes nothing and cannot fail.
    if told == 0 && unsafe { kernel::call(libc::SYS_getpid, [0; 6]) } != 1 { 1 } else { told }
}

forks! { fork [SYS_fork] _Fork [SYS_fork] __fork [SYS_fork] }

/// Stands before libc's vfork: the child runs on its parent's stack, so the return address is kept in a register
/// while the stack is the child's (rdi, as libc does it). Its system call is never dispatched: a handler's frame would not
/// outlive the child.
///
/// # Safety
/// As for libc's.
#[unsafe(naked)]
#[unsafe(no_mangle)]
#[unsafe(link_section = "ckpt_pass")]
pub unsafe extern "C" fn vfork() -> c_int {
    naked_asm!(
        "sub rsp, 8",
        "call {before}",
        "add rsp, 8",
        "pop rdi",
        "mov eax, {number}",
        "syscall",
        "push rdi",
        "cmp rax, -4095",
        "jae 3f",
        "test eax, eax",
        "jz 2f",
        "push rax",
        "call {parent}",
        "pop rax",
        "ret",
        "2: sub rsp, 8",
        "call {child}",
        "add rsp, 8",
        "xor eax, eax",
        "ret",
        "3: neg eax",
        "mov edi, eax",
        "sub rsp, 8",
        "call {failed}",
        "add rsp, 8",
        "ret",
        before = sym before_vfork,
        parent = sym parent_of_vfork,
        child = sym child_of_vfork,
        failed = sym set_errno,
        number = const libc::SYS_vfork,
    )
}

/// The same under libc's other name.
///
/// # Safety
/// As for libc's.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __vfork() -> c_int {
    naked_asm!("jmp {vfork}", vfork = sym vfork)
}

extern "C" fn before_vfork() {
    gate::pass();
    let thread = thread::this();
    thread.vfork_frame.store(thread.frame.load(Relaxed), Relaxed);
}

/// The child borrows its parent's thread block and slot; its operations are told under its own id.
extern "C" fn child_of_vfork() {
    crate::protect::vfork_child();
    if let Some(slot) = gate::slot() {
        slot.lend(kernel::thread());
    }
}

/// The child is gone, perhaps in the middle of an operation.
extern "C" fn parent_of_vfork() {
    if let Some(slot) = gate::slot() {
        slot.lend(kernel::thread());
    }
    let thread = thread::this();
    let frame = thread.vfork_frame.load(Relaxed);
    if thread.frame.load(Relaxed) != frame {
        gate::forget();
        thread.frame.store(frame, Relaxed);
    }
}

extern "C" fn set_errno(errno: c_int) -> c_int {
    // SAFETY: errno belongs to the calling thread.
    unsafe { *libc::__errno_location() = errno };
    -1
}

hook_other! {
    execve(path: *const c_char, arguments: Strings, environment: Strings) -> c_int,
    |real| {
        gate::pass();
        // SAFETY: the caller's promises; the environment holds the same strings and one of ours.
        unsafe { real(path, arguments, with_library(environment)) }
    },
    SYS_execve
}

hook_other! {
    execvpe(file: *const c_char, arguments: Strings, environment: Strings) -> c_int,
    |real| {
        gate::pass();
        // SAFETY: as for execve.
        unsafe { real(file, arguments, with_library(environment)) }
    }
}

hook_other! {
    fexecve(fd: c_int, arguments: Strings, environment: Strings) -> c_int,
    |real| {
        gate::pass();
        // SAFETY: as for execve.
        unsafe { real(fd, arguments, with_library(environment)) }
    }
}

hook_other! {
    execveat(directory: c_int, path: *const c_char, arguments: Strings, environment: Strings, flags: c_int) -> c_int,
    |real| {
        gate::pass();
        // SAFETY: as for execve.
        unsafe { real(directory, path, arguments, with_library(environment), flags) }
    },
    SYS_execveat
}

macro_rules! spawns {
    ($($name:ident)*) => { $(
        hook_other! {
            $name(pid: *mut c_int, path: *const c_char, actions: *const c_void, attributes: *const c_void,
                arguments: Strings, environment: Strings) -> c_int,
            |real| {
                gate::pass();
                // SAFETY: as for execve; the call returns when the child has its new program.
                unsafe { real(pid, path, actions, attributes, arguments, with_library(environment)) }
            }
        }
    )* };
}

spawns! { posix_spawn posix_spawnp }

hook_other! {
    system(command: *const c_char) -> c_int,
    |real| {
        gate::pass();
        // SAFETY: the caller's promise; the command is copied by the shell before scratch memory is used again.
        unsafe { real(command_with_library(command)) }
    }
}

hook_other! {
    popen(command: *const c_char, mode: *const c_char) -> *mut c_void,
    |real| {
        gate::pass();
        // SAFETY: as for system.
        unsafe { real(command_with_library(command), mode) }
    }
}

/// Stands before libc's execv.
///
/// # Safety
/// As for libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn execv(path: *const c_char, arguments: Strings) -> c_int {
    // SAFETY: the caller's promises.
    unsafe { execve(path, arguments, environment::own()) }
}

/// Stands before libc's execvp.
///
/// # Safety
/// As for libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn execvp(file: *const c_char, arguments: Strings) -> c_int {
    // SAFETY: the caller's promises.
    unsafe { execvpe(file, arguments, environment::own()) }
}

/// Defines a hook with a variable list of strings: the five that came in registers are pushed below those that came
/// on the stack, under the return address. There they are one array, without a copy, however many there are.
macro_rules! lists {
    ($($name:ident => $with:ident;)*) => { $(
        /// Stands before libc's function of this name.
        ///
        /// # Safety
        /// As for libc's.
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name() -> c_int {
            naked_asm!(
                "pop rax",
                "push r9",
                "push r8",
                "push rcx",
                "push rdx",
                "push rsi",
                "mov rsi, rsp",
                "push rax",
                "call {with}",
                "pop rcx",
                "add rsp, 40",
                "push rcx",
                "ret",
                with = sym $with,
            )
        }
    )* };
}

lists! {
    execl => execv;
    execlp => execvp;
    execle => execve_behind_arguments;
}

/// execle: the environment comes behind the arguments' null.
unsafe extern "C" fn execve_behind_arguments(path: *const c_char, arguments: Strings) -> c_int {
    // SAFETY: the caller's promises: a null-ended array, and one pointer behind it.
    unsafe {
        let mut at = 0;
        while !(*arguments.add(at)).is_null() {
            at += 1;
        }
        execve(path, arguments, *arguments.add(at + 1).cast::<Strings>())
    }
}

/// Stands before libc's syscall, which is done here as libc does it, but for the ways to a new program and those of kernel
/// AIO: those take their hooks.
///
/// # Safety
/// As for libc's.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall() -> isize {
    naked_asm!(
        "cmp rdi, {execve_number}",
        "je 2f",
        "cmp rdi, {execveat_number}",
        "je 3f",
        "cmp rdi, {setup_number}",
        "je 5f",
        "cmp rdi, {destroy_number}",
        "je 6f",
        "cmp rdi, {submit_number}",
        "je 7f",
        "mov rax, rdi",
        "mov rdi, rsi",
        "mov rsi, rdx",
        "mov rdx, rcx",
        "mov r10, r8",
        "mov r8, r9",
        "mov r9, [rsp + 8]",
        "syscall",
        "8: cmp rax, -4095",
        "jae 4f",
        "ret",
        "2: mov rdi, rsi",
        "mov rsi, rdx",
        "mov rdx, rcx",
        "sub rsp, 8",
        "call {execve}",
        "add rsp, 8",
        "cdqe",
        "ret",
        "3: mov rdi, rsi",
        "mov rsi, rdx",
        "mov rdx, rcx",
        "mov rcx, r8",
        "mov r8, r9",
        "sub rsp, 8",
        "call {execveat}",
        "add rsp, 8",
        "cdqe",
        "ret",
        "5: lea rax, [rip + {setup}]",
        "jmp 9f",
        "6: lea rax, [rip + {destroy}]",
        "jmp 9f",
        "7: lea rax, [rip + {submit}]",
        "9: mov rdi, rsi",
        "mov rsi, rdx",
        "mov rdx, rcx",
        "sub rsp, 8",
        "call rax",
        "add rsp, 8",
        "jmp 8b",
        "4: neg eax",
        "mov edi, eax",
        "sub rsp, 8",
        "call {failed}",
        "add rsp, 8",
        "cdqe",
        "ret",
        execve = sym execve,
        execveat = sym execveat,
        failed = sym set_errno,
        setup = sym crate::aio::setup,
        destroy = sym crate::aio::destroy,
        submit = sym crate::aio::submit,
        setup_number = const libc::SYS_io_setup,
        destroy_number = const libc::SYS_io_destroy,
        submit_number = const libc::SYS_io_submit,
        execve_number = const libc::SYS_execve,
        execveat_number = const libc::SYS_execveat,
    )
}
