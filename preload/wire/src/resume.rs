//! Code that a thread goes on in after a checkpoint has interrupted a system call that the kernel cannot go on with by itself.
//!
//! The daemon writes a frame to the thread's stack, below what belongs to the function that made the call, and sets its registers: the stack
//! pointer to the frame, the program counter to one of the two pieces. All registers that a system call keeps are as they were afterwards.
//!
//! ```text
//! offset           0         8         16        24        32        40        48
//! AFTER_PART       done      rsp       rip       rsi       rdx                             the call once more, with the rest of its data:
//!                                                                                          gives what both have done
//! WITHIN_TIME      rsp       rip       rdi       rsi       rdx       rax       pollfd      poll(2) with the rest of the time, then the
//!                                                                                          call itself, or EAGAIN
//! ```

/// Where in [`CODE`] a call goes on of which a part is done.
pub const AFTER_PART: u64 = 0;
/// Where in [`CODE`] a call goes on whose socket has a time limit.
pub const WITHIN_TIME: u64 = 35;

/// The code, x86_64.
#[rustfmt::skip]
pub const CODE: [u8; 92] = [
    // AFTER_PART: rax, rdi, rsi, rdx, r10, r8, r9 are those of the call with the rest
    0x0f, 0x05,                                 // syscall
    0x48, 0x85, 0xc0,                           // test rax, rax
    0x79, 0x02,                                 // jns +2
    0x31, 0xc0,                                 // xor eax, eax             an error comes to light with the next call
    0x48, 0x03, 0x04, 0x24,                     // add rax, [rsp]
    0x48, 0x8b, 0x74, 0x24, 0x18,               // mov rsi, [rsp+24]
    0x48, 0x8b, 0x54, 0x24, 0x20,               // mov rdx, [rsp+32]
    0x48, 0x8b, 0x4c, 0x24, 0x10,               // mov rcx, [rsp+16]        rcx is never kept
    0x48, 0x8b, 0x64, 0x24, 0x08,               // mov rsp, [rsp+8]
    0xff, 0xe1,                                 // jmp rcx
    // WITHIN_TIME: rdi, rsi, rdx are those of poll(2)
    0xb8, 0x07, 0x00, 0x00, 0x00,               // mov eax, 7
    0x0f, 0x05,                                 // syscall
    0x48, 0x8b, 0x7c, 0x24, 0x10,               // mov rdi, [rsp+16]
    0x48, 0x8b, 0x74, 0x24, 0x18,               // mov rsi, [rsp+24]
    0x48, 0x8b, 0x54, 0x24, 0x20,               // mov rdx, [rsp+32]
    0x48, 0x8b, 0x4c, 0x24, 0x08,               // mov rcx, [rsp+8]
    0x85, 0xc0,                                 // test eax, eax
    0x78, 0x14,                                 // js out                   EINTR
    0x74, 0x0b,                                 // jz over
    0x48, 0x8b, 0x44, 0x24, 0x28,               // mov rax, [rsp+40]
    0x48, 0x83, 0xe9, 0x02,                     // sub rcx, 2               onto the program's own syscall instruction
    0xeb, 0x07,                                 // jmp out
    0x48, 0xc7, 0xc0, 0xf5, 0xff, 0xff, 0xff,   // over: mov rax, -11       EAGAIN
    0x48, 0x8b, 0x24, 0x24,                     // out: mov rsp, [rsp]
    0xff, 0xe1,                                 // jmp rcx
];
