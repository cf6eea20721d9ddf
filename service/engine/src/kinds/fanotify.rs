//! fanotify(7). fdinfo names marked files by handle, as those of inotify, mounts by number and file systems by device.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use ckpt_image::records::{DescriptionKind, DescriptionRecord, FanotifyMark, FanotifyRecord};
use ckpt_sys::descriptor::fdinfo::{FanotifyLine, InotifyLine, Marked};
use ckpt_sys::descriptor::{make, socket};
use nix::libc;

use super::collect::{DescriptorCapture, Found};
use super::rebuild::Rebuild;
use super::{Error, Refusal, inotify};

/// Classes whose events wait for an answer.
const PERMISSION: u32 = libc::FAN_CLASS_CONTENT | libc::FAN_CLASS_PRE_CONTENT;
/// What fanotify_mark(2) is told of a mark besides what it is of.
const SETTABLE: u32 = libc::FAN_MARK_IGNORED_SURV_MODIFY | libc::FAN_MARK_EVICTABLE | libc::FAN_MARK_IGNORE;

fn refusal(text: impl Into<String>) -> Refusal {
    Refusal::new("fanotify", text, "stop watching before the checkpoint")
}

pub(super) fn capture(cx: &mut DescriptorCapture<'_>, found: &Found) -> Result<DescriptionKind, Refusal> {
    let Some((flags, event_flags)) = found.info.fanotify else {
        return Err(refusal("the kernel does not tell its flags"));
    };
    if flags & PERMISSION != 0 {
        return Err(refusal("its events wait for an answer, which others wait for"));
    }
    let marks = found.info.fanotify_marks.iter().map(|line| mark(found, line)).collect::<Result<_, _>>()?;
    if socket::readable(found.fd()).unwrap_or(0) > 0 {
        let text = "events that were not read yet are lost at a restore";
        let remedy = "let the application read them before the checkpoint";
        cx.warn(found, Refusal::new("fanotify-events", text, remedy));
    }
    Ok(DescriptionKind::Fanotify(FanotifyRecord { flags, event_flags, marks }))
}

fn mark(found: &Found, line: &FanotifyLine) -> Result<FanotifyMark, Refusal> {
    let pid = found.place.pid;
    let (kind, path): (u32, Option<PathBuf>) = match &line.marked {
        Marked::Inode { ino, sdev, handle } => {
            let line = InotifyLine { wd: 0, ino: *ino, sdev: *sdev, mask: 0, handle: handle.clone() };
            (libc::FAN_MARK_INODE, inotify::find(pid, &line))
        }
        Marked::Mount { id } => (libc::FAN_MARK_MOUNT, inotify::mount_point(pid, |mount| mount.0 == *id)),
        Marked::FileSystem { sdev } => {
            (libc::FAN_MARK_FILESYSTEM, inotify::mount_point(pid, |mount| mount.1 == *sdev))
        }
        Marked::Other => (0, None),
    };
    let path = path.ok_or_else(|| refusal("what one of its marks is of cannot be found"))?;
    Ok(FanotifyMark { kind, path, flags: line.flags, mask: line.mask, ignored: line.ignored })
}

pub(super) fn create(
    cx: &mut Rebuild<'_>,
    record: &DescriptionRecord,
    fanotify: &FanotifyRecord,
) -> Result<(), Error> {
    let fd = make::fanotify(fanotify.flags, fanotify.event_flags)
        .map_err(Error::call("fanotify_init", cx.describe(record)))?;
    for mark in &fanotify.marks {
        let path = CString::new(mark.path.as_os_str().as_bytes())
            .map_err(|_| Error::Dangling(format!("path {}", mark.path.display())))?;
        let failed = || Error::call("fanotify_mark", mark.path.display());
        let how = mark.kind | libc::FAN_MARK_ADD;
        let kept = mark.flags & SETTABLE;
        if mark.mask != 0 {
            let flags = how | (kept & libc::FAN_MARK_EVICTABLE);
            make::fanotify_mark(&fd, flags, mark.mask, &path).map_err(failed())?;
        }
        if mark.ignored != 0 {
            let ignore = if kept & libc::FAN_MARK_IGNORE != 0 { 0 } else { libc::FAN_MARK_IGNORED_MASK };
            make::fanotify_mark(&fd, how | kept | ignore, mark.ignored, &path).map_err(failed())?;
        }
    }
    cx.put(record.id, fd)
}
