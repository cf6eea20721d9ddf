//! The library that is preloaded into the services of a group: file operations pass a gate, and every child gets
//! the library too.
//!
//! No allocation, no lock, no `std`. Correctness of a checkpoint never depends on it: it makes checkpoints cheap
//! (no thread is caught in a long file operation), complete (children through any exec) and visible.
#![no_std]

// A no_std library names no library by itself; programs without libc must not fail for ours.
#[link(name = "c")]
unsafe extern "C" {}

mod aio;
mod defect;
mod environment;
mod gate;
mod hooks;
mod kernel;
mod preload_value;
mod protect;
mod real;
mod resume;
mod scratch;
mod thread;

// The prebuilt core names a personality in its unwind tables. Ours belongs to this library alone (hidden: a Rust
// program's own must not be replaced) and lets every unwinding pass: 8 is _URC_CONTINUE_UNWIND.
core::arch::global_asm!(
    ".pushsection .text.rust_eh_personality,\"ax\",@progbits",
    ".globl rust_eh_personality",
    ".hidden rust_eh_personality",
    ".type rust_eh_personality,@function",
    "rust_eh_personality: mov eax, 8",
    "ret",
    ".popsection",
);

/// Runs before main, and before the constructors of everything that is not preloaded too.
extern "C" fn start() {
    real::find_all();
    environment::start();
    protect::start();
    gate::start();
}

#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;
