//! Objects and signals: brings the bus to what the service knows. A signal that cannot be sent is nobody's error: the bus is gone then.

use std::collections::HashMap;
use std::sync::Arc;

use ckpt_dbus::names;
use ckpt_engine::{CheckpointInfo, Error};
use serde::Serialize;
use zbus::object_server::InterfaceRef;
use zbus::wire::LE;
use zbus::wire::serialized::Context;
use zbus::{OwnedVariant, Type};

use super::{Done, Job, Outcome, Service, View, Work};
use crate::bus::manager::ManagerObjectSignals;
use crate::bus::{CheckpointObject, GroupObject, JobObject, ManagerObject, job::JobObjectSignals, rows};

/// A dictionary for a signal.
type Dict = HashMap<String, OwnedVariant>;

impl Service {
    async fn manager(&self) -> Result<InterfaceRef<ManagerObject>, Error> {
        self.interface(names::MANAGER_PATH).await
    }

    async fn interface<I: zbus::object_server::Interface>(
        &self,
        path: &str,
    ) -> Result<InterfaceRef<I>, Error> {
        self.connection()?
            .object_server()
            .interface(path)
            .await
            .map_err(|e| Error::Failed(format!("{path}: {e}")))
    }

    async fn serve<I: zbus::object_server::Interface>(&self, path: &str, object: I) -> Result<(), Error> {
        let served = self.connection()?.object_server().at(path, object).await;
        served.map(|_| ()).map_err(|e| Error::Failed(format!("{path}: {e}")))
    }

    /// The job's object, JobNew, Group1.State, PrepareForCheckpoint.
    pub(super) async fn publish_new(self: &Arc<Self>, job: &Arc<Job>) -> Result<(), Error> {
        self.sync_group(&job.group).await?;
        let path = names::job_path(job.number);
        self.serve(path.as_str(), JobObject::new(Arc::clone(self), Arc::clone(job))).await?;
        if let Ok(manager) = self.manager().await {
            let _ = manager.job_new(job.number, path).await;
        }
        self.publish_state(&job.group).await;
        self.publish_prepare(job, true).await;
        Ok(())
    }

    /// What of the view changed since it was shown.
    pub(super) async fn publish_view(&self, job: &Job, shown: &mut View) {
        let view = job.view();
        let path = names::job_path(job.number);
        let Ok(object) = self.interface::<JobObject>(path.as_str()).await else { return };
        let emitter = object.signal_emitter();
        let this = object.get().await;
        if view.state != shown.state {
            let _ = this.state_changed(emitter).await;
        }
        if view.stage != shown.stage {
            let _ = this.stage_changed(emitter).await;
        }
        if view.total != shown.total {
            let _ = this.bytes_total_changed(emitter).await;
        }
        if view.done != shown.done {
            let _ = this.bytes_done_changed(emitter).await;
            let _ = this.progress_changed(emitter).await;
        }
        *shown = view;
    }

    /// PrepareForCheckpoint, for checkpoints.
    pub(super) async fn publish_prepare(&self, job: &Job, start: bool) {
        if !matches!(job.work, Work::Checkpoint(_)) {
            return;
        }
        if let Ok(manager) = self.manager().await {
            let _ = manager.prepare_for_checkpoint(&job.group, start).await;
        }
    }

    /// Completed, Restored, JobRemoved; the job's object goes.
    pub(super) async fn publish_end(self: &Arc<Self>, job: &Job, outcome: &Outcome) {
        self.publish_state(&job.group).await;
        let path = names::job_path(job.number);
        let (name, text) = match outcome {
            Ok(_) => (String::new(), String::new()),
            Err(error) => (error.name.clone(), error.text.clone()),
        };
        let stats = stats(outcome);
        if let Ok(object) = self.interface::<JobObject>(path.as_str()).await {
            let _ = object.get().await.state_changed(object.signal_emitter()).await;
            let _ = object.completed(outcome.is_ok(), &name, &text, stats.clone()).await;
        }
        if let Ok(manager) = self.manager().await {
            if let Work::Restore(request) = &job.work {
                let id = match outcome.as_deref() {
                    Ok(Done::Restore(info)) => &info.id,
                    _ => &request.checkpoint,
                };
                let _ = manager.restored(&job.group, id, outcome.is_ok()).await;
            }
            let result = if outcome.is_ok() { "done" } else { short(&name) };
            let _ = manager.job_removed(job.number, path.clone(), result, stats).await;
        }
        if let Ok(connection) = self.connection() {
            let _ = connection.object_server().remove::<JobObject, _>(&path).await;
        }
    }

    async fn publish_state(&self, group: &str) {
        let path = names::group_path(group);
        if let Ok(object) = self.interface::<GroupObject>(path.as_str()).await {
            let _ = object.get().await.state_changed(object.signal_emitter()).await;
        }
    }

    /// Reads the group's checkpoints anew and brings their objects, CheckpointAdded and CheckpointRemoved up to date.
    pub async fn sync(self: &Arc<Self>, group: &str) -> Result<(), Error> {
        let name = group.to_owned();
        let now = self.blocking(move |service| service.engine.list(&name)).await??;
        let before = {
            let mut state = self.state();
            let known = state.groups.entry(group.to_owned()).or_default();
            std::mem::replace(&mut known.checkpoints, now.clone())
        };
        self.sync_group(group).await?;
        for info in now.iter().filter(|i| before.iter().all(|b| b.id != i.id)) {
            self.publish_checkpoint(info).await?;
        }
        for info in before.iter().filter(|b| now.iter().all(|i| i.id != b.id)) {
            self.unpublish_checkpoint(info).await?;
        }
        let changed = |i: &&CheckpointInfo| before.iter().any(|b| b.id == i.id && b != *i);
        for info in now.iter().filter(changed) {
            self.publish_changed(info).await;
        }
        let newest =
            |list: &[CheckpointInfo]| list.iter().find(|c| c.state == "durable").map(|c| c.id.clone());
        if newest(&before) != newest(&now) {
            self.publish_last(group).await;
        }
        Ok(())
    }

    async fn publish_checkpoint(self: &Arc<Self>, info: &CheckpointInfo) -> Result<(), Error> {
        let path = names::checkpoint_path(&info.id);
        self.serve(path.as_str(), CheckpointObject::new(Arc::clone(self), info.clone())).await?;
        let _ = self.manager().await?.checkpoint_added(&info.group, path).await;
        Ok(())
    }

    async fn publish_changed(&self, info: &CheckpointInfo) {
        let path = names::checkpoint_path(&info.id);
        if let Ok(object) = self.interface::<CheckpointObject>(path.as_str()).await {
            let emitter = object.signal_emitter();
            let mut this = object.get_mut().await;
            this.set(info.clone());
            let _ = this.kind_changed(emitter).await;
            let _ = this.parent_changed(emitter).await;
            let _ = this.size_changed(emitter).await;
            let _ = this.state_changed(emitter).await;
            let _ = this.description_changed(emitter).await;
            let _ = this.tags_changed(emitter).await;
        }
    }

    async fn unpublish_checkpoint(&self, info: &CheckpointInfo) -> Result<(), Error> {
        let path = names::checkpoint_path(&info.id);
        let _ = self.connection()?.object_server().remove::<CheckpointObject, _>(&path).await;
        let _ = self.manager().await?.checkpoint_removed(&info.group, &info.id).await;
        Ok(())
    }

    /// Group1.Enabled and what comes from the group's file.
    pub(super) async fn publish_config(&self, group: &str) {
        let path = names::group_path(group);
        if let Ok(object) = self.interface::<GroupObject>(path.as_str()).await {
            let this = object.get().await;
            let _ = this.enabled_changed(object.signal_emitter()).await;
            let _ = this.slice_changed(object.signal_emitter()).await;
            let _ = this.subvolumes_changed(object.signal_emitter()).await;
        }
    }

    async fn publish_last(&self, group: &str) {
        let path = names::group_path(group);
        if let Ok(object) = self.interface::<GroupObject>(path.as_str()).await {
            let this = object.get().await;
            let _ = this.last_checkpoint_changed(object.signal_emitter()).await;
            let _ = this.last_freeze_u_sec_changed(object.signal_emitter()).await;
        }
    }

    /// Serves the object of a group that is registered, has checkpoints or is busy, and takes it away from any other.
    pub(super) async fn sync_group(self: &Arc<Self>, group: &str) -> Result<(), Error> {
        let path = names::group_path(group);
        let (wanted, served) = {
            let mut state = self.state();
            let Some(known) = state.groups.get_mut(group) else { return Ok(()) };
            let wanted = known.enabled || known.busy.is_some() || !known.checkpoints.is_empty();
            (wanted, std::mem::replace(&mut known.served, wanted))
        };
        if wanted && !served {
            self.serve(path.as_str(), GroupObject::new(Arc::clone(self), group.to_owned())).await?;
        }
        if served && !wanted {
            let _ = self.connection()?.object_server().remove::<GroupObject, _>(&path).await;
        }
        Ok(())
    }
}

/// The last part of an error name.
fn short(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// Completed and JobRemoved carry the row of the checkpoint or of the restore.
fn stats(outcome: &Outcome) -> Dict {
    match outcome.as_deref() {
        Ok(Done::Checkpoint(info)) => dict(&rows::checkpoint(info)),
        Ok(Done::Restore(info)) => dict(&rows::restore(info)),
        Ok(Done::Merged(info) | Done::Imported(info)) => dict(&rows::checkpoint(info)),
        Ok(Done::Pruned(_) | Done::Plain) | Err(_) => Dict::new(),
    }
}

/// A row as a dictionary: both are `a{sv}` on the wire.
fn dict<T: Serialize + Type>(row: &T) -> Dict {
    zbus::wire::to_bytes(Context::new(LE, 0), row)
        .and_then(|bytes| bytes.deserialize::<Dict>().map(|(dict, _)| dict))
        .unwrap_or_default()
}
