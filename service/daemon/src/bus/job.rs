//! org.ckpt.Job1

use std::sync::Arc;

use zbus::message::Header;
use zbus::object_server::SignalEmitter;

use super::error::BusError;
use super::options::Dict;
use crate::service::{Job, Service};

/// The object of a running job.
pub struct JobObject {
    service: Arc<Service>,
    job: Arc<Job>,
}

impl JobObject {
    pub(crate) fn new(service: Arc<Service>, job: Arc<Job>) -> Self {
        Self { service, job }
    }
}

#[zbus::interface(name = "org.ckpt.Job1", introspection_docs = false)]
impl JobObject {
    async fn cancel(&self, #[zbus(header)] header: Header<'_>) -> Result<(), BusError> {
        self.service.authorize(&header, self.job.work.action(), &self.job.group).await?;
        self.job.cancel();
        Ok(())
    }

    #[zbus(signal)]
    async fn completed(
        emitter: &SignalEmitter<'_>,
        success: bool,
        error_name: &str,
        message: &str,
        stats: Dict,
    ) -> zbus::Result<()>;

    #[zbus(property(emits_changed_signal = "const"), name = "Type")]
    fn kind(&self) -> &str {
        self.job.work.kind()
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn group(&self) -> String {
        self.job.group.clone()
    }

    #[zbus(property)]
    fn state(&self) -> &str {
        self.job.view().state
    }

    #[zbus(property)]
    fn stage(&self) -> &str {
        self.job.view().stage.word()
    }

    #[zbus(property)]
    fn progress(&self) -> f64 {
        self.job.view().progress()
    }

    #[zbus(property)]
    fn bytes_done(&self) -> u64 {
        self.job.view().done
    }

    #[zbus(property)]
    fn bytes_total(&self) -> u64 {
        self.job.view().total
    }
}
