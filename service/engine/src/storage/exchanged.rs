//! One subvolume's exchange: its steps, and the way back.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use ckpt_image::SnapshotEntry;
use ckpt_sys::btrfs;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, RenameFlags, renameat2};
use nix::sys::stat::fstatat;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::mounted::Mounted;
use super::pending::{self, Before};
use super::place::{make_directory, open_directory};
use super::snapshot::remove_empty_directories;
use super::{escape, failed, mounts, snapshot};
use crate::error::Error;

/// One subvolume's exchange.
#[derive(Debug)]
pub(super) struct Exchanged {
    /// The subvolume as the manifest names it.
    pub subvolume: PathBuf,
    /// Where it lies.
    pub location: Location,
    /// `undo-ID/`, reached through the same mount as the location.
    pub holder: OwnedFd,
    /// The path of what is put aside, in `undo-ID/`.
    pub held: PathBuf,
    /// What was at the place.
    pub before: Before,
    /// Whether the place has the writable snapshot now.
    pub placed: bool,
    /// Subvolumes nested in what was put aside that went over to the new one.
    pub carried: Vec<PathBuf>,
}

/// Where a subvolume lies.
#[derive(Debug)]
pub(super) struct Location {
    /// The directory; for a mount of its own, in a mount of the whole file system that nobody else sees.
    pub parent: OwnedFd,
    /// The name there.
    pub name: OsString,
    /// Where it is mounted, if it is a mount of its own.
    pub mounted: Option<Mounted>,
}

impl Location {
    /// Finds a subvolume's place; directories on the way to it are made where they are missing. Symbolic links are followed.
    pub fn find(subvolume: &Path) -> Result<Self, Error> {
        let real = match std::fs::canonicalize(subvolume) {
            Ok(real) => real,
            Err(_) => {
                let parent = subvolume.parent().unwrap_or(Path::new("/"));
                let what = |e| Error::io(format!("make {}", parent.display()), e);
                std::fs::create_dir_all(parent).map_err(what)?;
                let parent = std::fs::canonicalize(parent).map_err(what)?;
                parent.join(subvolume.file_name().unwrap_or(OsStr::new("")))
            }
        };
        if let Some(location) = Mounted::find(&real)? {
            return Ok(location);
        }
        let (Some(parent), Some(name)) = (real.parent(), real.file_name()) else {
            return Err(Error::Unsupported(format!("{} cannot be exchanged", real.display())));
        };
        let directory = File::open(parent).map_err(|e| Error::io(format!("open {}", parent.display()), e))?;
        Ok(Self { parent: directory.into(), name: name.to_owned(), mounted: None })
    }

    /// `.ckpt/GROUP`, reached through the same mount, so that rename(2) works between the two.
    pub fn group_directory(&self, group: &Path) -> Result<OwnedFd, Error> {
        if let Some(mounted) = &self.mounted {
            return mounted.group_directory(self, group);
        }
        let directory: OwnedFd =
            File::open(group).map_err(|e| Error::io(format!("open {}", group.display()), e))?.into();
        let mount = mounts::of(self.parent.as_fd())?;
        if mount.id != mounts::id_of(directory.as_fd())? {
            return Err(Error::Unsupported(format!(
                "the subvolume lies in the mount {}, its snapshots in {}, another; mount them together",
                mount.point.display(),
                group.display()
            )));
        }
        Ok(directory)
    }
}

impl Exchanged {
    /// Opens everything, makes `undo-ID/` and writes the note. Also gives the snapshot, opened and verified.
    pub fn prepare(entry: &SnapshotEntry, id: &str) -> Result<(OwnedFd, Self), Error> {
        let refused = |why: &str| Error::SnapshotFailed {
            subvolume: entry.subvolume.display().to_string(),
            why: why.into(),
        };
        let snapshot = snapshot::open(entry)?;
        let group = entry.path.parent().and_then(Path::parent);
        let group = group.ok_or_else(|| refused("the manifest has no good path of its snapshot"))?;
        let location = Location::find(&entry.subvolume)?;
        let directory = location.group_directory(group)?;
        let failed = |e| failed(&entry.subvolume, "make the directory of the undo snapshot", e);
        let holder = make_directory(directory.as_fd(), Path::new(id)).map_err(failed)?;
        let held = group.join(id).join(escape(&entry.subvolume));
        let before = Before::look(&location, id).map_err(failed)?;
        pending::write(&held, &entry.subvolume, &before)?;
        let exchanged = Self {
            subvolume: entry.subvolume.clone(),
            location,
            holder,
            held,
            before,
            placed: false,
            carried: Vec::new(),
        };
        Ok((snapshot, exchanged))
    }

    /// The name in `undo-ID/`.
    pub fn held_name(&self) -> OsString {
        self.held.file_name().unwrap_or(OsStr::new("")).to_owned()
    }

    /// Puts a writable snapshot of `snapshot` at the place, and what is there into `undo-ID/`.
    pub fn place(&mut self, snapshot: &OwnedFd) -> Result<(), Errno> {
        if self.location.mounted.is_some() {
            return self.place_mounted(snapshot);
        }
        let held = self.held_name();
        btrfs::snapshot(snapshot.as_fd(), self.holder.as_fd(), &held, false)?;
        let Location { parent, name, .. } = &self.location;
        match &self.before {
            Before::Nothing => {
                move_to(&self.holder, &held, parent, name)?;
                self.placed = true;
            }
            Before::Subvolume { .. } => {
                swap(&self.holder, &held, parent, name)?;
                self.placed = true;
                let old = open_directory(self.holder.as_fd(), Path::new(&held))?;
                self.carry_nested(&old)?;
            }
            Before::Other { aside } => {
                // A directory cannot leave its subvolume: it is exchanged beside its place and stays there.
                let aside = OsString::from(aside);
                move_to(&self.holder, &held, parent, &aside)?;
                swap(parent, &aside, parent, name)?;
                self.placed = true;
                let target = self.subvolume.with_file_name(&aside);
                nix::unistd::symlinkat(target.as_path(), &self.holder, held.as_os_str())?;
            }
        }
        Ok(())
    }

    /// Subvolumes nested in what is put aside are in no snapshot; they stay where they were, so they go over. One whose
    /// directory is not in the snapshot stays with what is put aside.
    pub fn carry_nested(&mut self, old: &OwnedFd) -> Result<(), Errno> {
        let new = open_directory(self.location.parent.as_fd(), Path::new(&self.location.name))?;
        for path in btrfs::nested(old.as_fd())? {
            if move_subvolume(old, &new, &path).is_ok() {
                self.carried.push(path);
            }
        }
        Ok(())
    }

    /// Puts back what was there.
    pub fn revert(&mut self) -> Result<(), Errno> {
        if self.location.mounted.is_some() {
            self.revert_mounted()?;
            return self.close();
        }
        let held = self.held_name();
        let Location { parent, name, .. } = &self.location;
        if self.placed {
            match &self.before {
                Before::Nothing => move_to(parent, name, &self.holder, &held)?,
                Before::Subvolume { .. } => {
                    let old = open_directory(self.holder.as_fd(), Path::new(&held))?;
                    // It was made read-only if the exchange was committed.
                    btrfs::set_read_only(old.as_fd(), false)?;
                    let new = open_directory(parent.as_fd(), Path::new(name))?;
                    for path in std::mem::take(&mut self.carried) {
                        move_subvolume(&new, &old, &path)?;
                    }
                    swap(&self.holder, &held, parent, name)?;
                }
                Before::Other { aside } => swap(parent, OsStr::new(aside), parent, name)?,
            }
            self.placed = false;
        }
        if let Before::Other { aside } = &self.before {
            remove_if_subvolume(parent, OsStr::new(aside))?;
            let _ = unlinkat(&self.holder, held.as_os_str(), UnlinkatFlags::NoRemoveDir);
        }
        remove_if_subvolume(&self.holder, &held)?;
        self.close()
    }

    /// Removes the note, and the directory if nothing is in it.
    fn close(&self) -> Result<(), Errno> {
        pending::remove(&self.held)?;
        remove_empty_directories(&self.held);
        Ok(())
    }

    /// What was put aside is an undo snapshot from now on.
    pub fn commit(&self) -> Result<(), Errno> {
        if matches!(self.before, Before::Subvolume { .. }) {
            let old = open_directory(self.holder.as_fd(), Path::new(&self.held_name()))?;
            btrfs::set_read_only(old.as_fd(), true)?;
        }
        self.close()
    }
}

/// Renames a subvolume within a mount, over nothing.
pub(super) fn move_to(from: &OwnedFd, name: &OsStr, to: &OwnedFd, new_name: &OsStr) -> Result<(), Errno> {
    renameat2(from, name, to, new_name, RenameFlags::RENAME_NOREPLACE)
}

/// Exchanges two names within a mount, in one step.
pub(super) fn swap(from: &OwnedFd, name: &OsStr, to: &OwnedFd, new_name: &OsStr) -> Result<(), Errno> {
    renameat2(from, name, to, new_name, RenameFlags::RENAME_EXCHANGE)
}

/// Moves a subvolume to the same path below another directory, in place of the empty directory that a snapshot has there.
pub(super) fn move_subvolume(from: &OwnedFd, to: &OwnedFd, path: &Path) -> Result<(), Errno> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::EINVAL) };
    let open = |root: &OwnedFd| {
        open_directory(root.as_fd(), if parent.as_os_str().is_empty() { Path::new(".") } else { parent })
    };
    let (from, to) = (open(from)?, open(to)?);
    match unlinkat(&to, name, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(e) => return Err(e),
    }
    move_to(&from, name, &to, name)
}

/// Deletes the subvolume of this name; anything else of this name stays.
pub(super) fn remove_if_subvolume(directory: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    match open_directory(directory.as_fd(), Path::new(name)) {
        Ok(fd) if btrfs::is_subvolume(fd.as_fd())? => btrfs::delete_subvolume(directory.as_fd(), name),
        Ok(_) | Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(()),
        Err(e) => Err(e),
    }
}

/// Whether there is something of this name, symbolic links not followed.
pub(super) fn exists(directory: &OwnedFd, name: &OsStr) -> Result<bool, Errno> {
    match fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(Errno::ENOENT) => Ok(false),
        Err(e) => Err(e),
    }
}
