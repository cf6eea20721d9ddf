//! systemd over its bus: the units of a group, drop-ins, stubs, stopping (org.freedesktop.systemd1(5)).
//!
//! ```text
//! restore:  stop ──► start_stubs ──► (members move in) ──► adopt        or: abandon
//!           zz-ckpt-restore.conf is there ────────────────► gone
//! ```

mod bridge;
pub mod dropin;
mod enable;
mod features;
pub mod generator;
mod keeper;
mod list;
mod proxy;
mod shelter;
mod stop;
mod stubs;
mod transient;
mod watch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ckpt_engine::config::Settings;
use ckpt_engine::{Error, Group, Stub, Unit, UnitMain, Units};

use crate::service::Host;
use bridge::Bridge;

pub use features::kernel_features;

/// systemd as the engine and the daemon need it.
pub struct Systemd {
    bridge: Bridge,
    libdir: PathBuf,
    /// Drop-ins of enabled groups.
    etc: PathBuf,
    /// Drop-ins of restores.
    run: PathBuf,
    /// Units with a restore drop-in, and the job that wrote it: the name of its threads (the engine may use a second one, which
    /// it calls the same).
    held: Mutex<BTreeMap<String, String>>,
    /// Drop-ins are written and systemd reloaded by one thread at a time.
    writing: Mutex<()>,
}

impl Systemd {
    /// On this connection to the system bus; from within its runtime.
    pub fn new(connection: zbus::Connection, settings: &Settings) -> Self {
        Self {
            bridge: Bridge::new(connection),
            libdir: settings.libdir.clone(),
            etc: "/etc/systemd/system".into(),
            run: "/run/systemd/system".into(),
            held: Mutex::default(),
            writing: Mutex::default(),
        }
    }

    fn stub(&self) -> PathBuf {
        self.libdir.join("ckpt-stub")
    }

    fn library(&self) -> PathBuf {
        self.libdir.join("libckpt_preload.so")
    }

    fn lock_held(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, String>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_writing(&self) -> std::sync::MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Units for Systemd {
    fn units(&self, group: &Group) -> Result<Vec<Unit>, Error> {
        self.bridge.run(list::units(&self.bridge, group))
    }

    fn stop(&self, units: &[String], kill: bool) -> Result<(), Error> {
        if kill { self.stop_at_once(units) } else { self.stop_gently(units) }
    }

    fn start_stubs(&self, units: &[String]) -> Result<Vec<Stub>, Error> {
        self.start_stubs_of(units)
    }

    fn adopt(&self, units: &[UnitMain]) -> Result<(), Error> {
        self.adopt_units(units)
    }

    fn shelter(&self, group: &str, init: i32, units: &[String]) -> Result<(), Error> {
        self.shelter_init(group, init, units)
    }

    fn start_keeper(&self, group: &str, socket: &Path, units: &[String]) -> Result<(), Error> {
        self.start_keeper_of(group, socket, units)
    }

    fn abandon(&self, units: &[String]) -> Result<(), Error> {
        self.abandon_units(units)
    }
}

impl Host for Systemd {
    fn exists(&self, unit: &str) -> Result<bool, Error> {
        self.bridge.run(list::exists(&self.bridge, unit))
    }

    fn install(&self, group: &Group) -> Result<(), Error> {
        self.install_group(group)
    }

    fn remove(&self, group: &Group) -> Result<(), Error> {
        self.remove_group(group)
    }

    fn is_subvolume(&self, path: &Path) -> Result<(), Error> {
        enable::is_subvolume(path)
    }

    fn tidy(&self) -> Result<(), Error> {
        self.tidy_thread()
    }

    fn tidy_leftovers(&self) -> Result<(), Error> {
        self.tidy_all()
    }
}
