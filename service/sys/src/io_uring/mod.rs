//! Rings of io_uring(7): set up, mapped, asked; requests that do nothing, to bring a new ring's counters to where an old one's were.
//!
//! ```text
//!  IORING_OFF_SQ_RING (0)                                      IORING_OFF_SQES (0x10000000)
//!  ├ heads, tails, masks, flags ┬ completions ┬ array ┤        ├ entry 0 ┬ entry 1 ┬ … ┤
//!  │ shared with the kernel     │ 16 B each   │ u32   │        │ 64 B    │         │   │
//! ```
//! The kernel keeps counters of its own besides those in the ring: how many entries it has taken, how many completions it has posted. They
//! begin at 0 and only requests move them.

mod told;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;

use crate::descriptor::{Result, owned};

pub use told::{Told, parse};

const SYS_SETUP: libc::c_long = 425;
/// io_uring_enter(2).
pub const SYS_ENTER: libc::c_long = 426;
const SYS_REGISTER: libc::c_long = 427;

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

/// What calls of io_uring_register(2) that change nothing answer: each has a pointer that leads nowhere, so it fails, and how tells.
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
    const EVENTFD: u32 = 4;
    const RESTRICTIONS: u32 = 11;
    const PBUF_STATUS: u32 = 26;
    const NAPI: u32 = 27;
    const REGION: u32 = 34;
    let ask = |what: u32, pointer: usize| {
        // SAFETY: the pointer is 8, which no process has mapped, or that of a struct that outlives the call.
        let done = unsafe { libc::syscall(SYS_REGISTER, ring.as_raw_fd(), what, pointer, 1) };
        Errno::result(done).err()
    };
    let nowhere = |what| ask(what, 8);
    match nowhere(EVENTFD) {
        Some(Errno::EEXIST) => return Some(Hidden::SingleIssuer),
        Some(Errno::EACCES) => return Some(Hidden::Restricted),
        Some(Errno::EBUSY) => return Some(Hidden::Eventfd),
        _ => {}
    }
    if nowhere(RESTRICTIONS) != Some(Errno::EBADFD) {
        return Some(Hidden::Disabled);
    }
    if nowhere(REGION) == Some(Errno::EBUSY) {
        return Some(Hidden::Region);
    }
    // Before Linux 6.9 EINVAL may mean that there is no such thing: told by one that cannot be polled.
    let polled = |fd: BorrowedFd<'_>| nowhere_of(fd, NAPI) == Some(Errno::EINVAL);
    if polled(ring)
        && setup(Shape { sq_entries: 1, cq_entries: 2, array: true }).is_ok_and(|r| !polled(r.fd.as_fd()))
    {
        return Some(Hidden::Polled);
    }
    for group in 0..groups {
        let mut status = [0u32; 10];
        status[0] = u32::from(group);
        match ask(PBUF_STATUS, status.as_mut_ptr() as usize) {
            Some(Errno::ENOENT) => {}
            // Before Linux 6.8 there is no such question; else EINVAL is a list of the older sort.
            Some(Errno::EINVAL) if group == 0 && !knows_groups() => break,
            _ => return Some(Hidden::Buffers(group)),
        }
    }
    None
}

fn nowhere_of(ring: BorrowedFd<'_>, what: u32) -> Option<Errno> {
    // SAFETY: the pointer is 8, which no process has mapped.
    let done = unsafe { libc::syscall(SYS_REGISTER, ring.as_raw_fd(), what, 8usize, 1) };
    Errno::result(done).err()
}

/// Whether the kernel can be asked for buffer groups: it says of a ring without any that there is none.
fn knows_groups() -> bool {
    let Ok(ring) = setup(Shape { sq_entries: 1, cq_entries: 2, array: true }) else { return false };
    let mut status = [0u32; 10];
    // SAFETY: the struct outlives the call.
    let done = unsafe { libc::syscall(SYS_REGISTER, ring.fd.as_raw_fd(), 26u32, status.as_mut_ptr(), 1) };
    Errno::result(done) == Err(Errno::ENOENT)
}

/// What fdinfo tells of a ring that is open here; asked again while it is busy. `None`: it stays so, or is no ring.
pub fn told(ring: BorrowedFd<'_>) -> Option<Told> {
    let path = format!("/proc/self/fdinfo/{}", ring.as_raw_fd());
    (0..20).find_map(|_| parse(&std::fs::read_to_string(&path).ok()?))
}

/// A part of a ring's memory, mapped here.
#[derive(Debug)]
struct Part {
    at: *mut u8,
    len: usize,
}

impl Part {
    fn map(ring: BorrowedFd<'_>, len: usize, offset: i64, prot: libc::c_int) -> Result<Self> {
        // SAFETY: a new mapping at a place of the kernel's choice.
        let at = unsafe {
            libc::mmap(std::ptr::null_mut(), len, prot, libc::MAP_SHARED, ring.as_raw_fd(), offset)
        };
        if at == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        Ok(Self { at: at.cast(), len })
    }

    /// Whether there is memory at a byte: the kernel may have mapped less than it was asked for.
    fn reaches(&self, at: usize) -> bool {
        let place = crate::VirtAddr(self.at as u64 + at as u64);
        crate::remote::read(nix::unistd::Pid::this(), place, &mut [0]).is_ok()
    }

    /// The word at a byte, if there is one.
    fn word(&self, at: u32) -> Option<&AtomicU32> {
        let at = at as usize;
        if !at.is_multiple_of(4) || at + 4 > self.len {
            return None;
        }
        // SAFETY: aligned (the mapping is) and inside; others write it at the same time, so it is atomic.
        Some(unsafe { AtomicU32::from_ptr(self.at.add(at).cast()) })
    }

    fn get(&self, at: u32) -> u32 {
        self.word(at).map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn set(&self, at: u32, value: u32) {
        if let Some(word) = self.word(at) {
            word.store(value, Ordering::Release);
        }
    }

    /// All of it, word by word: the application may write it meanwhile.
    fn read(&self) -> Vec<u8> {
        (0..self.len as u32).step_by(4).flat_map(|at| self.get(at).to_ne_bytes()).collect()
    }

    fn write(&self, bytes: &[u8]) {
        for (at, word) in bytes.chunks_exact(4).enumerate() {
            self.set(4 * at as u32, u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // SAFETY: our mapping, which nothing refers to any more.
        unsafe { libc::munmap(self.at.cast(), self.len) };
    }
}

/// A ring whose memory is mapped here.
#[derive(Debug)]
pub struct Mapped<'r> {
    ring: BorrowedFd<'r>,
    layout: Layout,
    rings: Part,
    sqes: Part,
}

impl<'r> Mapped<'r> {
    /// Maps a ring of this shape, to be read. Errors: EINVAL where its memory has another size.
    pub fn read_only(ring: BorrowedFd<'r>, shape: Shape, layout: Layout) -> Result<Self> {
        Self::map(ring, shape, layout, libc::PROT_READ)
    }

    /// Maps a ring that was set up here.
    pub fn new(ring: &'r New, shape: Shape) -> Result<Self> {
        Self::map(ring.fd.as_fd(), shape, ring.layout, libc::PROT_READ | libc::PROT_WRITE)
    }

    fn map(ring: BorrowedFd<'r>, shape: Shape, layout: Layout, prot: libc::c_int) -> Result<Self> {
        let (rings, sqes) = lengths(shape, layout);
        if is_longer(ring, rings, OFF_RINGS)? || is_longer(ring, sqes, OFF_SQES)? {
            return Err(Errno::EINVAL);
        }
        let rings = Part::map(ring, rings, OFF_RINGS, prot)?;
        let sqes = Part::map(ring, sqes, OFF_SQES, prot)?;
        if !rings.reaches(rings.len - 1) || !sqes.reaches(sqes.len - 1) {
            return Err(Errno::EINVAL);
        }
        Ok(Self { ring, layout, rings, sqes })
    }

    /// The memory: rings, and entries. As it is while it is read.
    #[must_use]
    pub fn content(&self) -> (Vec<u8>, Vec<u8>) {
        (self.rings.read(), self.sqes.read())
    }

    /// Makes so many requests that do nothing, of which the last `unread` completions stay unread. The ring is new, its memory all zero.
    ///
    /// Errors: the kernel's; EOVERFLOW if it does not count as it must.
    pub fn wind(&self, shape: Shape, requests: u32, unread: u32) -> Result<()> {
        let Layout { sq_tail, cq_head, cq_tail, .. } = self.layout;
        // The kernel remembers how far it may write completions: it must never have seen room where unread ones will lie.
        let last = requests.checked_sub(unread).ok_or(Errno::EOVERFLOW)?;
        let mut done = 0;
        while done < requests {
            let now = shape.sq_entries.min(requests - done);
            self.rings.set(sq_tail, done + now);
            if enter(self.ring.as_raw_fd(), now)? != now {
                return Err(Errno::EOVERFLOW);
            }
            done += now;
            if self.rings.get(cq_tail) != done {
                return Err(Errno::EOVERFLOW);
            }
            self.rings.set(cq_head, done.min(last));
        }
        Ok(())
    }

    /// Puts memory back. Errors: EINVAL where it has another size.
    pub fn put(&self, rings: &[u8], sqes: &[u8]) -> Result<()> {
        if (rings.len(), sqes.len()) != (self.rings.len, self.sqes.len) {
            return Err(Errno::EINVAL);
        }
        self.rings.write(rings);
        self.sqes.write(sqes);
        Ok(())
    }
}

/// Whether a part has more than so many bytes. Older kernels map no more than there is; newer ones no less, and more with nothing behind.
fn is_longer(ring: BorrowedFd<'_>, len: usize, offset: i64) -> Result<bool> {
    match Part::map(ring, len + PAGE, offset, libc::PROT_READ) {
        Err(Errno::EINVAL) => Ok(false),
        Err(Errno::EFAULT) => Ok(true),
        Err(e) => Err(e),
        Ok(part) => Ok(part.reaches(len)),
    }
}

/// Bytes of the two parts, in whole pages.
#[must_use]
pub fn lengths(shape: Shape, layout: Layout) -> (usize, usize) {
    let end = match shape.array {
        true => layout.sq_array as usize + 4 * shape.sq_entries as usize,
        false => layout.cqes as usize + CQE * shape.cq_entries as usize,
    };
    (end.next_multiple_of(PAGE), (SQE * shape.sq_entries as usize).next_multiple_of(PAGE))
}

/// Submits entries; how many the kernel took.
fn enter(ring: RawFd, entries: u32) -> Result<u32> {
    // SAFETY: takes integers; no signal mask.
    let taken = unsafe { libc::syscall(SYS_ENTER, ring, entries, 0u32, 0u32, 0usize, 0usize) };
    Errno::result(taken).map(|taken| taken as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(ring: &New) -> Told {
        super::told(ring.fd.as_fd()).unwrap()
    }

    #[test]
    fn a_new_ring_counts_as_an_old_one_did() {
        for array in [true, false] {
            let shape = Shape { sq_entries: 8, cq_entries: 16, array };
            let Ok(ring) = setup(shape) else { return eprintln!("skipped: no io_uring") };
            assert_eq!(hidden(ring.fd.as_fd(), 8), None);
            let mapped = Mapped::new(&ring, shape).unwrap();
            mapped.wind(shape, 1003, 13).unwrap();
            let now = told(&ring);
            assert_eq!((now.submitted, now.posted), (1003, 1003));
            // What is unread stays, and there is room for three more only.
            let (mut rings, sqes) = mapped.content();
            let cqes = ring.layout.cqes as usize;
            (0..16).for_each(|slot| rings[cqes + CQE * slot] = slot as u8 + 1);
            mapped.put(&rings, &sqes).unwrap();
            mapped.rings.set(ring.layout.sq_tail, 1006);
            assert_eq!(enter(ring.fd.as_raw_fd(), 3), Ok(3));
            let (after, _) = mapped.content();
            for slot in 0..16 {
                let is_new = (1003..1006).any(|count| count % 16 == slot);
                assert_eq!(after[cqes + CQE * slot] == 0, is_new, "slot {slot}");
            }
            assert!(told(&ring).is_quiet());
        }
    }

    #[test]
    fn memory_of_another_size_is_told() {
        let shape = Shape { sq_entries: 512, cq_entries: 1024, array: true };
        let Ok(ring) = setup(shape) else { return eprintln!("skipped: no io_uring") };
        let other = Shape { sq_entries: 128, ..shape };
        assert_eq!(Mapped::read_only(ring.fd.as_fd(), other, ring.layout).err(), Some(Errno::EINVAL));
        let other = Shape { sq_entries: 4096, ..shape };
        assert_eq!(Mapped::read_only(ring.fd.as_fd(), other, ring.layout).err(), Some(Errno::EINVAL));
        assert!(Mapped::read_only(ring.fd.as_fd(), shape, ring.layout).is_ok());
    }
}
