//! The memory of a ring, mapped here: read, wound on by requests that do nothing, put back.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;

use super::{CQE, Layout, New, OFF_RINGS, OFF_SQES, PAGE, SQE, SYS_ENTER, Shape};
use crate::descriptor::Result;

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
    use super::super::{Told, hidden, setup};
    use super::*;

    fn told(ring: &New) -> Told {
        super::super::told(ring.fd.as_fd()).unwrap()
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
