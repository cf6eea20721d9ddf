//! What fdinfo does not tell of a ring: asked by calls of io_uring_register(2) that change nothing.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;

use super::{Shape, setup};

const SYS_REGISTER: libc::c_long = 427;
const EVENTFD: u32 = 4;
const RESTRICTIONS: u32 = 11;
const PBUF_STATUS: u32 = 26;
const NAPI: u32 = 27;
const REGION: u32 = 34;

/// What such calls answer: each has a pointer that leads nowhere, so it fails, and how tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hidden {
    /// Only one thread may use it (IORING_SETUP_SINGLE_ISSUER).
    SingleIssuer,
    /// It is not enabled yet (IORING_SETUP_R_DISABLED).
    Disabled,
    /// What may be done with it is restricted.
    Restricted,
    /// It is polled for completions (IORING_SETUP_IOPOLL).
    Polled,
    /// An eventfd(2) is registered.
    Eventfd,
    /// Memory for arguments is registered.
    Region,
    /// Buffers are provided, as this group.
    Buffers(u16),
}

/// Looks for what fdinfo does not tell; buffer groups up to `groups`. What the kernel cannot be asked counts as not there.
pub fn hidden(ring: BorrowedFd<'_>, groups: u16) -> Option<Hidden> {
    match nowhere(ring, EVENTFD) {
        Some(Errno::EEXIST) => return Some(Hidden::SingleIssuer),
        Some(Errno::EACCES) => return Some(Hidden::Restricted),
        Some(Errno::EBUSY) => return Some(Hidden::Eventfd),
        _ => {}
    }
    if nowhere(ring, RESTRICTIONS) != Some(Errno::EBADFD) {
        return Some(Hidden::Disabled);
    }
    if nowhere(ring, REGION) == Some(Errno::EBUSY) {
        return Some(Hidden::Region);
    }
    // Before Linux 6.9 EINVAL may mean that there is no such thing: told by one that cannot be polled.
    let polled = |fd: BorrowedFd<'_>| nowhere(fd, NAPI) == Some(Errno::EINVAL);
    if polled(ring) && of_a_plain_ring(polled) == Some(false) {
        return Some(Hidden::Polled);
    }
    for group in 0..groups {
        match of_group(ring, group) {
            Some(Errno::ENOENT) => {}
            // Before Linux 6.8 there is no such question: it is answered so of a ring without any group too.
            Some(Errno::EINVAL)
                if group == 0 && of_a_plain_ring(|fd| of_group(fd, 0)) != Some(Some(Errno::ENOENT)) =>
            {
                break;
            }
            _ => return Some(Hidden::Buffers(group)),
        }
    }
    None
}

/// What is said of a ring that has nothing of all that; `None` where none can be made.
fn of_a_plain_ring<T>(ask: impl FnOnce(BorrowedFd<'_>) -> T) -> Option<T> {
    setup(Shape { sq_entries: 1, cq_entries: 2, array: true }).ok().map(|ring| ask(ring.fd.as_fd()))
}

/// IORING_REGISTER_PBUF_STATUS of a group: ENOENT if there is none.
fn of_group(ring: BorrowedFd<'_>, group: u16) -> Option<Errno> {
    let mut status = [0u32; 10];
    status[0] = u32::from(group);
    register(ring, PBUF_STATUS, status.as_mut_ptr() as usize)
}

/// The answer to a pointer that leads nowhere.
fn nowhere(ring: BorrowedFd<'_>, what: u32) -> Option<Errno> {
    register(ring, what, 8)
}

fn register(ring: BorrowedFd<'_>, what: u32, pointer: usize) -> Option<Errno> {
    // SAFETY: the pointer is 8, which no process has mapped, or that of a struct that outlives the call.
    let done = unsafe { libc::syscall(SYS_REGISTER, ring.as_raw_fd(), what, pointer, 1) };
    Errno::result(done).err()
}
