//! What /proc tells of a whole descriptor table: its numbers, its sockets, its POSIX locks.

use std::collections::HashSet;
use std::os::fd::RawFd;
use std::sync::Arc;

use ckpt_image::records::FileLock;
use ckpt_sys::descriptor::fdinfo;
use nix::errno::Errno;
use nix::libc;

use super::Found;

/// The POSIX locks of a table that fdinfo tells at one of its descriptors, each once, with a descriptor that may set it.
pub(super) fn add_posix_locks(
    locks: &mut Vec<FileLock>,
    all: &[Arc<Found>],
    index: usize,
    info: &fdinfo::FdInfo,
) {
    let found = &all[index];
    for line in info.locks.iter().filter(|line| line.kind == fdinfo::LockKind::Posix) {
        let len = line.end.map_or(0, |end| end + 1 - line.start);
        let kind = if line.write { libc::F_WRLCK } else { libc::F_RDLCK };
        let known = locks.iter().any(|lock| {
            let other = &all[lock.description.index()];
            (other.stat.st_dev, other.ino()) == (found.stat.st_dev, found.ino())
                && (lock.start, lock.len) == (line.start, len)
        });
        let mode = found.flags() as i32 & libc::O_ACCMODE;
        let fits = mode == libc::O_RDWR || (mode == libc::O_WRONLY) == line.write;
        if !known && fits {
            locks.push(FileLock { description: found.id, kind, start: line.start, len });
        }
    }
}

/// The descriptors of a process, ascending.
pub(crate) fn numbers(pid: i32) -> Result<Vec<RawFd>, Errno> {
    let failed = |e: std::io::Error| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO));
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).map_err(failed)? {
        if let Some(number) = entry.map_err(failed)?.file_name().to_str().and_then(|s| s.parse().ok()) {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// These descriptors of a process with their texts of fdinfo, on any thread; without those that are closed by now.
pub(crate) fn texts_of(pid: i32, numbers: &[RawFd]) -> Result<Vec<(RawFd, String)>, Errno> {
    numbers.iter().filter_map(|fd| text_of(pid, *fd).transpose()).collect()
}

/// fdinfo of a descriptor; `None` if it is closed by now.
fn text_of(pid: i32, fd: RawFd) -> Result<Option<(RawFd, String)>, Errno> {
    match ckpt_sys::proc_file::read_text(format!("/proc/{pid}/fdinfo/{fd}")) {
        Ok(text) => Ok(Some((fd, text))),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(e) => Err(Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO))),
    }
}

/// Inode numbers of the sockets a process has; empty if it may not be looked at.
pub(super) fn sockets_of(pid: i32) -> HashSet<u64> {
    let Ok(fds) = numbers(pid) else { return HashSet::new() };
    let link = |fd| std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok();
    fds.into_iter()
        .filter_map(link)
        .filter_map(|link| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok())
        .collect()
}

pub(super) fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        // What fails here shows later as EMFILE, with the call that met it.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
