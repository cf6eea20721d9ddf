//! What members inherit besides descriptions: directories, mapped files, the image's pages, shared memory. Opened here once, at
//! numbers above all that members use, and at the same numbers in every member.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use ckpt_image::PageReader;
use ckpt_image::records::{FileId, FsRecord, GroupImage};
use ckpt_sys::descriptor::duplicate_above;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use super::Failure;
use super::content::Contents;
use super::memory::{FdRef, Script};
use super::places::Places;
use super::process::{Directories, living, lookup};

/// Open directories and whatever memory is made of.
#[derive(Debug)]
pub struct Opened<'a> {
    image: &'a GroupImage,
    places: &'a Places,
    floor: RawFd,
    directories: BTreeMap<FileId, OwnedFd>,
    memory: BTreeMap<FdRef, OwnedFd>,
}

impl<'a> Opened<'a> {
    /// Opens the directories of all living processes.
    pub fn directories_of(image: &'a GroupImage, places: &'a Places, floor: RawFd) -> Result<Self, Failure> {
        let mut opened = Self { image, places, floor, directories: BTreeMap::new(), memory: BTreeMap::new() };
        for (process, body) in living(image) {
            let fs = lookup(&image.fs, body.fs.index(), "directories")?;
            for id in std::iter::once(fs.cwd).chain(fs.root) {
                opened.add_directory(id).map_err(|e| e.of_pid(process.pid.0))?;
            }
        }
        Ok(opened)
    }

    fn add_directory(&mut self, id: FileId) -> Result<(), Failure> {
        if !self.directories.contains_key(&id) {
            let fd = self.by_path(id, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
            self.directories.insert(id, fd);
        }
        Ok(())
    }

    /// Opens what the scripts need, `contents` being what the image holds.
    pub fn add_memory(
        &mut self,
        scripts: &[Script],
        contents: &Contents,
        pages: &PageReader,
    ) -> Result<(), Failure> {
        for wanted in scripts.iter().flat_map(Script::descriptors) {
            if self.memory.contains_key(&wanted) {
                continue;
            }
            let fd = match (wanted, contents.descriptor(wanted)) {
                (_, Some(fd)) => self.high(fd)?,
                (FdRef::Pages, _) => self.high(pages.file().as_fd())?,
                (FdRef::Zero, _) => {
                    let zero = File::open("/dev/zero");
                    let zero = zero.map_err(|e| Failure::not_restorable(format!("open /dev/zero: {e}")))?;
                    self.high(zero.as_fd())?
                }
                (FdRef::File { file, write }, _) => {
                    self.by_path(file, if write { OFlag::O_RDWR } else { OFlag::O_RDONLY })?
                }
                (FdRef::Object(_) | FdRef::Gate { .. }, _) => {
                    return Err(Failure::corrupt(format!("{wanted:?} is not in the image")));
                }
            };
            self.memory.insert(wanted, fd);
        }
        Ok(())
    }

    fn high(&self, fd: BorrowedFd<'_>) -> Result<OwnedFd, Failure> {
        duplicate_above(fd, self.floor)
            .map_err(|e| Failure::not_restorable(format!("open descriptors above {}: {e}", self.floor)))
    }

    /// Opens a file by its path in the namespaces of its unit.
    fn by_path(&self, id: FileId, flags: OFlag) -> Result<OwnedFd, Failure> {
        let record = lookup(&self.image.files, id.index(), "file")?;
        let flags = flags | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let fd = self.places.within(record.unit, || open(&record.path, flags, Mode::empty()))?;
        let fd = fd.map_err(|e| {
            Failure::new("FileMismatch", e.desc()).of_object(record.path.display().to_string())
        })?;
        self.high(fd.as_fd())
    }

    /// The number, here and in every member, of what memory is made of.
    pub fn memory(&self, wanted: FdRef) -> Result<RawFd, Failure> {
        let fd = self.memory.get(&wanted).map(AsRawFd::as_raw_fd);
        fd.ok_or_else(|| Failure::corrupt(format!("{wanted:?} was not opened")))
    }

    fn directory(&self, id: FileId) -> Result<RawFd, Failure> {
        let fd = self.directories.get(&id).map(AsRawFd::as_raw_fd);
        fd.ok_or_else(|| Failure::corrupt(format!("directory {id} was not opened")))
    }

    /// The numbers of root and working directory.
    pub fn directories(&self, fs: &FsRecord) -> Result<Directories, Failure> {
        let root = fs.root.map(|root| self.directory(root)).transpose()?;
        Ok(Directories { cwd: self.directory(fs.cwd)?, root })
    }
}
