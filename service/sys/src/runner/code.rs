//! The code itself, and where its labels lie. [`super`] has the drawing.

use std::arch::global_asm;

global_asm!(
    ".pushsection .rodata.ckpt_runner,\"a\",@progbits",
    // Whoever names a label may be compiled into another object file than this.
    ".globl ckpt_runner_start",
    ".hidden ckpt_runner_start",
    ".globl ckpt_runner_sign",
    ".hidden ckpt_runner_sign",
    ".globl ckpt_runner_trap",
    ".hidden ckpt_runner_trap",
    ".globl ckpt_runner_boot",
    ".hidden ckpt_runner_boot",
    ".globl ckpt_runner_boot_sign",
    ".hidden ckpt_runner_boot_sign",
    ".globl ckpt_runner_words",
    ".hidden ckpt_runner_words",
    ".globl ckpt_runner_end",
    ".hidden ckpt_runner_end",
    ".balign 64",
    "ckpt_runner_start:",
    "mov rcx, [rbx + 56]",
    "jrcxz 6f",
    "mov byte ptr [rcx], 0",
    "6:",
    // -- the loop: r12 the call, r13 how many are left
    "lea r12, [rbx + 64]",
    "mov r13, [rbx]",
    "2:",
    "test r13, r13",
    "jz 4f",
    "mov eax, [r12]",
    "mov r14d, [r12 + 4]",
    "mov rdi, [r12 + 8]",
    "mov rsi, [r12 + 16]",
    "mov rdx, [r12 + 24]",
    "mov r10, [r12 + 32]",
    "mov r8, [r12 + 40]",
    "mov r9, [r12 + 48]",
    "syscall",
    "test r14d, 2",
    "jnz 22f",
    "5:",
    "mov [r12 + 56], rax",
    "inc qword ptr [rbx + 8]",
    "cmp rax, -4095",
    "jb 3f",
    "test r14d, 1",
    "jnz 4f",
    "3:",
    "add r12, 64",
    "dec r13",
    "jmp 2b",
    "4:",
    "cmp qword ptr [rbx + 16], 1",
    "je ckpt_runner_end_of_restore",
    // -- the sign: tgkill(getpid(), gettid(), signal)
    "mov eax, 39",
    "syscall",
    "mov ebp, eax",
    "mov eax, 186",
    "syscall",
    "mov edi, ebp",
    "mov esi, eax",
    "mov edx, [rbx + 24]",
    "mov eax, 234",
    "syscall",
    "ckpt_runner_sign:",
    // -- the way back: rt_sigprocmask(SIG_SETMASK, &mask, NULL, 8), while rsp is still the thread's own
    "mov edi, 2",
    "lea rsi, [rbx + 40]",
    "xor edx, edx",
    "mov r10d, 8",
    "mov eax, 14",
    "syscall",
    "mov rcx, [rbx + 56]",
    "jrcxz 7f",
    "mov byte ptr [rcx], 1",
    "7:",
    // -- then all registers at once; struct user_regs_struct ends as iretq wants it
    "mov rsp, [rbx + 32]",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rax",
    "pop rcx",
    "pop rdx",
    "pop rsi",
    "pop rdi",
    "lea rsp, [rsp + 8]", // orig_rax
    "iretq",
    "ckpt_runner_end_of_restore:",
    "int3",
    "ckpt_runner_trap:",
    "jmp ckpt_runner_end_of_restore",
    // -- a copy: the member waits for its helper, which has the member's memory, and goes on with the loop
    "22:",
    "test rax, rax",
    "js 5b",
    "jz 24f",
    "mov r15, rax",
    "23:", // wait4(helper, NULL, __WALL, NULL)
    "mov edi, r15d",
    "xor esi, esi",
    "mov edx, 0x40000000",
    "xor r10d, r10d",
    "mov eax, 61",
    "syscall",
    "cmp rax, -4", // EINTR
    "je 23b",
    "mov rax, r15",
    "jmp 5b",
    // -- the helper: clone(CLONE_FILES), tells what came of it, and ends; the copy is an orphan then
    "24:",
    "mov edi, 0x400",
    "xor esi, esi",
    "xor edx, edx",
    "xor r10d, r10d",
    "xor r8d, r8d",
    "mov eax, 56",
    "syscall",
    "test rax, rax",
    "jz 25f",
    "mov [rbx + 48], rax",
    "jmp 26f",
    // -- the copy: close_range(0, ~0, CLOSE_RANGE_UNSHARE), so that it keeps nothing open; stopped before it ends
    "25:",
    "xor edi, edi",
    "mov esi, -1",
    "mov edx, 2",
    "mov eax, 436",
    "syscall",
    "26:", // exit_group(0)
    "xor edi, edi",
    "mov eax, 231",
    "syscall",
    "jmp 26b",
    // -- boot: the call is in the registers already; r12 is the signal
    "ckpt_runner_boot:",
    "mov rcx, [rip + ckpt_runner_words + 224]",
    "jrcxz 8f",
    "mov byte ptr [rcx], 0",
    "8:",
    "syscall",
    "mov rbp, rax",
    "mov eax, 39",
    "syscall",
    "mov ebx, eax",
    "mov eax, 186",
    "syscall",
    "mov edi, ebx",
    "mov esi, eax",
    "mov edx, r12d",
    "mov eax, 234",
    "syscall",
    "ckpt_runner_boot_sign:",
    // -- block everything: popfq needs a stack pointer that no handler could use
    "mov edi, 2",
    "lea rsi, [rip + ckpt_runner_all]",
    "xor edx, edx",
    "mov r10d, 8",
    "mov eax, 14",
    "syscall",
    "lea rsp, [rip + ckpt_runner_words + 144]",
    "popfq",
    "mov rsp, [rip + ckpt_runner_words + 152]",
    "mov r15, [rip + ckpt_runner_words]",
    "mov r14, [rip + ckpt_runner_words + 8]",
    "mov r13, [rip + ckpt_runner_words + 16]",
    "mov r12, [rip + ckpt_runner_words + 24]",
    "mov rbp, [rip + ckpt_runner_words + 32]",
    "mov rbx, [rip + ckpt_runner_words + 40]",
    "mov r9, [rip + ckpt_runner_words + 64]",
    "mov r8, [rip + ckpt_runner_words + 72]",
    "mov edi, 2",
    "lea rsi, [rip + ckpt_runner_words + 216]",
    "mov edx, 0", // no xor from here on: the flags are the thread's
    "mov r10d, 8",
    "mov eax, 14",
    "syscall",
    "mov rcx, [rip + ckpt_runner_words + 224]",
    "jrcxz 9f",
    "mov byte ptr [rcx], 1",
    "9:",
    "mov r11, [rip + ckpt_runner_words + 48]",
    "mov r10, [rip + ckpt_runner_words + 56]",
    "mov rax, [rip + ckpt_runner_words + 80]",
    "mov rcx, [rip + ckpt_runner_words + 88]",
    "mov rdx, [rip + ckpt_runner_words + 96]",
    "mov rsi, [rip + ckpt_runner_words + 104]",
    "mov rdi, [rip + ckpt_runner_words + 112]",
    "jmp qword ptr [rip + ckpt_runner_words + 128]",
    ".balign 8",
    "ckpt_runner_all:",
    ".quad -1",
    "ckpt_runner_words:",
    ".fill 29, 8, 0",
    "ckpt_runner_end:",
    ".popsection",
);

unsafe extern "C" {
    static ckpt_runner_start: u8;
    static ckpt_runner_sign: u8;
    static ckpt_runner_trap: u8;
    static ckpt_runner_boot: u8;
    static ckpt_runner_boot_sign: u8;
    static ckpt_runner_words: u8;
    static ckpt_runner_end: u8;
}

/// The distance of a label from the code's start.
fn offset(label: *const u8) -> u64 {
    (label as usize - &raw const ckpt_runner_start as usize) as u64
}

/// The code, to be copied into a page that the member may execute. The batch entry is its first byte.
#[must_use]
pub fn code() -> &'static [u8] {
    let len = offset(&raw const ckpt_runner_end) as usize;
    // SAFETY: both labels delimit one read-only section of this program, initialized in full.
    unsafe { std::slice::from_raw_parts(&raw const ckpt_runner_start, len) }
}

/// Where things lie in the code, in bytes from its first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offsets {
    pub(crate) sign: u64,
    pub(crate) trap: u64,
    pub(crate) boot: u64,
    pub(crate) boot_sign: u64,
    pub(crate) words: u64,
}

/// See [`Offsets`].
pub(crate) fn offsets() -> Offsets {
    Offsets {
        sign: offset(&raw const ckpt_runner_sign),
        trap: offset(&raw const ckpt_runner_trap),
        boot: offset(&raw const ckpt_runner_boot),
        boot_sign: offset(&raw const ckpt_runner_boot_sign),
        words: offset(&raw const ckpt_runner_words),
    }
}
