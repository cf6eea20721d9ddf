//! Descriptors that systemd kept for this service across its restart, and passed to it (sd_listen_fds(3)), put where they are wanted.
//!
//! ```text
//!  LISTEN_PID=ours LISTEN_FDS=3 LISTEN_FDNAMES=a:b:c     3 a   4 b   5 c     ► out of the way ► each at the number that it shall have
//! ```

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::unistd::Pid;

use crate::error::{Error, Result};

/// The number of the first one.
const FIRST: RawFd = 3;

/// What was passed to this process, with the names, each at a number from `least` on; what is below is free again. Call it once, before
/// anything is opened. EMFILE.
pub fn take(least: RawFd) -> Result<Vec<(String, OwnedFd)>> {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let count = count(&variable("LISTEN_PID"), &variable("LISTEN_FDS"));
    let names = variable("LISTEN_FDNAMES");
    let mut names = names.split(':');
    let mut taken = Vec::new();
    for number in FIRST..FIRST.saturating_add(count) {
        // SAFETY: systemd opened it for us, and nobody else here knows of it.
        let passed = unsafe { OwnedFd::from_raw_fd(number) };
        taken.push((names.next().unwrap_or("").to_owned(), from(&passed, least)?));
    }
    Ok(taken)
}

/// How many there are; none if they are meant for another process.
fn count(pid: &str, number: &str) -> RawFd {
    match pid.parse() == Ok(std::process::id()) {
        true => number.parse().unwrap_or(0).max(0),
        false => 0,
    }
}

/// A copy with a number from `least` on.
fn from(fd: &impl AsFd, least: RawFd) -> Result<OwnedFd> {
    // SAFETY: no pointers; the result is a new descriptor that nobody else has.
    unsafe {
        let fd = libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_DUPFD_CLOEXEC, least);
        let fd = Errno::result(fd).map_err(|e| Error::task("F_DUPFD_CLOEXEC", Pid::this(), e))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Gives it this number. EBUSY if that is another's; EBADF past the limit.
pub fn place(fd: OwnedFd, number: RawFd) -> Result<OwnedFd> {
    let placed = from(&fd, number)?;
    match placed.as_raw_fd() == number {
        true => Ok(placed),
        false => Err(Error::task("F_DUPFD_CLOEXEC", Pid::this(), Errno::EBUSY)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_meant_for_others_is_not_taken() {
        assert_eq!(count("1", "5"), 0);
        assert_eq!(count("", ""), 0);
        assert_eq!(count(&std::process::id().to_string(), "5"), 5);
        assert_eq!(count(&std::process::id().to_string(), "-5"), 0);
    }

    #[test]
    fn a_descriptor_gets_the_number_that_is_asked_for() {
        let file: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        let placed = place(file.try_clone().unwrap(), 700).unwrap();
        assert_eq!(placed.as_raw_fd(), 700);
        assert!(place(file, 700).is_err());
    }
}
