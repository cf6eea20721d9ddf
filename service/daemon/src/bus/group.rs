//! org.ckpt.Group1

use std::sync::Arc;

use ckpt_dbus::names::{actions, checkpoint_path, job_path, no_object};
use ckpt_dbus::{GroupRow, ProblemRow};
use ckpt_engine::Severity;
use zbus::OwnedObjectPath;
use zbus::message::Header;

use super::error::BusError;
use super::options::{self, Dict};
use super::rows;
use crate::service::{Service, Work};

/// The object of a group.
pub struct GroupObject {
    service: Arc<Service>,
    name: String,
}

impl GroupObject {
    pub(crate) fn new(service: Arc<Service>, name: String) -> Self {
        Self { service, name }
    }

    fn row(&self) -> GroupRow {
        self.service.known_row(&self.name).unwrap_or_default()
    }
}

#[zbus::interface(name = "org.ckpt.Group1", introspection_docs = false)]
impl GroupObject {
    #[zbus(out_args("job", "checkpoint"))]
    async fn checkpoint(
        &self,
        #[zbus(header)] header: Header<'_>,
        options: Dict,
    ) -> Result<(OwnedObjectPath, OwnedObjectPath), BusError> {
        self.service.authorize(&header, actions::CHECKPOINT, &self.name).await?;
        let (request, wait) = options::checkpoint(options)?;
        let group = self.service.resolve(&self.name).await?;
        let (job, id) = self.service.checkpoint(group, request, wait).await?;
        Ok((job_path(job), checkpoint_path(&id)))
    }

    #[zbus(out_args("job"))]
    async fn restore(
        &self,
        #[zbus(header)] header: Header<'_>,
        checkpoint: &str,
        options: Dict,
    ) -> Result<OwnedObjectPath, BusError> {
        self.service.authorize(&header, actions::RESTORE, &self.name).await?;
        let (request, wait) = options::restore(checkpoint, options)?;
        let group = self.service.resolve(&self.name).await?;
        Ok(job_path(self.service.job(group, Work::Restore(request), wait).await?))
    }

    #[zbus(out_args("ok", "problems"))]
    async fn check(
        &self,
        #[zbus(header)] header: Header<'_>,
        options: Dict,
    ) -> Result<(bool, Vec<ProblemRow>), BusError> {
        self.service.authorize(&header, actions::INSPECT, &self.name).await?;
        options::none(options)?;
        let problems = self.service.check(self.service.resolve(&self.name).await?).await?;
        let ok = problems.iter().all(|p| p.severity != Severity::Error);
        Ok((ok, problems.iter().map(rows::problem).collect()))
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn name(&self) -> String {
        self.name.clone()
    }

    #[zbus(property)]
    fn enabled(&self) -> bool {
        self.row().enabled
    }

    #[zbus(property)]
    fn slice(&self) -> String {
        self.row().slice
    }

    // The units of a slice come and go without a word to us: asked for anew each time.
    #[zbus(property(emits_changed_signal = "false"))]
    async fn units(&self) -> Vec<String> {
        let row = self.service.row(&self.name).await.ok().flatten();
        row.unwrap_or_else(|| self.row()).units
    }

    #[zbus(property)]
    fn subvolumes(&self) -> Vec<String> {
        self.row().subvolumes
    }

    #[zbus(property)]
    fn state(&self) -> String {
        self.row().state
    }

    #[zbus(property)]
    fn last_checkpoint(&self) -> OwnedObjectPath {
        match self.row().last_checkpoint {
            id if id.is_empty() => no_object(),
            id => checkpoint_path(&id),
        }
    }

    #[zbus(property, name = "LastFreezeUSec")]
    fn last_freeze_usec(&self) -> u64 {
        self.row().last_freeze_usec
    }
}
