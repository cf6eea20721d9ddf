//! inotify(7). fdinfo names watched files by handle; the handle is opened below the mounts of the member that has the watch.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use ckpt_image::records::{DescriptionKind, DescriptionRecord, InotifyRecord, InotifyWatch};
use ckpt_sys::descriptor::{fdinfo::InotifyLine, make, socket};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, readlink};
use nix::libc;
use nix::sys::stat::{Mode, fstat};

use super::collect::{DescriptorCapture, Found};
use super::rebuild::Rebuild;
use super::{Error, Refusal};
use crate::storage::mounts::{self as mountinfo, Mount};

/// What inotify_add_watch(2) takes; the kernel keeps internal bits in the mask besides.
const SETTABLE: u32 = libc::IN_ALL_EVENTS | libc::IN_EXCL_UNLINK | libc::IN_ONESHOT;

pub(super) fn capture(cx: &mut DescriptorCapture<'_>, found: &Found) -> Result<DescriptionKind, Refusal> {
    let mounts = if found.info.inotify.is_empty() { Vec::new() } else { devices(found.place.pid) };
    let mut watches = Vec::with_capacity(found.info.inotify.len());
    for line in &found.info.inotify {
        let path = resolve(found.place.pid, &mounts, line);
        let path = path.or_else(|| search(found.place.pid, &mounts, line)).ok_or_else(|| {
            Refusal::new(
                "inotify-watch",
                format!("the file of watch {} cannot be found by its handle", line.wd),
                "remove the watch before the checkpoint",
            )
        })?;
        watches.push(InotifyWatch { wd: line.wd, path, mask: line.mask & SETTABLE });
    }
    watches.sort_by_key(|watch| watch.wd);
    if socket::readable(found.fd()).unwrap_or(0) > 0 {
        cx.warn(
            found,
            Refusal::new(
                "inotify-events",
                "events that were not read yet are lost at a restore",
                "let the application read them before the checkpoint",
            ),
        );
    }
    Ok(DescriptionKind::Inotify(InotifyRecord { watches }))
}

/// The file of a watch, as a path in the mount namespace of a process.
pub(super) fn find(pid: i32, line: &InotifyLine) -> Option<PathBuf> {
    let mounts = devices(pid);
    resolve(pid, &mounts, line).or_else(|| search(pid, &mounts, line))
}

/// The first mount point of a process of which this is so.
pub(super) fn mount_point(pid: i32, is_it: impl Fn(&(u64, u64, PathBuf)) -> bool) -> Option<PathBuf> {
    mounts(pid).into_iter().find(is_it).map(|(_, _, path)| path)
}

/// Mount points of a process: id, device in the kernel's form, path.
fn mounts(pid: i32) -> Vec<(u64, u64, PathBuf)> {
    points(mountinfo::of_process(pid))
}

fn devices(pid: i32) -> Vec<(u64, PathBuf)> {
    mounts(pid).into_iter().map(|(_, device, path)| (device, path)).collect()
}

fn points(mounts: Vec<Mount>) -> Vec<(u64, u64, PathBuf)> {
    mounts.into_iter().map(|mount| (mount.id, mount.device, mount.point)).collect()
}

/// Looks for a file by its number where the file system gives no handles, or none that can be opened (overlayfs): nearest to the mount point first, among so many
/// entries that it takes some tens of milliseconds at most.
fn search(pid: i32, mounts: &[(u64, PathBuf)], line: &InotifyLine) -> Option<PathBuf> {
    use std::os::unix::fs::MetadataExt;
    const MOST: usize = 20_000;
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    let inside = |path: &std::path::Path| root.join(path.strip_prefix("/").unwrap_or(path));
    let mut seen = 0;
    for (_, point) in mounts.iter().filter(|(dev, _)| *dev == line.sdev) {
        // Elsewhere a number may be that of several files: btrfs has one device for all its subvolumes.
        let kind = nix::sys::statfs::statfs(&inside(point)).map(|fs| fs.filesystem_type());
        if kind != Ok(nix::sys::statfs::OVERLAYFS_SUPER_MAGIC) {
            continue;
        }
        let Ok(top) = std::fs::symlink_metadata(inside(point)) else { continue };
        if top.ino() == line.ino {
            return Some(point.clone());
        }
        let mut queue = std::collections::VecDeque::from([point.clone()]);
        while let Some(directory) = queue.pop_front() {
            for entry in std::fs::read_dir(inside(&directory)).into_iter().flatten().flatten() {
                seen += 1;
                let Ok(meta) = entry.metadata() else { continue };
                if seen > MOST {
                    return None;
                }
                let path = directory.join(entry.file_name());
                if meta.ino() == line.ino {
                    return Some(path);
                }
                if meta.is_dir() && meta.dev() == top.dev() {
                    queue.push_back(path);
                }
            }
        }
    }
    None
}

fn resolve(pid: i32, mounts: &[(u64, PathBuf)], line: &InotifyLine) -> Option<PathBuf> {
    mounts.iter().filter(|(dev, _)| *dev == line.sdev).find_map(|(_, point)| {
        let mut path = std::ffi::OsString::from(format!("/proc/{pid}/root"));
        path.push(point);
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let mount = open(path.as_os_str(), flags, Mode::empty()).ok()?;
        let (kind, bytes) = &line.handle;
        let file = make::open_handle(mount.as_fd(), *kind, bytes).ok()?;
        if fstat(&file).ok()?.st_ino != line.ino {
            return None;
        }
        let path = readlink(format!("/proc/self/fd/{}", file.as_raw_fd()).as_str()).ok()?;
        let path = PathBuf::from(path);
        (path.is_absolute() && !path.as_os_str().as_bytes().ends_with(b" (deleted)")).then_some(path)
    })
}

pub(super) fn create(
    cx: &mut Rebuild<'_>,
    record: &DescriptionRecord,
    inotify: &InotifyRecord,
) -> Result<(), Error> {
    let failed = |op| Error::call(op, cx.describe(record));
    let fd = make::inotify().map_err(failed("inotify_init1"))?;
    let mut next = 1;
    for watch in &inotify.watches {
        let name = CString::new(watch.path.as_os_str().as_bytes())
            .map_err(|_| Error::Dangling(format!("path {}", watch.path.display())))?;
        // Numbers are handed out in ascending order: those between are used up.
        while next < watch.wd {
            let wd = make::inotify_add(fd.as_fd(), c"/", libc::IN_MOVE_SELF)
                .map_err(failed("inotify_add_watch"))?;
            make::inotify_remove(fd.as_fd(), wd).map_err(failed("inotify_rm_watch"))?;
            next = wd + 1;
        }
        let wd = make::inotify_add(fd.as_fd(), &name, watch.mask)
            .map_err(Error::call("inotify_add_watch", watch.path.display()))?;
        if wd != watch.wd {
            return Err(Error::FileMismatch {
                path: watch.path.display().to_string(),
                why: format!("watched as {wd} and not as {}", watch.wd),
            });
        }
        next = wd + 1;
    }
    drain(fd.as_fd()).map_err(failed("read"))?;
    cx.put(record.id, fd)
}

/// Takes what waits to be read: removing a watch leaves an IN_IGNORED event, for example. Never waits, whatever the descriptor's flags.
pub(super) fn drain(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut buffer = [0; 4096];
    while socket::readable(fd)? > 0 {
        nix::unistd::read(fd, &mut buffer)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_with_their_device() {
        let text = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw\n37 35 0:42 / /srv/a\\040b rw - btrfs x rw\n";
        assert_eq!(
            points(mountinfo::parse(text)),
            vec![(36, 98 << 20, PathBuf::from("/mnt2")), (37, 42, PathBuf::from("/srv/a b"))]
        );
    }
}
