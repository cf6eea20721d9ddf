//! Files by their path: regular files, directories, devices that hold no state, anything opened with O_PATH.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ckpt_image::records::{DescriptionKind, DescriptionRecord, FileId, FileLock, FileSource};
use ckpt_sys::btrfs;
use ckpt_sys::descriptor::fdinfo::{self, LockKind};
use ckpt_sys::descriptor::make;
use ckpt_sys::posix_queues;
use nix::errno::Errno;
use nix::libc;
use nix::sys::stat::{FileStat, fstat};
use nix::sys::statfs::fstatfs;
use nix::unistd::Whence;

use super::collect::{Depth, DescriptorCapture, Found};
use super::rebuild::Rebuild;
use super::{Error, Refusal, message_queue, terminal, unix_name};
use crate::capture::Identities;
use crate::capture::files::Seen;

/// Character devices whose descriptions hold no state: major, minor.
const STATELESS_DEVICES: [(u64, u64); 5] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9)]; // null zero full random urandom
const KMSG: (u64, u64) = (1, 11);

pub(super) fn capture(cx: &mut DescriptorCapture<'_>, found: &Found) -> Result<DescriptionKind, Refusal> {
    let (path, deleted) = name_of(found);
    let path = path.as_path();
    refuse_trigger(found, path)?;
    if let Some(kind) = proc_file(cx, found, path, deleted)? {
        return Ok(kind);
    }
    if is_message_queue(found) {
        return message_queue::capture(cx, found);
    }
    let path_only = found.info.flags & libc::O_PATH as u32 != 0;
    if !path_only {
        let rdev = (libc::major(found.stat.st_rdev).into(), libc::minor(found.stat.st_rdev).into());
        if found.stat.st_mode & libc::S_IFMT == libc::S_IFCHR && terminal::is_terminal(rdev) {
            return terminal::capture(cx, found, rdev);
        }
        refuse_type(found)?;
    }
    if !deleted {
        refuse_unreachable(found, path)?;
    }
    let file = record(cx, found, path, deleted)?;
    if !path_only {
        warn_unpaired(cx, found, file);
    }
    let mut flock = None;
    let mut ofd_locks = Vec::new();
    let mut lease = None;
    for line in &found.info.locks {
        let kind = if line.write { libc::F_WRLCK } else { libc::F_RDLCK };
        match line.kind {
            LockKind::Flock => flock = Some(kind),
            LockKind::Ofd => {
                let len = line.end.map_or(0, |end| end + 1 - line.start);
                ofd_locks.push(FileLock { description: found.id, kind, start: line.start, len });
            }
            LockKind::Lease if lease_breaks(found, line) => {
                let text = "its lease is being broken by somebody who opens the file";
                return Err(Refusal::new("file-lease", text, "try again when the lease is given back"));
            }
            LockKind::Lease => lease = Some(kind),
            LockKind::Delegation => {
                let text = "another program (a file server) holds a delegation of it";
                cx.warn(found, Refusal::new("file-lease", text, "nothing: the other program notices"));
            }
            LockKind::Posix => {}
        }
    }
    Ok(DescriptionKind::File { file, flock, ofd_locks, lease })
}

/// A trigger of pressure stall information belongs to the description that it was written to, and nobody can read it.
fn refuse_trigger(found: &Found, path: &Path) -> Result<(), Refusal> {
    let may_have_one = found.info.flags as i32 & libc::O_ACCMODE != libc::O_RDONLY && tells_pressure(path);
    match may_have_one {
        true => Err(Refusal::new(
            "pressure-trigger",
            "it is open for writing, so it may have a trigger, which the kernel does not tell",
            "close it before the checkpoint, or start the service with MEMORY_PRESSURE_WATCH=/dev/null",
        )),
        false => Ok(()),
    }
}

/// Whether a file tells of stalls: of the machine, or of a cgroup (Documentation/accounting/psi.rst of the kernel).
fn tells_pressure(path: &Path) -> bool {
    let of_cgroup =
        path.starts_with("/sys/fs/cgroup") && path.extension().is_some_and(|end| end == "pressure");
    path.starts_with("/proc/pressure") || of_cgroup
}

/// Whether a lease is not what its holder was given any more (fcntl(2), F_GETLEASE tells what it is to become).
fn lease_breaks(found: &Found, line: &fdinfo::LockLine) -> bool {
    let wanted = if line.write { libc::F_WRLCK } else { libc::F_RDLCK };
    line.breaking || make::lease(found.fd()).is_ok_and(|now| now != wanted)
}

/// The path of a description, and whether it has lost it. A name may end in ` (deleted)` by itself, and a file may have another name than
/// that by which it was opened.
fn name_of(found: &Found) -> (PathBuf, bool) {
    let as_path = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
    let (path, deleted) = path_of(&found.link);
    if !deleted || found.in_flight || found.stat.st_nlink == 0 {
        return (as_path(path), deleted);
    }
    let is_it = |path: &Path| {
        unix_name::lookup(found.place.pid, path)
            .is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (found.stat.st_dev, found.stat.st_ino))
    };
    let literal = as_path(&found.link);
    if is_it(&literal) {
        return (literal, false);
    }
    match other_names(found, &as_path(path)).into_iter().find(|path| is_it(path)) {
        Some(other) => (other, false),
        None => (as_path(path), true),
    }
}

/// The names that btrfs knows of a file, `former` being one that it had.
fn other_names(found: &Found, former: &Path) -> Vec<PathBuf> {
    let is_root = |path: &&Path| {
        unix_name::lookup(found.place.pid, path)
            .is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (found.stat.st_dev, btrfs::SUBVOLUME_INODE))
    };
    let Some(root) = former.ancestors().skip(1).find(is_root) else { return Vec::new() };
    let inside = Path::new("/proc").join(found.place.pid.to_string()).join("root");
    let Ok(directory) = std::fs::File::open(inside.join(root.strip_prefix("/").unwrap_or(root))) else {
        return Vec::new();
    };
    let names = btrfs::names_of(directory.as_fd(), found.ino()).unwrap_or_default();
    names.into_iter().map(|name| root.join(name)).collect()
}

/// The link's path and whether it says ` (deleted)`.
pub(super) fn path_of(link: &[u8]) -> (&[u8], bool) {
    match link.strip_suffix(b" (deleted)") {
        Some(path) => (path, true),
        None => (link, false),
    }
}

/// The record of the file under a description, with its content kept where that goes into the image.
pub(super) fn record(
    cx: &mut DescriptorCapture<'_>,
    found: &Found,
    path: &Path,
    deleted: bool,
) -> Result<FileId, Refusal> {
    if deleted && found.stat.st_nlink > 0 && found.stat.st_mode & libc::S_IFMT == libc::S_IFREG {
        cx.warn(
            found,
            Refusal::new(
                "hard-link",
                "it has another name that is not known: at a restore it is a file of its own",
                "do not remove names of files that are open under another",
            ),
        );
    }
    let seen = Seen { unit: found.unit, path, stat: &found.stat, deleted, immutable: false };
    let file = cx.files.record(&seen);
    let regular = found.stat.st_mode & libc::S_IFMT == libc::S_IFREG;
    if regular && cx.depth == Depth::Contents && cx.files.needs_content(file) {
        if found.info.flags & libc::O_PATH as u32 != 0 {
            return Err(Refusal::new(
                "unlinked-path",
                "its file has no name any more and it was opened with O_PATH",
                "close it",
            ));
        }
        cx.files.keep_content(file, found.fd()).map_err(Refusal::call("open(/proc/self/fd)"))?;
    }
    Ok(file)
}

/// /proc/PID/… of a member is there only when the member is; of a process that has ended it is nothing. Its path has the ids of the PID
/// namespace that its /proc is of.
fn proc_file(
    cx: &DescriptorCapture<'_>,
    found: &Found,
    path: &Path,
    deleted: bool,
) -> Result<Option<DescriptionKind>, Refusal> {
    let Ok(rest) = path.strip_prefix("/proc") else { return Ok(None) };
    let first = rest.components().next().and_then(|c| c.as_os_str().to_str());
    let Some(pid) = first.and_then(|name| name.parse::<i32>().ok()) else { return Ok(None) };
    let ids = cx.identities();
    let is_ours = std::fs::metadata("/proc").is_ok_and(|proc| proc.dev() == found.stat.st_dev);
    let (member, path) = match is_ours {
        true => (ids.member(pid), inside(rest, ids)),
        false => (ids.member_inside(pid), path.to_owned()),
    };
    if let Some(pid) = member.filter(|_| !deleted) {
        return Ok(Some(DescriptionKind::ProcFile { pid, path }));
    }
    // Its files are there whenever the machine runs.
    if pid == 1 {
        return Ok(None);
    }
    let text = format!("it tells of process {pid}, which is not of the group");
    Err(Refusal::new("proc-file", text, "close it"))
}

/// A path below /proc, with our ids, as members see it: the numbers of processes (PID/…) and threads (PID/task/TID/…).
fn inside(rest: &Path, ids: &Identities) -> PathBuf {
    let mut path = PathBuf::from("/proc");
    for (place, part) in rest.iter().enumerate() {
        match part.to_str().and_then(|text| text.parse().ok()) {
            Some(id) if place == 0 || place == 2 => path.push(ids.known(id).to_string()),
            _ => path.push(part),
        }
    }
    path
}

/// A namespace (namespaces(7)) that a member is in: opened again from that member's /proc.
pub(super) fn namespace(
    cx: &DescriptorCapture<'_>,
    found: &Found,
    name: &str,
) -> Result<DescriptionKind, Refusal> {
    let path = |pid: i32| PathBuf::from(format!("/proc/{pid}/ns/{name}"));
    let is_it = |pid: &i32| {
        nix::sys::stat::stat(&path(*pid))
            .is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (found.stat.st_dev, found.stat.st_ino))
    };
    let ids = cx.identities();
    let holder = Some(found.place.pid).filter(is_it).and_then(|pid| ids.member(pid));
    let other = || ids.members().find(is_it).and_then(|pid| ids.member(pid));
    match holder.or_else(other) {
        Some(pid) => Ok(DescriptionKind::ProcFile { pid, path: path(pid.0) }),
        None => {
            let text = format!("it is a {name} namespace that no process of the group is in");
            Err(Refusal::new("namespace-descriptor", text, "close it before the checkpoint"))
        }
    }
}

/// A file whose path leads nowhere could not be opened again: its file system was unmounted, or is of another mount namespace.
fn refuse_unreachable(found: &Found, path: &Path) -> Result<(), Refusal> {
    let pid = found.place.pid;
    let root = std::fs::read_link(format!("/proc/{pid}/root"));
    let changed_root = root.is_ok_and(|root| root != Path::new("/"));
    if found.in_flight || changed_root || path.starts_with("/proc") {
        return Ok(());
    }
    let there = match unix_name::lookup(pid, path) {
        Ok(stat) => is_same(found, &stat),
        Err(e) => !matches!(e, Errno::ENOENT | Errno::ENOTDIR),
    };
    // It may have been renamed or removed since its path was read, if the group is running.
    let now = std::fs::read_link(format!("/proc/{pid}/fd/{}", found.place.fd));
    if there || now.is_ok_and(|now| now != path) || fstat(found.fd()).is_ok_and(|stat| stat.st_nlink == 0) {
        return Ok(());
    }
    let text = "its path leads nowhere, or to another file, in the file systems of its process";
    Err(Refusal::new("path-unreachable", text, "close it, or keep its file system mounted"))
}

/// Whether what lies at a path is the file of a description. Devices are made anew in sandboxes, and some file systems number as they please.
fn is_same(found: &Found, there: &FileStat) -> bool {
    const OVERLAY: i64 = 0x794c_7630;
    const FUSE: i64 = 0x6573_5546;
    let type_of = found.stat.st_mode & libc::S_IFMT;
    let numbers = (there.st_dev, there.st_ino) == (found.stat.st_dev, found.stat.st_ino);
    let stable = || fstatfs(found.fd()).is_ok_and(|fs| ![OVERLAY, FUSE].contains(&fs.filesystem_type().0));
    numbers || !matches!(type_of, libc::S_IFREG | libc::S_IFDIR) || !stable()
}

fn is_message_queue(found: &Found) -> bool {
    let regular = found.stat.st_mode & libc::S_IFMT == libc::S_IFREG;
    // Those of mqueue are 80 bytes long, and fstatfs(2) of every file would be a call more.
    let size = found.stat.st_size == 80;
    regular && size && fstatfs(found.fd()).is_ok_and(|fs| fs.filesystem_type().0 == posix_queues::FILE_SYSTEM)
}

/// File systems whose files are objects of another kind.
fn refuse_file_system(found: &Found) -> Result<(), Refusal> {
    const SECRET_MEMORY: i64 = 0x5345_434d;
    let kind = fstatfs(found.fd()).map(|fs| fs.filesystem_type().0);
    match kind {
        Ok(SECRET_MEMORY) => Err(Refusal::new(
            "secret-memory",
            "memory of memfd_secret(2) cannot be read, and so not be captured",
            "configure the application not to use it",
        )),
        _ => Ok(()),
    }
}

fn refuse_type(found: &Found) -> Result<(), Refusal> {
    let rdev = (libc::major(found.stat.st_rdev).into(), libc::minor(found.stat.st_rdev).into());
    match found.stat.st_mode & libc::S_IFMT {
        libc::S_IFREG => refuse_file_system(found),
        libc::S_IFDIR => Ok(()),
        libc::S_IFCHR if STATELESS_DEVICES.contains(&rdev) => Ok(()),
        libc::S_IFCHR if rdev == KMSG && found.flags() as i32 & libc::O_ACCMODE == libc::O_WRONLY => Ok(()),
        libc::S_IFCHR => Err(Refusal::new(
            "device",
            format!("the state of device {}:{} is not known", rdev.0, rdev.1),
            "close it before the checkpoint",
        )),
        libc::S_IFBLK => Err(Refusal::new(
            "block-device",
            "what is on a block device is not of the checkpoint",
            "use a file in a subvolume of the group",
        )),
        other => Err(Refusal::new("file-type", format!("file type {other:o} is not known"), "close it")),
    }
}

fn warn_unpaired(cx: &mut DescriptorCapture<'_>, found: &Found, file: FileId) {
    let record = cx.files.get(file);
    let writes = found.flags() as i32 & libc::O_ACCMODE != libc::O_RDONLY;
    let real = !["/proc", "/sys", "/dev"].iter().any(|root| record.path.starts_with(root));
    let regular = record.mode & libc::S_IFMT == libc::S_IFREG;
    if writes && real && regular && matches!(record.source, FileSource::Path { .. }) {
        cx.warn(
            found,
            Refusal::new(
                "unpaired-file",
                "it is open for writing and in no subvolume of the group: its content stays as it is at the restore",
                "move it into a subvolume of the group",
            ),
        );
    }
}

pub(super) fn create(cx: &mut Rebuild<'_>, record: &DescriptionRecord, file: FileId) -> Result<(), Error> {
    let flags = record.flags as i32;
    let fd = cx.open_file(file, flags)?;
    if record.offset != 0 && flags & libc::O_PATH == 0 {
        nix::unistd::lseek(&fd, record.offset as i64, Whence::SeekSet)
            .map_err(Error::call("lseek", cx.describe(record)))?;
    }
    cx.put(record.id, fd)
}

/// flock(2) and OFD locks belong to the description, so any process can set them.
pub(super) fn finish(
    cx: &Rebuild<'_>,
    record: &DescriptionRecord,
    flock: Option<i32>,
    ofd_locks: &[FileLock],
) -> Result<(), Error> {
    let fd = cx.get(record.id)?;
    if let Some(kind) = flock {
        let operation = if kind == libc::F_WRLCK { libc::LOCK_EX } else { libc::LOCK_SH };
        make::flock(fd, operation).map_err(Error::call("flock", cx.describe(record)))?;
    }
    for lock in ofd_locks {
        make::ofd_lock(fd, lock.kind, lock.start, lock.len)
            .map_err(Error::call("fcntl(F_OFD_SETLK)", cx.describe(record)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_pressure_are_known() {
        for there in ["/proc/pressure/memory", "/sys/fs/cgroup/system.slice/a.service/memory.pressure"] {
            assert!(tells_pressure(Path::new(there)), "{there}");
        }
        for other in ["/proc/meminfo", "/sys/fs/cgroup/memory.stat", "/srv/tyre.pressure"] {
            assert!(!tells_pressure(Path::new(other)), "{other}");
        }
    }
}
