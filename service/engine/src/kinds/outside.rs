//! TCP connections to outside the group that go on after a restore (`tcp = "repair"`).
//!
//! ```text
//! checkpoint         which connection it is (SO_COOKIE), how much the application has read and written
//! the members end    ckptd holds a duplicate of the socket: the kernel goes on answering the other end, and keeps what it sends
//! restore            is it that connection, and has nobody read or written since? ─► the member gets the socket itself
//! ```
//!
//! So the connection's sequence numbers, queues, windows and timers are never put together again; they are those that the other end knows. Where
//! the socket is not there any more (the members were killed, ckptd was started anew, the machine too), or has gone on, the application
//! finds its connection reset.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use ckpt_image::records::{Conversation, DescriptionKind, GroupImage, InetRecord, InetState};
use ckpt_sys::descriptor::{self, socket};
use nix::errno::Errno;
use nix::libc;
use serde::{Deserialize, Serialize};

const SO_COOKIE: i32 = 57; // Linux 4.12
const TCP_INFO: i32 = 11;

/// States of struct tcp_info.
const SYN_SENT: u8 = 2;
const CLOSE: u8 = 7;
/// TIME_WAIT, CLOSE_WAIT, LAST_ACK, CLOSING: the other end's FIN is here, which counts as a byte.
const ENDED: [u8; 4] = [6, 8, 9, 11];

/// A connection that ckptd holds for ckpt-restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// SO_COOKIE.
    pub cookie: u64,
    /// The process that has it.
    keeper: i32,
    /// Its number there.
    fd: RawFd,
}

impl Held {
    /// A duplicate of it.
    pub fn take(&self) -> Result<OwnedFd, Errno> {
        descriptor::take(descriptor::open_process(self.keeper)?.as_fd(), self.fd)
    }
}

/// How far a connection is.
pub(super) fn conversation(fd: BorrowedFd<'_>) -> Result<Conversation, Errno> {
    counts(fd).map(|(conversation, _)| conversation)
}

/// The same, and the state of the connection.
fn counts(fd: BorrowedFd<'_>) -> Result<(Conversation, u8), Errno> {
    let info = socket::option(fd, libc::IPPROTO_TCP, TCP_INFO, 136)?;
    let state = *info.first().ok_or(Errno::EINVAL)?;
    let long = |at: usize| info.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_ne_bytes);
    // tcpi_bytes_acked and tcpi_bytes_received, Linux 4.1.
    let (acked, received) = (long(120).ok_or(Errno::EINVAL)?, long(128).ok_or(Errno::EINVAL)?);
    let ended = u64::from(ENDED.contains(&state));
    // The SYN counts when it is acknowledged.
    let written = if state == SYN_SENT { 1 } else { acked + socket::unsent(fd)? as u64 };
    let read = received.wrapping_sub(ended).wrapping_sub(socket::readable(fd)? as u64);
    let cookie = socket::option(fd, libc::SOL_SOCKET, SO_COOKIE, 8)?;
    let cookie = u64::from_ne_bytes(cookie.try_into().map_err(|_| Errno::EINVAL)?);
    Ok((Conversation { cookie, read, written }, state))
}

/// The conversations that an image wants to go on.
pub(crate) fn wanted(image: &GroupImage) -> impl Iterator<Item = &Conversation> {
    image.descriptions.iter().filter_map(|record| match &record.kind {
        DescriptionKind::Inet(InetRecord { state: InetState::Outside { conversation, .. }, .. }) => {
            Some(conversation)
        }
        _ => None,
    })
}

/// Duplicates of the connections of a running process that the image wants.
pub(crate) fn of_process(pid: i32, image: &GroupImage) -> Vec<OwnedFd> {
    let Ok(process) = descriptor::open_process(pid) else { return Vec::new() };
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let is_socket = |path: &std::path::Path| {
        std::fs::read_link(path).is_ok_and(|link| link.to_string_lossy().starts_with("socket:"))
    };
    let sockets = entries.flatten().filter(|entry| is_socket(&entry.path()));
    let numbers = sockets.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_wanted = |fd: &OwnedFd| {
        counts(fd.as_fd()).is_ok_and(|(now, _)| wanted(image).any(|then| then.cookie == now.cookie))
    };
    numbers.filter_map(|fd| descriptor::take(process.as_fd(), fd).ok()).filter(is_wanted).collect()
}

/// A connection that we have, if the image wants it and it is as far as it was then.
pub(crate) fn as_it_was(fd: BorrowedFd<'_>, image: &GroupImage) -> Option<Held> {
    // A listening socket is to be bound to its port beside it, also while it ends; its own setting comes back with the options.
    socket::set_int_option(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).ok()?;
    let (now, state) = counts(fd).ok()?;
    let then = wanted(image).find(|then| then.cookie == now.cookie)?;
    if !is_same(then, &now, state) {
        return None;
    }
    Some(Held { cookie: now.cookie, keeper: std::process::id() as i32, fd: fd.as_raw_fd() })
}

/// A connection that is closed does not tell whether a FIN was among what came.
fn is_same(then: &Conversation, now: &Conversation, state: u8) -> bool {
    let read = then.read == now.read || (state == CLOSE && then.read.wrapping_add(1) == now.read);
    read && then.written == now.written
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};

    #[test]
    fn reading_and_writing_are_told_from_what_the_other_end_does() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut theirs = listener.accept().unwrap().0;
        ours.write_all(b"asked").unwrap();
        let then = conversation(ours.as_fd()).unwrap();
        let same = |ours: &TcpStream| {
            let (now, state) = counts(ours.as_fd()).unwrap();
            is_same(&then, &now, state)
        };
        theirs.read_exact(&mut [0; 5]).unwrap();
        theirs.write_all(b"answered").unwrap();
        ours.peek(&mut [0; 8]).unwrap();
        assert!(same(&ours));
        theirs.shutdown(Shutdown::Write).unwrap();
        while socket::ready(ours.as_fd(), libc::POLLRDHUP).unwrap() & libc::POLLRDHUP == 0 {
            std::thread::yield_now();
        }
        assert!(same(&ours));
        assert!(!same(&theirs));
        ours.read_exact(&mut [0; 1]).unwrap();
        assert!(!same(&ours));
        let then = conversation(ours.as_fd()).unwrap();
        ours.write_all(b"!").unwrap();
        let now = conversation(ours.as_fd()).unwrap();
        assert_eq!((then.read, then.written + 1), (now.read, now.written));
    }
}
