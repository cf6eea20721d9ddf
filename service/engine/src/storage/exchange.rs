//! A restore's exchange of subvolumes, and what it puts aside.
//!
//! ```text
//!   1  .ckpt/GROUP/undo-ID/NAME.pending    written: what is at the place now
//!   2  .ckpt/GROUP/undo-ID/NAME            a writable snapshot of the checkpoint's snapshot
//!   3  renameat2(RENAME_EXCHANGE)          one step: the place has the writable snapshot, undo-ID/NAME what was there
//!   4  commit: NAME.pending removed        from here on it is an undo snapshot
//! ```
//!
//! A crash between 1 and 4 leaves NAME.pending: [`interrupted`] finds it and gives an [`Undo`] that can be reverted.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use ckpt_image::SnapshotEntry;
use ckpt_sys::btrfs;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, RenameFlags, renameat2};
use nix::sys::stat::fstatat;
use ulid::Ulid;

use super::pending::{self, Before};
use super::place::{make_directory, open_directory};
use super::snapshot::{entries_of, group_directories, remove_empty_directories, remove_subvolume_at};
use super::{Place, escape, failed, mounts, snapshot};
use crate::api::SnapshotInfo;
use crate::error::Error;

/// What an exchange put aside. Dropped, it does nothing: the caller says [`Undo::commit`] or [`Undo::revert`].
#[derive(Debug)]
#[must_use]
pub struct Undo {
    id: String,
    done: Vec<Exchanged>,
}

/// An undo snapshot that exists: what a restore put aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UndoInfo {
    /// `undo-` and a ULID.
    pub id: String,
    /// When the restore was.
    pub created: jiff::Timestamp,
    /// What was put aside, and where it lies.
    pub snapshots: Vec<SnapshotInfo>,
}

/// One subvolume's exchange.
#[derive(Debug)]
pub(super) struct Exchanged {
    /// The subvolume as the manifest names it.
    pub subvolume: PathBuf,
    /// The directory it lies in, and its name there.
    pub parent: OwnedFd,
    pub name: OsString,
    /// `undo-ID/`, and the name there.
    pub holder: OwnedFd,
    pub held: PathBuf,
    /// What was at the place.
    pub before: Before,
    /// Whether the place has the writable snapshot now.
    pub placed: bool,
    /// Subvolumes nested in what was put aside that went over to the new one.
    pub carried: Vec<PathBuf>,
}

/// Puts a writable snapshot of each of the checkpoint's snapshots at the place of its subvolume, which need not exist any more:
/// all or none. The units that use them are stopped. Others' open files stay on what is put aside.
///
/// Errors: FileMismatch (see [`verify`](super::verify)), SnapshotFailed, NoSpace, Unsupported.
pub fn exchange(entries: &[SnapshotEntry]) -> Result<Undo, Error> {
    let mut undo = Undo { id: format!("undo-{}", Ulid::new()), done: Vec::with_capacity(entries.len()) };
    for entry in entries {
        let one = prepare(entry, &undo.id).and_then(|(snapshot, exchanged)| {
            undo.done.push(exchanged);
            let Some(exchanged) = undo.done.last_mut() else { return Ok(()) };
            place_snapshot(snapshot, exchanged)
                .map_err(|e| failed(&entry.subvolume, "put the snapshot in its place", e))
        });
        if let Err(error) = one {
            undo.revert()?;
            return Err(error);
        }
    }
    Ok(undo)
}

/// Steps 1 and what is needed for the others.
fn prepare(entry: &SnapshotEntry, id: &str) -> Result<(OwnedFd, Exchanged), Error> {
    let refused =
        |why: String| Error::SnapshotFailed { subvolume: entry.subvolume.display().to_string(), why };
    let snapshot = snapshot::open(entry)?;
    let group = entry.path.parent().and_then(Path::parent).ok_or_else(|| refused("bad path".into()))?;
    let group_directory: OwnedFd =
        File::open(group).map_err(|e| Error::io(format!("open {}", group.display()), e))?.into();
    let (parent, name) = place_of(&entry.subvolume)?;
    let mount = mounts::of(parent.as_fd())?;
    if is_mounted(&parent, &name) {
        return Err(Error::Unsupported(format!(
            "{} is a mount of its own; exchanging it is not built yet",
            entry.subvolume.display()
        )));
    }
    if mount.id != mounts::id_of(group_directory.as_fd())? {
        return Err(refused(format!(
            "it lies in the mount {}, its snapshot {} in another; mount the file system of the snapshot there",
            mount.point.display(),
            entry.path.display()
        )));
    }
    let failed = |e| failed(&entry.subvolume, "make the directory of the undo snapshot", e);
    let holder = make_directory(group_directory.as_fd(), Path::new(id)).map_err(failed)?;
    let held = group.join(id).join(escape(&entry.subvolume));
    let before = Before::look(&parent, &name, id).map_err(failed)?;
    pending::write(&held, &entry.subvolume, &before)?;
    let exchanged = Exchanged {
        subvolume: entry.subvolume.clone(),
        parent,
        name,
        holder,
        held,
        before,
        placed: false,
        carried: Vec::new(),
    };
    Ok((snapshot, exchanged))
}

/// The directory a subvolume lies in, made where it is missing, and its name there. Symbolic links are followed.
pub(super) fn place_of(subvolume: &Path) -> Result<(OwnedFd, OsString), Error> {
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
    let (Some(parent), Some(name)) = (real.parent(), real.file_name()) else {
        return Err(Error::Unsupported(format!("{} cannot be exchanged", real.display())));
    };
    let directory = File::open(parent).map_err(|e| Error::io(format!("open {}", parent.display()), e))?;
    Ok((directory.into(), name.to_owned()))
}

/// Whether something is mounted on `name`: openat2(2) may not cross a mount.
fn is_mounted(parent: &OwnedFd, name: &OsStr) -> bool {
    matches!(open_directory(parent.as_fd(), Path::new(name)), Err(Errno::EXDEV))
}

/// Steps 2 and 3.
fn place_snapshot(snapshot: OwnedFd, x: &mut Exchanged) -> Result<(), Errno> {
    let held = x.held_name();
    btrfs::snapshot(snapshot.as_fd(), x.holder.as_fd(), &held, false)?;
    match &x.before {
        Before::Nothing => {
            renameat2(
                &x.holder,
                held.as_os_str(),
                &x.parent,
                x.name.as_os_str(),
                RenameFlags::RENAME_NOREPLACE,
            )?;
            x.placed = true;
        }
        Before::Subvolume { .. } => {
            renameat2(
                &x.holder,
                held.as_os_str(),
                &x.parent,
                x.name.as_os_str(),
                RenameFlags::RENAME_EXCHANGE,
            )?;
            x.placed = true;
            x.carry_nested()?;
        }
        Before::Other { aside } => {
            // A directory cannot leave its subvolume: it is exchanged beside its place and stays there.
            let aside = OsString::from(aside);
            renameat2(
                &x.holder,
                held.as_os_str(),
                &x.parent,
                aside.as_os_str(),
                RenameFlags::RENAME_NOREPLACE,
            )?;
            renameat2(
                &x.parent,
                aside.as_os_str(),
                &x.parent,
                x.name.as_os_str(),
                RenameFlags::RENAME_EXCHANGE,
            )?;
            x.placed = true;
            let target = x.subvolume.with_file_name(&aside);
            nix::unistd::symlinkat(target.as_path(), &x.holder, held.as_os_str())?;
        }
    }
    Ok(())
}

impl Exchanged {
    fn held_name(&self) -> OsString {
        self.held.file_name().unwrap_or(OsStr::new("")).to_owned()
    }

    /// Subvolumes nested in what was put aside are in no snapshot; they stay where they were, so they go over. One whose
    /// directory is not in the snapshot stays with what was put aside.
    fn carry_nested(&mut self) -> Result<(), Errno> {
        let old = open_directory(self.holder.as_fd(), Path::new(&self.held_name()))?;
        let new = open_directory(self.parent.as_fd(), Path::new(&self.name))?;
        for path in btrfs::nested(old.as_fd())? {
            if move_subvolume(&old, &new, &path).is_ok() {
                self.carried.push(path);
            }
        }
        Ok(())
    }

    fn revert(&mut self) -> Result<(), Errno> {
        let held = self.held_name();
        if self.placed {
            match &self.before {
                Before::Nothing => renameat2(
                    &self.parent,
                    self.name.as_os_str(),
                    &self.holder,
                    held.as_os_str(),
                    RenameFlags::RENAME_NOREPLACE,
                )?,
                Before::Subvolume { .. } => {
                    let old = open_directory(self.holder.as_fd(), Path::new(&held))?;
                    // It was made read-only if the exchange was committed.
                    btrfs::set_read_only(old.as_fd(), false)?;
                    let new = open_directory(self.parent.as_fd(), Path::new(&self.name))?;
                    for path in std::mem::take(&mut self.carried) {
                        move_subvolume(&new, &old, &path)?;
                    }
                    renameat2(
                        &self.holder,
                        held.as_os_str(),
                        &self.parent,
                        self.name.as_os_str(),
                        RenameFlags::RENAME_EXCHANGE,
                    )?;
                }
                Before::Other { aside } => {
                    renameat2(
                        &self.parent,
                        aside.as_str(),
                        &self.parent,
                        self.name.as_os_str(),
                        RenameFlags::RENAME_EXCHANGE,
                    )?;
                }
            }
            self.placed = false;
        }
        if let Before::Other { aside } = &self.before {
            remove_if_subvolume(&self.parent, OsStr::new(aside))?;
            let _ = nix::unistd::unlinkat(
                &self.holder,
                held.as_os_str(),
                nix::unistd::UnlinkatFlags::NoRemoveDir,
            );
        }
        remove_if_subvolume(&self.holder, &held)?;
        self.close()
    }

    /// Removes the marker, and the directory if nothing is in it.
    fn close(&self) -> Result<(), Errno> {
        pending::remove(&self.held)?;
        remove_empty_directories(&self.held);
        Ok(())
    }

    fn commit(&self) -> Result<(), Errno> {
        if matches!(self.before, Before::Subvolume { .. }) {
            let old = open_directory(self.holder.as_fd(), Path::new(&self.held_name()))?;
            btrfs::set_read_only(old.as_fd(), true)?;
        }
        self.close()
    }
}

/// Moves a subvolume to the same path below another directory, in place of the empty directory that a snapshot has there.
fn move_subvolume(from: &OwnedFd, to: &OwnedFd, path: &Path) -> Result<(), Errno> {
    use nix::unistd::{UnlinkatFlags, unlinkat};
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::EINVAL) };
    let open = |root: &OwnedFd| {
        open_directory(root.as_fd(), if parent.as_os_str().is_empty() { Path::new(".") } else { parent })
    };
    let (from, to) = (open(from)?, open(to)?);
    match unlinkat(&to, name, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(e) => return Err(e),
    }
    renameat2(&from, name, &to, name, RenameFlags::RENAME_NOREPLACE)
}

fn remove_if_subvolume(directory: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    match open_directory(directory.as_fd(), Path::new(name)) {
        Ok(fd) if btrfs::is_subvolume(fd.as_fd())? => btrfs::delete_subvolume(directory.as_fd(), name),
        Ok(_) | Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(()),
        Err(e) => Err(e),
    }
}

impl Undo {
    /// `undo-` and a ULID; [`undos`] lists it once it is committed.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The exchange stands, also after a crash: what was there before becomes an undo snapshot, read-only. Call it before members
    /// run. [`Undo::revert`] is still possible. Errors: SnapshotFailed; the exchange stands nonetheless.
    pub fn commit(&mut self) -> Result<(), Error> {
        let mut outcome = Ok(());
        for one in &self.done {
            let result = one.commit().map_err(|e| failed(&one.subvolume, "keep the undo snapshot", e));
            outcome = outcome.and(result);
        }
        outcome
    }

    /// Puts everything back as it was, in the reverse order. Goes on past an error and reports the first.
    pub fn revert(&mut self) -> Result<(), Error> {
        let mut outcome = Ok(());
        for mut one in std::mem::take(&mut self.done).into_iter().rev() {
            let result = one.revert().map_err(|e| failed(&one.subvolume, "put the old subvolume back", e));
            outcome = outcome.and(result);
        }
        outcome
    }
}

/// Exchanges that a crash left between their first step and [`Undo::commit`]. To be reverted, unless the group runs on them.
pub fn interrupted(place: &Place, group: &str, subvolumes: &[PathBuf]) -> Result<Vec<Undo>, Error> {
    let mut found: Vec<Undo> = Vec::new();
    for directory in group_directories(place, group, subvolumes)? {
        for (id, path) in entries_of(&directory)?.into_iter().filter(|(id, _)| id.starts_with("undo-")) {
            for (_, marker) in entries_of(&path)? {
                let Some(exchanged) = pending::read(&marker)? else { continue };
                match found.iter_mut().find(|u| u.id == id) {
                    Some(undo) => undo.done.push(exchanged),
                    None => found.push(Undo { id: id.clone(), done: vec![exchanged] }),
                }
            }
        }
    }
    Ok(found)
}

/// The undo snapshots of a group, newest first. `subvolumes` as in the group's configuration.
pub fn undos(place: &Place, group: &str, subvolumes: &[PathBuf]) -> Result<Vec<UndoInfo>, Error> {
    let mut found: Vec<UndoInfo> = Vec::new();
    for directory in group_directories(place, group, subvolumes)? {
        for (id, path) in entries_of(&directory)? {
            let Some(ulid) = id.strip_prefix("undo-").and_then(|u| Ulid::from_string(u).ok()) else {
                continue;
            };
            let names = entries_of(&path)?;
            if names.iter().any(|(_, p)| pending::is_marker(p)) {
                continue;
            }
            let snapshots = names.into_iter().map(|(name, path)| SnapshotInfo {
                subvolume: subvolumes
                    .iter()
                    .find(|s| escape(s) == name)
                    .cloned()
                    .unwrap_or_else(|| PathBuf::from(&name)),
                path,
            });
            match found.iter_mut().find(|u| u.id == id) {
                Some(undo) => undo.snapshots.extend(snapshots),
                None => {
                    let millis = i64::try_from(ulid.timestamp_ms()).unwrap_or(i64::MAX);
                    let created = jiff::Timestamp::from_millisecond(millis).unwrap_or(jiff::Timestamp::MAX);
                    found.push(UndoInfo { id, created, snapshots: snapshots.collect() });
                }
            }
        }
    }
    found.sort_by(|a, b| b.id.cmp(&a.id));
    Ok(found)
}

/// Removes an undo snapshot for good. A directory that was put aside beside its place is left there.
pub fn remove_undo(undo: &UndoInfo) -> Result<(), Error> {
    for SnapshotInfo { subvolume, path } in &undo.snapshots {
        let failed = |e| failed(subvolume, "remove the undo snapshot", e);
        if path.is_symlink() {
            std::fs::remove_file(path).map_err(|e| failed(super::errno(&e)))?;
        } else {
            remove_subvolume_at(path).map_err(failed)?;
        }
        remove_empty_directories(path);
    }
    Ok(())
}

/// Whether there is something of this name, symbolic links not followed.
pub(super) fn exists(directory: &OwnedFd, name: &OsStr) -> Result<bool, Errno> {
    match fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(Errno::ENOENT) => Ok(false),
        Err(e) => Err(e),
    }
}
