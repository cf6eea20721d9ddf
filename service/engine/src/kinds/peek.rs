//! Looking into a queue without taking anything out of it: MSG_PEEK, one after another by SO_PEEK_OFF (unix sockets, UDP).

use std::os::fd::BorrowedFd;

use ckpt_sys::descriptor::message::{self, Message};
use ckpt_sys::descriptor::socket;
use nix::errno::Errno;
use nix::libc;

/// Bytes looked at in one go; a datagram that is larger is tried again with more.
const PIECE: usize = 256 << 10;
const LARGEST: usize = 64 << 20;

/// Puts back the peek offset that the application may have set.
pub(super) struct PeekOffset<'a> {
    fd: BorrowedFd<'a>,
    was: i32,
}

impl<'a> PeekOffset<'a> {
    /// Remembers it (SO_PEEK_OFF, Linux 3.4).
    pub(super) fn begin(fd: BorrowedFd<'a>) -> Result<Self, Errno> {
        let was = socket::int_option(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF)?;
        Ok(Self { fd, was })
    }

    /// Looks from byte `at` of the queue on.
    pub(super) fn peek(&self, at: usize, room: usize) -> Result<Option<Message>, Errno> {
        socket::set_int_option(self.fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, at as i32)?;
        match message::peek(self.fd, room) {
            Err(Errno::ENOTCONN | Errno::EINVAL) => Ok(None),
            other => other,
        }
    }

    /// The message at byte `at`, or a piece of a stream. What carries descriptors begins a piece of its own, so that whoever reads up to there
    /// does not get them. `None` at the end. An empty message is told once only (the kernel marks it as seen); of a stream none is.
    pub(super) fn piece(&self, at: usize, kind: i32) -> Result<Option<Message>, Errno> {
        let mut room = PIECE;
        let message = loop {
            match self.peek(at, room) {
                Err(Errno::EMSGSIZE) if room < LARGEST => room *= 4,
                other => break other?,
            }
        };
        let is_something = |message: &Message| !message.data.is_empty() || !message.rights.is_empty();
        let message = message.filter(|message| kind != libc::SOCK_STREAM || is_something(message));
        match message {
            Some(message) if kind == libc::SOCK_STREAM && !message.rights.is_empty() => {
                self.before_rights(at, message).map(Some)
            }
            other => Ok(other),
        }
    }

    /// A read of a stream goes on into what carries descriptors and ends behind it. Gives what is before that, or if nothing is, all of it.
    fn before_rights(&self, at: usize, mut message: Message) -> Result<Message, Errno> {
        socket::set_int_option(self.fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, at as i32)?;
        let before = match message.data.len() {
            0 => 0,
            len => message::whole_pieces(self.fd, len - 1)?,
        };
        if before > 0 {
            message.data.truncate(before);
            message.rights.clear();
        }
        Ok(message)
    }
}

impl Drop for PeekOffset<'_> {
    fn drop(&mut self) {
        // Setting an int that was read from the same socket does not fail.
        let _ = socket::set_int_option(self.fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, self.was);
    }
}
