//! What the bus shows: groups, their checkpoints, running jobs. The one place that knows which group is busy.

mod groups;
mod job;
mod publish;
mod run;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use ckpt_engine::config::GroupConfig;
use ckpt_engine::{CheckpointInfo, Engine, Error, Group, Units};
use zbus::Connection;

pub use job::{Done, Job, Outcome, Report, View, Work};

/// What the daemon itself needs of the host, besides [`Units`]. All calls block.
pub trait Host: Units {
    /// Whether systemd can load the unit.
    fn exists(&self, unit: &str) -> Result<bool, Error>;
    /// Writes the drop-ins of the group's units and reloads systemd. Idempotent.
    fn install(&self, group: &Group) -> Result<(), Error>;
    /// Takes the drop-ins away and reloads systemd. Idempotent.
    fn remove(&self, group: &Group) -> Result<(), Error>;
    /// Takes away what the job of the calling thread left in systemd's way. Called when the job ends.
    fn tidy(&self) -> Result<(), Error>;
    /// Takes away what a daemon that died left in systemd's way. Called once, at start.
    fn tidy_leftovers(&self) -> Result<(), Error>;
    /// Whether the path is a btrfs subvolume; the error says what it is instead.
    fn is_subvolume(&self, path: &std::path::Path) -> Result<(), Error>;
}

/// A group as the daemon knows it.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Its configuration; empty for one that is not registered.
    pub config: GroupConfig,
    /// Whether it stands in groups.d.
    pub enabled: bool,
    /// The job that runs on it.
    pub busy: Option<Arc<Job>>,
    /// The merge that runs beside it.
    pub background: Option<Arc<Job>>,
    /// Warnings that its last checkpoint or restore gave: the journal gets one only when it is new.
    pub warned: BTreeSet<(String, String, String)>,
    /// Its checkpoints, newest first, as last published.
    pub checkpoints: Vec<CheckpointInfo>,
    /// Whether Group1 is served.
    pub served: bool,
}

impl Known {
    /// The newest durable checkpoint.
    pub fn last(&self) -> Option<&CheckpointInfo> {
        self.checkpoints.iter().find(|c| c.state == "durable")
    }
}

/// All that changes, under one lock that is never held over an await.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub groups: BTreeMap<String, Known>,
    /// No new jobs: the daemon ends.
    pub stopping: bool,
}

/// The daemon's middle: between the bus and the engine.
pub struct Service {
    engine: Arc<dyn Engine>,
    host: Arc<dyn Host>,
    groups_dir: PathBuf,
    numbers: AtomicU32,
    connection: OnceLock<Connection>,
    state: Mutex<State>,
}

impl Service {
    /// A service without a bus yet. `groups_dir` is `/etc/ckpt/groups.d`.
    pub fn new(engine: Arc<dyn Engine>, host: Arc<dyn Host>, groups_dir: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            engine,
            host,
            groups_dir,
            numbers: AtomicU32::new(1),
            connection: OnceLock::new(),
            state: Mutex::default(),
        })
    }

    /// Gives it its connection, once.
    pub fn connect(&self, connection: Connection) {
        let _ = self.connection.set(connection);
    }

    fn connection(&self) -> Result<&Connection, Error> {
        self.connection.get().ok_or_else(|| Error::Failed("the daemon is not on the bus yet".into()))
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs something that blocks on a thread where it may.
    pub(crate) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Service) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let service = Arc::clone(self);
        tokio::task::spawn_blocking(move || work(&service))
            .await
            .map_err(|e| Error::Failed(format!("a worker thread ended: {e}")))
    }

    /// Asks polkit whether the sender of a message may do this.
    pub async fn authorize(
        &self,
        header: &zbus::message::Header<'_>,
        action: &str,
        group: &str,
    ) -> Result<(), crate::bus::error::BusError> {
        crate::authorization::authorize(self.connection()?, header, action, group).await
    }

    /// Cancels all jobs and waits until they ended; no new ones start. For SIGTERM.
    pub async fn stop(&self) {
        let jobs: Vec<_> = {
            let mut state = self.state();
            state.stopping = true;
            state.groups.values().flat_map(|g| g.busy.iter().chain(&g.background).cloned()).collect()
        };
        for job in &jobs {
            job.cancel();
        }
        for job in jobs {
            let _ = job.outcome().await;
        }
    }
}
