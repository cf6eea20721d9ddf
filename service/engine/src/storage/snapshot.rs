//! Snapshots: prepared while the group runs, taken in the freeze window, made durable after it.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use ckpt_image::SnapshotEntry;
use ckpt_sys::btrfs;
use nix::errno::Errno;
use ulid::Ulid;

use super::place::{make_directory, open_directory};
use super::{Place, Subvolume, escape, failed, mounts};
use crate::error::Error;

/// Everything that can be done before the freeze window is done: directories made and opened, names known.
#[derive(Debug)]
pub struct Prepared<'s> {
    items: Vec<Item<'s>>,
}

#[derive(Debug)]
struct Item<'s> {
    subvolume: &'s Subvolume,
    directory: OwnedFd,
    name: String,
    path: PathBuf,
}

impl<'s> Prepared<'s> {
    /// Makes `GROUP/ID/` at the place of every subvolume. What it made is removed again when it is dropped unused.
    ///
    /// Errors: SnapshotFailed, NoSpace.
    pub fn new(place: &Place, subvolumes: &'s [Subvolume], group: &str, id: &str) -> Result<Self, Error> {
        let mut prepared = Self { items: Vec::with_capacity(subvolumes.len()) };
        for subvolume in subvolumes {
            let failed = |e| failed(subvolume.path(), "make the directory of the snapshot", e);
            let place_directory = place.make(subvolume.top()).map_err(failed)?;
            let within = Path::new(group).join(id);
            let directory = make_directory(place_directory.as_fd(), &within).map_err(failed)?;
            let name = escape(subvolume.path());
            let path = subvolume.mount_point().join(place.relative()).join(&within).join(&name);
            prepared.items.push(Item { subvolume, directory, name, path });
        }
        Ok(prepared)
    }

    /// Takes a read-only snapshot of every subvolume: all or none. To be called while everything that writes is frozen; file
    /// systems are served side by side, the subvolumes of one after another. Returns before they are durable.
    ///
    /// Errors: SnapshotFailed, NoSpace; then none is left.
    pub fn take(self) -> Result<Taken<'s>, Error> {
        let mut taken = Taken { prepared: self, done: Vec::new(), kept: false };
        let items = &taken.prepared.items;
        let mut file_systems: Vec<_> = items.iter().map(|i| i.subvolume.file_system()).collect();
        file_systems.sort();
        file_systems.dedup();
        let one = |uuid: btrfs::Uuid| -> (Vec<usize>, Result<(), Error>) {
            let mut done = Vec::new();
            for (index, item) in items.iter().enumerate().filter(|(_, i)| i.subvolume.file_system() == uuid) {
                let (from, to) = (item.subvolume.directory(), item.directory.as_fd());
                if let Err(e) = btrfs::snapshot(from, to, item.name.as_ref(), true) {
                    return (done, Err(failed(item.subvolume.path(), "take the snapshot", e)));
                }
                done.push(index);
            }
            (done, Ok(()))
        };
        let results: Vec<_> = match file_systems.as_slice() {
            [] => Vec::new(),
            [only] => vec![one(*only)],
            several => std::thread::scope(|scope| {
                let threads: Vec<_> = several.iter().map(|uuid| scope.spawn(|| one(*uuid))).collect();
                threads.into_iter().filter_map(|t| t.join().ok()).collect()
            }),
        };
        let mut outcome = Ok(());
        let mut all_done = Vec::new();
        for (done, result) in results {
            all_done.extend(done);
            outcome = outcome.and(result);
        }
        taken.done = all_done;
        outcome.map(|()| taken)
    }
}

impl Drop for Prepared<'_> {
    fn drop(&mut self) {
        for item in &self.items {
            remove_empty_directories(&item.path);
        }
    }
}

/// Snapshots that were taken; removed when dropped, unless [`Taken::keep`] was called.
#[derive(Debug)]
pub struct Taken<'s> {
    prepared: Prepared<'s>,
    done: Vec<usize>,
    kept: bool,
}

impl Taken<'_> {
    /// Waits until the snapshots are on disk, and says what the manifest has to know of them. Blocks; to be called after the thaw.
    pub fn make_durable(&self) -> Result<Vec<SnapshotEntry>, Error> {
        let mut waits: Vec<(btrfs::Uuid, u64, &Item<'_>)> = Vec::new();
        for item in &self.prepared.items {
            let file_system = item.subvolume.file_system();
            if waits.iter().all(|(uuid, ..)| *uuid != file_system) {
                let transaction = btrfs::start_sync(item.directory.as_fd())
                    .map_err(|e| failed(item.subvolume.path(), "commit the snapshot", e))?;
                waits.push((file_system, transaction, item));
            }
        }
        for (_, transaction, item) in waits {
            btrfs::wait_sync(item.directory.as_fd(), transaction)
                .map_err(|e| failed(item.subvolume.path(), "commit the snapshot", e))?;
        }
        self.prepared.items.iter().map(entry).collect()
    }

    /// They stay: the manifest that names them is committed.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

fn entry(item: &Item<'_>) -> Result<SnapshotEntry, Error> {
    let failed = |e| failed(item.subvolume.path(), "look at the snapshot", e);
    let snapshot = open_directory(item.directory.as_fd(), Path::new(&item.name)).map_err(failed)?;
    let info = btrfs::subvolume_info(snapshot.as_fd()).map_err(failed)?;
    Ok(SnapshotEntry {
        subvolume: item.subvolume.path().to_path_buf(),
        path: item.path.clone(),
        uuid: info.uuid.to_string(),
        subvolume_uuid: info.parent_uuid.to_string(),
        fs_uuid: item.subvolume.file_system().to_string(),
        generation: info.generation,
    })
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        for &index in &self.done {
            let item = &self.prepared.items[index];
            // What cannot be removed now is an orphan that `remove_orphans` finds at the next start.
            let _ = btrfs::delete_subvolume(item.directory.as_fd(), item.name.as_ref());
        }
    }
}

/// Looks whether the snapshots of a checkpoint are there and are the ones that the manifest means.
///
/// Errors: FileMismatch, naming the first that is not.
pub fn verify(entries: &[SnapshotEntry]) -> Result<(), Error> {
    entries.iter().try_for_each(|entry| open(entry).map(drop))
}

/// Opens a snapshot that a manifest names. Errors: FileMismatch.
pub(super) fn open(entry: &SnapshotEntry) -> Result<OwnedFd, Error> {
    let mismatch = |why: String| Error::FileMismatch { path: entry.path.display().to_string(), why };
    let look = |e: Errno| mismatch(format!("cannot be looked at: {}", e.desc()));
    let snapshot = match File::open(&entry.path) {
        Ok(file) => OwnedFd::from(file),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(mismatch(format!(
                "the snapshot of {} is gone; is its file system mounted, or was it deleted?",
                entry.subvolume.display()
            )));
        }
        Err(e) => return Err(look(super::errno(&e))),
    };
    if !btrfs::is_subvolume(snapshot.as_fd()).map_err(look)? {
        return Err(mismatch("it is no btrfs subvolume any more".into()));
    }
    let info = btrfs::subvolume_info(snapshot.as_fd()).map_err(look)?;
    if info.uuid.to_string() != entry.uuid {
        return Err(mismatch(format!("it has UUID {}, the checkpoint's snapshot {}", info.uuid, entry.uuid)));
    }
    if !info.read_only {
        return Err(mismatch("it was made writable, so its files may have changed".into()));
    }
    if info.changed > info.made {
        return Err(mismatch("its files were changed after the checkpoint".into()));
    }
    Ok(snapshot)
}

/// Removes the snapshots of a checkpoint and their directories. One that is gone already is no error. Quick: btrfs gives the
/// space back in the background.
pub fn remove(entries: &[SnapshotEntry]) -> Result<(), Error> {
    for entry in entries {
        remove_subvolume_at(&entry.path).map_err(|e| failed(&entry.subvolume, "remove the snapshot", e))?;
        remove_empty_directories(&entry.path);
    }
    Ok(())
}

/// Removes the subvolume at a path below `.ckpt`. ENOENT is no error.
pub(super) fn remove_subvolume_at(path: &Path) -> Result<(), Errno> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::EINVAL) };
    let directory = match File::open(parent) {
        Ok(directory) => directory,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(super::errno(&e)),
    };
    match btrfs::delete_subvolume(directory.as_fd(), name) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        // Subvolumes are nested in it: an undo snapshot whose subvolume had some.
        Err(Errno::ENOTEMPTY) => {
            let subvolume = open_directory(directory.as_fd(), Path::new(name))?;
            btrfs::set_read_only(subvolume.as_fd(), false)?;
            btrfs::delete_subvolume_tree(path).map_err(|e| super::errno(&e))
        }
        Err(e) => Err(e),
    }
}

/// Removes `ID/` and `GROUP/` above a snapshot that is gone, where they are empty.
pub(super) fn remove_empty_directories(snapshot: &Path) {
    for directory in snapshot.ancestors().skip(1).take(2) {
        if std::fs::remove_dir(directory).is_err() {
            return;
        }
    }
}

/// Removes the snapshots of a group that belong to no checkpoint: what a crash between snapshot and manifest left behind.
/// `known` says whether an id is a checkpoint. Returns what was removed. Undo snapshots and names that are no id are left alone.
pub fn remove_orphans(
    place: &Place,
    group: &str,
    subvolumes: &[PathBuf],
    known: &dyn Fn(&str) -> bool,
) -> Result<Vec<PathBuf>, Error> {
    let mut removed = Vec::new();
    for directory in group_directories(place, group, subvolumes)? {
        for (id, path) in entries_of(&directory)? {
            if Ulid::from_string(&id).is_err() || known(&id) {
                continue;
            }
            for (_, snapshot) in entries_of(&path)? {
                remove_subvolume_at(&snapshot).map_err(|e| failed(&snapshot, "remove the orphan", e))?;
                remove_empty_directories(&snapshot);
                removed.push(snapshot);
            }
            let _ = std::fs::remove_dir(&path);
        }
    }
    Ok(removed)
}

/// `.ckpt/GROUP` in the mounts that the subvolumes lie in (those that do not exist any more: their nearest ancestor), each once.
pub(super) fn group_directories(
    place: &Place,
    group: &str,
    subvolumes: &[PathBuf],
) -> Result<Vec<PathBuf>, Error> {
    let mut found: Vec<PathBuf> = Vec::new();
    for subvolume in subvolumes {
        let Some(there) = subvolume.ancestors().find(|p| p.exists()) else { continue };
        let file = File::open(there).map_err(|e| Error::io(format!("open {}", there.display()), e))?;
        let mount = mounts::of(file.as_fd())?;
        let directory = mount.point.join(place.relative()).join(group);
        if directory.is_dir() && !found.contains(&directory) {
            found.push(directory);
        }
    }
    Ok(found)
}

/// Names and paths in a directory, ordered by name.
pub(super) fn entries_of(directory: &Path) -> Result<Vec<(String, PathBuf)>, Error> {
    let failed = |e| Error::io(format!("list {}", directory.display()), e);
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if let Some(name) = path.file_name().filter(|n| n.as_bytes().is_ascii()) {
            entries.push((name.to_string_lossy().into_owned(), path.clone()));
        }
    }
    entries.sort();
    Ok(entries)
}
