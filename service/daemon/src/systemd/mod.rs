//! systemd over its bus: the units of a group, drop-ins, stubs, stopping (org.freedesktop.systemd1(5)).

use std::path::Path;
use std::sync::Arc;

use ckpt_engine::config::Settings;
use ckpt_engine::{Error, Group, Stub, Unit, UnitMain, Units};

use crate::service::{Host, Service};

/// systemd as the engine and the daemon need it.
pub struct Systemd {
    connection: zbus::Connection,
}

impl Systemd {
    /// On this connection to the system bus.
    pub fn new(connection: zbus::Connection, _settings: &Settings) -> Self {
        Self { connection }
    }
    /// Watch.
    pub async fn watch(&self, _service: &Arc<Service>) {
        let _ = &self.connection;
    }
}

fn unsupported<T>() -> Result<T, Error> {
    Err(Error::Unsupported("systemd".into()))
}

impl Units for Systemd {
    fn units(&self, _: &Group) -> Result<Vec<Unit>, Error> {
        unsupported()
    }
    fn stop(&self, _: &[String], _: bool) -> Result<(), Error> {
        unsupported()
    }
    fn start_stubs(&self, _: &[String]) -> Result<Vec<Stub>, Error> {
        unsupported()
    }
    fn adopt(&self, _: &[UnitMain]) -> Result<(), Error> {
        unsupported()
    }
    fn abandon(&self, _: &[String]) -> Result<(), Error> {
        unsupported()
    }
}

impl Host for Systemd {
    fn exists(&self, _: &str) -> Result<bool, Error> {
        unsupported()
    }
    fn install(&self, _: &Group) -> Result<(), Error> {
        unsupported()
    }
    fn remove(&self, _: &Group) -> Result<(), Error> {
        unsupported()
    }
    fn is_subvolume(&self, _: &Path) -> Result<(), Error> {
        unsupported()
    }
}

/// What this kernel and host offer, by trying: words of KernelFeatures.
pub fn kernel_features() -> Vec<String> {
    let probes: [(&str, fn() -> bool); 4] = [
        ("cgroup2", || Path::new("/sys/fs/cgroup/cgroup.procs").exists()),
        ("btrfs", || listed("/proc/filesystems", "btrfs")),
        ("pagemap", || Path::new("/proc/self/pagemap").exists()),
        ("time-namespaces", || Path::new("/proc/self/ns/time").exists()),
    ];
    probes.iter().filter(|(_, probe)| probe()).map(|(name, _)| (*name).to_owned()).collect()
}

/// Whether a file of the kernel holds the word.
fn listed(file: &str, word: &str) -> bool {
    std::fs::read_to_string(file).is_ok_and(|text| text.split_whitespace().any(|w| w == word))
}
