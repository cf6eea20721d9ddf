//! The note that an exchange is under way: `NAME.pending` beside the undo snapshot, what was at the place before.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use ckpt_sys::btrfs;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::exchanged::{Exchanged, Location, exists};
use super::place::open_directory;
use crate::error::Error;

const SUFFIX: &str = "pending";

/// What was at a subvolume's place before the exchange.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Before {
    /// Nothing: it had been deleted.
    Nothing,
    /// The subvolume, or another that was made in its place.
    Subvolume {
        /// Its UUID, which tells it from the writable snapshot.
        uuid: String,
    },
    /// A directory or file that was made in its place; it stays beside it under another name.
    Other {
        /// That name.
        aside: String,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    subvolume: PathBuf,
    before: Before,
}

impl Before {
    /// Looks what is at the place.
    pub fn look(location: &Location, id: &str) -> Result<Self, Errno> {
        let Location { parent, name, .. } = location;
        if !exists(parent, name)? {
            return Ok(Before::Nothing);
        }
        match open_directory(parent.as_fd(), Path::new(name)) {
            Ok(fd) if btrfs::is_subvolume(fd.as_fd())? => {
                Ok(Before::Subvolume { uuid: btrfs::subvolume_info(fd.as_fd())?.uuid.to_string() })
            }
            Ok(_) | Err(Errno::ENOTDIR | Errno::ELOOP) => {
                Ok(Before::Other { aside: format!(".{}.ckpt-{id}", name.to_string_lossy()) })
            }
            Err(e) => Err(e),
        }
    }
}

fn marker_of(held: &Path) -> PathBuf {
    let mut name = held.file_name().unwrap_or(OsStr::new("")).to_owned();
    name.push(".");
    name.push(SUFFIX);
    held.with_file_name(name)
}

/// Whether a path is such a note. (Escaped names of subvolumes may end the same way, but are directories.)
pub(super) fn is_marker(path: &Path) -> bool {
    path.extension() == Some(OsStr::new(SUFFIX)) && path.is_file()
}

/// Writes the note, durable when this returns.
pub(super) fn write(held: &Path, subvolume: &Path, before: &Before) -> Result<(), Error> {
    let path = marker_of(held);
    let failed = |e| Error::io(format!("write {}", path.display()), e);
    let note = Note { subvolume: subvolume.to_path_buf(), before: before.clone() };
    let text = toml::to_string(&note).map_err(|e| Error::Failed(format!("{}: {e}", path.display())))?;
    let mut file = File::create_new(&path).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    file.sync_all().map_err(failed)
}

/// Removes the note; that it is gone is no error.
pub(super) fn remove(held: &Path) -> Result<(), Errno> {
    match std::fs::remove_file(marker_of(held)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(super::errno(&e)),
        _ => Ok(()),
    }
}

/// The exchange that a note is about, as far as it came. `None` if the path is no note.
pub(super) fn read(marker: &Path) -> Result<Option<Exchanged>, Error> {
    if !is_marker(marker) {
        return Ok(None);
    }
    let failed = |e| Error::io(format!("read {}", marker.display()), e);
    let text = std::fs::read_to_string(marker).map_err(failed)?;
    let note: Note = toml::from_str(&text)
        .map_err(|e| Error::Corrupt { path: marker.display().to_string(), why: e.message().to_string() })?;
    let held = marker.with_extension("");
    let holder = marker.parent().unwrap_or(Path::new("/"));
    let (group, id) = (holder.parent().unwrap_or(holder), holder.file_name().unwrap_or_default());
    let location = Location::find(&note.subvolume)?;
    let directory = location.group_directory(group)?;
    let holder = open_directory(directory.as_fd(), Path::new(id)).map_err(|e| failed(e.into()))?;
    let mut exchanged = Exchanged {
        subvolume: note.subvolume,
        location,
        holder,
        held,
        before: note.before,
        placed: false,
        carried: Vec::new(),
    };
    let failed = |e| super::failed(&exchanged.subvolume, "look how far the exchange came", e);
    let placed = placed(&exchanged).map_err(failed)?;
    let carried = if placed { nested_at_place(&exchanged).map_err(failed)? } else { Vec::new() };
    (exchanged.placed, exchanged.carried) = (placed, carried);
    Ok(Some(exchanged))
}

/// Whether the exchange itself was done.
fn placed(x: &Exchanged) -> Result<bool, Errno> {
    let held = x.held_name();
    let Location { parent, name, mounted } = &x.location;
    match &x.before {
        Before::Subvolume { uuid } if mounted.is_some() => {
            let there = open_directory(parent.as_fd(), Path::new(name))?;
            Ok(btrfs::subvolume_info(there.as_fd())?.uuid.to_string() != *uuid)
        }
        Before::Nothing => Ok(!exists(&x.holder, &held)? && exists(parent, name)?),
        Before::Subvolume { uuid } => match open_directory(x.holder.as_fd(), Path::new(&held)) {
            Ok(fd) => Ok(btrfs::subvolume_info(fd.as_fd())?.uuid.to_string() == *uuid),
            Err(Errno::ENOENT) => Ok(false),
            Err(e) => Err(e),
        },
        Before::Other { aside } => match open_directory(parent.as_fd(), Path::new(aside)) {
            Ok(fd) => Ok(!btrfs::is_subvolume(fd.as_fd())?),
            Err(Errno::ENOENT) => Ok(false),
            Err(Errno::ENOTDIR | Errno::ELOOP) => Ok(true),
            Err(e) => Err(e),
        },
    }
}

/// A writable snapshot has no nested subvolumes but those that were carried over.
fn nested_at_place(x: &Exchanged) -> Result<Vec<PathBuf>, Errno> {
    let new = open_directory(x.location.parent.as_fd(), Path::new(&x.location.name))?;
    btrfs::nested(new.as_fd())
}
