//! What concerns the host that the daemon needs and only `sys` can tell.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use crate::error::Error;

/// A descriptor of the process (pidfd_open(2), Linux 5.3). Errors: it is gone.
pub fn pidfd(pid: i32) -> Result<OwnedFd, Error> {
    ckpt_sys::descriptor::open_process(pid).map_err(|e| Error::Failed(format!("pid {pid}: {e}")))
}

/// Kills every process of a cgroup and below, frozen or not. Errors: it is gone, or the kernel cannot (Linux 5.14).
pub fn kill_cgroup(directory: PathBuf) -> Result<(), Error> {
    ckpt_sys::cgroup::kill(directory).map_err(|e| Error::Failed(crate::error::with_sources(&e)))
}

/// Where cgroup2 is mounted.
pub fn cgroup_mount() -> Result<PathBuf, Error> {
    ckpt_sys::cgroup::mount_point().map_err(|e| Error::Failed(e.to_string()))
}

/// Whether the kernel tells of sockets (sock_diag(7)): without, those with connections cannot be captured.
#[must_use]
pub fn tells_of_sockets() -> bool {
    use ckpt_sys::descriptor::{diag::UnixDiag, tcp_diag::TcpDiag};
    TcpDiag::open().is_ok() && UnixDiag::open().and_then(|unix| unix.all()).is_ok()
}

/// What systemd kept for this service across its restart, by name (sd_listen_fds_with_names(3)). To be called once, before anything is
/// opened; nothing, where it cannot be taken.
#[must_use]
pub fn passed() -> Vec<(String, OwnedFd)> {
    const FIRST: i32 = 3;
    ckpt_sys::passed::take(FIRST).unwrap_or_default()
}

/// Has the kernel make the table of this process's descriptors large enough for so many. Where several threads have it, the kernel waits for
/// a grace period of RCU whenever it makes it larger (Linux 6.18: 10 ms), which must not be in a freeze window. To be called while there is
/// one thread. Fails in silence: it is only slower then.
pub fn make_room_for_descriptors(count: i32) {
    let null = std::fs::File::open("/dev/null");
    let _ = null.map(|null| ckpt_sys::descriptor::duplicate_above(null.as_fd(), count - 1));
}
