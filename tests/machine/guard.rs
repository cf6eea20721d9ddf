//! The guard: a process that outlives the driver for as long as it takes to clean up, however the driver ended.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;

use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{ForkResult, Pid, fork, pipe2, setsid};

use crate::cgroup::Cgroup;
use crate::disk;
use crate::error::{Context, Result};
use crate::huge_pages;

/// The driver's end of the guard: dropping it, or dying, starts the cleaning.
pub(crate) struct Guard {
    pid: Pid,
    lifeline: Option<OwnedFd>,
}

impl Guard {
    /// Starts the guard for the machine in `cgroup`.
    pub(crate) fn start(cgroup: &Cgroup) -> Result<Self> {
        let (read, write) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).of("make a pipe")?;
        huge_pages::lend();
        // SAFETY: this process has one thread.
        match unsafe { fork() }.of("fork the guard")? {
            ForkResult::Child => {
                drop(write);
                watch(read, cgroup)
            }
            ForkResult::Parent { child } => Ok(Self { pid: child, lifeline: Some(write) }),
        }
    }

    /// Closes the calling child's copy of the lifeline, so that only the driver holds it.
    pub(crate) fn forget_in_child(&mut self) {
        self.lifeline = None;
    }

    /// Tells the guard the number of the machine's loop device, to wait for its end.
    pub(crate) fn expect_loop(&self, number: u32) {
        if let Some(fd) = &self.lifeline {
            // A guard that does not know the number still ends the machine; it only does not wait for the detach.
            let _ = nix::unistd::write(fd, &number.to_le_bytes());
        }
    }

    /// Ends the machine and waits until nothing is left of it.
    pub(crate) fn finish(mut self) {
        self.lifeline = None;
        let _ = nix::sys::wait::waitpid(self.pid, None);
    }
}

/// The guard's whole life.
fn watch(lifeline: OwnedFd, cgroup: &Cgroup) -> ! {
    let _ = setsid();
    for s in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGPIPE] {
        // SAFETY: ignoring a signal installs no handler.
        let _ = unsafe { signal(s, SigHandler::SigIgn) };
    }
    let mut said = Vec::new();
    // The end of file is the driver's end.
    let _ = File::from(lifeline).read_to_end(&mut said);
    if let Err(e) = cgroup.destroy() {
        eprintln!("machine: {e}");
    }
    huge_pages::take_back();
    if let Some(number) = said.first_chunk::<4>() {
        disk::wait_detached(u32::from_le_bytes(*number));
    }
    // SAFETY: _exit ends the process without running what the driver registered.
    unsafe { libc::_exit(0) }
}
