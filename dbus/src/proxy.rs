//! Client proxies, one trait an interface, signatures as in org.ckpt(5).
#![allow(missing_docs)] // the methods are documented in org.ckpt(5), word for word

use std::collections::HashMap;

use zbus::{Fd, OwnedObjectPath, OwnedVariant, Variant};

use crate::rows::{CheckpointRow, GroupRow, ProblemRow, PruneRow};

/// Options of a call: `a{sv}`.
pub type Options<'a> = HashMap<&'a str, Variant<'a>>;
/// A dictionary that came back: `a{sv}`.
pub type Dict = HashMap<String, OwnedVariant>;

#[zbus::proxy(interface = "org.ckpt.Manager1", default_service = "org.ckpt", default_path = "/org/ckpt")]
pub trait Manager1 {
    #[zbus(allow_interactive_auth)]
    fn checkpoint(
        &self,
        group: &str,
        options: &Options<'_>,
    ) -> zbus::Result<(OwnedObjectPath, OwnedObjectPath)>;
    #[zbus(allow_interactive_auth)]
    fn restore(&self, group: &str, checkpoint: &str, options: &Options<'_>) -> zbus::Result<OwnedObjectPath>;
    #[zbus(allow_interactive_auth)]
    fn merge(&self, group: &str, upto: &str, options: &Options<'_>) -> zbus::Result<OwnedObjectPath>;
    #[zbus(allow_interactive_auth)]
    fn verify(&self, group: &str, checkpoint: &str, options: &Options<'_>) -> zbus::Result<OwnedObjectPath>;
    #[zbus(allow_interactive_auth)]
    fn delete(
        &self,
        group: &str,
        checkpoints: &[&str],
        options: &Options<'_>,
    ) -> zbus::Result<OwnedObjectPath>;
    #[zbus(allow_interactive_auth)]
    fn prune(&self, group: &str, options: &Options<'_>) -> zbus::Result<Vec<PruneRow>>;
    #[zbus(allow_interactive_auth)]
    fn export(
        &self,
        group: &str,
        checkpoint: &str,
        file: Fd<'_>,
        options: &Options<'_>,
    ) -> zbus::Result<OwnedObjectPath>;
    #[zbus(allow_interactive_auth)]
    fn import(&self, file: Fd<'_>, options: &Options<'_>)
    -> zbus::Result<(OwnedObjectPath, OwnedObjectPath)>;
    fn check(&self, group: &str, options: &Options<'_>) -> zbus::Result<(bool, Vec<ProblemRow>)>;
    #[zbus(allow_interactive_auth)]
    fn enable(&self, name: &str, config: &Options<'_>) -> zbus::Result<OwnedObjectPath>;
    #[zbus(allow_interactive_auth)]
    fn disable(&self, name: &str, options: &Options<'_>) -> zbus::Result<()>;
    #[zbus(allow_interactive_auth)]
    fn reload(&self) -> zbus::Result<()>;
    fn list_groups(&self, options: &Options<'_>) -> zbus::Result<Vec<GroupRow>>;
    fn list_checkpoints(&self, group: &str, options: &Options<'_>) -> zbus::Result<Vec<CheckpointRow>>;
    fn get_group(&self, group: &str) -> zbus::Result<OwnedObjectPath>;
    fn get_checkpoint(&self, group: &str, checkpoint: &str) -> zbus::Result<OwnedObjectPath>;

    #[zbus(signal)]
    fn job_new(&self, number: u32, job: OwnedObjectPath) -> zbus::Result<()>;
    #[zbus(signal)]
    fn job_removed(
        &self,
        number: u32,
        job: OwnedObjectPath,
        result: String,
        details: Dict,
    ) -> zbus::Result<()>;
    #[zbus(signal)]
    fn checkpoint_added(&self, group: String, checkpoint: OwnedObjectPath) -> zbus::Result<()>;
    #[zbus(signal)]
    fn checkpoint_removed(&self, group: String, checkpoint: String) -> zbus::Result<()>;
    #[zbus(signal)]
    fn restored(&self, group: String, checkpoint: String, success: bool) -> zbus::Result<()>;
    #[zbus(signal)]
    fn prepare_for_checkpoint(&self, group: String, start: bool) -> zbus::Result<()>;

    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> zbus::Result<String>;
    #[zbus(property(emits_changed_signal = "const"))]
    fn features(&self) -> zbus::Result<Vec<String>>;
    #[zbus(property(emits_changed_signal = "const"))]
    fn kernel_features(&self) -> zbus::Result<Vec<String>>;
}

#[zbus::proxy(interface = "org.ckpt.Group1", default_service = "org.ckpt", assume_defaults = false)]
pub trait Group1 {
    #[zbus(allow_interactive_auth)]
    fn checkpoint(&self, options: &Options<'_>) -> zbus::Result<(OwnedObjectPath, OwnedObjectPath)>;
    #[zbus(allow_interactive_auth)]
    fn restore(&self, checkpoint: &str, options: &Options<'_>) -> zbus::Result<OwnedObjectPath>;
    fn check(&self, options: &Options<'_>) -> zbus::Result<(bool, Vec<ProblemRow>)>;

    #[zbus(property)]
    fn name(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn slice(&self) -> zbus::Result<String>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn units(&self) -> zbus::Result<Vec<String>>;
    #[zbus(property)]
    fn subvolumes(&self) -> zbus::Result<Vec<String>>;
    #[zbus(property)]
    fn state(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn last_checkpoint(&self) -> zbus::Result<OwnedObjectPath>;
    #[zbus(property, name = "LastFreezeUSec")]
    fn last_freeze_usec(&self) -> zbus::Result<u64>;
    #[zbus(property)]
    fn enabled(&self) -> zbus::Result<bool>;
}

#[zbus::proxy(interface = "org.ckpt.Checkpoint1", default_service = "org.ckpt", assume_defaults = false)]
pub trait Checkpoint1 {
    #[zbus(property)]
    fn id(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn group(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn kind(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn parent(&self) -> zbus::Result<OwnedObjectPath>;
    #[zbus(property, name = "CreatedUSec")]
    fn created_usec(&self) -> zbus::Result<u64>;
    #[zbus(property, name = "FreezeUSec")]
    fn freeze_usec(&self) -> zbus::Result<u64>;
    #[zbus(property)]
    fn processes(&self) -> zbus::Result<u32>;
    #[zbus(property)]
    fn size(&self) -> zbus::Result<u64>;
    #[zbus(property)]
    fn snapshots(&self) -> zbus::Result<Vec<(String, String)>>;
    #[zbus(property)]
    fn state(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn description(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn set_description(&self, description: &str) -> zbus::Result<()>;
    #[zbus(property)]
    fn tags(&self) -> zbus::Result<Vec<String>>;
    #[zbus(property)]
    fn set_tags(&self, tags: &[&str]) -> zbus::Result<()>;
}

#[zbus::proxy(interface = "org.ckpt.Job1", default_service = "org.ckpt", assume_defaults = false)]
pub trait Job1 {
    #[zbus(allow_interactive_auth)]
    fn cancel(&self) -> zbus::Result<()>;

    /// A job's object is gone once this was sent: subscribe before the call that starts the job (`wait` = `none`).
    #[zbus(signal)]
    fn completed(&self, success: bool, error_name: String, message: String, stats: Dict) -> zbus::Result<()>;

    #[zbus(property, name = "Type")]
    fn kind(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn group(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn state(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn stage(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn progress(&self) -> zbus::Result<f64>;
    #[zbus(property)]
    fn bytes_done(&self) -> zbus::Result<u64>;
    #[zbus(property)]
    fn bytes_total(&self) -> zbus::Result<u64>;
}
