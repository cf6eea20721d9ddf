//! Open file descriptions: one kind of kernel object is one file here, capture and rebuild side by side.
//!
//! ```text
//! capture (ckptd, group frozen)                              rebuild (ckpt-restore)
//!
//!  /proc/PID/fd, fdinfo ──► which numbers are one             1 create   opened, bound, made; pipes with their content
//!  description (kcmp order) ──► DescriptionId                 2 connect  pairs, peers by name, TCP pairs
//!        │ pidfd_getfd once a description                     3 fill     queues of sockets, what is in flight
//!        ▼                                                    4 watch    epoll interest lists
//!  kind's capture: fdinfo, getsockopt, MSG_PEEK, tee          5 finish   options, names made visible, locks, flags
//!        │                                                    ── members are made and inherit ──
//!        ▼                                                    6 late     calls in the members: POSIX locks, owners, pidfds
//!  FdTableRecord · DescriptionRecord · PipeRecord · Problem
//! ```
//!
//! Capture: [`DescriptorCapture::new`], [`add_process`](DescriptorCapture::add_process) for each process,
//! [`finish`](DescriptorCapture::finish). Nothing is injected and nothing of the members is changed.
//! Rebuild: [`rebuild::Descriptions::rebuild`]; then [`late::calls`] when the members exist.

pub mod aio;
mod class;
mod collect;
mod datagram;
mod epoll;
mod eventfd;
mod fanotify;
mod file;
mod inet;
mod inotify;
pub mod io_uring;
pub mod late;
mod memfd;
mod message_queue;
pub(crate) mod mounts;
mod multicast;
mod netlink;
mod options;
pub mod outside;
mod packet;
mod peek;
mod pidfd;
mod pipe;
pub mod rebuild;
pub mod settings;
mod signalfd;
mod stand_in;
mod tcp;
mod terminal;
mod timerfd;
mod unix_name;
mod unix_peer;
mod unix_socket;

pub use terminal::Controlling;

pub use collect::{Captured, Depth, DescriptorCapture};
pub(crate) use collect::{numbers, texts_of};
pub use io_uring::is_ring;
pub use message_queue::OpenQueue;

use nix::errno::Errno;

/// Why a description cannot be captured: what becomes a [`Problem`](crate::Problem).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    code: &'static str,
    text: String,
    remedy: &'static str,
}

impl Refusal {
    fn new(code: &'static str, text: impl Into<String>, remedy: &'static str) -> Self {
        Self { code, text: text.into(), remedy }
    }

    fn call(op: &'static str) -> impl Fn(Errno) -> Self {
        move |e| {
            let remedy = match e {
                Errno::EMFILE => {
                    "raise LimitNOFILE= of ckptd.service: a copy of each is held during the capture"
                }
                _ => "try again; report it if it stays",
            };
            Self::new("descriptor-unreadable", format!("{op} failed: {}", e.desc()), remedy)
        }
    }
}

/// Data out of band (MSG_OOB) lies in a socket.
fn urgent() -> Refusal {
    let text = "a byte of urgent data (MSG_OOB) waits in it, whose place in the stream is not told";
    Refusal::new("urgent-data", text, "try again when the application has read it")
}

/// What went wrong while descriptions were rebuilt.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("{op} for {object}")]
    Call {
        /// The call.
        op: &'static str,
        /// What it was for.
        object: String,
        /// Why.
        #[source]
        source: Errno,
    },
    /// A file is not what it was.
    #[error("{path}: {why}")]
    FileMismatch {
        /// The file.
        path: String,
        /// The difference.
        why: String,
    },
    /// The image refers to something that is not in it.
    #[error("the image refers to {0}, which it does not have")]
    Dangling(String),
    /// What the caller provides could not be provided.
    #[error("{0}")]
    Host(String),
}

impl Error {
    fn call(op: &'static str, object: impl std::fmt::Display) -> impl FnOnce(Errno) -> Self {
        let object = object.to_string();
        move |source| Self::Call { op, object, source }
    }
}

impl From<Error> for crate::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::FileMismatch { path, why } => crate::Error::FileMismatch { path, why },
            Error::Call { op, object, source } => {
                crate::Error::Io { what: format!("{op} for {object}"), source: source.into() }
            }
            other => crate::Error::Failed(other.to_string()),
        }
    }
}
