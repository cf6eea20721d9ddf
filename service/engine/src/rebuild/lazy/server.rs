//! Serving the pages of lazily restored members: on demand, and all the rest meanwhile.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

use ckpt_image::PageFiles;
use ckpt_sys::event_log::{Event, EventLog};
use ckpt_sys::missing::{Missing, Put};
use ckpt_sys::{AddrRange, VirtAddr};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::absent::{Absent, Part};
use super::store::Store;
use crate::error::with_sources;

const PAGE: u64 = ckpt_image::PAGE_SIZE;
/// Pages put at once for who waits: the next ones are wanted soon as a rule.
const WINDOW: u64 = 16;
/// Pages put at once while nobody waits: who comes then waits for as long as these take, a fraction of a millisecond.
const STEP: u64 = 64;
/// How long a group may be at the limit of its memory.
const PATIENCE: u32 = 500;
const PAUSE: Duration = Duration::from_millis(10);

/// An address space that pages are missing in.
#[derive(Debug)]
struct Space {
    missing: Missing,
    absent: Absent,
    /// Where filling goes on: behind the last page that was waited for.
    at: u64,
}

/// All address spaces of a group.
#[derive(Debug)]
pub struct Server {
    pages: PageFiles,
    log: EventLog,
    store: Store,
    /// By the number of their userfaultfd.
    spaces: BTreeMap<RawFd, Space>,
    /// Who waits for which page.
    waiting: VecDeque<(RawFd, u64)>,
    buffer: Vec<u8>,
    short_of_memory: u32,
    /// A process is changing its memory, and will have done so in a moment.
    changing: bool,
}

/// Why pages cannot be served any more.
pub type Trouble = String;

impl Server {
    /// Of this image, for these address spaces.
    pub fn new(pages: PageFiles, spaces: Vec<(Missing, Absent)>, log: EventLog, store: Store) -> Self {
        let spaces = spaces.into_iter().map(|(missing, absent)| {
            let at = 0;
            (missing.number(), Space { missing, absent, at })
        });
        Self {
            pages,
            log,
            store,
            spaces: spaces.collect(),
            waiting: VecDeque::new(),
            buffer: Vec::new(),
            short_of_memory: 0,
            changing: false,
        }
    }

    /// Says that nothing is left to do, to all who share the log.
    pub fn set_complete(&self) {
        self.log.set_complete();
    }

    /// Whether somebody said so.
    pub fn is_complete(&self) -> bool {
        self.log.is_complete()
    }

    /// Begins where another left off who ended: knows what he was told, and has all who wait ask again.
    pub fn take_over(&mut self) -> Result<(), Trouble> {
        for (fd, event) in self.log.replay() {
            if let Event::Fork(child) = event
                && !Store::has(child)
            {
                return Err("all who brought it were killed while a process was making a child".into());
            }
            self.note(fd, event);
        }
        self.waiting.clear();
        for space in self.spaces.values() {
            let all = AddrRange { start: VirtAddr(1 << 16), end: VirtAddr(0x7fff_ffff_f000) };
            // Fails where the process is gone.
            let _ = space.missing.wake(all);
        }
        Ok(())
    }

    /// Serves who waits, or puts some pages that nobody asked for. `false`: nothing is missing any more.
    pub fn turn(&mut self) -> Result<bool, Trouble> {
        let told = self.listen(u16::from(self.changing))?;
        self.changing = self.answer()?;
        if told || self.changing {
            return Ok(true);
        }
        match self.go_on()? {
            None => Ok(false),
            Some(busy) => {
                self.changing = busy;
                Ok(true)
            }
        }
    }

    /// Reads what the kernel tells; waits for it so many milliseconds. Whether there was anything.
    fn listen(&mut self, patience: u16) -> Result<bool, Trouble> {
        let mut polls: Vec<PollFd<'_>> =
            self.spaces.values().map(|space| PollFd::new(space.missing.as_fd(), PollFlags::POLLIN)).collect();
        match poll(&mut polls, PollTimeout::from(patience)) {
            Ok(0) | Err(Errno::EINTR) => return Ok(false),
            Ok(_) => {}
            Err(e) => return Err(format!("poll: {e}")),
        }
        let ready: Vec<RawFd> = polls
            .iter()
            .filter(|p| p.revents().is_some_and(|r| r.contains(PollFlags::POLLIN)))
            .map(|p| p.as_fd().as_raw_fd())
            .collect();
        let mut any = false;
        for fd in ready {
            let Some(space) = self.spaces.get(&fd) else { continue };
            let events = self.log.read(space.missing.as_fd()).map_err(|e| with_sources(&e))?;
            any |= !events.is_empty();
            events.into_iter().for_each(|event| self.note(fd, event));
        }
        Ok(any)
    }

    /// Keeps what is told in mind.
    fn note(&mut self, fd: RawFd, event: Event) {
        let Some(space) = self.spaces.get_mut(&fd) else { return };
        match event {
            Event::Fault(address) => self.waiting.push_back((fd, address / PAGE)),
            Event::Fork(child) => {
                // First of all: until then it is open in our table only.
                self.store.put(child);
                let missing = Missing::of_number(child);
                let child_space = Space { missing, absent: space.absent.clone(), at: space.at };
                self.spaces.insert(child, child_space);
            }
            Event::Remap { from, to, len } => space.absent.move_to(from / PAGE, to / PAGE, len / PAGE),
            Event::Remove(start, end) | Event::Unmap(start, end) => {
                space.absent.remove(start / PAGE, end.saturating_sub(start) / PAGE);
            }
        }
    }

    /// Serves who waits. Whether somebody must wait on because the process changes its memory.
    fn answer(&mut self) -> Result<bool, Trouble> {
        let mut later = VecDeque::new();
        while let Some((fd, page)) = self.waiting.pop_front() {
            let Some(space) = self.spaces.get_mut(&fd) else { continue };
            let served = match space.absent.around(page, WINDOW) {
                Some(part) => {
                    space.at = part.first + part.count;
                    self.put(fd, part)?
                }
                None => zero(space.missing, page)?,
            };
            if !served {
                later.push_back((fd, page));
            }
        }
        self.waiting = later;
        Ok(!self.waiting.is_empty())
    }

    /// Puts some pages that nobody asked for. Whether a process changes its memory; `None`: no page is left.
    fn go_on(&mut self) -> Result<Option<bool>, Trouble> {
        let next = self.spaces.iter().find_map(|(fd, space)| Some((*fd, space.absent.next(space.at, STEP)?)));
        let Some((fd, part)) = next else { return Ok(None) };
        if let Some(space) = self.spaces.get_mut(&fd) {
            space.at = part.first + part.count;
        }
        Ok(Some(!self.put(fd, part)?))
    }

    /// Puts pages there, each with the checksum that it must have. `false`: the process changes its memory; what is left stays to be done.
    fn put(&mut self, fd: RawFd, part: Part) -> Result<bool, Trouble> {
        let Some(space) = self.spaces.get_mut(&fd) else { return Ok(true) };
        let len = part.count * PAGE;
        self.buffer.resize(len as usize, 0);
        self.pages.read_at(part.image, part.offset, &mut self.buffer).map_err(|e| with_sources(&e))?;
        let mut done = 0;
        while done < len {
            let to = VirtAddr(part.first * PAGE + done);
            let put = match space.missing.copy(to, &self.buffer[done as usize..]) {
                Ok(Put::Elsewhere(0)) => {
                    alone(space.missing, to, &self.buffer[done as usize..][..PAGE as usize])?
                }
                Ok(put) => put,
                Err(e) if e.errno() == Some(Errno::ENOMEM) && self.short_of_memory < PATIENCE => {
                    self.short_of_memory += 1;
                    std::thread::sleep(PAUSE);
                    continue;
                }
                Err(e) => return Err(with_sources(&e)),
            };
            self.short_of_memory = 0;
            let came = match put {
                Put::Done => len - done,
                Put::Present(bytes) => bytes + PAGE,
                Put::Changing(bytes) | Put::Elsewhere(bytes) => bytes,
                Put::Gone => {
                    space.absent = Absent::default();
                    return Ok(true);
                }
            };
            space.absent.remove((part.first * PAGE + done) / PAGE, came / PAGE);
            done += came;
            if matches!(put, Put::Changing(0)) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// One page where more did not fit into one mapping. Where there is none to put it into, it is the member's no more.
fn alone(missing: Missing, to: VirtAddr, page: &[u8]) -> Result<Put, Trouble> {
    match missing.copy(to, page).map_err(|e| with_sources(&e))? {
        Put::Elsewhere(_) => {
            let _ = missing.wake(AddrRange::new(to, PAGE));
            Ok(Put::Present(0))
        }
        Put::Done => Ok(Put::Present(0)),
        other => Ok(other),
    }
}

/// A page that the image does not have. `false`: the process changes its memory.
fn zero(missing: Missing, page: u64) -> Result<bool, Trouble> {
    let range = AddrRange::new(VirtAddr(page * PAGE), PAGE);
    match missing.zero(range) {
        Ok(Put::Changing(_)) => Ok(false),
        Ok(Put::Elsewhere(_)) => {
            let _ = missing.wake(range);
            Ok(true)
        }
        Ok(_) => Ok(true),
        // It asks again, and gets an answer when there is memory.
        Err(e) if e.errno() == Some(Errno::ENOMEM) => {
            std::thread::sleep(PAUSE);
            Ok(false)
        }
        Err(e) => Err(with_sources(&e)),
    }
}
