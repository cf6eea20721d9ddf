//! The only place of the library whose system calls are not dispatched while the tracker is on: a section of its own, as
//! Syscall User Dispatch (Linux 5.11) lets one range of addresses pass.
use super::Context;
use core::{arch::global_asm, ptr::addr_of};

global_asm!(
    ".pushsection ckpt_pass,\"ax\",@progbits",
    ".balign 16",
    // -- isize ckpt_raw(number, *arguments)
    ".globl ckpt_raw",
    ".hidden ckpt_raw",
    ".type ckpt_raw,@function",
    "ckpt_raw:",
    "mov rax, rdi",
    "mov r11, rsi",
    "mov rdi, [r11]",
    "mov rsi, [r11 + 8]",
    "mov rdx, [r11 + 16]",
    "mov r10, [r11 + 24]",
    "mov r8, [r11 + 32]",
    "mov r9, [r11 + 40]",
    "syscall",
    "ret",
    // -- the restorer: unwinders know a signal frame by these very bytes
    ".balign 16",
    "nop",
    ".globl ckpt_restorer",
    ".hidden ckpt_restorer",
    ".type ckpt_restorer,@function",
    "ckpt_restorer:",
    "mov rax, 15",
    "syscall",
    // -- ! ckpt_return_to(context): rt_sigreturn(2) from there
    ".globl ckpt_return_to",
    ".hidden ckpt_return_to",
    ".type ckpt_return_to,@function",
    "ckpt_return_to:",
    "mov rsp, rdi",
    "mov eax, 15",
    "syscall",
    "ud2",
    // -- isize ckpt_clone(number, *arguments, slot): the child has a stack that begins at a context
    ".globl ckpt_clone",
    ".hidden ckpt_clone",
    ".type ckpt_clone,@function",
    "ckpt_clone:",
    "push r12",
    "mov r12, rdx",
    "mov rax, rdi",
    "mov r11, rsi",
    "mov rdi, [r11]",
    "mov rsi, [r11 + 8]",
    "mov rdx, [r11 + 16]",
    "mov r10, [r11 + 24]",
    "mov r8, [r11 + 32]",
    "mov r9, [r11 + 40]",
    "syscall",
    "test rax, rax",
    "jz 2f",
    "pop r12",
    "ret",
    "2: mov rdi, r12",
    "call {child}",
    "mov eax, 15",
    "syscall",
    "ud2",
    ".popsection",
    child = sym super::clone::child_with_stack,
);

global_asm!(
    ".pushsection .text.ckpt_copy,\"ax\",@progbits",
    // -- isize ckpt_copy(to, from, length): -1 if a byte cannot be reached
    ".globl ckpt_copy",
    ".hidden ckpt_copy",
    ".type ckpt_copy,@function",
    "ckpt_copy:",
    "mov rcx, rdx",
    ".globl ckpt_copy_step",
    ".hidden ckpt_copy_step",
    "ckpt_copy_step:",
    "rep movsb",
    "xor eax, eax",
    "ret",
    ".globl ckpt_copy_failed",
    ".hidden ckpt_copy_failed",
    "ckpt_copy_failed:",
    "mov rax, -1",
    "ret",
    // -- ! ckpt_enter(handler, stack, signal, info, context): a handler as the kernel enters it
    ".globl ckpt_enter",
    ".hidden ckpt_enter",
    ".type ckpt_enter,@function",
    "ckpt_enter:",
    "mov rsp, rsi",
    "mov r11, rdi",
    "mov edi, edx",
    "mov rsi, rcx",
    "mov rdx, r8",
    "xor eax, eax",
    "cld",
    "jmp r11",
    ".popsection",
);

unsafe extern "C" {
    fn ckpt_raw(number: usize, args: *const [usize; 6]) -> isize;
    fn ckpt_clone(number: usize, args: *const [usize; 6], slot: usize) -> isize;
    fn ckpt_return_to(context: *const Context) -> !;
    fn ckpt_enter(handler: usize, stack: usize, signal: i32, info: usize, context: usize) -> !;
    fn ckpt_copy(to: *mut u8, from: *const u8, length: usize) -> isize;
    static ckpt_restorer: u8;
    static ckpt_copy_step: u8;
    static ckpt_copy_failed: u8;
    #[link_name = "__start_ckpt_pass"]
    static FIRST: u8;
    #[link_name = "__stop_ckpt_pass"]
    static END: u8;
}

/// A system call that is not dispatched.
///
/// # Safety
/// The arguments are valid for system call `number`.
pub unsafe fn raw(number: i64, args: [usize; 6]) -> isize {
    // SAFETY: the caller's.
    unsafe { ckpt_raw(number as usize, &raw const args) }
}

/// clone(2) or clone3(2) of a child whose stack begins at a signal frame's context: it goes on from there.
///
/// # Safety
/// The arguments are valid; the child's stack pointer is a context of its own, 16-byte aligned.
pub unsafe fn clone(number: i64, args: [usize; 6], slot: usize) -> isize {
    // SAFETY: the caller's.
    unsafe { ckpt_clone(number as usize, &raw const args, slot) }
}

/// Leaves the handler for the state that a signal frame holds.
///
/// # Safety
/// `context` is that of a whole signal frame of this thread.
pub unsafe fn return_to(context: *const Context) -> ! {
    // SAFETY: the caller's.
    unsafe { ckpt_return_to(context) }
}

/// Enters a handler of the application as the kernel would have done, on this stack pointer.
///
/// # Safety
/// A signal frame of this thread begins at `stack`; info and context lie in it.
pub unsafe fn enter(handler: usize, stack: usize, signal: i32, info: usize, context: usize) -> ! {
    // SAFETY: the caller's.
    unsafe { ckpt_enter(handler, stack, signal, info, context) }
}

/// Copies memory of which nobody knows whether it is there; false if it is not (what came before may have been copied).
pub fn copy(to: usize, from: usize, length: usize) -> bool {
    // SAFETY: a fault of the one instruction that reaches memory is answered by leaving the function. What is written was
    // given to a system call to be written to, or is a local of the caller.
    unsafe { ckpt_copy(to as *mut u8, from as *const u8, length) == 0 }
}

/// Where to go on after a fault at this instruction, if it is that of [`copy`].
pub fn after_fault(instruction: u64) -> Option<u64> {
    (instruction == addr_of!(ckpt_copy_step) as u64).then_some(addr_of!(ckpt_copy_failed) as u64)
}

/// The restorer of our handlers.
pub fn restorer() -> u64 {
    addr_of!(ckpt_restorer) as u64
}

/// Address and length of what is not dispatched.
pub fn range() -> (u64, u64) {
    let (first, end) = (addr_of!(FIRST) as u64, addr_of!(END) as u64);
    (first, end - first)
}
