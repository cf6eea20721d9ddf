//! Two processes that keep a lazily restored group's memory coming: one serves, the other holds the same descriptors and watches.
//!
//! ```text
//!  keeper = guardian ──fork, one table of descriptors──► server
//!              │ server ends before all is done ► a new one      │ guardian ends ► a new one
//!              └── event log in shared memory ───────────────────┘
//! ```
//! Whichever of them is killed, at whatever instant: the userfaultfds stay open in the table of the other, so that who touches a missing
//! page waits, and what the kernel has told is in the log ([`ckpt_sys::event_log`]). If both are killed, systemd has all of it
//! ([`super::store`]).

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use ckpt_sys::clone::{CloneArgs, fork_with, pidfd};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, getpid, getppid};

use super::mark::Mark;
use super::server::Server;

/// So many servers in a row may end before the group is given up.
const MOST_DEATHS: u32 = 1000;

/// What the two share.
pub struct Helpers {
    /// The pages.
    pub server: Server,
    /// The sign that memory is arriving.
    pub mark: Mark,
}

/// The guardian: sees to it that there is a server until all is done.
///
/// This process must have one thread only and every signal blocked. `ready` is told when a server serves. Gives the exit status.
pub fn guard(helpers: &mut Helpers, mut server: Option<Pid>, mut ready: Option<File>) -> i32 {
    let guardian = getpid();
    for _ in 0..MOST_DEATHS {
        let made = match server.take() {
            Some(pid) => Ok(pid),
            None => {
                let args = CloneArgs { flags: libc::CLONE_FILES as u64, ..Default::default() };
                fork_with(&args, || {
                    let whole = catch_unwind(AssertUnwindSafe(|| serve(helpers, guardian, ready.as_mut())));
                    whole.unwrap_or(101)
                })
            }
        };
        // The descriptor stays open: the server shares it. It wrote to it before, or its successor has nobody to tell.
        std::mem::forget(ready.take());
        match made {
            Ok(pid) => until_gone(pid),
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(10)),
        }
        if helpers.server.is_complete() {
            return 0;
        }
    }
    give_up(helpers, "what serves its pages ends again and again".into());
    1
}

/// Waits for the end of a process, a child or not.
fn until_gone(pid: Pid) {
    if let Ok(process) = pidfd(pid) {
        while poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)
            == Err(Errno::EINTR)
        {}
    }
    let _ = waitpid(pid, Some(nix::sys::wait::WaitPidFlag::__WALL));
}

/// The server: serves, and sees to it that there is a guardian.
fn serve(helpers: &mut Helpers, guardian: Pid, ready: Option<&mut File>) -> i32 {
    // It may have been killed before we began.
    let mut watched = pidfd(guardian).ok().filter(|_| getppid() == guardian);
    if let Err(trouble) = helpers.server.take_over() {
        give_up(helpers, trouble);
        return 1;
    }
    if let Some(ready) = ready {
        let _ = ready.write_all(b"r");
    }
    loop {
        let lives = |process: &OwnedFd| {
            poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(0)
        };
        if !watched.as_ref().is_some_and(lives) {
            match new_guardian(helpers) {
                Ok(guardian) => watched = Some(guardian),
                Err(e) => {
                    give_up(helpers, crate::error::with_sources(&e));
                    return 1;
                }
            }
        }
        match helpers.server.turn() {
            Ok(true) => {}
            Ok(false) => break,
            Err(trouble) => {
                give_up(helpers, trouble);
                return 1;
            }
        }
    }
    if helpers.mark.complete().is_err() {
        helpers.mark.remove();
    }
    helpers.server.set_complete();
    0
}

/// A guardian in place of one that was killed; gives what tells of its end.
fn new_guardian(helpers: &mut Helpers) -> Result<OwnedFd, ckpt_sys::Error> {
    let this = getpid();
    let args = CloneArgs { flags: libc::CLONE_FILES as u64, ..Default::default() };
    fork_with(&args, || catch_unwind(AssertUnwindSafe(|| guard(helpers, Some(this), None))).unwrap_or(101))
        .and_then(pidfd)
}

/// The group cannot have its memory: it must not run without.
fn give_up(helpers: &Helpers, trouble: String) {
    helpers.mark.kill();
    helpers.mark.tell(&trouble);
    helpers.mark.remove();
    helpers.server.set_complete();
}
