//! POSIX message queues (mq_overview(7)).
//!
//! There is no way to look at a message without taking it. So all of them are taken into a *ledger*, a file that is mapped, and given back
//! from there. Whoever does this may end at any instant: the ledger and the number of messages in the queue tell where it was, and
//! [`settle`] brings it to its end, as long as nobody else uses the queue meanwhile.
//!
//! ```text
//!  0 MAGIC   8 count n   16 bytes of text in all   24 stride   32 taken   40 phase   48 …: n slots of `stride` bytes
//!  slot: 0 priority (u32)   8 length   16 text
//!
//!  phase TAKING  slots below `taken` are whole. Fewer messages in the queue than n - taken: one more lies in its slot, its length is what
//!                is missing of the bytes
//!  phase GIVING  all are taken; as many as are in the queue have been given back
//! ```

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use crate::error::{Error, Result, Subject};

/// f_type of statfs(2).
pub const FILE_SYSTEM: i64 = 0x1980_0202;

const MAGIC: u64 = u64::from_le_bytes(*b"ckptMQ01");
const HEADER: usize = 48;
const SLOT: usize = 16;
const COUNT: usize = 8;
const BYTES: usize = 16;
const STRIDE: usize = 24;
const TAKEN: usize = 32;
const PHASE: usize = 40;
const TAKING: u64 = 1;
const GIVING: u64 = 2;

/// What a queue may hold and holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// mq_maxmsg.
    pub messages: i64,
    /// mq_msgsize.
    pub size: i64,
    /// mq_curmsgs.
    pub now: i64,
}

/// Who is to be told of a message in an empty queue (mq_notify(3)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notification {
    /// SIGEV_SIGNAL, SIGEV_NONE or SIGEV_THREAD.
    pub method: i32,
    /// The process, in our PID namespace.
    pub pid: i32,
}

fn fail(op: &'static str, source: Errno) -> Error {
    Error::Kernel { op, subject: Subject::Here, source }
}

/// Limits of a queue, by any descriptor of it.
pub fn limits(queue: BorrowedFd<'_>) -> Result<Limits> {
    // SAFETY: mq_attr is plain numbers, for which zero is a value.
    let mut attr: libc::mq_attr = unsafe { std::mem::zeroed() };
    // SAFETY: attr outlives the call.
    Errno::result(unsafe { libc::mq_getattr(queue.as_raw_fd(), &raw mut attr) })
        .map_err(|e| fail("mq_getattr", e))?;
    Ok(Limits { messages: attr.mq_maxmsg, size: attr.mq_msgsize, now: attr.mq_curmsgs })
}

/// The bytes in a queue and who is to be told of more, by a descriptor that is open for reading.
pub fn state(queue: &File) -> Result<(u64, Option<Notification>)> {
    let mut text = [0; 128];
    let read = queue.read_at(&mut text, 0).map_err(|e| Error::io("read", "a message queue", &e))?;
    let text = String::from_utf8_lossy(&text[..read]);
    parse_state(&text).ok_or_else(|| Error::Parse { path: "a message queue".into(), what: text.into_owned() })
}

/// `QSIZE:129 NOTIFY:2 SIGNO:0 NOTIFY_PID:8260` (mq_overview(7)).
fn parse_state(text: &str) -> Option<(u64, Option<Notification>)> {
    let number = |key: &str| -> Option<i64> {
        let (_, rest) = text.split_once(key)?;
        rest.split_ascii_whitespace().next()?.parse().ok()
    };
    let pid = number("NOTIFY_PID:")? as i32;
    let notification = Notification { method: number(" NOTIFY:").or(number("\tNOTIFY:"))? as i32, pid };
    Some((number("QSIZE:")? as u64, (pid != 0).then_some(notification)))
}

/// Opens a queue once more, for sending and receiving without waiting.
pub fn reopen(queue: BorrowedFd<'_>) -> Result<File> {
    let path = format!("/proc/self/fd/{}", queue.as_raw_fd());
    let mut options = File::options();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
    options.open(&path).map_err(|e| Error::io("open", path, &e))
}

/// Makes a queue in the caller's IPC namespace. Errors: EEXIST; EMFILE where RLIMIT_MSGQUEUE does not allow it.
pub fn make(name: &std::ffi::CStr, limits: Limits) -> Result<OwnedFd> {
    // SAFETY: as in `limits`.
    let mut attr: libc::mq_attr = unsafe { std::mem::zeroed() };
    (attr.mq_maxmsg, attr.mq_msgsize) = (limits.messages, limits.size);
    let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: name is a string with its zero, attr outlives the call.
    let fd = unsafe { libc::mq_open(name.as_ptr(), flags, 0o600 as libc::mode_t, &raw mut attr) };
    let fd = Errno::result(fd).map_err(|e| fail("mq_open", e))?;
    // SAFETY: the kernel has just made it for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Opens the queue of a name in the caller's IPC namespace, if there is one.
pub fn open(name: &std::ffi::CStr) -> Result<Option<OwnedFd>> {
    let flags = libc::O_RDWR | libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: name is a string with its zero.
    match Errno::result(unsafe { libc::mq_open(name.as_ptr(), flags) }) {
        // SAFETY: the kernel has just made it for us alone.
        Ok(fd) => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) })),
        Err(Errno::ENOENT) => Ok(None),
        Err(e) => Err(fail("mq_open", e)),
    }
}

/// Removes a name.
pub fn unlink(name: &std::ffi::CStr) -> Result<()> {
    // SAFETY: name is a string with its zero.
    Errno::result(unsafe { libc::mq_unlink(name.as_ptr()) }).map(drop).map_err(|e| fail("mq_unlink", e))
}

/// Sends without waiting. Errors: EAGAIN where it is full.
pub fn send(queue: BorrowedFd<'_>, priority: u32, text: &[u8]) -> Result<()> {
    let at = text.as_ptr().cast();
    // SAFETY: text is only read, with its length.
    Errno::result(unsafe { libc::mq_send(queue.as_raw_fd(), at, text.len(), priority) })
        .map(drop)
        .map_err(|e| fail("mq_send", e))
}

/// Takes all messages out. The descriptor must not wait.
pub fn empty(queue: BorrowedFd<'_>) -> Result<()> {
    let mut text = vec![0u8; limits(queue)?.size.max(1) as usize];
    loop {
        let at = text.as_mut_ptr().cast();
        // SAFETY: text has room for a message of the longest size.
        let got = unsafe { libc::mq_receive(queue.as_raw_fd(), at, text.len(), std::ptr::null_mut()) };
        match Errno::result(got) {
            Ok(_) => {}
            Err(Errno::EAGAIN) => return Ok(()),
            Err(e) => return Err(fail("mq_receive", e)),
        }
    }
}

/// Raises what the queues of our user may hold (RLIMIT_MSGQUEUE) as far as it goes.
pub fn raise_limit() {
    let all = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: all outlives the call. Without CAP_SYS_RESOURCE the limit stays, and queues too many fail.
    unsafe { libc::setrlimit(libc::RLIMIT_MSGQUEUE, &raw const all) };
}

/// A ledger, mapped.
#[derive(Debug)]
struct Ledger {
    start: NonNull<u8>,
    len: usize,
}

impl Drop for Ledger {
    fn drop(&mut self) {
        // SAFETY: mapped by us with this length; nothing refers into it after this.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

impl Ledger {
    /// Maps a file of at least a header, all of its pages there already.
    fn map(file: &File) -> Result<Self> {
        let len = file.metadata().map_err(|e| Error::io("stat", "a ledger", &e))?.len() as usize;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let how = libc::MAP_SHARED | libc::MAP_POPULATE;
        // SAFETY: a new mapping at an address that the kernel chooses touches nothing of ours.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, how, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(fail("mmap of a ledger", Errno::last()));
        }
        // SAFETY: the mapping just made. Without the lock a page may be read back from swap, which is no harm.
        unsafe { libc::mlock(start, len) };
        NonNull::new(start.cast()).map(|start| Self { start, len }).ok_or_else(|| fail("mmap", Errno::ENOMEM))
    }

    fn get(&self, at: usize) -> u64 {
        assert!(at + 8 <= self.len);
        // SAFETY: inside the mapping, as checked; aligned, as all places are multiples of 8.
        unsafe { self.start.as_ptr().add(at).cast::<u64>().read_volatile() }
    }

    fn set(&self, at: usize, value: u64) {
        assert!(at + 8 <= self.len);
        // SAFETY: as in `get`.
        unsafe { self.start.as_ptr().add(at).cast::<u64>().write_volatile(value) }
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    }

    /// The number of slots; `None` if it is no whole ledger.
    fn count(&self) -> Option<usize> {
        let (count, stride) = (self.get(COUNT), self.get(STRIDE));
        let whole = count.checked_mul(stride)?.checked_add(HEADER as u64)? <= self.len as u64;
        let sound = self.get(MAGIC_AT) == MAGIC && stride >= SLOT as u64 && stride % 8 == 0;
        (whole && sound && self.get(TAKEN) <= count).then_some(count as usize)
    }

    fn slot(&self, n: usize) -> usize {
        HEADER + n * self.get(STRIDE) as usize
    }

    fn room(&self) -> usize {
        self.get(STRIDE) as usize - SLOT
    }

    /// Takes the next message into a slot; false if there is none.
    fn take(&self, queue: &File, n: usize) -> Result<bool> {
        let at = self.slot(n);
        assert!(at + SLOT + self.room() <= self.len);
        // SAFETY: inside the mapping.
        let (priority, text) =
            unsafe { (self.start.as_ptr().add(at).cast(), self.start.as_ptr().add(at + SLOT).cast()) };
        // SAFETY: the slot has room for `room` bytes of text, and its first bytes are for the priority.
        let got = unsafe { libc::mq_receive(queue.as_raw_fd(), text, self.room(), priority) };
        match Errno::result(got) {
            Ok(len) => self.set(at + 8, len as u64),
            Err(Errno::EAGAIN) => return Ok(false),
            Err(e) => return Err(fail("mq_receive", e)),
        }
        self.set(TAKEN, n as u64 + 1);
        Ok(true)
    }

    /// A message that was taken.
    fn message(&self, n: usize) -> (u32, Vec<u8>) {
        let at = self.slot(n);
        let len = (self.get(at + 8) as usize).min(self.room());
        // SAFETY: inside the mapping: a slot has `room` bytes of text.
        let text = unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(at + SLOT), len) };
        ((self.get(at) & 0xffff_ffff) as u32, text.to_vec())
    }

    /// Takes all that is not taken yet, then gives all back.
    fn go_on(&self, queue: &File) -> Result<Vec<(u32, Vec<u8>)>> {
        let Some(count) = self.count() else { return Ok(Vec::new()) };
        let now = || limits(queue.as_fd()).map(|limits| limits.now as usize);
        if self.get(PHASE) == TAKING {
            let taken = self.get(TAKEN) as usize;
            if now()? < count - taken {
                // Whoever took it ended before its length was written.
                let known: u64 = (0..taken).map(|n| self.get(self.slot(n) + 8)).sum();
                let left = state(queue)?.0;
                self.set(self.slot(taken) + 8, self.get(BYTES).saturating_sub(known + left));
                self.set(TAKEN, taken as u64 + 1);
            }
            for n in self.get(TAKEN) as usize..count {
                if !self.take(queue, n)? {
                    break;
                }
            }
            self.set(PHASE, GIVING);
        }
        let messages: Vec<_> = (0..self.get(TAKEN) as usize).map(|n| self.message(n)).collect();
        for (priority, text) in messages.iter().skip(now()?) {
            send(queue.as_fd(), *priority, text)?;
        }
        Ok(messages)
    }
}

const MAGIC_AT: usize = 0;

/// The messages of a queue, first to come first: priority and text. They are in the queue again afterwards. If we end before, [`settle`] with
/// the ledger, a new file, puts them there. Nobody is to be told of messages in this queue, and nobody else uses it meanwhile.
pub fn read(queue: &File, ledger: &mut File) -> Result<Vec<(u32, Vec<u8>)>> {
    let limits = limits(queue.as_fd())?;
    let stride = (SLOT + limits.size.max(0) as usize).next_multiple_of(8);
    let len = HEADER + stride * limits.now.max(0) as usize;
    // No page of it may be missing when a message comes.
    fallocate(&*ledger, FallocateFlags::empty(), 0, len as i64).map_err(|e| fail("fallocate", e))?;
    let numbers = [MAGIC, limits.now as u64, state(queue)?.0, stride as u64, 0, TAKING];
    let header: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    ledger.write_all(&header).map_err(|e| Error::io("write", "a ledger", &e))?;
    Ledger::map(ledger)?.go_on(queue)
}

/// Brings to its end what [`read`] began, wherever it was.
pub fn settle(queue: &File, ledger: &File) -> Result<()> {
    if ledger.metadata().map_err(|e| Error::io("stat", "a ledger", &e))?.len() < HEADER as u64 {
        return Ok(()); // it had not begun
    }
    Ledger::map(ledger)?.go_on(queue).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    /// Runs a test in an IPC namespace of its own, with a queue of some messages, given back in their order.
    fn with_queue(test: impl FnOnce(&File, &[(u32, Vec<u8>)]) + Send) {
        let run = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWIPC).unwrap();
            let queue = File::from(make(c"/q", Limits { messages: 8, size: 20, now: 0 }).unwrap());
            let message = |priority: u32, text: &[u8]| (priority, text.to_vec());
            let messages = vec![
                message(32_767, b""),
                message(7, b"first of seven"),
                message(7, b""),
                message(7, b"third of seven"),
                message(0, &[0; 20]),
                message(0, b"last"),
            ];
            for (priority, text) in &messages {
                send(queue.as_fd(), *priority, text).unwrap();
            }
            test(&queue, &messages);
        };
        std::thread::scope(|scope| scope.spawn(run).join().unwrap());
    }

    fn ledger() -> File {
        let fd = nix::sys::memfd::memfd_create(c"ledger", nix::sys::memfd::MFdFlags::empty()).unwrap();
        File::from(fd)
    }

    #[test]
    fn the_state_is_read() {
        assert_eq!(
            parse_state("QSIZE:129        NOTIFY:0     SIGNO:0     NOTIFY_PID:0     \n"),
            Some((129, None))
        );
        let notification = Some(Notification { method: 2, pid: 8260 });
        assert_eq!(parse_state("QSIZE:1 NOTIFY:2 SIGNO:0 NOTIFY_PID:8260 \n"), Some((1, notification)));
        assert_eq!(parse_state("QSIZE:"), None);
    }

    #[test]
    fn messages_are_read_and_stay() {
        with_queue(|queue, messages| {
            for _ in 0..2 {
                assert_eq!(read(queue, &mut ledger()).unwrap(), messages);
            }
            empty(queue.as_fd()).unwrap();
            assert_eq!(read(queue, &mut ledger()).unwrap(), []);
        });
    }

    /// Wherever whoever reads them ends, all are in the queue again, in their order.
    #[test]
    fn messages_survive_an_end_at_any_step() {
        with_queue(|queue, messages| {
            let count = messages.len();
            // Steps: each message taken without its length noted, then with it; then each given back.
            for step in 0..=3 * count {
                let mut file = ledger();
                let stride = 16 + 24;
                let bytes: usize = messages.iter().map(|(_, text)| text.len()).sum();
                let numbers = [MAGIC, count as u64, bytes as u64, stride as u64, 0, TAKING];
                let header: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
                file.write_all(&header).unwrap();
                file.set_len((HEADER + stride * count) as u64).unwrap();
                {
                    let ledger = Ledger::map(&file).unwrap();
                    let takes = step.min(2 * count).div_ceil(2);
                    for n in 0..takes {
                        assert!(ledger.take(queue, n).unwrap());
                    }
                    if step < 2 * count && step % 2 == 1 {
                        ledger.set(ledger.slot(takes - 1) + 8, 0xdead);
                        ledger.set(TAKEN, takes as u64 - 1);
                    }
                    if step >= 2 * count {
                        ledger.set(PHASE, GIVING);
                        for n in 0..step - 2 * count {
                            let (priority, text) = ledger.message(n);
                            send(queue.as_fd(), priority, &text).unwrap();
                        }
                    }
                }
                settle(queue, &file).unwrap();
                assert_eq!(read(queue, &mut ledger()).unwrap(), messages, "step {step}");
            }
            settle(queue, &ledger()).unwrap();
        });
    }
}
