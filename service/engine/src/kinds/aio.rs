//! Contexts of kernel AIO (io_setup(2)) with no request under way.
//!
//! ```text
//!  the ring's memory ─► events posted, events unread ┐
//!  the preload library ─► requests submitted ────────┴─► what is under way; only it can tell (ckpt_wire::aio)
//! ```
//! A context is its ring's address. A new one is made where the old one was, brought to where that was by requests that do nothing, and gets
//! the memory of the old one: what is not read yet, what lies in slots. A child of fork(2) has the memory alone, of which it gets a copy.

use std::path::Path;

use ckpt_sys::VirtAddr;
use ckpt_sys::aio::{self, Ring};
use ckpt_sys::remote;
use nix::errno::Errno;
use nix::unistd::Pid;

/// Problem code.
pub const CODE: &str = "aio";
/// What to do without it.
pub const WITHOUT: &str =
    "run the program without kernel AIO: SystemCallFilter=~io_setup:ENOSYS in its unit, if it can do without";
/// Why a context that the library did not see cannot be captured.
pub const UNSEEN: &str = "it is a context of kernel AIO that the preload library has not seen being made, so nobody can tell what is under way \
     (made before the group was enabled, or by a program without the library)";
/// Why one cannot be captured that the plan did not have.
pub const YOUNG: &str = "the context of kernel AIO was made while the checkpoint began";
/// What to do about passing things.
pub const AGAIN: &str = "try again";

/// Whether a name in maps is a context's ring.
pub fn is_context(name: &Path) -> bool {
    name.as_os_str() == "/[aio]"
}

/// A look at a context of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Nothing is under way. It was asked for so many events.
    Quiet(u32),
    /// The memory of a ring that the process has inherited by fork(2), without the context.
    Inherited,
    /// So many requests are under way; none: a thread is about to submit, or to make or end a context.
    Busy(u64),
    /// Nobody can tell.
    Unseen,
}

/// Looks at the context whose ring is at this address.
///
/// Errors: no such process, or its memory cannot be read.
pub fn look(pid: Pid, ring: VirtAddr) -> Result<Look, ckpt_sys::Error> {
    let Some(told) = aio::told(pid)? else { return Ok(Look::Unseen) };
    let Some(context) = told.contexts.iter().find(|context| context.ring == ring) else {
        return Ok(if told.is_busy { Look::Busy(0) } else { Look::Unseen });
    };
    if context.events == 0 {
        return Ok(Look::Inherited);
    }
    let mut head = [0; aio::EVENT as usize];
    remote::read(pid, ring, &mut head)?;
    Ok(match Ring::parse(&head).map(|ring| ring.under_way(context.submitted)) {
        None => Look::Unseen,
        Some(0) if !told.is_busy => Look::Quiet(context.events),
        Some(under_way) => Look::Busy(under_way),
    })
}

/// What is under way, in words.
pub fn under_way(requests: u64) -> String {
    match requests {
        0 => "a thread submits to a context of kernel AIO".into(),
        _ => format!("{requests} requests of kernel AIO have not completed"),
    }
}

/// Whether this machine can have a context of so many `events` with a ring of this content. Errors: why not.
pub fn can_be_made(events: u32, content: &[u8]) -> Result<(), String> {
    let wanted = Ring::parse(content).map_or(0, |ring| ring.room);
    match aio::room(events) {
        Ok(room) if room == wanted => Ok(()),
        Ok(room) => {
            Err(format!("a context of kernel AIO has room for {room} events here, and had for {wanted}"))
        }
        Err(Errno::EAGAIN) => Err("there are too many contexts of kernel AIO (sysctl fs.aio-max-nr)".into()),
        Err(e) => Err(format!("io_setup: {}", e.desc())),
    }
}
