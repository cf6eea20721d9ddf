//! What processes refer to by file besides descriptors and mappings: executables, working and root directories. Opened here once,
//! at numbers above all that members use; members inherit them.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use ckpt_image::records::{FileId, GroupImage};
use ckpt_sys::descriptor::duplicate_above;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, SFlag, fstat};

use super::Failure;
use super::places::Places;
use super::process::{Directories, living, lookup};

/// Open executables and directories.
#[derive(Debug, Default)]
pub struct Opened {
    files: BTreeMap<FileId, OwnedFd>,
}

impl Opened {
    /// Opens all that the living processes need, each in its unit's namespaces.
    pub fn open(image: &GroupImage, places: &Places, floor: RawFd) -> Result<Self, Failure> {
        let mut opened = Self::default();
        for (process, body) in living(image) {
            let wrap = |e: Failure| e.of_pid(process.pid.0);
            let fs = lookup(&image.fs, body.fs.index(), "directories")?;
            let space = lookup(&image.spaces, body.space.index(), "address space")?;
            let directories = std::iter::once(fs.cwd).chain(fs.root);
            for id in directories {
                opened.add(image, places, id, true, floor).map_err(wrap)?;
            }
            opened.add(image, places, space.exe, false, floor).map_err(wrap)?;
        }
        Ok(opened)
    }

    fn add(
        &mut self,
        image: &GroupImage,
        places: &Places,
        id: FileId,
        directory: bool,
        floor: RawFd,
    ) -> Result<(), Failure> {
        if self.files.contains_key(&id) {
            return Ok(());
        }
        let record = lookup(&image.files, id.index(), "file")?;
        let path = record.path.display().to_string();
        let (flags, wanted, what) = if directory {
            (OFlag::O_PATH | OFlag::O_DIRECTORY, SFlag::S_IFDIR, "directory")
        } else {
            (OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY, SFlag::S_IFREG, "executable")
        };
        let mismatch = |why: String| {
            Failure::new("FileMismatch", format!("{what} {path}: {why}")).of_object(path.clone())
        };
        let fd = places
            .within(record.unit, || open(&record.path, flags | OFlag::O_CLOEXEC, Mode::empty()))?
            .map_err(|e| mismatch(e.desc().to_owned()))?;
        let kind = fstat(&fd).map_err(|e| mismatch(e.desc().to_owned()))?.st_mode & SFlag::S_IFMT.bits();
        if kind != wanted.bits() {
            return Err(mismatch("it is something else now".into()));
        }
        let high = duplicate_above(fd.as_fd(), floor).map_err(|e| mismatch(e.desc().to_owned()))?;
        self.files.insert(id, high);
        Ok(())
    }

    /// The number, here and in every member, of an opened file.
    pub fn number(&self, id: FileId) -> Result<RawFd, Failure> {
        self.files
            .get(&id)
            .map(AsRawFd::as_raw_fd)
            .ok_or_else(|| Failure::corrupt(format!("file {id} was not opened")))
    }

    /// The numbers of root and working directory.
    pub fn directories(&self, fs: &ckpt_image::records::FsRecord) -> Result<Directories, Failure> {
        Ok(Directories {
            cwd: self.number(fs.cwd)?,
            root: fs.root.map(|root| self.number(root)).transpose()?,
        })
    }
}
