//! The daemon's side of a member's gate: the table of the preload library, mapped from outside.
//!
//! ```text
//! /proc/PID/maps ► a mapping named "/memfd:ckpt-gate (deleted)" ► /proc/PID/map_files/START-END
//!   on the kernel's own memory device? ► open ► size sealed? ► mmap shared ► header of our version?
//! ```
//! All of it is hostile input: a member can make a mapping of that name that is anything. What is not the kernel's own
//! memory (a file of FUSE, say, which could hold the daemon up) is not even opened, what cannot shrink cannot kill its
//! reader, and [`ckpt_wire::Table`] bounds all that is read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use ckpt_wire::resume::CODE;
use ckpt_wire::{MAPS_NAME, OpCode, REQUIRED_SEALS, SIZE, State, Subject as Touches, Table};
use nix::errno::Errno;
use nix::unistd::Pid;

use crate::error::{Error, Result};
use crate::{AddrRange, VirtAddr, proc_file, remote, task};

/// An operation that a table tells. Everything but the process is the member's own word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// The process whose table it is.
    pub pid: Pid,
    /// The thread, by its id in the process's own PID namespace.
    pub thread: u32,
    /// The call's name; `unknown` for a code of a later library.
    pub name: &'static str,
    /// Counts the operations of the thread's slot.
    pub sequence: u64,
    /// The descriptor, or -1.
    pub fd: i32,
    /// The second descriptor (the source of a copy), or -1.
    pub other: i32,
    /// Offset in bytes, or -1 for the descriptor's position.
    pub offset: i64,
    /// Length in bytes as asked for, or 0.
    pub length: u64,
    on_descriptor: bool,
}

/// One operation on its way in: the same value later is the same operation, still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Added {
    table: u64,
    /// Counted from 1; 0 for what is only counted.
    slot: usize,
    sequence: u64,
}

/// A member's gate, mapped. Dropping it opens the gate if it is the one that closed it.
pub struct Gate {
    pid: Pid,
    range: AddrRange,
    inode: u64,
    memory: NonNull<u8>,
    closed: AtomicBool,
}

// SAFETY: the mapping belongs to this value alone and is only used through atomics.
unsafe impl Send for Gate {}
// SAFETY: as above.
unsafe impl Sync for Gate {}

impl Gate {
    /// The gate of a process; `None` if it has no library (a static program, one that changed its credentials at
    /// exec, or one that started before the group was enabled), or a table that is not to be trusted.
    ///
    /// # Errors
    /// [`Error::Gone`] if there is no such process; [`Error::Kernel`] where /proc or mmap(2) refuses.
    pub fn find(pid: i32) -> Result<Option<Gate>> {
        let pid = Pid::from_raw(pid);
        let path = format!("/proc/{pid}/maps");
        let maps = proc_file::read(&path).map_err(|e| match e.raw_os_error() {
            Some(libc::ENOENT | libc::ESRCH) => Error::Gone(pid),
            _ => Error::io("read", path, &e),
        })?;
        for range in parse_tables(&maps, memory_device()?) {
            if let Some(gate) = Gate::map(pid, range)? {
                return Ok(Some(gate));
            }
        }
        Ok(None)
    }

    fn map(pid: Pid, range: AddrRange) -> Result<Option<Gate>> {
        let Some(file) = open_sealed(pid, range)? else { return Ok(None) };
        let inode = file.metadata().map_err(|e| Error::io("fstat", "memfd:ckpt-gate", &e))?.ino();
        // SAFETY: a new mapping at a place of the kernel's choice.
        let address = unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), SIZE, protection, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        let memory = match NonNull::new(address.cast::<u8>()) {
            Some(memory) if address != libc::MAP_FAILED => memory,
            _ => return Err(Error::task("mmap", pid, Errno::last())),
        };
        // From here on Drop unmaps.
        let gate = Gate { pid, range, inode, memory, closed: AtomicBool::new(false) };
        // SAFETY: SIZE bytes are mapped while gate lives; the seals keep the file from shrinking.
        let known = unsafe { Table::from_raw(gate.memory.as_ptr(), SIZE) }.is_ok();
        Ok(known.then_some(gate))
    }

    fn table(&self) -> Table<'_> {
        // SAFETY: map() has checked the header once; a page-aligned mapping of SIZE bytes that cannot shrink lives as
        // long as self. What the member writes into the header later changes nothing that reads rely on.
        unsafe { Table::trusted(self.memory.as_ptr()) }
    }

    /// The process.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Where the table is in the member's memory.
    pub fn range(&self) -> AddrRange {
        self.range
    }

    /// The number of the memfd: a child of a raw clone(2) shares its parent's table until its first operation.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Where the member's control block of write protection is, by its own word; 0 if it has none.
    pub fn control(&self) -> u64 {
        self.table().control()
    }

    /// Where the member has the code of [`ckpt_wire::resume`], by its own word; 0 if it has none.
    pub fn resume(&self) -> u64 {
        self.table().resume()
    }

    /// Where the member's contexts of kernel AIO are told, by its own word; 0 if they are not. See [`crate::aio`].
    pub fn contexts(&self) -> u64 {
        self.table().contexts()
    }

    /// Closes the gate: operations that begin from now on wait, but no longer than `lease` after the last sign of life
    /// ([`Gate::renew`]), and at most 10 s.
    pub fn close(&self, lease: Duration) {
        let lease = u64::try_from(lease.as_nanos()).unwrap_or(u64::MAX);
        self.closed.store(true, Relaxed);
        self.table().gate().close(lease, std::process::id(), own_start());
    }

    /// Tells the waiters that the daemon lives.
    pub fn renew(&self) {
        self.table().gate().renew();
    }

    /// Opens the gate and wakes who waits at it.
    pub fn open(&self) {
        self.closed.store(false, Relaxed);
        let gate = self.table().gate();
        gate.open();
        // SAFETY: FUTEX_WAKE only uses the address, which lies in the mapping.
        unsafe {
            libc::syscall(libc::SYS_futex, gate.futex(), libc::FUTEX_WAKE, i32::MAX);
        }
    }

    /// Whether the gate is open (it may have opened by itself).
    pub fn is_open(&self) -> bool {
        self.table().gate().is_open()
    }

    /// How many threads say that they wait at the gate.
    pub fn waiting(&self) -> u32 {
        self.table().gate().waiting()
    }

    /// The operations between their entry and the start of their execution: no checkpoint now.
    pub fn added(&self) -> BTreeSet<Added> {
        let table = self.table();
        // Counted ones have no name: each gets a number. What a member writes there is bounded.
        let counted = (0..table.overflow().counts().0.min(1000)).map(|count| (0, u64::from(count)));
        let slots = table.slots().enumerate().filter_map(|(index, slot)| {
            let added = slot.state() == State::Added;
            added.then(|| (index + 1, slot.look().map_or(0, |(_, sequence, _)| sequence)))
        });
        let all = slots.chain(counted);
        all.map(|(slot, sequence)| Added { table: self.inode, slot, sequence }).collect()
    }

    /// The operations that are being executed, blocked or not.
    pub fn executing(&self) -> Vec<Operation> {
        self.operations(State::Executing)
    }

    /// The operations that are worth waiting for: those on files, in threads that run or sleep uninterruptibly. A
    /// thread that sleeps interruptibly (in a pipe, a socket, a FIFO's open) can be frozen where it is.
    pub fn draining(&self) -> Vec<Operation> {
        let mut operations = self.executing();
        operations.retain(Operation::touches_file);
        if !operations.is_empty() {
            let mut threads = Threads::new(self.pid);
            operations.retain(|operation| threads.is_running(operation.thread));
        }
        operations
    }

    fn operations(&self, wanted: State) -> Vec<Operation> {
        let slots = self.table().slots();
        slots
            .filter_map(|slot| {
                let (state, sequence, entry) = slot.look()?;
                let code = OpCode::from_code(entry.code);
                (state == wanted).then(|| Operation {
                    pid: self.pid,
                    thread: slot.thread(),
                    name: code.map_or("unknown", OpCode::name),
                    sequence,
                    fd: entry.fd,
                    other: entry.other,
                    offset: entry.offset,
                    length: entry.length,
                    on_descriptor: code.is_some_and(|code| code.subject() == Touches::Descriptor),
                })
            })
            .collect()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        if self.closed.load(Relaxed) {
            self.open();
        }
        // SAFETY: the mapping is ours, and nothing borrows it any more.
        unsafe {
            libc::munmap(self.memory.as_ptr().cast(), SIZE);
        }
    }
}

impl Operation {
    /// Whether the operation is on a file: by its nature, or because its descriptor is one.
    fn touches_file(&self) -> bool {
        if !self.on_descriptor {
            return true;
        }
        // Only the link is read: a file system that hangs must not hold the daemon up.
        let Ok(link) = fs::read_link(format!("/proc/{}/fd/{}", self.pid, self.fd)) else { return false };
        link.is_absolute() && !link.starts_with("/dev/pts") && !link.starts_with("/dev/tty")
    }
}

/// Where a process has the code of [`ckpt_wire::resume`], byte for byte; `None` if its library is older, or it has none.
pub(crate) fn resume_code(pid: Pid) -> Option<VirtAddr> {
    let address = VirtAddr(Gate::find(pid.as_raw()).ok()??.resume());
    let mut code = [0; CODE.len()];
    remote::read(pid, address, &mut code).ok().filter(|()| code == CODE)?;
    Some(address)
}

/// The threads of a process by their ids in its own PID namespace, read as far as they are asked for: once at most,
/// however many a table tells.
struct Threads {
    pid: Pid,
    all: Option<BTreeMap<u32, bool>>,
}

impl Threads {
    fn new(pid: Pid) -> Threads {
        Threads { pid, all: None }
    }

    /// Whether a thread runs or sleeps uninterruptibly.
    fn is_running(&mut self, id: u32) -> bool {
        if self.all.is_none() {
            // Mostly the process knows its threads by the same numbers as we do.
            match i32::try_from(id).ok().and_then(|tid| look_at_thread(self.pid, Pid::from_raw(tid))) {
                Some((inner, running)) if inner == id => return running,
                _ => {}
            }
        }
        let pid = self.pid;
        let all = self.all.get_or_insert_with(|| {
            let threads = task::threads(pid).unwrap_or_default();
            threads.into_iter().filter_map(|tid| look_at_thread(pid, tid)).collect()
        });
        all.get(&id).copied().unwrap_or(false)
    }
}

/// A thread's id in its own PID namespace (the last number of NSpid in /proc/PID/task/TID/status, Linux 4.1), and
/// whether it runs or sleeps uninterruptibly.
fn look_at_thread(pid: Pid, tid: Pid) -> Option<(u32, bool)> {
    let text = proc_file::read_text(format!("/proc/{pid}/task/{tid}/status")).ok()?;
    let inner = text.lines().find_map(|line| line.strip_prefix("NSpid:"))?.split_whitespace().last()?;
    Some((inner.parse().ok()?, matches!(task::parse_status(&text).state, 'R' | 'D')))
}

/// When this process started; 0 if it cannot be read.
fn own_start() -> u64 {
    static START: OnceLock<u64> = OnceLock::new();
    *START.get_or_init(|| task::start_time(Pid::this()).unwrap_or(0))
}

/// The device, as /proc/PID/maps shows it, that every memfd is on: the kernel's internal tmpfs.
fn memory_device() -> Result<&'static str> {
    static DEVICE: OnceLock<String> = OnceLock::new();
    if let Some(device) = DEVICE.get() {
        return Ok(device);
    }
    let number = File::from(new_memfd()?).metadata().map_err(|e| Error::io("fstat", "memfd", &e))?.dev();
    Ok(DEVICE.get_or_init(|| format!("{:02x}:{:02x}", libc::major(number), libc::minor(number))))
}

/// The mappings in a text of /proc/PID/maps that may be tables: by name, size, offset, protection and device. Those of
/// the library's own name come first; under a seccomp filter it has only nameless shared memory.
pub fn parse_tables(maps: &[u8], device: &str) -> Vec<AddrRange> {
    let named = |name: &'static str, most: usize| {
        let lines = maps.split(|&byte| byte == b'\n').filter(move |line| line.ends_with(name.as_bytes()));
        lines.filter_map(move |line| parse_line(std::str::from_utf8(line).ok()?, name, device)).take(most)
    };
    named(MAPS_NAME, 4).chain(named(NAMELESS, 64)).collect()
}

/// How /proc/PID/maps shows shared memory without a name. No memfd can look like it: theirs begin with `/memfd:`.
const NAMELESS: &str = "/dev/zero (deleted)";

fn parse_line(line: &str, called: &str, device: &str) -> Option<AddrRange> {
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let (flags, offset, on) = (fields.next()?, fields.next()?, fields.next()?);
    let name = fields.nth(1)?.trim_start();
    let start = u64::from_str_radix(start, 16).ok()?;
    let end = u64::from_str_radix(end, 16).ok()?;
    let fits = end.checked_sub(start)? == SIZE as u64 && name == called && on == device;
    (fits && flags == "rw-s" && offset.bytes().all(|digit| digit == b'0'))
        .then_some(AddrRange { start: VirtAddr(start), end: VirtAddr(end) })
}

/// Opens what is mapped there, if it is a file whose size is sealed.
fn open_sealed(pid: Pid, range: AddrRange) -> Result<Option<File>> {
    let path = format!("/proc/{pid}/map_files/{:x}-{:x}", range.start.0, range.end.0);
    let file = match OpenOptions::new().read(true).write(true).open(&path) {
        Ok(file) => file,
        // Unmapped, or gone, in between.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => return Ok(None),
        Err(e) => return Err(Error::io("open", path, &e)),
    };
    // SAFETY: F_GET_SEALS takes no argument.
    let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
    // Nameless memory has no descriptor by which to shrink it; it is told from a memfd by its link.
    let nameless = fs::read_link(&path).is_ok_and(|link| link.as_os_str() == NAMELESS);
    let sealed = nameless || (seals >= 0 && seals & REQUIRED_SEALS == REQUIRED_SEALS);
    let length = file.metadata().map_err(|e| Error::io("fstat", &path, &e))?.len();
    Ok((sealed && length == SIZE as u64).then_some(file))
}

fn new_memfd() -> Result<OwnedFd> {
    // SAFETY: the name is a C string.
    let fd =
        unsafe { libc::memfd_create(ckpt_wire::NAME.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    if fd < 0 {
        return Err(Error::Kernel {
            op: "memfd_create",
            subject: crate::Subject::Here,
            source: Errno::last(),
        });
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn only_whole_shared_tables_are_candidates() {
        let maps = b"7f0000000000-7f0000040000 rw-s 00000000 00:01 46        /memfd:ckpt-gate (deleted)\n\
            7f0000100000-7f0000101000 rw-s 00000000 00:01 47             /memfd:ckpt-gate (deleted)\n\
            7f0000200000-7f0000240000 rw-p 00000000 00:01 48             /memfd:ckpt-gate (deleted)\n\
            7f0000300000-7f0000340000 rw-s 00001000 00:01 49             /memfd:ckpt-gate (deleted)\n\
            7f0000400000-7f0000440000 rw-s 00000000 00:01 50             /x/memfd:ckpt-gate (deleted)\n\
            7f0000480000-7f00004c0000 rw-s 00000000 00:2a 50             /memfd:ckpt-gate (deleted)\n\
            7f0000500000-zz rw-s 00000000 00:01 50                       /memfd:ckpt-gate (deleted)\n\
            /memfd:ckpt-gate (deleted)\n\xff/memfd:ckpt-gate (deleted)";
        let found = parse_tables(maps, "00:01");
        assert_eq!(found, [AddrRange { start: VirtAddr(0x7f00_0000_0000), end: VirtAddr(0x7f00_0004_0000) }]);
    }

    /// Maps a memfd as a member could, looks for it from outside, and unmaps it.
    fn found_when_mapped(size: u64, seals: i32, head: &[u8]) -> bool {
        let file = File::from(new_memfd().unwrap());
        file.set_len(size).unwrap();
        file.write_all_at(head, 0).unwrap();
        // SAFETY: F_ADD_SEALS takes an integer; the mapping is new and unmapped below, unused.
        unsafe {
            assert_eq!(libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals), 0);
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let place = std::ptr::null_mut();
            let address = libc::mmap(place, SIZE, protection, libc::MAP_SHARED, file.as_raw_fd(), 0);
            assert_ne!(address, libc::MAP_FAILED);
            let found = Gate::find(i32::try_from(std::process::id()).unwrap()).unwrap().is_some();
            libc::munmap(address, SIZE);
            found
        }
    }

    #[test]
    fn only_a_sealed_table_of_our_version_is_a_gate() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: /proc/PID/map_files is for root");
            return;
        }
        let size = SIZE as u64;
        let mut head = [0u8; 16];
        head[..8].copy_from_slice(&ckpt_wire::MAGIC.to_ne_bytes());
        head[8..12].copy_from_slice(&ckpt_wire::VERSION.to_ne_bytes());
        head[12..].copy_from_slice(&(SIZE as u32).to_ne_bytes());
        assert!(
            Gate::find(i32::try_from(std::process::id()).unwrap()).unwrap().is_none(),
            "nothing is mapped"
        );
        assert!(!found_when_mapped(size, 0, &head), "could shrink under the reader");
        assert!(!found_when_mapped(4096, REQUIRED_SEALS, &head), "ends before the table does");
        assert!(!found_when_mapped(size, REQUIRED_SEALS, &[0xff; 16]), "no table");
        head[8] = 99;
        assert!(!found_when_mapped(size, REQUIRED_SEALS, &head), "another version");
        head[8..12].copy_from_slice(&ckpt_wire::VERSION.to_ne_bytes());
        assert!(found_when_mapped(size, REQUIRED_SEALS, &head), "a table");
    }
}
