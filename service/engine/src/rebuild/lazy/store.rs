//! What systemd keeps for those who bring memory, so that it outlives all of them (sd_pid_notify_with_fds(3), FileDescriptorStoreMax=).
//!
//! ```text
//!  keeper ── FDSTORE=1 FDNAME=ckpt-1007 ──► systemd      all helpers killed ► their service begins anew ► has them at the same numbers
//!  server ── a child's, first of all ─────►
//! ```
//! PID 1 cannot be killed. As long as it has a userfaultfd, who touches a missing page waits, whatever ends besides.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

use ckpt_sys::passed;
use nix::errno::Errno;

use crate::rebuild::notify::Line;

/// The name of what says what the others are.
const ESTATE: &str = "estate";
/// Names of all others begin so; their number follows.
const NUMBERED: &str = "ckpt-";
/// Numbers from here on are those of what is kept.
pub const FIRST: RawFd = 1000;

/// systemd's store of descriptors for this service; nothing, where no systemd started it.
#[derive(Debug)]
pub struct Store {
    line: Option<Line>,
}

/// What was kept: the estate, and all others at their numbers.
pub type Kept = (OwnedFd, Vec<OwnedFd>);

impl Store {
    /// Of this service.
    pub fn open() -> Result<Self, Errno> {
        Ok(Self { line: Line::own()? })
    }

    /// Says that the service has begun.
    pub fn ready(&self) {
        // systemd gives it up if it is not told, and starts another.
        let _ = self.line.as_ref().map(|line| line.say("READY=1", &[]));
    }

    /// Has a descriptor kept under its number. What is not kept is as safe as the processes that have it open.
    pub fn put(&self, fd: RawFd) {
        let _ = self.line.as_ref().map(|line| line.store(&format!("{NUMBERED}{fd}"), fd));
    }

    /// Has the estate kept, after all that it tells of; waits until systemd has it.
    pub fn seal(&self, estate: RawFd) -> Result<(), Errno> {
        let Some(line) = &self.line else { return Ok(()) };
        line.store(ESTATE, estate)?;
        line.barrier()
    }

    /// Whether there is a userfaultfd of this number.
    pub fn has(fd: RawFd) -> bool {
        let link = std::fs::read_link(format!("/proc/self/fd/{fd}"));
        link.is_ok_and(|to| to.as_os_str().as_bytes().ends_with(b"[userfaultfd]"))
    }
}

/// Puts what was passed where it belongs, which nothing else may have taken. `None` where there is no estate: it was not sealed.
pub fn place(passed: Vec<(String, OwnedFd)>) -> Result<Option<Kept>, ckpt_sys::Error> {
    let mut estate = None;
    let mut others = Vec::new();
    for (name, fd) in passed {
        match name.strip_prefix(NUMBERED).and_then(|number| number.parse::<RawFd>().ok()) {
            Some(number) => others.push(passed::place(fd, number)?),
            None if name == ESTATE => estate = Some(fd),
            None => {}
        }
    }
    others.sort_by_key(AsRawFd::as_raw_fd);
    Ok(estate.map(|estate| (estate, others)))
}
