//! memfd_create(2): the object is shared with mappings, the description has an offset and an access mode.

use std::os::fd::AsFd;

use ckpt_image::records::{DescriptionKind, DescriptionRecord, ObjectId, ObjectKind};
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
use nix::unistd::Whence;

use super::collect::{DescriptorCapture, Found};
use super::file;
use super::rebuild::Rebuild;
use super::{Error, Refusal};

pub(super) fn capture(cx: &mut DescriptorCapture<'_>, found: &Found) -> Result<DescriptionKind, Refusal> {
    let stat = &found.stat;
    // A memfd of ordinary pages tells large blocks too where huge pages are used for it by themselves.
    let is_huge =
        stat.st_blksize > 4096 && fstatfs(found.fd()).is_ok_and(|fs| fs.filesystem_type() == HUGETLBFS_MAGIC);
    let path_only = found.info.flags & libc::O_PATH as u32 != 0;
    let seals = if path_only { 0 } else { fcntl(found.fd(), FcntlArg::F_GET_SEALS).unwrap_or(0) };
    let (path, _) = file::path_of(&found.link);
    let kind = || ObjectKind::Memfd {
        name: path.strip_prefix(b"/memfd:").unwrap_or(path).to_vec(),
        seals: seals as u32,
        mode: stat.st_mode,
        owner: (stat.st_uid, stat.st_gid),
        hugetlb: if is_huge { stat.st_blksize as u64 } else { 0 },
    };
    let object = cx.objects.record((stat.st_dev, stat.st_ino), stat.st_size as u64, kind);
    if !path_only {
        let fd = found.fd.try_clone().map_err(|e| {
            Refusal::new("descriptor-unreadable", format!("dup failed: {e}"), "raise LimitNOFILE= of ckptd")
        })?;
        cx.objects.keep_descriptor(object, fd);
    }
    Ok(DescriptionKind::Memfd { object })
}

pub(super) fn create(
    cx: &mut Rebuild<'_>,
    record: &DescriptionRecord,
    object: ObjectId,
) -> Result<(), Error> {
    let base = cx.host.object(object).map_err(Error::Host)?;
    let first =
        record.flags as i32 & (libc::O_ACCMODE | libc::O_PATH) == libc::O_RDWR && cx.memfds.insert(object);
    let keep = libc::O_ACCMODE | libc::O_APPEND | libc::O_NONBLOCK | libc::O_PATH;
    let failed = |op| Error::call(op, cx.describe(record));
    let flags = record.flags as i32 & keep;
    // What memfd_create(2) gave is not counted as open for writing, so that it can be executed and sealed; what is opened anew is.
    let fd = match first {
        true => base,
        false => cx.files.reopen(base.as_fd(), flags).map_err(failed("open(/proc/self/fd)"))?,
    };
    if record.offset != 0 {
        nix::unistd::lseek(&fd, record.offset as i64, Whence::SeekSet).map_err(failed("lseek"))?;
    }
    cx.put(record.id, fd)
}
