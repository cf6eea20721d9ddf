//! org.ckpt.Manager1

use std::fs::File;
use std::sync::Arc;

use ckpt_dbus::names::{actions, checkpoint_path, group_path, job_path};
use ckpt_dbus::{CheckpointRow, GroupRow, ProblemRow, PruneRow};
use ckpt_engine::Severity;
use zbus::message::Header;
use zbus::object_server::SignalEmitter;
use zbus::{OwnedFd, OwnedObjectPath};

use super::error::BusError;
use super::options::{self, Dict};
use super::rows;
use crate::service::{Service, Work};

/// The object /org/ckpt.
pub struct ManagerObject {
    service: Arc<Service>,
}

impl ManagerObject {
    pub(crate) fn new(service: Arc<Service>) -> Self {
        Self { service }
    }
}

#[zbus::interface(name = "org.ckpt.Manager1", introspection_docs = false)]
impl ManagerObject {
    #[zbus(out_args("job", "checkpoint"))]
    async fn checkpoint(
        &self,
        #[zbus(header)] header: Header<'_>,
        group: &str,
        options: Dict,
    ) -> Result<(OwnedObjectPath, OwnedObjectPath), BusError> {
        self.service.authorize(&header, actions::CHECKPOINT, group).await?;
        let (request, wait) = options::checkpoint(options)?;
        let (job, id) = self.service.checkpoint(self.service.resolve(group).await?, request, wait).await?;
        Ok((job_path(job), checkpoint_path(&id)))
    }

    #[zbus(out_args("job"))]
    async fn restore(
        &self,
        #[zbus(header)] header: Header<'_>,
        group: &str,
        checkpoint: &str,
        options: Dict,
    ) -> Result<OwnedObjectPath, BusError> {
        self.service.authorize(&header, actions::RESTORE, group).await?;
        let (request, wait) = options::restore(checkpoint, options)?;
        let group = self.service.resolve(group).await?;
        Ok(job_path(self.service.job(group, Work::Restore(request), wait).await?))
    }

    #[zbus(out_args("job"))]
    async fn merge(
        &self,
        #[zbus(header)] header: Header<'_>,
        group: &str,
        upto: &str,
        options: Dict,
    ) -> Result<OwnedObjectPath, BusError> {
        self.service.authorize(&header, actions::CHECKPOINT, group).await?;
        let wait = options::job(options)?;
        let (group, id) = self.service.stored_checkpoint(group, upto).await?;
        Ok(job_path(self.service.job(group, Work::Merge(id), wait).await?))
    }

    #[zbus(out_args("job"))]
    async fn verify(
        &self,
        #[zbus(header)] header: Header<'_>,
        group: &str,
        checkpoint: &str,
        options: Dict,
    ) -> Result<OwnedObjectPath, BusError> {
        self.service.authorize(&header, actions::CHECKPOINT, group).await?;
        let wait = options::job(options)?;
        let (group, id) = self.service.stored_checkpoint(group, checkpoint).await?;
        Ok(job_path(self.service.job(group, Work::Verify(id), wait).await?))
    }

    #[zbus(out_args("job"))]
    async fn delete(
        &self,
        #[zbus(header)] header: Header<'_>,
        group: &str,
        checkpoints: Vec<String>,
        options: Dict,
    ) -> Result<OwnedObjectPath, BusError> {
        self.service.authorize(&header, actions::DELETE, group).await?;
        let wait = options::job(options)?;
        let group = self.service.resolve_stored(group).await?;
        Ok(job_path(self.service.job(group, Work::Delete(checkpoints), wait).await?))
    }

    #[zbus(out_args("decisions"))]
    async fn prune(
        &self,
        #[zbus(header)] header: Header<'_>,
        group: &str,
        options: Dict,
    ) -> Result<Vec<PruneRow>, BusError> {
        self.service.authorize(&header, actions::DELETE, group).await?;
        let dry_run = options::prune(options)?;
        let group = self.service.resolve_stored(group).await?;
        Ok(self.service.prune(group, dry_run).await?.iter().map(rows::decision).collect())
    }

    #[zbus(out_args("job"))]
    async fn export(
        &self,
        #[zbus(header)] header: Header<'_>,
        group: &str,
        checkpoint: &str,
        file: OwnedFd,
        options: Dict,
    ) -> Result<OwnedObjectPath, BusError> {
        self.service.authorize(&header, actions::EXPORT, group).await?;
        let wait = options::job(options)?;
        let (group, id) = self.service.stored_checkpoint(group, checkpoint).await?;
        let to = Arc::new(File::from(std::os::fd::OwnedFd::from(file)));
        Ok(job_path(self.service.job(group, Work::Export(id, to), wait).await?))
    }

    #[zbus(out_args("job", "checkpoint"))]
    async fn import(
        &self,
        #[zbus(header)] header: Header<'_>,
        file: OwnedFd,
        options: Dict,
    ) -> Result<(OwnedObjectPath, OwnedObjectPath), BusError> {
        self.service.authorize(&header, actions::EXPORT, "").await?;
        let wait = options::job(options)?;
        let file = File::from(std::os::fd::OwnedFd::from(file));
        let (job, id) = self.service.import(file, wait).await?;
        Ok((job_path(job), checkpoint_path(&id)))
    }

    #[zbus(out_args("ok", "problems"))]
    async fn check(
        &self,
        #[zbus(header)] header: Header<'_>,
        group: &str,
        options: Dict,
    ) -> Result<(bool, Vec<ProblemRow>), BusError> {
        self.service.authorize(&header, actions::INSPECT, group).await?;
        options::none(options)?;
        let problems = self.service.check(self.service.resolve(group).await?).await?;
        let ok = problems.iter().all(|p| p.severity != Severity::Error);
        Ok((ok, problems.iter().map(rows::problem).collect()))
    }

    #[zbus(out_args("group"))]
    async fn enable(
        &self,
        #[zbus(header)] header: Header<'_>,
        name: &str,
        config: Dict,
    ) -> Result<OwnedObjectPath, BusError> {
        self.service.authorize(&header, actions::MANAGE_GROUPS, name).await?;
        Ok(group_path(&self.service.enable(name, config).await?))
    }

    async fn disable(
        &self,
        #[zbus(header)] header: Header<'_>,
        name: &str,
        options: Dict,
    ) -> Result<(), BusError> {
        self.service.authorize(&header, actions::MANAGE_GROUPS, name).await?;
        options::none(options)?;
        Ok(self.service.disable(name).await?)
    }

    async fn reload(&self, #[zbus(header)] header: Header<'_>) -> Result<(), BusError> {
        self.service.authorize(&header, actions::MANAGE_GROUPS, "").await?;
        Ok(self.service.reload().await?)
    }

    #[zbus(out_args("groups"))]
    async fn list_groups(
        &self,
        #[zbus(header)] header: Header<'_>,
        options: Dict,
    ) -> Result<Vec<GroupRow>, BusError> {
        self.service.authorize(&header, actions::INSPECT, "").await?;
        options::none(options)?;
        Ok(self.service.rows().await?)
    }

    #[zbus(out_args("checkpoints"))]
    async fn list_checkpoints(
        &self,
        #[zbus(header)] header: Header<'_>,
        group: &str,
        options: Dict,
    ) -> Result<Vec<CheckpointRow>, BusError> {
        self.service.authorize(&header, actions::INSPECT, group).await?;
        options::none(options)?;
        let group = self.service.resolve_stored(group).await?;
        Ok(self.service.list(group).await?.iter().map(rows::checkpoint).collect())
    }

    #[zbus(out_args("group"))]
    async fn get_group(
        &self,
        #[zbus(header)] header: Header<'_>,
        group: &str,
    ) -> Result<OwnedObjectPath, BusError> {
        self.service.authorize(&header, actions::INSPECT, group).await?;
        Ok(group_path(&self.service.served(group)?))
    }

    #[zbus(out_args("checkpoint"))]
    async fn get_checkpoint(
        &self,
        #[zbus(header)] header: Header<'_>,
        group: &str,
        checkpoint: &str,
    ) -> Result<OwnedObjectPath, BusError> {
        self.service.authorize(&header, actions::INSPECT, group).await?;
        let (_, id) = self.service.stored_checkpoint(group, checkpoint).await?;
        Ok(checkpoint_path(&id))
    }

    #[zbus(signal)]
    async fn job_new(emitter: &SignalEmitter<'_>, number: u32, job: OwnedObjectPath) -> zbus::Result<()>;

    #[zbus(signal)]
    async fn job_removed(
        emitter: &SignalEmitter<'_>,
        number: u32,
        job: OwnedObjectPath,
        result: &str,
        stats: Dict,
    ) -> zbus::Result<()>;

    #[zbus(signal)]
    async fn checkpoint_added(
        emitter: &SignalEmitter<'_>,
        group: &str,
        checkpoint: OwnedObjectPath,
    ) -> zbus::Result<()>;

    #[zbus(signal)]
    async fn checkpoint_removed(
        emitter: &SignalEmitter<'_>,
        group: &str,
        checkpoint: &str,
    ) -> zbus::Result<()>;

    #[zbus(signal)]
    async fn restored(
        emitter: &SignalEmitter<'_>,
        group: &str,
        checkpoint: &str,
        success: bool,
    ) -> zbus::Result<()>;

    #[zbus(signal)]
    async fn prepare_for_checkpoint(
        emitter: &SignalEmitter<'_>,
        group: &str,
        start: bool,
    ) -> zbus::Result<()>;

    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> &str {
        env!("CARGO_PKG_VERSION")
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn features(&self) -> Vec<&str> {
        vec![
            "full",
            "stop",
            "snapshots",
            "restore",
            "verify",
            "delete",
            "merge",
            "prune",
            "export",
            "preload",
        ]
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn kernel_features(&self) -> Vec<String> {
        crate::systemd::kernel_features()
    }
}
