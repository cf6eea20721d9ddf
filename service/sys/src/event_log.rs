//! What userfaultfds tell, kept in memory that several processes share, so that nothing is lost whoever dies at whatever instant.
//!
//! ```text
//!  0          1            2         …                          slots of 32 bytes, zero at first
//!  ├ complete ┬ from fd 7  ┬ message ┬ message ┬ from fd 9 ┬ message ┬ 0 …
//!               └ written before the read(2) that fills what follows
//! ```
//! read(2) puts a message (struct uffd_msg, 32 bytes, its first byte never 0) straight into its slot: the process in the kernel completes
//! that even if it is killed. So whoever reads the log afterwards knows of every event that the kernel takes for told. Batches of
//! mere page faults are wiped again: who waits can be woken and is told again. The log is a memory file, so that it outlives all who
//! have it mapped where somebody keeps a descriptor of it.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use linux_raw_sys::general as raw;
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::error::{Error, Result, Subject};

/// Bytes of a slot: sizeof(struct uffd_msg).
const SLOT: usize = 32;
/// Events in one read.
const BATCH: usize = 64;
/// First byte of a slot that says whose the following are; no event has this number.
const FROM: u8 = 0xff;

/// What a userfaultfd tells. Addresses are page-aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Somebody waits for the page at this address.
    Fault(u64),
    /// The process has a child with a copy of its memory; the child's userfaultfd has this number here.
    Fork(RawFd),
    /// mremap(2): `len` bytes at `from` are at `to` now.
    Remap {
        /// Old address.
        from: u64,
        /// New address.
        to: u64,
        /// Bytes.
        len: u64,
    },
    /// madvise(2): pages from the first address up to the second read as zeros now.
    Remove(u64, u64),
    /// munmap(2): nothing is there any more.
    Unmap(u64, u64),
}

impl Event {
    /// Reads a message. `None`: it is none that is asked for.
    fn parse(slot: &[u8; SLOT]) -> Option<Self> {
        let word = |at: usize| u64::from_le_bytes(slot[at..at + 8].try_into().unwrap_or_default());
        Some(match u32::from(slot[0]) {
            raw::UFFD_EVENT_PAGEFAULT => Event::Fault(word(16) & !4095),
            raw::UFFD_EVENT_FORK => Event::Fork(word(8) as u32 as RawFd),
            raw::UFFD_EVENT_REMAP => Event::Remap { from: word(8), to: word(16), len: word(24) },
            raw::UFFD_EVENT_REMOVE => Event::Remove(word(8), word(16)),
            raw::UFFD_EVENT_UNMAP => Event::Unmap(word(8), word(16)),
            _ => return None,
        })
    }
}

/// The log. Forks of this process share it; one of them at a time reads events.
#[derive(Debug)]
pub struct EventLog {
    file: File,
    base: NonNull<u8>,
    slots: usize,
    /// The next slot that this process has not looked at.
    next: usize,
}

impl EventLog {
    /// Room for so many events; takes memory only as they come. ENOMEM.
    pub fn new(events: usize) -> Result<Self> {
        let file = memfd_create(c"ckpt-events", MFdFlags::MFD_CLOEXEC).map(File::from);
        let file = file.map_err(|e| fail("memfd_create of the event log", e))?;
        let size = ((events + 2) * SLOT) as u64;
        file.set_len(size).map_err(|e| Error::io("ftruncate", "the event log", &e))?;
        Self::of_file(file)
    }

    /// The log that a memory file holds, from its beginning. ENOMEM.
    pub fn of_file(file: File) -> Result<Self> {
        let size = file.metadata().map_err(|e| Error::io("stat", "the event log", &e))?.len() as usize;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses touches nothing of ours.
        let base =
            unsafe { libc::mmap(std::ptr::null_mut(), size, prot, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        match NonNull::new(base.cast::<u8>()) {
            Some(at) if base != libc::MAP_FAILED => Ok(Self { file, base: at, slots: size / SLOT, next: 1 }),
            _ => Err(fail("mmap of the event log", Errno::last())),
        }
    }

    fn first_word(&self) -> &AtomicU64 {
        // SAFETY: the first slot of the mapping, aligned, which is only accessed as this atomic.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().cast()) }
    }

    /// Says to all who share the log that there is nothing left to do.
    pub fn set_complete(&self) {
        self.first_word().store(1, Ordering::SeqCst);
    }

    /// Whether somebody said so.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.first_word().load(Ordering::SeqCst) != 0
    }

    fn slot(&self, index: usize) -> [u8; SLOT] {
        assert!(index < self.slots, "inside the log");
        // SAFETY: inside the mapping; whoever else had it mapped and wrote has ended (one process at a time reads events).
        unsafe { self.base.as_ptr().add(index * SLOT).cast::<[u8; SLOT]>().read_volatile() }
    }

    fn set_slot(&mut self, index: usize, content: &[u8; SLOT]) {
        assert!(index < self.slots, "inside the log");
        // SAFETY: inside the mapping, which this process alone writes at the moment.
        unsafe { self.base.as_ptr().add(index * SLOT).cast::<[u8; SLOT]>().write_volatile(*content) }
    }

    /// Reads what a userfaultfd has to tell, at most 64 events; none if it has nothing, or is not asked any more.
    /// Errors: ENOSPC where the log is full, what read(2) says.
    pub fn read(&mut self, from: BorrowedFd<'_>) -> Result<Vec<Event>> {
        let fail = |source| fail("read of a userfaultfd", source);
        let first = self.next + 1;
        let count = BATCH.min(self.slots.saturating_sub(first + 1));
        if count == 0 {
            return Err(fail(Errno::ENOSPC));
        }
        // Before the read: whoever finds messages must know whose they are.
        let mut mark = [0; SLOT];
        mark[0] = FROM;
        mark[8..16].copy_from_slice(&(from.as_raw_fd() as u64).to_le_bytes());
        self.set_slot(self.next, &mark);
        // Resident before the read, so that the kernel does not wait for memory between taking an event and telling it.
        (first..first + count).for_each(|slot| self.set_slot(slot, &[0; SLOT]));
        // SAFETY: `count` slots from `first` lie inside the mapping.
        let got = unsafe {
            libc::read(from.as_raw_fd(), self.base.as_ptr().add(first * SLOT).cast(), count * SLOT)
        };
        let events = match Errno::result(got) {
            Ok(bytes) => self.events(first, bytes as usize / SLOT),
            Err(Errno::EAGAIN | Errno::EINTR) => Vec::new(),
            Err(e) => {
                self.set_slot(self.next, &[0; SLOT]);
                return Err(fail(e));
            }
        };
        if events.iter().all(|event| matches!(event, Event::Fault(_))) {
            // From the end, so that what is left is right at every instant.
            (self.next..first + events.len()).rev().for_each(|slot| self.set_slot(slot, &[0; SLOT]));
        } else {
            self.next = first + events.len();
        }
        Ok(events)
    }

    fn events(&self, first: usize, count: usize) -> Vec<Event> {
        (first..first + count).filter_map(|slot| Event::parse(&self.slot(slot))).collect()
    }

    /// All that others who share the log have been told and this process has not looked at yet, in order, with the number of the
    /// userfaultfd. They must have ended.
    pub fn replay(&mut self) -> Vec<(RawFd, Event)> {
        let (mut events, mut from) = (Vec::new(), -1);
        while self.next < self.slots {
            let slot = self.slot(self.next);
            match slot[0] {
                0 => break,
                FROM => from = u64::from_le_bytes(slot[8..16].try_into().unwrap_or_default()) as RawFd,
                _ => events.extend(Event::parse(&slot).map(|event| (from, event))),
            }
            self.next += 1;
        }
        events
    }
}

impl AsFd for EventLog {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn fail(op: &'static str, source: Errno) -> Error {
    Error::Kernel { op, subject: Subject::Here, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{AddrRange, VirtAddr};
    use crate::arena::Arena;
    use crate::missing::{FLAGS, Missing, Put};
    use std::os::fd::{FromRawFd, OwnedFd};

    fn own() -> Option<Missing> {
        // SAFETY: takes flags only, gives a new descriptor or an error.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, FLAGS) };
        if fd < 0 {
            eprintln!("skipped: userfaultfd: {}", Errno::last());
            return None;
        }
        // SAFETY: the descriptor was just made and belongs to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
        Missing::agree(fd).inspect_err(|e| eprintln!("skipped: {e}")).ok()
    }

    #[test]
    fn pages_come_when_they_are_touched_and_changes_are_told() {
        let memory = Arena::new(1 << 21).unwrap();
        let Some(missing) = own() else { return };
        let start = VirtAddr(memory.as_ptr() as u64);
        missing.register(AddrRange::new(start, 16 * 4096)).unwrap();
        let mut log = EventLog::new(1000).unwrap();
        assert_eq!(log.read(missing.as_fd()).unwrap(), []);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| std::hint::black_box(&memory)[5 * 4096 + 7]);
            let events = loop {
                let events = log.read(missing.as_fd()).unwrap();
                if !events.is_empty() {
                    break events;
                }
                std::thread::yield_now();
            };
            assert_eq!(events, [Event::Fault(start.0 + 5 * 4096)]);
            assert_eq!(missing.copy(start.add(4 * 4096), &[9; 3 * 4096]).unwrap(), Put::Done);
            assert_eq!(reader.join().unwrap(), 9);
        });
        assert_eq!(missing.copy(start.add(3 * 4096), &[1; 2 * 4096]).unwrap(), Put::Changing(4096));
        assert_eq!(missing.copy(start.add(4 * 4096), &[1; 4096]).unwrap(), Put::Present(0));
        assert_eq!(missing.copy(start.add(20 * 4096), &[1; 4096]).unwrap(), Put::Elsewhere(0));
        assert_eq!(missing.zero(AddrRange::new(start, 4096)).unwrap(), Put::Done);
        assert!(log.replay().is_empty(), "faults are not kept");
        std::thread::scope(|scope| {
            let advice = scope.spawn(|| {
                // SAFETY: a page of the arena, which stays mapped; nothing refers to what it holds.
                unsafe { libc::madvise((start.0 + 4 * 4096) as *mut _, 4096, libc::MADV_DONTNEED) }
            });
            let events = loop {
                let events = log.read(missing.as_fd()).unwrap();
                if !events.is_empty() {
                    break events;
                }
                std::thread::yield_now();
            };
            assert_eq!(events, [Event::Remove(start.0 + 4 * 4096, start.0 + 5 * 4096)]);
            assert_eq!(advice.join().unwrap(), 0);
        });
        let mut other = EventLog::of_file(log.file.try_clone().unwrap()).unwrap();
        let fd = missing.as_fd().as_raw_fd();
        assert_eq!(other.replay(), [(fd, Event::Remove(start.0 + 4 * 4096, start.0 + 5 * 4096))]);
        assert!(log.replay().is_empty() && !log.is_complete());
        log.set_complete();
        assert!(other.is_complete());
        // Before the memory goes, whose end would wait to be told.
        missing.close();
    }
}
