//! Contexts of kernel AIO (io_setup(2)): their rings, and what the preload library knows of them.
//!
//! ```text
//!  ring   ├ id nr head tail │ magic, features, header's length ┤ event 0 ┬ event 1 ┬ … ┬ event nr − 1 ┤
//!         │ u32 each        │                                  │ 32 B    │         │   │
//! ```
//! The kernel posts at the tail (it has a copy of that number of its own), the application takes from the head. `id` is the context's place
//! in a table of the address space. Source: fs/aio.c of Linux 6.18, struct aio_ring.

use std::mem::offset_of;

use ckpt_wire::aio::{CONTEXTS, CONTEXTS_SIZE, Context as WireContext, Contexts};
use nix::errno::Errno;
use nix::unistd::Pid;

use crate::error::Result;
use crate::gate::Gate;
use crate::{VirtAddr, remote};

/// Bytes of the ring's head, and of an event.
pub const EVENT: u64 = 32;
/// Bytes of a request (struct iocb).
pub const REQUEST: usize = 64;
/// Where a request names its descriptor (aio_fildes).
pub const REQUEST_FD: usize = 20;
/// The beginning of a ring, which has the context's id in its table.
pub const ID: std::ops::Range<usize> = 0..4;
const MAGIC: u32 = 0xa10a_10a1;

/// The head of a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ring {
    /// How many events it has room for, one more than can be unread.
    pub room: u32,
    /// The next event to be taken.
    pub head: u32,
    /// The next event to be posted.
    pub tail: u32,
}

impl Ring {
    /// Reads the first bytes of a ring's memory; `None` if they are not a ring's.
    #[must_use]
    pub fn parse(memory: &[u8]) -> Option<Self> {
        let (words, _) = memory.get(..EVENT as usize)?.as_chunks::<4>();
        let word = |index: usize| words.get(index).copied().map(u32::from_le_bytes);
        let ring = Self { room: word(1)?, head: word(2)?, tail: word(3)? };
        let is_one = word(4)? == MAGIC && u64::from(word(7)?) == EVENT;
        (is_one && ring.room > 1 && ring.head < ring.room && ring.tail < ring.room).then_some(ring)
    }

    /// How many events were posted and not taken.
    #[must_use]
    pub fn unread(&self) -> u32 {
        (self.tail + self.room - self.head) % self.room
    }

    /// How many requests are under way, if so many were submitted ever: no more can be than the ring has room for.
    #[must_use]
    pub fn under_way(&self, submitted: u64) -> u64 {
        let room = u64::from(self.room);
        (submitted % room + room - u64::from(self.tail)) % room
    }
}

/// What the library knows of a process's contexts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// A thread is in one of the calls, so the rest may change.
    pub is_busy: bool,
    /// The contexts.
    pub contexts: Vec<Context>,
}

/// One context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    /// Where its ring is, which is its id.
    pub ring: VirtAddr,
    /// How many requests were submitted, ever.
    pub submitted: u64,
    /// How many events io_setup(2) was asked for; 0: the process has inherited the memory by fork, not the context.
    pub events: u32,
}

/// What the library of a process tells; `None` without one, or with one that does not know AIO yet.
///
/// Errors: no such process, or its memory cannot be read.
pub fn told(pid: Pid) -> Result<Option<Told>> {
    let Some(gate) = Gate::find(pid.as_raw())? else { return Ok(None) };
    let at = VirtAddr(gate.contexts());
    if at.0 == 0 || !at.0.is_multiple_of(align_of::<Contexts>() as u64) {
        return Ok(None);
    }
    let mut memory = [0; CONTEXTS_SIZE];
    remote::read(pid, at, &mut memory)?;
    Ok(Some(parse(&memory)))
}

fn parse(memory: &[u8; CONTEXTS_SIZE]) -> Told {
    let u64_at =
        |at: usize| memory.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
    let context = |index: usize| {
        let at = offset_of!(Contexts, each) + index * size_of::<WireContext>();
        let word = |field: usize| u64_at(at + field);
        let ring = VirtAddr(word(offset_of!(WireContext, ring)));
        let submitted = word(offset_of!(WireContext, submitted));
        Context { ring, submitted, events: word(offset_of!(WireContext, events)) as u32 }
    };
    Told {
        is_busy: u64_at(offset_of!(Contexts, begun)) != u64_at(offset_of!(Contexts, ended)),
        contexts: (0..CONTEXTS).map(context).filter(|context| context.ring.0 > 1).collect(),
    }
}

/// How many events a context has room for on this machine that is asked for so many: io_setup(2) doubles, and has some for each processor.
/// One is made and goes again.
///
/// Errors: EAGAIN where there would be more than fs.aio-max-nr allows, ENOSYS, ENOMEM.
pub fn room(events: u32) -> std::result::Result<u32, Errno> {
    let mut context: u64 = 0;
    // SAFETY: context is a word of zero to be written.
    Errno::result(unsafe { libc::syscall(libc::SYS_io_setup, events, &raw mut context) })?;
    // SAFETY: the id of a context is the address of its ring, which is mapped readable, at least a page, until it is destroyed.
    let head = unsafe { (context as *const [u8; EVENT as usize]).read() };
    // SAFETY: nobody uses the context.
    unsafe { libc::syscall(libc::SYS_io_destroy, context) };
    Ring::parse(&head).map(|ring| ring.room).ok_or(Errno::EINVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(words: [u32; 8]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn a_rings_head_is_read() {
        let ring = Ring::parse(&memory([3, 127, 120, 2, MAGIC, 1, 0, 32])).unwrap();
        assert_eq!(ring, Ring { room: 127, head: 120, tail: 2 });
        assert_eq!(ring.unread(), 9);
        assert_eq!(ring.under_way(127 * 5 + 2), 0);
        assert_eq!(ring.under_way(127 * 5 + 6), 4);
        assert_eq!(ring.under_way(127 * 5 + 1), 126);
        for bad in
            [[0, 127, 0, 0, 1, 1, 0, 32], [0, 127, 127, 0, MAGIC, 1, 0, 32], [0, 0, 0, 0, MAGIC, 1, 0, 32]]
        {
            assert_eq!(Ring::parse(&memory(bad)), None, "{bad:?}");
        }
        assert_eq!(Ring::parse(&[0; 16]), None);
    }

    #[test]
    fn this_kernels_rings_are_what_is_read() {
        match room(32) {
            Ok(room) => assert!(room > 64, "{room}"),
            Err(e) => eprintln!("skipped: io_setup: {e}"),
        }
    }

    #[test]
    fn a_process_without_the_library_tells_nothing() {
        assert_eq!(told(Pid::this()).unwrap(), None);
    }
}
