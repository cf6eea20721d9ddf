//! What members inherit besides descriptions: directories, mapped files, the image's pages, shared memory. Opened here once, at
//! numbers above all that members use, and at the same numbers in every member.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use ckpt_image::PageReader;
use ckpt_image::records::{DescriptionId, FileId, FsRecord, GroupImage};
use ckpt_sys::descriptor::duplicate_above;
use nix::libc;

use super::Failure;
use super::content::Contents;
use super::host::Host;
use super::memory::{FdRef, Script};
use super::process::{Directories, living, lookup};
use crate::kinds::rebuild::{Descriptions, OpenFiles};

/// Open directories and whatever memory is made of.
#[derive(Debug)]
pub struct Opened {
    floor: RawFd,
    directories: BTreeMap<FileId, OwnedFd>,
    memory: BTreeMap<FdRef, OwnedFd>,
}

impl Opened {
    /// Opens the directories of all living processes. The host is left where it was last.
    pub fn directories_of(
        image: &GroupImage,
        files: &mut OpenFiles,
        host: &mut Host<'_>,
        floor: RawFd,
    ) -> Result<Self, Failure> {
        let mut directories = BTreeMap::new();
        for (process, body) in living(image) {
            let fs = lookup(&image.fs, body.fs.index(), "directories")?;
            for id in std::iter::once(fs.cwd).chain(fs.root) {
                if let Entry::Vacant(place) = directories.entry(id) {
                    let fd = files.open(image, host, id, libc::O_PATH | libc::O_DIRECTORY);
                    place.insert(fd.map_err(|e| Failure::from(e).of_pid(process.pid.0))?);
                }
            }
        }
        Ok(Self { floor, directories, memory: BTreeMap::new() })
    }

    /// Opens what the scripts need, `contents` being what the image holds. The host is left where it was last.
    pub fn add_memory<'s>(
        &mut self,
        image: &GroupImage,
        scripts: impl Iterator<Item = &'s Script>,
        contents: &Contents,
        pages: &PageReader,
        descriptions: &mut Descriptions,
        host: &mut Host<'_>,
    ) -> Result<(), Failure> {
        let (files, fds) = descriptions.parts();
        let ring = |id: DescriptionId| {
            let fd = fds.get(id.index()).and_then(Option::as_ref);
            fd.map(AsFd::as_fd).ok_or_else(|| {
                Failure::corrupt(format!("a ring is mapped whose description {id} is not made"))
            })
        };
        for wanted in scripts.flat_map(Script::descriptors) {
            if self.memory.contains_key(&wanted) {
                continue;
            }
            let fd = match (wanted, contents.descriptor(wanted)) {
                (_, Some(fd)) => self.high(fd)?,
                (FdRef::Pages(image), _) => self.high(pages.file(image).as_fd())?,
                (FdRef::Zero, _) => {
                    let zero = File::open("/dev/zero");
                    let zero = zero.map_err(|e| Failure::not_restorable(format!("open /dev/zero: {e}")))?;
                    self.high(zero.as_fd())?
                }
                (FdRef::File { file, write }, _) => {
                    let access = if write { libc::O_RDWR } else { libc::O_RDONLY };
                    files.open(image, host, file, access | libc::O_NONBLOCK | libc::O_NOCTTY)?
                }
                (FdRef::Ring(id), _) => self.high(ring(id)?)?,
                (FdRef::Object(_) | FdRef::Mapping { .. }, _) => {
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
