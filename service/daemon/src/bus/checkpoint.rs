//! org.ckpt.Checkpoint1

use std::sync::Arc;

use ckpt_dbus::names::{actions, checkpoint_path, no_object};
use ckpt_engine::CheckpointInfo;
use zbus::OwnedObjectPath;
use zbus::message::Header;

use super::error::BusError;
use super::{options, rows};
use crate::service::Service;

/// The object of a checkpoint.
pub struct CheckpointObject {
    service: Arc<Service>,
    info: CheckpointInfo,
}

impl CheckpointObject {
    pub(crate) fn new(service: Arc<Service>, info: CheckpointInfo) -> Self {
        Self { service, info }
    }

    /// Takes what is known of the checkpoint now: a merge changes what it rests on.
    pub(crate) fn set(&mut self, info: CheckpointInfo) {
        self.info = info;
    }

    async fn may_annotate(&self, header: Option<Header<'_>>) -> Result<(), BusError> {
        let header = header.ok_or_else(|| BusError::access_denied("the message has no header".into()))?;
        self.service.authorize(&header, actions::CHECKPOINT, &self.info.group).await
    }
}

#[zbus::interface(name = "org.ckpt.Checkpoint1", introspection_docs = false)]
impl CheckpointObject {
    #[zbus(property(emits_changed_signal = "const"))]
    fn id(&self) -> String {
        self.info.id.clone()
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn group(&self) -> String {
        self.info.group.clone()
    }

    #[zbus(property)]
    fn kind(&self) -> String {
        self.info.kind.clone()
    }

    #[zbus(property)]
    fn parent(&self) -> OwnedObjectPath {
        self.info.parent.as_deref().map_or_else(no_object, checkpoint_path)
    }

    #[zbus(property(emits_changed_signal = "const"), name = "CreatedUSec")]
    fn created_usec(&self) -> u64 {
        rows::created_usec(&self.info)
    }

    #[zbus(property(emits_changed_signal = "const"), name = "FreezeUSec")]
    fn freeze_usec(&self) -> u64 {
        self.info.freeze_usec
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn processes(&self) -> u32 {
        self.info.processes
    }

    #[zbus(property)]
    fn size(&self) -> u64 {
        self.info.image_bytes
    }

    #[zbus(property)]
    fn snapshots(&self) -> Vec<(String, String)> {
        rows::snapshots(&self.info)
    }

    #[zbus(property)]
    fn state(&self) -> String {
        self.info.state.clone()
    }

    #[zbus(property)]
    fn description(&self) -> String {
        self.info.description.clone()
    }

    #[zbus(property)]
    async fn set_description(
        &mut self,
        #[zbus(header)] header: Option<Header<'_>>,
        description: String,
    ) -> Result<(), BusError> {
        self.may_annotate(header).await?;
        let text = options::described(description)?;
        self.info = self.service.annotate(&self.info, Some(text), None).await?;
        Ok(())
    }

    #[zbus(property)]
    fn tags(&self) -> Vec<String> {
        self.info.tags.clone()
    }

    #[zbus(property)]
    async fn set_tags(
        &mut self,
        #[zbus(header)] header: Option<Header<'_>>,
        tags: Vec<String>,
    ) -> Result<(), BusError> {
        self.may_annotate(header).await?;
        let tags = options::tagged(tags)?;
        self.info = self.service.annotate(&self.info, None, Some(tags)).await?;
        Ok(())
    }
}
