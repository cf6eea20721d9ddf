//! Rings of io_uring(7): set up, mapped, asked; requests that do nothing, to bring a new ring's counters to where an old one's were.
//!
//! ```text
//!  IORING_OFF_SQ_RING (0)                                      IORING_OFF_SQES (0x10000000)
//!  ├ heads, tails, masks, flags ┬ completions ┬ array ┤        ├ entry 0 ┬ entry 1 ┬ … ┤
//!  │ shared with the kernel     │ 16 B each   │ u32   │        │ 64 B    │         │   │
//! ```
//! The kernel keeps counters of its own besides those in the ring: how many entries it has taken, how many completions it has posted. They
//! begin at 0 and only requests move them.

mod hidden;
mod mapped;
mod told;

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use crate::descriptor::{Result, owned};
use crate::proc_file;

pub use hidden::{Hidden, hidden};
pub use mapped::{Mapped, lengths};
pub use told::{Told, parse};

const SYS_SETUP: libc::c_long = 425;
/// io_uring_enter(2).
pub const SYS_ENTER: libc::c_long = 426;

/// io_uring_enter(2): the descriptor is the number of one that the thread has registered.
pub const ENTER_REGISTERED_RING: u64 = 1 << 4;
/// How many of those a thread can have.
pub const REGISTERED_RINGS: u64 = 16;

const SETUP_CQSIZE: u32 = 1 << 3;
const SETUP_SUBMIT_ALL: u32 = 1 << 7;
const SETUP_NO_SQARRAY: u32 = 1 << 16;
const FEAT_SINGLE_MMAP: u32 = 1;

const OFF_RINGS: i64 = 0;
const OFF_SQES: i64 = 0x1000_0000;
/// Bytes of an entry, and of a completion.
pub const SQE: usize = 64;
/// Bytes of a completion.
pub const CQE: usize = 16;
const PAGE: usize = 4096;

/// What io_uring_setup(2) is asked for and answers.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Params {
    sq_entries: u32,
    cq_entries: u32,
    flags: u32,
    sq_thread_cpu: u32,
    sq_thread_idle: u32,
    features: u32,
    wq_fd: u32,
    resv: [u32; 3],
    /// head, tail, ring_mask, ring_entries, flags, dropped, array, resv1, user_addr (two).
    sq: [u32; 10],
    /// head, tail, ring_mask, ring_entries, overflow, cqes, flags, resv1, user_addr (two).
    cq: [u32; 10],
}

/// What a ring is asked to be like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Entries of the submission queue, a power of two.
    pub sq_entries: u32,
    /// Entries of the completion queue, a power of two.
    pub cq_entries: u32,
    /// Entries are submitted through an array of numbers (without IORING_SETUP_NO_SQARRAY).
    pub array: bool,
}

/// Where what lies in the memory of a ring, in bytes from its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // the names are those of io_uring_setup(2)
pub struct Layout {
    pub sq_head: u32,
    pub sq_tail: u32,
    pub sq_mask: u32,
    pub sq_entries: u32,
    pub sq_flags: u32,
    pub sq_dropped: u32,
    /// 0 without an array.
    pub sq_array: u32,
    pub cq_head: u32,
    pub cq_tail: u32,
    pub cq_mask: u32,
    pub cq_entries: u32,
    pub cq_overflow: u32,
    pub cq_flags: u32,
    pub cqes: u32,
}

impl Layout {
    /// As numbers, to be kept and compared.
    #[must_use]
    pub fn words(self) -> Vec<u32> {
        let Layout { sq_head, sq_tail, sq_mask, sq_entries, sq_flags, sq_dropped, sq_array, .. } = self;
        let Layout { cq_head, cq_tail, cq_mask, cq_entries, cq_overflow, cq_flags, cqes, .. } = self;
        let sq = [sq_head, sq_tail, sq_mask, sq_entries, sq_flags, sq_dropped, sq_array];
        let cq = [cq_head, cq_tail, cq_mask, cq_entries, cq_overflow, cq_flags, cqes];
        [sq, cq].concat()
    }
}

/// A ring that was set up.
#[derive(Debug)]
pub struct New {
    /// Its descriptor, FD_CLOEXEC set.
    pub fd: OwnedFd,
    /// Its layout.
    pub layout: Layout,
}

/// Sets up a ring (io_uring_setup(2), Linux 5.4; without an array 6.6). With IORING_SETUP_SUBMIT_ALL (5.18) where the kernel has it: nothing
/// tells whether a ring has that, and who can do without it is served as well with it.
///
/// Errors: EPERM where kernel.io_uring_disabled says no, ENOSYS, EINVAL, ENOMEM.
pub fn setup(shape: Shape) -> Result<New> {
    let flags = SETUP_CQSIZE | if shape.array { 0 } else { SETUP_NO_SQARRAY };
    let with = |flags| {
        let mut params = Params { flags, cq_entries: shape.cq_entries, ..Params::default() };
        // SAFETY: params outlives the call, which writes no more than a struct io_uring_params.
        let fd = owned(unsafe { libc::syscall(SYS_SETUP, shape.sq_entries, &raw mut params) })?;
        Ok((fd, params))
    };
    let (fd, params) = match with(flags | SETUP_SUBMIT_ALL) {
        Err(Errno::EINVAL) => with(flags)?,
        other => other?,
    };
    if (params.sq_entries, params.cq_entries) != (shape.sq_entries, shape.cq_entries)
        || params.features & FEAT_SINGLE_MMAP == 0
    {
        return Err(Errno::EINVAL);
    }
    let [sq_head, sq_tail, sq_mask, sq_entries, sq_flags, sq_dropped, sq_array, ..] = params.sq;
    let [cq_head, cq_tail, cq_mask, cq_entries, cq_overflow, cqes, cq_flags, ..] = params.cq;
    let layout = Layout {
        sq_head,
        sq_tail,
        sq_mask,
        sq_entries,
        sq_flags,
        sq_dropped,
        sq_array: if shape.array { sq_array } else { 0 },
        cq_head,
        cq_tail,
        cq_mask,
        cq_entries,
        cq_overflow,
        cq_flags,
        cqes,
    };
    Ok(New { fd, layout })
}

/// What fdinfo tells of a ring that is open here; asked again while it is busy. `None`: it stays so, or is no ring.
pub fn told(ring: BorrowedFd<'_>) -> Option<Told> {
    let path = format!("/proc/self/fdinfo/{}", ring.as_raw_fd());
    (0..20).find_map(|_| parse(&proc_file::read_text(&path).ok()?))
}
