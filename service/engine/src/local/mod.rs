//! The engine of this machine: the real one.

mod arrival;
mod chain;
mod checkpoint;
mod delete;
mod describe;
mod merge;
mod precheck;
mod prune;
mod rebuilder;
mod recover;
mod restore;
mod verify;
mod waiting;
mod window;

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use crate::api::{
    CheckpointInfo, CheckpointRequest, Decision, Engine, Event, Group, Job, Problem, RestoreInfo,
    RestoreRequest, Stage, Units,
};
use crate::check;
use crate::config::Settings;
use crate::error::Error;
use crate::storage::{self, Place};
use crate::store::Store;
use crate::track::{Chain, Kept};
use crate::transfer::{self, Incoming};
pub(crate) use verify::check_image;

/// Checkpoints and restores the groups of this machine.
pub struct LocalEngine {
    settings: Settings,
    store: Store,
    units: Arc<dyn Units>,
    /// By group: what is watched since its last durable checkpoint. Taken out by whatever works on the group.
    chains: Mutex<HashMap<String, Chain>>,
    /// What systemd keeps of them.
    kept: Kept,
    /// By group: connections to outside that go on at the restore of what `--stop` left (`tcp = "repair"`).
    held: Mutex<HashMap<String, Vec<OwnedFd>>>,
}

impl LocalEngine {
    /// An engine with these settings, on this systemd. It goes on with the watches that an earlier one had `passed` ([`host::passed`]);
    /// nothing else is touched yet.
    ///
    /// [`host::passed`]: crate::host::passed
    pub fn new(settings: Settings, units: Arc<dyn Units>, passed: Vec<(String, OwnedFd)>) -> Self {
        let store = Store::new(settings.store.clone());
        let (kept, chains) = Kept::open(passed);
        Self { settings, store, units, chains: Mutex::new(chains), kept, held: Mutex::default() }
    }

    /// Where snapshots lie.
    fn place(&self) -> Result<Place, Error> {
        Place::new(&self.settings)
    }

    /// Takes a group's watches out; what works with them puts them back if all went well, and drops them before
    /// [`LocalEngine::settle_chain`] if not.
    fn take_chain(&self, group: &str) -> Option<Chain> {
        self.kept.void(group);
        self.chains.lock().unwrap_or_else(PoisonError::into_inner).remove(group)
    }

    /// Puts them back: the next checkpoint may rest on the one that they name.
    fn keep_chain(&self, group: &str, chain: Chain) {
        self.kept.keep(group, &chain);
        self.chains.lock().unwrap_or_else(PoisonError::into_inner).insert(group.to_owned(), chain);
    }

    /// The work on a group's watches is over. Where they were not put back, nobody keeps them.
    fn settle_chain(&self, group: &str) {
        if !self.chains.lock().unwrap_or_else(PoisonError::into_inner).contains_key(group) {
            self.kept.let_go(group);
        }
    }

    /// Holds these connections of a group instead of those that were held before.
    fn hold(&self, group: &str, connections: Vec<OwnedFd>) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        match connections.is_empty() {
            true => drop(held.remove(group)),
            false => drop(held.insert(group.to_owned(), connections)),
        }
    }

    /// Takes them out.
    fn take_held(&self, group: &str) -> Vec<OwnedFd> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(group).unwrap_or_default()
    }

    /// The subvolumes that the checkpoints of a group have snapshots of: those of its configuration may have changed since.
    fn known_subvolumes(&self, group: &str) -> Result<Vec<PathBuf>, Error> {
        let mut known: Vec<_> =
            self.store.list(group)?.into_iter().flat_map(|m| m.snapshots).map(|s| s.subvolume).collect();
        known.sort();
        known.dedup();
        Ok(known)
    }
}

impl Engine for LocalEngine {
    fn checkpoint(
        &self,
        group: &Group,
        request: &CheckpointRequest,
        job: &dyn Job,
    ) -> Result<CheckpointInfo, Error> {
        let done = checkpoint::run(self, group, request, job);
        self.settle_chain(&group.name);
        done
    }

    fn restore(&self, group: &Group, request: &RestoreRequest, job: &dyn Job) -> Result<RestoreInfo, Error> {
        let restored = restore::run(self, group, request, job);
        if restored.is_ok() {
            drop(self.take_chain(&group.name)); // the processes that were watched are gone
            self.settle_chain(&group.name);
        }
        restored
    }

    fn check(&self, group: &Group) -> Result<Vec<Problem>, Error> {
        Ok(check::group(&self.place()?, group, &self.units.units(group)?)?.1)
    }

    fn list(&self, group: &str) -> Result<Vec<CheckpointInfo>, Error> {
        let mut infos: Vec<_> = self.store.list(group)?.iter().map(describe::info).collect();
        let undos = storage::undos(&self.place()?, group, &self.known_subvolumes(group)?)?;
        infos.extend(undos.iter().map(|undo| describe::undo(group, undo)));
        infos.sort_by_key(|info| std::cmp::Reverse(info.created));
        Ok(infos)
    }

    fn delete(&self, group: &Group, ids: &[String], job: &dyn Job) -> Result<(), Error> {
        job.stage(Stage::Deleting);
        delete::checkpoints(self, &group.name, ids, job)
    }

    fn merge(&self, group: &Group, upto: &str, job: &dyn Job) -> Result<CheckpointInfo, Error> {
        merge::run(self, &group.name, upto, job)
    }

    fn shorten(&self, group: &Group, job: &dyn Job) -> Result<Option<CheckpointInfo>, Error> {
        merge::shorten(self, group, job)
    }

    fn prune(&self, group: &Group, dry_run: bool, job: &dyn Job) -> Result<Vec<Decision>, Error> {
        prune::run(self, group, dry_run, job)
    }

    fn export(&self, group: &Group, id: &str, to: &File, job: &dyn Job) -> Result<(), Error> {
        transfer::export(&self.store, &group.name, id, to, job)
    }

    fn import(&self, from: &Incoming, job: &dyn Job) -> Result<CheckpointInfo, Error> {
        let imported = transfer::import(&self.store, &self.place()?, from, job)?;
        Ok(describe::info(&imported))
    }

    fn verify(&self, group: &Group, id: &str, job: &dyn Job) -> Result<(), Error> {
        let id = self.store.find(&group.name, id)?.id.to_string();
        verify::chain(&self.store, &self.store.ancestry(&group.name, &id)?, verify::Extent::All, job)
            .map(drop)
    }

    fn annotate(
        &self,
        group: &str,
        id: &str,
        description: Option<String>,
        tags: Option<Vec<String>>,
    ) -> Result<CheckpointInfo, Error> {
        let _manifests = self.store.manifests();
        let mut manifest = self.store.find(group, id)?;
        manifest.description = description.unwrap_or(manifest.description);
        manifest.tags = tags.unwrap_or(manifest.tags);
        manifest.commit(&self.store.directory(group, &manifest.id.to_string()))?;
        Ok(describe::info(&manifest))
    }

    fn forget(&self, group: &str) {
        drop(self.take_chain(group));
        self.settle_chain(group);
    }

    fn recover(&self, groups: &[Group]) -> Result<Vec<Event>, Error> {
        recover::run(self, groups)
    }
}

/// Verifies a checkpoint of the group `web` for tests of the store.
#[cfg(test)]
pub(crate) fn verify_quietly(store: &Store, id: &str) -> Result<(), Error> {
    struct Quiet;
    impl Job for Quiet {
        fn stage(&self, _: Stage) {}
        fn progress(&self, _: u64, _: u64) {}
        fn canceled(&self) -> bool {
            false
        }
        fn captured(&self, _: &str) {}
        fn event(&self, _: Event) {}
    }
    verify::chain(store, &store.ancestry("web", id)?, verify::Extent::All, &Quiet).map(drop)
}
