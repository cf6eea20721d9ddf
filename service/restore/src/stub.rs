//! `ckpt-stub`: stands in for a unit's program while the unit is restored.
//!
//! systemd starts it, so that the unit's cgroup, namespaces, directories, limits, credentials and streams are the unit's own; it
//! waits, holding them, until ckpt-restore has moved the members in and ends it. It makes three system calls only, none that a
//! sensible SystemCallFilter= forbids (rt_sigaction(2), pause(2), exit(2)), opens no file, and needs no library, so that it runs in every
//! sandbox and below every RootDirectory=. It ends with status 0 at SIGTERM, and when pause(2) is refused (status 1) rather than spin.
#![no_std]
#![no_main]
#![deny(unsafe_code)]

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

// SAFETY: the whole program. It is entered by the kernel at _start with a stack; it calls rt_sigaction(2) with a struct
// kernel_sigaction that lies in .data and whose restorer is never reached, because the handler ends the process; then waits. No
// Rust code runs.
#[allow(unsafe_code)]
mod program {
    core::arch::global_asm!(
        ".globl _start",
        "_start:",
        "xor ebp, ebp",
        "mov eax, 13", // rt_sigaction(SIGTERM, &action, NULL, 8)
        "mov edi, 15",
        "lea rsi, [rip + ckpt_stub_action]",
        "xor edx, edx",
        "mov r10d, 8",
        "syscall",
        "2:",
        "mov eax, 34", // pause()
        "syscall",
        "cmp rax, -4", // -EINTR: a signal without effect
        "je 2b",
        "mov edi, 1",
        "jmp 3f",
        "ckpt_stub_terminated:",
        "xor edi, edi",
        "3:",
        "mov eax, 231", // exit_group
        "syscall",
        "ud2",
        ".pushsection .data",
        ".balign 8",
        "ckpt_stub_action:",
        ".quad ckpt_stub_terminated", // handler
        ".quad 0x04000000",           // SA_RESTORER
        ".quad ckpt_stub_terminated", // restorer
        ".quad 0",                    // mask
        ".popsection",
    );
}
