//! Writing a sysctl where /proc/sys may be read-only (containers, ProtectKernelTunables=): through an instance of proc(5) of our own.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use crate::error::{Error, Result};

const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const CLOEXEC: libc::c_uint = 1;

/// Writes a value; `name` is the path below /proc/sys. Of the namespaces that a sysctl belongs to, those of this process count.
///
/// Errors: those of the mount point's file; where that is read-only, those of fsopen(2) and fsmount(2) (Linux 5.2) for CAP_SYS_ADMIN.
pub fn write(name: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/{name}");
    match std::fs::write(&path, value) {
        Err(e) if e.raw_os_error() == Some(libc::EROFS) => {}
        other => return other.map_err(|e| Error::io("write", &path, &e)),
    }
    let fail = |op, source| Error::path(op, &path, source);
    let proc = mount_proc().map_err(|e| fail("mount proc for", e))?;
    let relative = format!("sys/{name}");
    let fd = openat(&proc, relative.as_str(), OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty());
    let mut file = File::from(fd.map_err(|e| fail("open", e))?);
    file.write_all(value.as_bytes()).map_err(|e| Error::io("write", &path, &e))
}

/// An instance of proc(5), mounted nowhere; it goes with the descriptor.
fn mount_proc() -> std::result::Result<OwnedFd, Errno> {
    // SAFETY: the strings are terminated and outlive the calls; each result is a new descriptor that nobody else has.
    unsafe {
        let context = Errno::result(libc::syscall(libc::SYS_fsopen, c"proc".as_ptr(), CLOEXEC))?;
        let context = OwnedFd::from_raw_fd(context as i32);
        let none = std::ptr::null::<u8>();
        let fd = context.as_raw_fd();
        Errno::result(libc::syscall(libc::SYS_fsconfig, fd, FSCONFIG_CMD_CREATE, none, none, 0))?;
        let mount = Errno::result(libc::syscall(libc::SYS_fsmount, fd, CLOEXEC, 0))?;
        Ok(OwnedFd::from_raw_fd(mount as i32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_of_proc_shows_this_process() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: only root may mount");
            return;
        }
        let proc = mount_proc().unwrap();
        assert!(openat(&proc, "self/stat", OFlag::O_RDONLY, Mode::empty()).is_ok());
    }
}
