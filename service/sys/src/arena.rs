//! Memory of ours that copies of members' pages are put in: huge pages, faulted in before they are needed.

use std::ptr::NonNull;

use nix::errno::Errno;

use crate::error::{Error, Result, Subject};

const HUGE: usize = 2 << 20;

/// One anonymous private mapping, page-aligned, zero at the start.
#[derive(Debug)]
pub struct Arena {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the arena owns its mapping alone; access goes through &self and &mut self like a Vec's.
unsafe impl Send for Arena {}
// SAFETY: as above; &Arena only reads.
unsafe impl Sync for Arena {}

impl Arena {
    /// Maps at least `len` bytes and asks for huge pages. Takes no memory yet. ENOMEM if it cannot be mapped.
    pub fn new(len: usize) -> Result<Self> {
        let len = len.max(1).next_multiple_of(HUGE);
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address that the kernel chooses touches nothing of ours.
        let base =
            unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, kind, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(Self::error("mmap"));
        }
        let Some(base) = NonNull::new(base.cast()) else {
            return Err(Error::Kernel { op: "mmap", subject: Subject::Here, source: Errno::ENOMEM });
        };
        let arena = Self { base, len };
        // Not being huge is only slower, and being in a core dump or in a child of ours only unwanted.
        let _ = arena.advise(libc::MADV_HUGEPAGE);
        let _ = arena.advise(libc::MADV_DONTFORK);
        let _ = arena.advise(libc::MADV_DONTDUMP);
        Ok(arena)
    }

    /// Takes the memory now (MADV_POPULATE_WRITE, Linux 5.14), so that writing it later costs no page faults. ENOMEM.
    pub fn populate(&mut self) -> Result<()> {
        self.advise(libc::MADV_POPULATE_WRITE)
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes: never.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn advise(&self, advice: libc::c_int) -> Result<()> {
        // SAFETY: the range is our own mapping; none of the advices used here changes its content.
        match unsafe { libc::madvise(self.base.as_ptr().cast(), self.len, advice) } {
            0 => Ok(()),
            _ => Err(Self::error("madvise")),
        }
    }

    fn error(op: &'static str) -> Error {
        Error::Kernel { op, subject: Subject::Here, source: Errno::last() }
    }
}

impl std::ops::Deref for Arena {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: base is the start of a mapping of len readable bytes, owned by self, initialized (zero) by the kernel.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }
}

impl std::ops::DerefMut for Arena {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in deref, and &mut self makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.len) }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing can refer to it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arena_is_zeroed_memory() {
        let mut arena = Arena::new(3 << 20).unwrap();
        assert_eq!(arena.len(), 4 << 20);
        arena.populate().unwrap();
        assert!(arena.iter().all(|byte| *byte == 0));
        arena[5] = 7;
        assert_eq!(arena[5], 7);
    }
}
