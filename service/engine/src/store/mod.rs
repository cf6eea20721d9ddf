//! Where the checkpoints of all groups lie, and which of them exist.
//!
//! ```text
//! STORE/GROUP/            0700
//! STORE/GROUP/ID/         one checkpoint; without manifest.json it does not exist and is removed at start
//! STORE/GROUP/.ID.merge/  a checkpoint that is being folded, or was (fold); removed at start
//! ```

mod fold;

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ckpt_image::{CheckpointState, MANIFEST_FILE, Manifest};
use ulid::Ulid;

use crate::api::Event;
use crate::error::Error;

/// The store: one directory for all groups.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    locks: Arc<Locks>,
}

/// What two threads must not do at once.
#[derive(Debug, Default)]
struct Locks {
    /// Writing a manifest that is committed.
    manifests: Mutex<()>,
    /// Changing what rests on what, by group.
    chains: Mutex<BTreeMap<String, Arc<Mutex<()>>>>,
}

impl Store {
    /// A store at this place; nothing is touched yet.
    pub fn new(root: PathBuf) -> Self {
        Self { root, locks: Arc::default() }
    }

    /// While this is held, nobody else changes a manifest that is committed.
    pub fn manifests(&self) -> MutexGuard<'_, ()> {
        self.locks.manifests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something that changes what rests on what in a group, alone: waits until nobody else does.
    pub fn alone<T>(&self, group: &str, deed: impl FnOnce() -> T) -> T {
        let mut chains = self.locks.chains.lock().unwrap_or_else(PoisonError::into_inner);
        let lock = Arc::clone(chains.entry(group.to_owned()).or_default());
        drop(chains);
        let _alone = lock.lock().unwrap_or_else(PoisonError::into_inner);
        deed()
    }

    /// The directory of one checkpoint.
    pub fn directory(&self, group: &str, id: &str) -> PathBuf {
        self.root.join(group).join(id)
    }

    /// Makes the directory of a checkpoint to be. It is no checkpoint until its manifest is committed.
    pub fn begin(&self, group: &str, id: Ulid) -> Result<PathBuf, Error> {
        let path = self.directory(group, &id.to_string());
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(|e| Error::io(format!("create {}", path.display()), e))?;
        Ok(path)
    }

    /// The manifests of a group, newest first. A directory without one is not a checkpoint and is left out.
    pub fn list(&self, group: &str) -> Result<Vec<Manifest>, Error> {
        let mut manifests = Vec::new();
        for directory in self.directories(group)? {
            if directory.join(MANIFEST_FILE).exists() {
                manifests.push(read(&directory)?);
            }
        }
        manifests.sort_by_key(|m| std::cmp::Reverse(m.id));
        Ok(manifests)
    }

    /// One checkpoint; an empty id is the newest durable one.
    pub fn find(&self, group: &str, id: &str) -> Result<Manifest, Error> {
        let none = || Error::NoSuchCheckpoint { group: group.into(), id: id.into() };
        if id.is_empty() {
            return self
                .list(group)?
                .into_iter()
                .find(|m| m.state == CheckpointState::Durable)
                .ok_or_else(none);
        }
        let ulid: Ulid = id.parse().map_err(|_| none())?;
        let directory = self.directory(group, &ulid.to_string());
        if !directory.join(MANIFEST_FILE).exists() {
            return Err(none());
        }
        read(&directory)
    }

    /// A checkpoint and those it rests on, newest first, the full last. An empty id is the newest durable one.
    ///
    /// Errors: NoSuchCheckpoint; Corrupt where one of them is missing, lies in the directory of another, is of another group, or rests on itself.
    pub fn ancestry(&self, group: &str, id: &str) -> Result<Vec<Manifest>, Error> {
        let mut chain = vec![self.find(group, id)?];
        loop {
            let last = &chain[chain.len() - 1];
            let directory = self.directory(group, &last.id.to_string());
            let corrupt = |why: String| Err(Error::Corrupt { path: directory.display().to_string(), why });
            if last.group != group {
                return corrupt(format!("it is of group {}", last.group));
            }
            let Some(parent) = last.parent else { return Ok(chain) };
            if chain.iter().any(|m| m.id == parent) {
                return corrupt(format!("it rests on {parent}, which rests on it"));
            }
            let directory = self.directory(group, &parent.to_string());
            if !directory.join(MANIFEST_FILE).exists() {
                return corrupt(format!("it rests on {parent}, which is not there"));
            }
            chain.push(read(&directory)?);
        }
    }

    /// The directories of a checkpoint and of those it rests on, as [`PageReader::open`](ckpt_image::PageReader::open) takes them.
    ///
    /// Errors: those of [`Store::ancestry`].
    pub fn chain(&self, group: &str, id: &str) -> Result<Vec<PathBuf>, Error> {
        let ancestry = self.ancestry(group, id)?;
        Ok(ancestry.iter().map(|m| self.directory(group, &m.id.to_string())).collect())
    }

    /// Removes a checkpoint's directory: the manifest first, so that it is gone at once and for good.
    pub fn remove(&self, group: &str, id: &str) -> Result<(), Error> {
        let directory = self.directory(group, id);
        let manifest = directory.join(MANIFEST_FILE);
        match fs::remove_file(&manifest) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                return Err(Error::io(format!("remove {}", manifest.display()), e));
            }
            _ => sync_directory(&directory)?,
        }
        fs::remove_dir_all(&directory).map_err(|e| Error::io(format!("remove {}", directory.display()), e))
    }

    /// Removes the directories that are no checkpoint; what a crash in the middle of one leaves.
    pub fn remove_leftovers(&self, group: &str) -> Result<Vec<Event>, Error> {
        let mut events = Vec::new();
        let is_merge = |p: &PathBuf| p.file_name().and_then(|n| n.to_str()).is_some_and(fold::is_leftover);
        let merges = subdirectories(&self.root.join(group))?.into_iter().filter(is_merge);
        for directory in self.directories(group)?.into_iter().chain(merges) {
            if is_merge(&directory) || !directory.join(MANIFEST_FILE).exists() {
                fs::remove_dir_all(&directory)
                    .map_err(|e| Error::io(format!("remove {}", directory.display()), e))?;
                events.push(Event::LeftoverRemoved { path: directory });
            }
        }
        Ok(events)
    }

    /// Ids that have a directory, committed or not; the others may be removed from the snapshots too.
    pub fn ids(&self, group: &str) -> Result<Vec<String>, Error> {
        let name = |p: PathBuf| p.file_name().map(|n| n.to_string_lossy().into_owned());
        Ok(self.directories(group)?.into_iter().filter_map(name).collect())
    }

    /// Groups that have a directory, whether they are enabled or not.
    pub fn groups(&self) -> Result<Vec<String>, Error> {
        Ok(subdirectories(&self.root)?
            .into_iter()
            .filter_map(|p| p.file_name().map(|n| n.to_string_lossy().into_owned()))
            .collect())
    }

    fn directories(&self, group: &str) -> Result<Vec<PathBuf>, Error> {
        let is_id =
            |p: &PathBuf| p.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.parse::<Ulid>().is_ok());
        Ok(subdirectories(&self.root.join(group))?.into_iter().filter(is_id).collect())
    }
}

/// The manifest in a directory, which must be that of the checkpoint that the directory's name tells.
fn read(directory: &Path) -> Result<Manifest, Error> {
    let manifest = Manifest::read(directory)?;
    if directory.file_name().and_then(|n| n.to_str()) != Some(&manifest.id.to_string()) {
        let why = format!("it is checkpoint {} in the directory of another", manifest.id);
        return Err(Error::Corrupt { path: directory.display().to_string(), why });
    }
    Ok(manifest)
}

/// Directories in a directory; none where it does not exist.
fn subdirectories(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io(format!("read {}", path.display()), e)),
    };
    Ok(entries.flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect())
}

/// fsync(2) of a directory: what was renamed or removed in it stays so.
pub fn sync_directory(path: &Path) -> Result<(), Error> {
    fs::File::open(path)
        .and_then(|d| d.sync_all())
        .map_err(|e| Error::io(format!("sync {}", path.display()), e))
}

#[cfg(test)]
pub(crate) mod fold_tests;
#[cfg(test)]
pub(crate) mod tests;
