//! Calls that the kernel cannot go on with by itself go on by way of code that the preload library brings along (`wire/src/resume.rs`):
//!
//! - a part is done, so that a stop makes the kernel answer with less than what was asked for: a large write to a pipe, MSG_WAITALL;
//! - the socket has a time limit (SO_RCVTIMEO, SO_SNDTIMEO), which the kernel would begin anew.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::time::Duration;

use ckpt_wire::resume::{AFTER_PART, WITHIN_TIME};
use nix::errno::Errno;
use nix::libc;

use super::super::held::Held;
use super::RED_ZONE;
use crate::descriptor::{self, socket};
use crate::ptrace::Registers;
use crate::thread::Stopped;
use crate::time_limit::{Limit, Sleepers};
use crate::{VirtAddr, gate, proc_file, remote, restart, seccomp, task};

/// Parts of a vector that are given room on the stack.
const MOST_PARTS: u64 = 64;
/// Size of struct mmsghdr.
const MESSAGE: u64 = 64;
/// Size of struct msghdr; where it has its parts, their count, and the size of its control data.
const HEADER: usize = 56;
const PARTS: usize = 16;
const COUNT: usize = 24;
const CONTROL: std::ops::Range<usize> = 32..48;
/// With one of these recv(2) answers with what is there, or something else than data.
const NOT_ALL: i32 = libc::MSG_DONTWAIT | libc::MSG_PEEK | libc::MSG_OOB | libc::MSG_ERRQUEUE;

/// A time limit of a socket, and the direction that its call waits for.
struct Waits {
    fd: i32,
    events: i16,
    rest: u64,
}

impl Held {
    /// The registers with which the call that the stop interrupted goes on, live and in an image, if it takes a detour.
    pub(super) fn detour(&self, sleepers: &Sleepers) -> Option<Registers> {
        let at = &self.at_stop;
        if (at.orig_rax as i64) < 0 || at.cs != 0x33 {
            return None;
        }
        match at.rax as i64 {
            1.. => self.after_part(),
            -4 if !self.signal_pending => {
                self.within_time(&self.waits(sleepers).filter(|_| self.may_poll())?)
            }
            _ => None,
        }
    }

    /// A stop that interrupts recvmmsg(2) after the first message leaves its own code behind as the socket's error, which the next call would
    /// tell (__sys_recvmmsg in net/socket.c): taken from it. To look at an error is to take it; one that is the connection's own is taken only
    /// where the call had ended by it in the instant of the stop.
    pub(super) fn take_back_error(&self) {
        let at = &self.at_stop;
        if at.orig_rax as i64 != libc::SYS_recvmmsg || (at.rax as i64) < 1 || at.rax >= at.rdx {
            return;
        }
        // Who is not a socket any more has no error.
        let _ = self.socket(at.rdi as i32).and_then(|socket| {
            let failed = socket::ready(socket.as_fd(), libc::POLLERR)? & libc::POLLERR != 0;
            if failed { socket::int_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_ERROR) } else { Ok(0) }
        });
    }

    fn socket(&self, fd: i32) -> std::result::Result<OwnedFd, Errno> {
        let process = descriptor::open_process(self.tid.as_raw())?;
        descriptor::take(process.as_fd(), fd)
    }

    /// The same call with the rest of its data.
    fn after_part(&self) -> Option<Registers> {
        let at = &self.at_stop;
        let (nr, done) = (at.orig_rax as i64, at.rax);
        if !wants_all(at) || !self.blocks(at.rdi as i32, nr == libc::SYS_recvfrom) || self.signal_waits() {
            return None;
        }
        let mut more = match nr {
            libc::SYS_writev => self.parts_left(at.rsi, at.rdx, done)?,
            libc::SYS_sendmsg => self.message_left(at.rsi, done)?,
            _ => Vec::new(),
        };
        let mut frame = bytes_of(&[done, at.rsp, at.rip, at.rsi, at.rdx]);
        let mut regs = *at;
        regs.rax = at.orig_rax;
        regs.rsp = at.rsp.wrapping_sub(RED_ZONE + (frame.len() + more.len()) as u64) & !15;
        let place = regs.rsp + frame.len() as u64;
        let left = || at.rdx.checked_sub(done).filter(|left| *left > 0);
        match nr {
            libc::SYS_writev => (regs.rsi, regs.rdx) = (place, more.len() as u64 / 16),
            libc::SYS_sendmsg => {
                more[PARTS..PARTS + 8].copy_from_slice(&(place + HEADER as u64).to_le_bytes());
                regs.rsi = place;
            }
            libc::SYS_recvmmsg | libc::SYS_sendmmsg => {
                (regs.rsi, regs.rdx) = (at.rsi.wrapping_add(done * MESSAGE), left()?);
            }
            _ => (regs.rsi, regs.rdx) = (at.rsi.wrapping_add(done), left()?),
        }
        frame.extend(more);
        self.depart(regs, AFTER_PART, &frame)
    }

    /// Whether its seccomp filters, if it has any, allow poll(2).
    fn may_poll(&self) -> bool {
        let filtered = task::status(self.tid).is_ok_and(|status| status.seccomp != 0);
        let filters = || self.stopped().and_then(Stopped::seccomp_filters);
        let allows =
            |filters: &Vec<Vec<u8>>| seccomp::allows(filters, libc::SYS_poll, &[0; 6], self.at_stop.rip);
        !filtered || filters().is_ok_and(|filters| allows(&filters))
    }

    /// poll(2) for the rest of the time, then the call itself.
    fn within_time(&self, waits: &Waits) -> Option<Registers> {
        let at = &self.at_stop;
        let pollfd = u64::from(waits.fd as u32) | u64::from(waits.events as u16) << 32;
        let frame = bytes_of(&[at.rsp, at.rip, at.rdi, at.rsi, at.rdx, at.orig_rax, pollfd]);
        let mut regs = *at;
        regs.rsp = at.rsp.wrapping_sub(RED_ZONE + frame.len() as u64) & !15;
        (regs.rdi, regs.rsi, regs.rdx) = (regs.rsp + frame.len() as u64 - 8, 1, waits.rest);
        regs.rax = libc::SYS_poll as u64;
        self.depart(regs, WITHIN_TIME, &frame)
    }

    /// Writes the frame, and goes to the code, if the library has brought it.
    fn depart(&self, regs: Registers, entry: u64, frame: &[u8]) -> Option<Registers> {
        if !self.code_before().ends_with(&[0x0f, 0x05]) {
            return None;
        }
        let code = gate::resume_code(self.tid)?;
        remote::write(self.tid, VirtAddr(regs.rsp), frame).ok()?;
        Some(Registers { rip: code.0 + entry, orig_rax: u64::MAX, ..regs })
    }

    /// What the call waits for, if its socket has a time limit, it is known when it began, and it is a call that makes no steps.
    fn waits(&self, sleepers: &Sleepers) -> Option<Waits> {
        let call = restart::interrupted(&self.at_stop)?;
        let Limit::Socket { events, option } = Limit::of(call.nr, &call.args)? else { return None };
        let elapsed = sleepers.elapsed(self.tid, call.nr, &call.args, &self.at_stop)?;
        let fd = call.args[0] as i32;
        let socket = self.socket(fd).ok()?;
        let told = socket::option(socket.as_fd(), libc::SOL_SOCKET, option, 16).ok()?;
        let word = |at: usize| Some(u64::from_le_bytes(told.get(at..at + 8)?.try_into().ok()?));
        let whole = Duration::from_secs(word(0)?) + Duration::from_micros(word(8)?);
        if whole.is_zero() {
            return None;
        }
        let rest = whole.saturating_sub(elapsed).as_nanos().div_ceil(1_000_000);
        Some(Waits { fd, events, rest: u64::try_from(i32::try_from(rest).ok()?).ok()? })
    }

    /// Whether calls wait at a descriptor until all is done: that of a pipe, a terminal, or a socket (of a stream, where it matters).
    fn blocks(&self, fd: i32, of_stream: bool) -> bool {
        let Ok(meta) = fs::metadata(format!("/proc/{}/fd/{fd}", self.tid)) else { return false };
        let kind = meta.file_type();
        let terminal = || matches!(libc::major(meta.rdev()), 136..=143) || meta.rdev() == libc::makedev(5, 2);
        if !(kind.is_fifo() || kind.is_socket() || kind.is_char_device() && terminal()) {
            return false;
        }
        let info = proc_file::read_text(format!("/proc/{}/fdinfo/{fd}", self.tid)).unwrap_or_default();
        let flags =
            info.lines().find_map(|line| i32::from_str_radix(line.strip_prefix("flags:")?.trim(), 8).ok());
        flags.is_some_and(|flags| flags & libc::O_NONBLOCK == 0) && (!of_stream || self.is_stream(fd))
    }

    fn is_stream(&self, fd: i32) -> bool {
        let kind = |socket: OwnedFd| socket::int_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_TYPE);
        self.socket(fd).and_then(kind) == Ok(libc::SOCK_STREAM)
    }

    /// Whether a handler may run before the thread goes on: what was done is told then, as without a checkpoint.
    fn signal_waits(&self) -> bool {
        !task::status(self.tid).is_ok_and(|s| (s.pending | s.shared_pending) & !self.mask == 0)
    }

    /// What is left of `count` parts of struct iovec, without the first `done` bytes.
    fn parts_left(&self, from: u64, count: u64, mut done: u64) -> Option<Vec<u8>> {
        if count > MOST_PARTS {
            return None;
        }
        let mut parts = vec![0; count as usize * 16];
        remote::read(self.tid, VirtAddr(from), &mut parts).ok()?;
        let mut left = Vec::new();
        for part in parts.chunks_exact(16) {
            let word = |at: usize| u64::from_le_bytes(part[at..at + 8].try_into().unwrap_or_default());
            let (base, length) = (word(0), word(8));
            let skipped = length.min(done);
            done -= skipped;
            if skipped < length {
                left.extend(bytes_of(&[base.wrapping_add(skipped), length - skipped]));
            }
        }
        (!left.is_empty()).then_some(left)
    }

    /// struct msghdr and, behind it, its parts without the first `done` bytes. What it sends besides data went with the first of it.
    fn message_left(&self, from: u64, done: u64) -> Option<Vec<u8>> {
        let mut header = vec![0; HEADER];
        remote::read(self.tid, VirtAddr(from), &mut header).ok()?;
        let word = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().unwrap_or_default());
        let parts = self.parts_left(word(PARTS), word(COUNT), done)?;
        header[COUNT..COUNT + 8].copy_from_slice(&(parts.len() as u64 / 16).to_le_bytes());
        header[CONTROL].fill(0);
        header.extend(parts);
        Some(header)
    }
}

/// Whether it is a call that a blocking descriptor answers only when all is done.
fn wants_all(at: &Registers) -> bool {
    let flags = at.r10 as i32;
    match at.orig_rax as i64 {
        libc::SYS_write | libc::SYS_writev => true,
        libc::SYS_sendto | libc::SYS_sendmmsg => flags & libc::MSG_DONTWAIT == 0,
        libc::SYS_sendmsg => at.rdx as i32 & libc::MSG_DONTWAIT == 0,
        libc::SYS_recvfrom => flags & libc::MSG_WAITALL != 0 && flags & NOT_ALL == 0,
        libc::SYS_recvmmsg => at.r8 == 0 && flags & (NOT_ALL | libc::MSG_WAITFORONE) == 0,
        _ => false,
    }
}

fn bytes_of(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
