//! The files of a group: descriptors, mappings, executables and working directories name them by [`FileId`].

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use ckpt_image::records::{FileId, FileRecord, FileSource, UnitIndex};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sys::stat::{FileStat, Mode};
use nix::unistd::Whence;

/// What the registry must know of a unit.
#[derive(Debug, Clone, Default)]
pub struct UnitPlaces {
    /// Directories that systemd removes with the unit, as its processes see them.
    pub ephemeral: Vec<PathBuf>,
}

/// A file as a capture met it.
#[derive(Debug)]
pub struct Seen<'a> {
    /// The unit in whose mount namespace `path` is.
    pub unit: UnitIndex,
    /// Absolute path there, as /proc tells it, ` (deleted)` taken off.
    pub path: &'a Path,
    /// fstat(2) of it.
    pub stat: &'a FileStat,
    /// /proc told ` (deleted)`.
    pub deleted: bool,
    /// It is executed or mapped and not written: a change of it would break the member.
    pub immutable: bool,
}

/// The registry. One a capture; not shared between threads.
#[derive(Debug, Default)]
pub struct Files {
    subvolumes: Vec<u64>,
    units: Vec<UnitPlaces>,
    records: Vec<FileRecord>,
    named: HashMap<(UnitIndex, PathBuf, u64, u64), FileId>,
    unlinked: HashMap<(u64, u64), FileId>,
    contents: HashMap<FileId, OwnedFd>,
    pins: HashMap<FileId, OwnedFd>,
}

impl Files {
    /// `subvolumes`: st_dev of every subvolume of the group; `units`: in the order of [`UnitIndex`].
    pub fn new(subvolumes: Vec<u64>, units: Vec<UnitPlaces>) -> Self {
        Self { subvolumes, units, ..Default::default() }
    }

    /// The record of a file, made if there is none yet. A file that is met once as immutable stays so.
    pub fn record(&mut self, seen: &Seen<'_>) -> FileId {
        let identity = (seen.stat.st_dev, seen.stat.st_ino);
        let unlinked = seen.deleted || (seen.stat.st_nlink == 0 && !is_linkless(seen.path));
        let known = if unlinked {
            self.unlinked.get(&identity).copied()
        } else {
            self.named.get(&(seen.unit, seen.path.to_owned(), identity.0, identity.1)).copied()
        };
        if let Some(id) = known {
            if let FileSource::Path { immutable } = &mut self.records[id.index()].source {
                *immutable |= seen.immutable;
            }
            return id;
        }
        let id = FileId(self.records.len() as u32);
        let source = if unlinked { FileSource::Unlinked } else { self.source(seen) };
        self.records.push(record(seen, source));
        if unlinked {
            self.unlinked.insert(identity, id);
        } else {
            self.named.insert((seen.unit, seen.path.to_owned(), identity.0, identity.1), id);
        }
        id
    }

    fn source(&self, seen: &Seen<'_>) -> FileSource {
        if self.subvolumes.contains(&seen.stat.st_dev) {
            return FileSource::Paired;
        }
        let places = self.units.get(seen.unit.index());
        if places.is_some_and(|unit| unit.ephemeral.iter().any(|dir| seen.path.starts_with(dir))) {
            return FileSource::Ephemeral;
        }
        if seen.path.starts_with("/dev/shm") && seen.stat.st_mode & libc::S_IFMT == libc::S_IFREG {
            return FileSource::Memory;
        }
        FileSource::Path { immutable: seen.immutable }
    }

    /// Whether the content of a file goes into the image, so that [`keep_content`](Self::keep_content) is to be called.
    pub fn needs_content(&self, id: FileId) -> bool {
        matches!(self.get(id).source, FileSource::Unlinked | FileSource::Memory)
            && !self.contents.contains_key(&id)
    }

    /// Keeps a way to the content of a file that is in the image. `fd` may be open for anything but O_PATH; the first one that is given is
    /// kept, and its extended attributes are read. Errors: those of open(2) on /proc/self/fd, flistxattr(2), fgetxattr(2).
    pub fn keep_content(&mut self, id: FileId, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        if self.contents.contains_key(&id) {
            return Ok(());
        }
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let readable = open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        let attributes = ckpt_sys::xattr::read(readable.as_fd())?.into_iter();
        self.records[id.index()].attributes =
            attributes.map(|(name, value)| (name.into_bytes(), value)).collect();
        self.contents.insert(id, readable);
        Ok(())
    }

    /// Whether a file is executed or mapped from a place that may change (a package's), and is not held yet by
    /// [`keep_pin`](Self::keep_pin).
    pub fn needs_pin(&self, id: FileId) -> bool {
        self.get(id).source == (FileSource::Path { immutable: true }) && !self.pins.contains_key(&id)
    }

    /// Holds a file that is to be kept with the checkpoint.
    pub fn keep_pin(&mut self, id: FileId, fd: OwnedFd) {
        self.pins.insert(id, fd);
    }

    /// What [`keep_pin`](Self::keep_pin) holds, in the order of the records.
    pub fn take_pins(&mut self) -> Vec<(FileRecord, OwnedFd)> {
        let mut pins: Vec<_> = std::mem::take(&mut self.pins).into_iter().collect();
        pins.sort_by_key(|(id, _)| *id);
        pins.into_iter().map(|(id, fd)| (self.get(id).clone(), fd)).collect()
    }

    /// Says that the content of a file that has a name goes into the image, because no snapshot and no directory of the group
    /// keeps it (tmpfs). What is kept in another way already stays so. Errors: as [`Files::keep_content`].
    pub fn store(&mut self, id: FileId, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        if matches!(self.records[id.index()].source, FileSource::Path { .. }) {
            self.records[id.index()].source = FileSource::Memory;
            self.keep_content(id, fd)?;
        }
        Ok(())
    }

    /// The unlinked files and those in memory whose content goes into the image: number, size and a descriptor to read it from.
    pub fn contents(&self) -> Vec<(FileId, u64, BorrowedFd<'_>)> {
        let mut contents: Vec<_> =
            self.contents.iter().map(|(id, fd)| (*id, self.records[id.index()].size, fd.as_fd())).collect();
        contents.sort_by_key(|(id, ..)| *id);
        contents
    }

    /// One record.
    pub fn get(&self, id: FileId) -> &FileRecord {
        &self.records[id.index()]
    }

    /// All records.
    pub fn records(&self) -> &[FileRecord] {
        &self.records
    }

    /// All records, at the end.
    pub fn into_records(self) -> Vec<FileRecord> {
        self.records
    }
}

/// Whether a link count of 0 means nothing there: /proc, /sys and /dev make their inodes as they please.
fn is_linkless(path: &Path) -> bool {
    ["/proc", "/sys", "/dev"].iter().any(|root| path.starts_with(root)) && !path.starts_with("/dev/shm")
}

fn record(seen: &Seen<'_>, source: FileSource) -> FileRecord {
    let stat = seen.stat;
    FileRecord {
        unit: seen.unit,
        path: seen.path.to_owned(),
        dev: stat.st_dev,
        ino: stat.st_ino,
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: stat.st_size as u64,
        mtime: stat.st_mtime * 1_000_000_000 + stat.st_mtime_nsec,
        rdev: stat.st_rdev,
        attributes: Vec::new(),
        source,
    }
}

/// The parts of a file that hold data, as (offset, length), ascending; what is between them is a hole. Where the file system does not tell
/// holes, one part (lseek(2), SEEK_DATA).
pub fn data_ranges(fd: BorrowedFd<'_>, size: u64) -> Result<Vec<(u64, u64)>, Errno> {
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match nix::unistd::lseek(fd, at as i64, Whence::SeekData) {
            Ok(start) => start as u64,
            Err(Errno::ENXIO) => break,
            Err(Errno::EINVAL) => at,
            Err(e) => return Err(e),
        };
        let end = match nix::unistd::lseek(fd, start as i64, Whence::SeekHole) {
            Ok(end) => end as u64,
            Err(Errno::EINVAL) => size,
            Err(e) => return Err(e),
        };
        let end = end.min(size);
        if start < end {
            ranges.push((start, end - start));
        }
        at = end.max(at + 1);
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, SeekFrom, Write};

    fn stat_of(fd: &impl AsFd) -> FileStat {
        nix::sys::stat::fstat(fd).unwrap()
    }

    #[test]
    fn a_file_is_recorded_once_and_its_source_follows_from_where_it_lies() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let stat = stat_of(&null);
        let unit = UnitIndex(0);
        let places = UnitPlaces { ephemeral: vec!["/run/x".into()] };
        let mut files = Files::new(vec![4711], vec![places]);
        let seen = |path, stat, immutable| Seen { unit, path, stat, deleted: false, immutable };
        let a = files.record(&seen(Path::new("/dev/null"), &stat, false));
        assert_eq!(files.get(a).source, FileSource::Path { immutable: false });
        assert_eq!(files.record(&seen(Path::new("/dev/null"), &stat, true)), a);
        assert_eq!(files.get(a).source, FileSource::Path { immutable: true });
        let b = files.record(&seen(Path::new("/run/x/y"), &stat, false));
        assert_eq!(files.get(b).source, FileSource::Ephemeral);
        let mut paired = stat;
        paired.st_dev = 4711;
        let c = files.record(&seen(Path::new("/srv/z"), &paired, false));
        assert_eq!(files.get(c).source, FileSource::Paired);
        let gone = Seen { unit, path: Path::new("/srv/z"), stat: &paired, deleted: true, immutable: false };
        let shm = files.record(&seen(Path::new("/dev/shm/a"), &stat, false));
        assert_eq!(
            files.get(shm).source,
            FileSource::Path { immutable: false },
            "only regular files have content"
        );
        let d = files.record(&gone);
        assert_eq!(files.get(d).source, FileSource::Unlinked);
        assert_eq!(files.record(&gone), d);
    }

    #[test]
    fn holes_are_left_out() {
        let path = std::env::temp_dir().join(format!("ckpt-holes-{}", std::process::id()));
        let mut file = std::fs::File::create_new(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.seek(SeekFrom::Start(1 << 20)).unwrap();
        file.write_all(b"x").unwrap();
        let stat = stat_of(&file);
        let mut files = Files::new(vec![], vec![]);
        let id = files.record(&Seen {
            unit: UnitIndex(0),
            path: &path,
            stat: &stat,
            deleted: true,
            immutable: false,
        });
        files.keep_content(id, file.as_fd()).unwrap();
        let contents = files.contents();
        let (_, size, fd) = contents[0];
        let ranges = data_ranges(fd, size).unwrap();
        let (start, len) = ranges[ranges.len() - 1];
        assert_eq!(start + len, (1 << 20) + 1);
        assert!(ranges.iter().map(|r| r.1).sum::<u64>() < 1 << 20);
    }
}
