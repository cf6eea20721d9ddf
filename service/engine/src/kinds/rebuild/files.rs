//! Opening files of the image: by path, or made anew from their content.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use ckpt_image::records::{FileId, FileRecord, FileSource, GroupImage};
use ckpt_sys::descriptor::{self, OwnDescriptors};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::libc;
use nix::sys::stat::{FileStat, Mode, fchmod, fstat, futimens};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, ftruncate};

use super::Host;
use crate::kinds::Error;
use crate::{Problem, Severity};

const PATH_FLAGS: i32 = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;

/// Files of an image, opened as often as wanted. Those whose content is in the image are made once.
#[derive(Debug)]
pub struct OpenFiles {
    floor: RawFd,
    own: OwnDescriptors,
    made: HashMap<FileId, OwnedFd>,
    pub(super) warnings: Vec<Problem>,
}

impl OpenFiles {
    pub(super) fn new(floor: RawFd) -> Result<Self, Error> {
        let own = OwnDescriptors::open(floor).map_err(Error::call("open", "/proc/self/fd"))?;
        Ok(Self { floor, own, made: HashMap::new(), warnings: Vec::new() })
    }

    /// A new description of what is under one of our descriptors, in whatever namespaces we are.
    pub(in crate::kinds) fn reopen(&self, fd: BorrowedFd<'_>, flags: i32) -> Result<OwnedFd, Errno> {
        self.own.reopen(fd, flags)
    }

    /// Opens a file for a mapping, as a working directory or an executable, entering its unit's namespaces. `flags` are those of open(2). The
    /// number is not below the floor. Errors: [`Error::FileMismatch`] where it is not what it was.
    pub fn open(
        &mut self,
        image: &GroupImage,
        host: &mut dyn Host,
        file: FileId,
        flags: i32,
    ) -> Result<OwnedFd, Error> {
        let record = find(image, file)?;
        host.enter(record.unit).map_err(Error::Host)?;
        let fd = self.open_here(image, host, file, flags)?;
        descriptor::duplicate_above(fd.as_fd(), self.floor).map_err(Error::call("dup", record.path.display()))
    }

    /// The same, in its unit's namespaces.
    pub(super) fn open_here(
        &mut self,
        image: &GroupImage,
        host: &mut dyn Host,
        file: FileId,
        flags: i32,
    ) -> Result<OwnedFd, Error> {
        let record = find(image, file)?;
        match record.source {
            FileSource::Paired | FileSource::Ephemeral | FileSource::Path { .. } => {
                match self.open_by_path(image, record, flags) {
                    Err(mismatch @ Error::FileMismatch { .. }) => {
                        self.open_pinned(host, record, flags, mismatch)
                    }
                    other => other,
                }
            }
            FileSource::Memory | FileSource::Unlinked => {
                if !self.made.contains_key(&file) {
                    let made = make(record, file, host)?;
                    // Not open for writing from here on: it may be an executable (ETXTBSY).
                    let made = self
                        .reopen(made.as_fd(), libc::O_PATH)
                        .map_err(Error::call("open(/proc/self/fd)", record.path.display()))?;
                    let made = descriptor::duplicate_above(made.as_fd(), self.floor)
                        .map_err(Error::call("dup", record.path.display()))?;
                    self.made.insert(file, made);
                }
                let flags = without_opening(flags) & !libc::O_NOFOLLOW;
                self.reopen(self.made[&file].as_fd(), flags)
                    .map_err(Error::call("open(/proc/self/fd)", record.path.display()))
            }
        }
    }

    /// What the checkpoint kept of an executable or a library that is another by now.
    fn open_pinned(
        &self,
        host: &mut dyn Host,
        record: &FileRecord,
        flags: i32,
        mismatch: Error,
    ) -> Result<OwnedFd, Error> {
        let wanted = record.source == (FileSource::Path { immutable: true });
        let Some(kept) = host.pinned(record).filter(|_| wanted) else { return Err(mismatch) };
        let stat = fstat(&kept).map_err(Error::call("fstat", record.path.display()))?;
        if let Some(why) = difference(record, &stat) {
            return differs(record, &format!("{why}, and so was what the checkpoint kept of it"));
        }
        self.reopen(kept.as_fd(), without_opening(flags) & !libc::O_NOFOLLOW)
            .map_err(Error::call("open(/proc/self/fd)", record.path.display()))
    }

    fn open_by_path(
        &mut self,
        image: &GroupImage,
        record: &FileRecord,
        flags: i32,
    ) -> Result<OwnedFd, Error> {
        let fd = match open_strictly(&record.path, flags) {
            Err(Errno::ENOENT) if may_be_made_anew(record, flags) => {
                self.warnings.push(anew(image, record));
                let flags = OFlag::from_bits_retain(flags | libc::O_CREAT | libc::O_EXCL | libc::O_CLOEXEC);
                let fd = open(&record.path, flags, Mode::from_bits_retain(record.mode & 0o7777))
                    .map_err(Error::call("open", record.path.display()))?;
                own(&fd, record)?;
                fd
            }
            Err(Errno::ENOENT) => return differs(record, "is not there any more"),
            Err(Errno::ELOOP) => return differs(record, "is reached through a symbolic link now"),
            other => other.map_err(Error::call("open", record.path.display()))?,
        };
        let stat = fstat(&fd).map_err(Error::call("fstat", record.path.display()))?;
        match difference(record, &stat) {
            Some(why) => differs(record, &why),
            None => Ok(fd),
        }
    }
}

/// Flags of open(2) that fdinfo tells and that were of the opening only.
fn without_opening(flags: i32) -> i32 {
    let tmpfile = if flags & libc::O_TMPFILE == libc::O_TMPFILE { libc::O_TMPFILE } else { 0 };
    flags & !(tmpfile | libc::O_ASYNC | libc::O_CLOEXEC)
}

fn find(image: &GroupImage, file: FileId) -> Result<&FileRecord, Error> {
    image.files.get(file.index()).ok_or_else(|| Error::Dangling(format!("file {file}")))
}

fn differs<T>(record: &FileRecord, why: &str) -> Result<T, Error> {
    Err(Error::FileMismatch { path: record.path.display().to_string(), why: why.to_owned() })
}

/// Opens a path that the kernel told, so nothing on its way is a link (openat2(2), Linux 5.6).
fn open_strictly(path: &Path, flags: i32) -> Result<OwnedFd, Errno> {
    let mut flags = without_opening(flags);
    if flags & libc::O_PATH != 0 {
        flags &= PATH_FLAGS;
    }
    let how = OpenHow::new()
        .flags(OFlag::from_bits_retain(flags | libc::O_CLOEXEC))
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(AT_FDCWD, path, how)
}

/// Log files and the like: written, outside the snapshots, rotated away since.
fn may_be_made_anew(record: &FileRecord, flags: i32) -> bool {
    matches!(record.source, FileSource::Path { immutable: false })
        && record.mode & libc::S_IFMT == libc::S_IFREG
        && flags & libc::O_ACCMODE != libc::O_RDONLY
}

fn anew(image: &GroupImage, record: &FileRecord) -> Problem {
    Problem {
        code: "file-anew".to_owned(),
        severity: Severity::Warning,
        unit: image.units.get(record.unit.index()).map(|unit| unit.name.clone()).unwrap_or_default(),
        pid: 0,
        object: record.path.display().to_string(),
        text: "it was open for writing and is not there any more: it is made anew, empty".to_owned(),
        remedy: "keep it in a subvolume of the group".to_owned(),
    }
}

fn difference(record: &FileRecord, stat: &FileStat) -> Option<String> {
    if stat.st_mode & libc::S_IFMT != record.mode & libc::S_IFMT {
        return Some("is of another type".to_owned());
    }
    if stat.st_rdev != record.rdev {
        return Some("is another device".to_owned());
    }
    let mtime = stat.st_mtime * 1_000_000_000 + stat.st_mtime_nsec;
    match record.source {
        FileSource::Path { immutable: true } if stat.st_size as u64 != record.size => {
            Some(format!("has {} bytes and had {}", stat.st_size, record.size))
        }
        FileSource::Path { immutable: true } if mtime != record.mtime => Some("was changed".to_owned()),
        _ => None,
    }
}

/// Makes a file whose content is in the image: in place for one in memory, without a name for one that had none.
fn make(record: &FileRecord, file: FileId, host: &mut dyn Host) -> Result<OwnedFd, Error> {
    let path = record.path.display();
    let fd = match (&record.source, record.mode & libc::S_IFMT) {
        (FileSource::Memory, libc::S_IFREG) => {
            let flags =
                OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            open(&record.path, flags, Mode::from_bits_retain(0o600)).map_err(Error::call("open", &path))?
        }
        (_, libc::S_IFREG) => nameless(&record.path).map_err(Error::call("open(O_TMPFILE)", &path))?,
        (_, libc::S_IFDIR) => return gone_directory(record),
        (_, libc::S_IFIFO) => return gone_fifo(record),
        _ => {
            return differs(record, "had no name any more and is neither a file nor a directory nor a FIFO");
        }
    };
    ftruncate(&fd, record.size as i64).map_err(Error::call("ftruncate", &path))?;
    host.content(file, fd.as_fd()).map_err(Error::Host)?;
    own(&fd, record)?;
    Ok(fd)
}

/// Owner, mode, extended attributes and times of the record.
fn own(fd: &OwnedFd, record: &FileRecord) -> Result<(), Error> {
    let path = record.path.display();
    fchown(fd, Some(Uid::from_raw(record.uid)), Some(Gid::from_raw(record.gid)))
        .map_err(Error::call("fchown", &path))?;
    fchmod(fd, Mode::from_bits_retain(record.mode & 0o7777)).map_err(Error::call("fchmod", &path))?;
    for (name, value) in &record.attributes {
        let name =
            CString::new(name.as_slice()).map_err(|_| Error::Dangling(format!("attribute of {path}")))?;
        match ckpt_sys::xattr::write(fd.as_fd(), &name, value) {
            // It lies in another file system than it did, which has no such attributes.
            Err(Errno::ENOTSUP) => {}
            other => other.map_err(Error::call("fsetxattr", &path))?,
        }
    }
    let time = TimeSpec::new(record.mtime.div_euclid(1_000_000_000), record.mtime.rem_euclid(1_000_000_000));
    futimens(fd, &time, &time).map_err(Error::call("futimens", path))
}

/// A file without a name in the directory it was in, or where there is room for one.
fn nameless(path: &Path) -> Result<OwnedFd, Errno> {
    let mut last = Errno::ENOENT;
    for directory in path.parent().into_iter().chain(["/tmp", "/dev/shm"].map(Path::new)) {
        let flags = OFlag::from_bits_retain(libc::O_TMPFILE | libc::O_RDWR | libc::O_CLOEXEC);
        match open(directory, flags, Mode::from_bits_retain(0o600)) {
            Ok(fd) => return Ok(fd),
            Err(e) => last = e,
        }
    }
    Err(last)
}

/// What is made at a name that nobody knows, opened, and loses the name again.
fn make_and_remove(
    record: &FileRecord,
    flags: OFlag,
    make: impl FnOnce(&Path) -> nix::Result<()>,
    remove: nix::unistd::UnlinkatFlags,
) -> Result<OwnedFd, Error> {
    let path = record.path.display();
    let parent = record.path.parent().filter(|dir| dir.is_dir()).unwrap_or(Path::new("/tmp"));
    let name = parent.join(format!(".ckpt-gone-{}", std::process::id()));
    make(&name).map_err(Error::call("make", &path))?;
    let fd = open(&name, flags | OFlag::O_CLOEXEC, Mode::empty());
    let removed = nix::unistd::unlinkat(AT_FDCWD, &name, remove);
    let fd = fd.map_err(Error::call("open", &path))?;
    removed.map_err(Error::call("unlink", &path))?;
    own(&fd, record)?;
    Ok(fd)
}

/// A directory that was removed while it was open: made and removed again.
fn gone_directory(record: &FileRecord) -> Result<OwnedFd, Error> {
    let make = |name: &Path| nix::unistd::mkdir(name, Mode::from_bits_retain(0o700));
    make_and_remove(record, OFlag::O_DIRECTORY, make, nix::unistd::UnlinkatFlags::RemoveDir)
}

/// The same of a FIFO.
fn gone_fifo(record: &FileRecord) -> Result<OwnedFd, Error> {
    let make = |name: &Path| nix::unistd::mkfifo(name, Mode::from_bits_retain(0o600));
    make_and_remove(record, OFlag::O_RDWR | OFlag::O_NONBLOCK, make, nix::unistd::UnlinkatFlags::NoRemoveDir)
}
