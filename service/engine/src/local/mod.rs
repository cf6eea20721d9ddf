//! The engine of this machine: the real one.

mod describe;
mod verify;

use std::sync::Arc;

use ckpt_image::Manifest;

use crate::api::{
    CheckpointInfo, CheckpointRequest, Engine, Event, Group, Job, Problem, RestoreInfo, RestoreRequest,
    Stage, Units,
};
use crate::config::Settings;
use crate::error::Error;
use crate::frozen;
use crate::store::Store;

/// Checkpoints and restores the groups of this machine.
pub struct LocalEngine {
    settings: Settings,
    store: Store,
    units: Arc<dyn Units>,
}

impl LocalEngine {
    /// An engine with these settings, on this systemd. Nothing is touched yet.
    pub fn new(settings: Settings, units: Arc<dyn Units>) -> Self {
        let store = Store::new(settings.store.clone());
        Self { settings, store, units }
    }

    fn remove(&self, manifest: &Manifest) -> Result<(), Error> {
        self.store.remove(&manifest.group, &manifest.id.to_string())
    }
}

impl Engine for LocalEngine {
    fn checkpoint(&self, group: &Group, _: &CheckpointRequest, _: &dyn Job) -> Result<CheckpointInfo, Error> {
        Err(Error::Unsupported(format!("a checkpoint of {}", group.name)))
    }

    fn restore(&self, group: &Group, _: &RestoreRequest, _: &dyn Job) -> Result<RestoreInfo, Error> {
        Err(Error::Unsupported(format!("a restore of {}", group.name)))
    }

    fn check(&self, group: &Group) -> Result<Vec<Problem>, Error> {
        self.units.units(group)?;
        Err(Error::Unsupported(format!("a check of {}", group.name)))
    }

    fn list(&self, group: &str) -> Result<Vec<CheckpointInfo>, Error> {
        Ok(self.store.list(group)?.iter().map(describe::info).collect())
    }

    fn delete(&self, group: &Group, ids: &[String], job: &dyn Job) -> Result<(), Error> {
        job.stage(Stage::Deleting);
        let manifests = self.store.list(&group.name)?;
        let chosen = ids.iter().map(|id| self.store.find(&group.name, id)).collect::<Result<Vec<_>, _>>()?;
        for manifest in &chosen {
            let child = manifests.iter().find(|m| m.parent == Some(manifest.id));
            if let Some(child) = child.filter(|c| chosen.iter().all(|m| m.id != c.id)) {
                return Err(Error::InvalidArgs(format!(
                    "incremental {} rests on {}; delete it too",
                    child.id, manifest.id
                )));
            }
        }
        for (done, manifest) in chosen.iter().enumerate() {
            job.progress(done as u64, chosen.len() as u64);
            self.remove(manifest)?;
        }
        Ok(())
    }

    fn verify(&self, group: &Group, id: &str, job: &dyn Job) -> Result<(), Error> {
        let manifest = self.store.find(&group.name, id)?;
        verify::image(&self.store.directory(&group.name, &manifest.id.to_string()), &manifest, job)
    }

    fn annotate(
        &self,
        group: &str,
        id: &str,
        description: Option<String>,
        tags: Option<Vec<String>>,
    ) -> Result<CheckpointInfo, Error> {
        let mut manifest = self.store.find(group, id)?;
        manifest.description = description.unwrap_or(manifest.description);
        manifest.tags = tags.unwrap_or(manifest.tags);
        manifest.commit(&self.store.directory(group, &manifest.id.to_string()))?;
        Ok(describe::info(&manifest))
    }

    fn recover(&self, groups: &[Group]) -> Result<Vec<Event>, Error> {
        let mount = ckpt_sys::cgroup::mount_point().map_err(|e| Error::Failed(e.to_string()))?;
        let mut events = frozen::thaw_recorded(&self.settings.run, &mount)?;
        let mut names: Vec<_> = groups.iter().map(|g| g.name.clone()).chain(self.store.groups()?).collect();
        names.sort();
        names.dedup();
        for name in names {
            events.extend(self.store.remove_leftovers(&name)?);
        }
        Ok(events)
    }
}
