//! The control block of the `write-protect` tracker: memory of the library's own, in the member.
//!
//! It is private memory, so a child of fork has its own copy. Its address is in the header of the table
//! ([`crate::Table::control`]). The daemon reads and writes it by process_vm_readv(2) and process_vm_writev(2) while all
//! threads of the member are stopped; what it reads is the member's own word, and can hurt only the member itself.
//!
//! ```text
//!      0   magic · version · slots · on_fault · on_call · restorer · text · text_len        written once, at the program's start
//!     56   state · lock · ranges · count · extent · made · splits · stacks
//!    112   actions: SIGSEGV, SIGSYS (handler, flags, restorer, mask of each)
//!    176   masked: signals whose mask of blocked signals has SIGSEGV, SIGSYS
//!    256   slot 0, 128 bytes: selector · wish · all · – · index · thread · frame · pins · again
//!    384   slot 1 …                                                                             one slot a thread
//!
//!  the table, at `ranges`:
//!  ┌ range 0: start, end, prot, states ┬ range 1 ┬ … ┬ states of the pages of range 0, a byte each ┬ … of range 1 ┬ …
//! ```
//! States of a page: [`CLOSED`] (write-protected by us) → [`OPENED`] (written: as the application made it) or [`GONE`]
//! (mapped or protected anew by the application: no longer ours).
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};

/// The first eight bytes of a control block: `ckptprot`.
pub const CONTROL_MAGIC: u64 = u64::from_le_bytes(*b"ckptprot");
/// The version of the control block.
pub const CONTROL_VERSION: u32 = 2;
/// How many threads a member may have to be tracked.
pub const CONTROL_SLOTS: usize = 1024;

/// Bytes of the alternate signal stack that a thread without one of its own gets: a fault must find a stack also where the
/// thread's own is protected.
pub const STACK: usize = 64 << 10;

/// A page that is write-protected by the tracker.
pub const CLOSED: u8 = 0;
/// A page that was written, or may be.
pub const OPENED: u8 = 1;
/// A page that the application mapped or protected anew.
pub const GONE: u8 = 2;

/// Handlers are in place.
pub const INSTALLED: u32 = 1;
/// System calls are dispatched.
pub const ON: u32 = 2;

/// Nobody changes what is mapped or protected, or the table.
pub const FREE: u32 = 0;
/// A thread without a slot does; one with a slot is told by the slot's index and 1.
pub const HELD: u32 = FOR_A_FORK - 1;
/// Beside whose the lock is: nothing is in the midst of a change, a copy of the memory is to find it so.
pub const FOR_A_FORK: u32 = 1 << 31;

/// The owner of a slot whose thread is being made.
pub const RESERVED: u32 = u32::MAX;

/// The selector of Syscall User Dispatch: calls pass.
pub const PASS: u8 = 0;
/// Calls are dispatched.
pub const DISPATCH: u8 = 1;

/// SIGSEGV and SIGSYS as bits of a signal mask: what must never be blocked.
pub const OURS: u64 = 1 << 10 | 1 << 30;
/// A mark of ours in the flags of a signal frame's context (uc_flags): its mask is as the application believes it.
pub const BELIEVED: u64 = 1 << 30;

/// struct kernel_sigaction: handler, flags, restorer, mask.
pub type Action = [AtomicU64; 4];

/// What a thread needs.
#[repr(C, align(128))]
pub struct Dispatch {
    /// The selector byte of Syscall User Dispatch.
    pub selector: AtomicU8,
    /// Which of [`OURS`] the application believes blocked: bit 0 SIGSEGV, bit 1 SIGSYS.
    pub wish: AtomicU8,
    /// A call is in progress of which nobody knows what it writes: nothing may be protected.
    pub all: AtomicU8,
    _gap: AtomicU8,
    /// The slot's place among the slots.
    pub index: AtomicU32,
    /// The thread's id in its own PID namespace; 0: the slot is free.
    pub thread: AtomicU32,
    /// The signal frame of the call that `pins` are of, 0 if none.
    pub frame: AtomicU64,
    /// What calls in progress write to: not to be protected.
    pub pins: [[AtomicU64; 2]; 4],
    /// The address of the last fault that was answered, and how often in a row.
    pub again: [AtomicU64; 2],
}

/// The control block.
#[repr(C, align(4096))]
pub struct Control {
    /// [`CONTROL_MAGIC`].
    pub magic: AtomicU64,
    /// [`CONTROL_VERSION`].
    pub version: AtomicU32,
    /// [`CONTROL_SLOTS`].
    pub slots: AtomicU32,
    /// The handler of SIGSEGV.
    pub on_fault: AtomicU64,
    /// The handler of SIGSYS.
    pub on_call: AtomicU64,
    /// Their restorer.
    pub restorer: AtomicU64,
    /// Where system calls are not dispatched.
    pub text: AtomicU64,
    /// Its length in bytes.
    pub text_len: AtomicU64,
    /// [`INSTALLED`] and [`ON`].
    pub state: AtomicU32,
    /// [`FREE`], or who changes it: see [`HELD`] and [`FOR_A_FORK`].
    pub lock: AtomicU32,
    /// The table of protected ranges.
    pub ranges: AtomicU64,
    /// How many it has.
    pub count: AtomicU64,
    /// Bytes of memory behind `ranges`.
    pub extent: AtomicU64,
    /// How often ranges were protected.
    pub made: AtomicU64,
    /// How often a mapping was split since.
    pub splits: AtomicU64,
    /// Alternate signal stacks of [`STACK`] bytes, one a slot; 0 if there are none yet.
    pub stacks: AtomicU64,
    /// What the application believes to be the actions of SIGSEGV and SIGSYS.
    pub actions: [Action; 2],
    /// Signals whose action the application gave a mask with SIGSEGV, with SIGSYS; bit n−1 is signal n.
    pub masked: [AtomicU64; 2],
    _gap: [u64; 8],
    /// The threads.
    pub threads: [Dispatch; CONTROL_SLOTS],
}

/// Where the slots begin, in bytes.
pub const CONTROL_HEAD: usize = 256;

impl Control {
    /// A control block of zeroes.
    pub const fn new() -> Control {
        // SAFETY: it consists of atomics and integers, valid as zeroes.
        unsafe { core::mem::zeroed() }
    }
}

impl Default for Control {
    fn default() -> Self {
        Control::new()
    }
}

/// A protected range in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Protected {
    /// First byte.
    pub start: u64,
    /// Behind the last.
    pub end: u64,
    /// The application's own protection (PROT_READ, …).
    pub prot: u64,
    /// Where the states of its pages are, from the table's first byte.
    pub states: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;

    #[test]
    fn the_drawing_tells_the_offsets() {
        assert_eq!(offset_of!(Control, text_len), 48);
        assert_eq!(offset_of!(Control, state), 56);
        assert_eq!(offset_of!(Control, actions), 112);
        assert_eq!(offset_of!(Control, masked), 176);
        assert_eq!(offset_of!(Control, threads), 256);
        assert_eq!(size_of::<Dispatch>(), 128);
    }
}
