//! A restore's exchange of subvolumes, and what it puts aside.
//!
//! ```text
//!   1  .ckpt/GROUP/undo-ID/NAME.pending    written: what is at the place now
//!   2  .ckpt/GROUP/undo-ID/NAME            a writable snapshot of the checkpoint's snapshot
//!   3  renameat2(RENAME_EXCHANGE)          one step: the place has the writable snapshot, undo-ID/NAME what was there
//!   4  commit: NAME.pending removed        from here on it is an undo snapshot
//! ```
//!
//! A subvolume that is a mount of its own ([`super::mounted`]) is exchanged beside its place, because `.ckpt` lies in it.
//!
//! A crash between 1 and 4 leaves NAME.pending: [`interrupted`] finds it and gives an [`Undo`] that can be reverted.

use std::path::PathBuf;

use ckpt_image::SnapshotEntry;
use ulid::Ulid;

use super::exchanged::Exchanged;
use super::snapshot::{entries_of, group_directories, remove_empty_directories, remove_subvolume_at};
use super::{Place, escape, failed, pending};
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

/// Puts a writable snapshot of each of the checkpoint's snapshots at the place of its subvolume, which need not exist any more:
/// all or none. The units that use them are stopped. Others' open files stay on what is put aside.
///
/// Errors: FileMismatch (see [`verify`](super::verify)), SnapshotFailed, NoSpace, Unsupported.
pub fn exchange(entries: &[SnapshotEntry]) -> Result<Undo, Error> {
    let mut undo = Undo { id: format!("undo-{}", Ulid::new()), done: Vec::with_capacity(entries.len()) };
    for entry in entries {
        let one = Exchanged::prepare(entry, &undo.id).and_then(|(snapshot, exchanged)| {
            undo.done.push(exchanged);
            let Some(exchanged) = undo.done.last_mut() else { return Ok(()) };
            exchanged
                .place(&snapshot)
                .map_err(|e| failed(&entry.subvolume, "put the snapshot in its place", e))
        });
        if let Err(error) = one {
            undo.revert()?;
            return Err(error);
        }
    }
    Ok(undo)
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
