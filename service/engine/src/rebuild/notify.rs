//! Telling systemd which process is the unit's main process now (sd_notify(3)), from within the unit, where it believes it.
//!
//! ```text
//!  child of ours, born in the unit's cgroup (CLONE_INTO_CGROUP), in the unit's mount and network namespace
//!    MAINPID=N READY=1 ──► $NOTIFY_SOCKET of the stub
//!    BARRIER=1 + pipe  ──► systemd closes the pipe when it has dealt with all before
//! ```

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use ckpt_image::records::UnitIndex;
use ckpt_sys::clone::{CloneArgs, fork_with, pidfd_exit_status, pidfd_signal};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, socket,
};
use nix::sys::wait::{WaitStatus, waitpid};

use super::Failure;
use super::places::{Place, Places};

/// How long systemd may take, milliseconds.
const PATIENCE: u16 = 20_000;

/// Tells systemd of the unit's main process and waits until it knows. Units without a stub have nobody to tell.
pub fn tell_main_pid(places: &Places, unit: UnitIndex, main_pid: i32) -> Result<(), Failure> {
    let place = places.get(unit)?;
    let Some((stub, _)) = &place.stub else { return Ok(()) };
    let address = notify_socket(*stub, place)?;
    let message = format!("MAINPID={main_pid}\nREADY=1");
    let send_there = || match places.within(unit, || send(&address, &message)) {
        Ok(Ok(())) => 0,
        Ok(Err(e)) => e as i32,
        Err(_) => 255,
    };
    let args =
        CloneArgs { exit_signal: libc::SIGCHLD, cgroup: Some(place.cgroup_fd()), ..Default::default() };
    let mut status = waitpid(fork_with(&args, send_there)?, None);
    // See the kernel's trap with cgroup.kill where roots are made.
    if matches!(status, Ok(WaitStatus::Signaled(..))) {
        let args = CloneArgs { cgroup: None, ..args };
        let child = fork_with(&args, || match place.move_in(nix::unistd::Pid::this(), "") {
            Ok(()) => send_there(),
            Err(_) => 254,
        });
        status = waitpid(child?, None);
    }
    let fail = |why: String| {
        Err(Failure::not_restorable(format!("tell systemd the main process: {why}")).of_unit(&place.name))
    };
    match status {
        Ok(WaitStatus::Exited(_, 0)) => Ok(()),
        Ok(WaitStatus::Exited(_, 255)) => fail("the unit's namespaces cannot be entered".into()),
        Ok(WaitStatus::Exited(_, 254)) => fail("the unit's cgroup cannot be entered".into()),
        Ok(WaitStatus::Exited(_, errno)) => fail(Errno::from_raw(errno).to_string()),
        Ok(status) => fail(format!("{status:?}")),
        Err(e) => fail(e.to_string()),
    }
}

/// Ends the stub of a unit, which stood in until the members were there. Where the main process has ended before systemd was told of it,
/// the stub still is what the unit stands and falls with, and ends as well or as badly.
pub fn end_stub(place: &Place, main: Option<BorrowedFd<'_>>) -> Result<(), Failure> {
    let Some((_, pidfd)) = &place.stub else { return Ok(()) };
    let signal = match main.filter(|main| has_ended(*main)).map(exit_status) {
        None => libc::SIGKILL,
        Some(Some(0)) => libc::SIGTERM,
        Some(_) => libc::SIGUSR1,
    };
    match pidfd_signal(pidfd.as_fd(), signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(e) => Err(Failure::not_restorable(format!("end the stub: {e}")).of_unit(&place.name)),
    }
}

/// Whether the process of a pidfd has ended.
fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    poll(&mut [PollFd::new(pidfd, PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(1)
}

/// How a process ended that PID 1 waits for now; `None` if the kernel does not tell.
fn exit_status(pidfd: BorrowedFd<'_>) -> Option<i32> {
    (0..200).find_map(|_| {
        pidfd_exit_status(pidfd).or_else(|| {
            std::thread::sleep(Duration::from_millis(5));
            None
        })
    })
}

/// NOTIFY_SOCKET in the environment that systemd gave the stub.
fn notify_socket(stub: i32, place: &Place) -> Result<Vec<u8>, Failure> {
    let path = format!("/proc/{stub}/environ");
    let environment = std::fs::read(&path)
        .map_err(|e| Failure::not_restorable(format!("read {path}: {e}")).of_unit(&place.name))?;
    find_variable(&environment, b"NOTIFY_SOCKET").map(<[u8]>::to_vec).ok_or_else(|| {
        Failure::not_restorable("systemd gave the stub no NOTIFY_SOCKET (Type=notify is needed)")
            .of_unit(&place.name)
    })
}

/// The value of a variable in /proc/PID/environ.
fn find_variable<'e>(environment: &'e [u8], name: &[u8]) -> Option<&'e [u8]> {
    environment.split(|b| *b == 0).find_map(|entry| entry.strip_prefix(name)?.strip_prefix(b"="))
}

/// Sends the message and waits for systemd to have read it.
fn send(address: &[u8], message: &str) -> Result<(), Errno> {
    let line = Line::to(address)?;
    line.say(message, &[])?;
    line.barrier()
}

/// The way to a service manager.
#[derive(Debug)]
pub struct Line {
    socket: OwnedFd,
    address: UnixAddr,
}

impl Line {
    /// To this NOTIFY_SOCKET.
    pub fn to(address: &[u8]) -> Result<Self, Errno> {
        let address = match address.strip_prefix(b"@") {
            Some(name) => UnixAddr::new_abstract(name)?,
            None => UnixAddr::new(std::ffi::OsStr::from_bytes(address))?,
        };
        let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        Ok(Self { socket, address })
    }

    /// That of this service; `None` where no systemd started it.
    pub fn own() -> Result<Option<Self>, Errno> {
        std::env::var_os("NOTIFY_SOCKET").map(|address| Self::to(address.as_bytes())).transpose()
    }

    /// Has a descriptor kept, under a name, beyond the end of this process.
    pub fn store(&self, name: &str, fd: RawFd) -> Result<(), Errno> {
        self.say(&format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0"), &[fd])
    }

    /// Says something, and gives descriptors with it.
    pub fn say(&self, text: &str, fds: &[RawFd]) -> Result<(), Errno> {
        let parts = [IoSlice::new(text.as_bytes())];
        let rights = [ControlMessage::ScmRights(fds)];
        let control = if fds.is_empty() { &rights[..0] } else { &rights[..] };
        let flags = MsgFlags::MSG_NOSIGNAL;
        sendmsg(self.socket.as_raw_fd(), &parts, control, flags, Some(&self.address)).map(drop)
    }

    /// Waits until it has dealt with all that was said.
    pub fn barrier(&self) -> Result<(), Errno> {
        let (ours, theirs) = nix::unistd::pipe()?;
        self.say("BARRIER=1", &[theirs.as_raw_fd()])?;
        drop(theirs);
        let mut wait = [PollFd::new(ours.as_fd(), PollFlags::empty())];
        match poll(&mut wait, PollTimeout::from(PATIENCE)) {
            Ok(0) => Err(Errno::ETIMEDOUT),
            Ok(_) => Ok(()),
            Err(e) => Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_is_found_by_its_whole_name() {
        let environment = b"XNOTIFY_SOCKET=a\0NOTIFY_SOCKET=/run/systemd/notify\0B=c\0";
        assert_eq!(find_variable(environment, b"NOTIFY_SOCKET"), Some(&b"/run/systemd/notify"[..]));
        assert_eq!(find_variable(environment, b"NOTIFY"), None);
    }
}
