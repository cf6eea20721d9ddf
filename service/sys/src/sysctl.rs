//! Kernel settings below /proc/sys (sysctl(8)).

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use crate::error::{Error, Result, Subject};

/// Writes a setting, by its path below /proc/sys; those of a namespace are the caller's own.
///
/// Where /proc/sys is mounted read-only (ProtectKernelTunables=, a machine in namespaces) it is reached through a proc file
/// system of our own that is mounted nowhere (fsopen(2), Linux 5.2).
pub fn write_sysctl(name: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/{name}");
    match std::fs::write(&path, value) {
        Err(e) if e.raw_os_error() == Some(libc::EROFS) => {}
        done => return done.map_err(|e| Error::io("write", path, &e)),
    }
    let proc = detached_proc()?;
    let file =
        openat(&proc, format!("sys/{name}").as_str(), OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|e| Error::path("open", &path, e))?;
    File::from(file).write_all(value.as_bytes()).map_err(|e| Error::io("write", path, &e))
}

/// Says which id the next process or thread of the PID namespace that the caller lives in is to get: the next after `last` that is free, unless
/// somebody else makes one before (/proc/sys/kernel/ns_last_pid, Linux 3.3).
#[derive(Debug)]
pub struct LastPid(File);

impl LastPid {
    /// Opens the file; whoever writes to it later, it is about the writer's own PID namespace.
    pub fn open() -> Result<Self> {
        const NAME: &str = "sys/kernel/ns_last_pid";
        let path = format!("/proc/{NAME}");
        let file = match File::options().write(true).open(&path) {
            Err(e) if e.raw_os_error() == Some(libc::EROFS) => {
                let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
                let file = openat(&detached_proc()?, NAME, flags, Mode::empty());
                File::from(file.map_err(|e| Error::path("open", &path, e))?)
            }
            file => file.map_err(|e| Error::io("open", &path, &e))?,
        };
        Ok(Self(file))
    }

    /// Sets it. Errors: EPERM without CAP_CHECKPOINT_RESTORE.
    pub fn set(&self, last: i32) -> Result<()> {
        let written = nix::sys::uio::pwrite(&self.0, last.to_string().as_bytes(), 0);
        written.map(drop).map_err(|e| Error::path("write", "/proc/sys/kernel/ns_last_pid", e))
    }
}

/// A proc file system of the caller's PID namespace that is mounted nowhere.
fn detached_proc() -> Result<OwnedFd> {
    const CLOEXEC: libc::c_uint = 1;
    const CMD_CREATE: libc::c_uint = 6;
    let none = std::ptr::null::<libc::c_char>();
    // SAFETY: the name is a constant string with its zero.
    let context =
        descriptor("fsopen", unsafe { libc::syscall(libc::SYS_fsopen, c"proc".as_ptr(), CLOEXEC) })?;
    // SAFETY: this command takes neither key nor value.
    let made = unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), CMD_CREATE, none, none, 0) };
    Errno::result(made).map_err(|source| fail("fsconfig", source))?;
    // SAFETY: numbers only.
    descriptor("fsmount", unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), CLOEXEC, 0) })
}

/// The descriptor that a call gave.
fn descriptor(op: &'static str, ret: libc::c_long) -> Result<OwnedFd> {
    let fd = Errno::result(ret).map_err(|source| fail(op, source))?;
    // SAFETY: the kernel has just made it for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

fn fail(op: &'static str, source: Errno) -> Error {
    Error::Kernel { op, subject: Subject::Here, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_proc_of_our_own_shows_the_same_settings() {
        let proc = detached_proc().unwrap();
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let file = openat(&proc, "sys/kernel/osrelease", flags, Mode::empty()).unwrap();
        let mut release = String::new();
        File::from(file).read_to_string(&mut release).unwrap();
        assert_eq!(release, std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap());
    }
}
