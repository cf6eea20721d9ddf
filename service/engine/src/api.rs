//! The border between the daemon and the engine: requests, results, events, and what the engine needs of systemd.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::config::GroupConfig;
use crate::error::Error;

pub use crate::retention::{Action, Decision};
use crate::timeline::Laps;
pub use crate::transfer::Incoming;

/// A group by its name and its configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// The group's name: letters, digits, `-`, `_`, `.`, `@`, `\`, `:`.
    pub name: String,
    /// groups.d/NAME.toml.
    pub config: GroupConfig,
}

/// Which image a checkpoint is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Incremental where a chain allows it, else full.
    #[default]
    Auto,
    /// An image that stands alone.
    Full,
    /// Only what was written since the parent.
    Incremental,
}

/// When the caller gets its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wait {
    /// When the checkpoint is committed and durable.
    #[default]
    Durable,
    /// When the group runs again.
    Captured,
    /// At once.
    None,
}

/// A request for a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CheckpointRequest {
    /// The id it is to have, a ULID never used before; empty: the engine chooses.
    pub id: String,
    /// Kind of image.
    pub mode: Mode,
    /// End the group at the instant of the checkpoint.
    pub stop: bool,
    /// Free text kept in the manifest.
    pub description: String,
    /// Free words kept in the manifest.
    pub tags: Vec<String>,
}

/// A request for a restore.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RestoreRequest {
    /// The checkpoint's id; empty is the newest durable one.
    pub checkpoint: String,
    /// Let members run before their memory is read. `None`: where it is safe.
    pub lazy: Option<bool>,
}

/// What is known of a checkpoint (JSON of `ckptctl checkpoint` and `list`; ckpt(5)).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckpointInfo {
    /// ULID.
    pub id: String,
    /// Group name.
    pub group: String,
    /// `full` or `incremental`.
    pub kind: String,
    /// The checkpoint an incremental rests on.
    pub parent: Option<String>,
    /// When the group stood still.
    pub created: Timestamp,
    /// Freeze window, microseconds.
    pub freeze_usec: u64,
    /// Number of processes.
    pub processes: u32,
    /// Number of threads.
    pub threads: u32,
    /// Pages in this image.
    pub pages_written: u64,
    /// Bytes of this image on disk.
    pub image_bytes: u64,
    /// Paired snapshots.
    pub snapshots: Vec<SnapshotInfo>,
    /// `durable`; `capturing` and `writing` while it is made; `undo` for what a restore put aside.
    pub state: String,
    /// Which tracker found the written pages.
    pub tracker: String,
    /// Free text.
    pub description: String,
    /// Free words.
    pub tags: Vec<String>,
    /// Units and their main PIDs.
    pub units: Vec<UnitMain>,
    /// Where the freeze window went; told once, when it was made.
    #[serde(default, skip_serializing_if = "Laps::is_empty")]
    pub stages: Laps,
}

/// A snapshot of one subvolume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// The subvolume it is of.
    pub subvolume: PathBuf,
    /// Where the snapshot lies.
    pub path: PathBuf,
}

/// A unit and its main process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitMain {
    /// Unit name.
    pub unit: String,
    /// Its Main PID; 0 if it has none.
    pub main_pid: i32,
}

/// What a restore did (JSON of `ckptctl restore`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreInfo {
    /// The checkpoint.
    pub id: String,
    /// Group name.
    pub group: String,
    /// Number of processes.
    pub processes: u32,
    /// From the request to the moment the members run, microseconds.
    pub restore_usec: u64,
    /// Units and their main processes.
    pub units: Vec<UnitMain>,
    /// Bytes of memory that were to come while the members run.
    pub late: u64,
    /// Where the time went.
    pub stages: Laps,
}

/// How bad a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// A checkpoint is refused.
    Error,
    /// A checkpoint is taken; something will not be as it was.
    Warning,
}

/// Something that stands against a checkpoint (JSON of `ckptctl check`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Stable name of the kind of problem: `unpaired-file`, `io-uring`, `no-preload`, … (ckpt-support(7)).
    pub code: String,
    /// Whether it refuses the checkpoint.
    pub severity: Severity,
    /// Unit, empty if it concerns none.
    pub unit: String,
    /// Process, 0 if it concerns none.
    pub pid: i32,
    /// What: `fd 7`, `mapping 7f12…`, `/srv/x/file`.
    pub object: String,
    /// What is wrong, one sentence without a full stop.
    pub text: String,
    /// What to do about it.
    pub remedy: String,
}

impl Problem {
    /// The first errors as one line.
    pub fn summary(problems: &[Problem]) -> String {
        let errors: Vec<_> = problems.iter().filter(|p| p.severity == Severity::Error).collect();
        let mut line = errors.iter().take(3).map(|p| p.to_string()).collect::<Vec<_>>().join("; ");
        if errors.len() > 3 {
            line.push_str(&format!("; and {} more, see `ckptctl check`", errors.len() - 3));
        }
        line
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.code)?;
        if !self.unit.is_empty() {
            write!(f, ", {}", self.unit)?;
        }
        if self.pid != 0 {
            write!(f, ", pid {}", self.pid)?;
        }
        if !self.object.is_empty() {
            write!(f, ", {}", self.object)?;
        }
        write!(f, ": {} ({})", self.text, self.remedy)
    }
}

/// What a job is doing; shown as Job1.Stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Stage {
    Queued,
    Checking,
    Barrier,
    Frozen,
    Writing,
    Stopping,
    Exchanging,
    Rebuilding,
    Starting,
    Deleting,
    Verifying,
    Merging,
    Exporting,
    Importing,
}

impl Stage {
    /// The word on the bus.
    pub fn word(self) -> &'static str {
        match self {
            Stage::Queued => "queued",
            Stage::Checking => "checking",
            Stage::Barrier => "barrier",
            Stage::Frozen => "frozen",
            Stage::Writing => "writing",
            Stage::Stopping => "stopping",
            Stage::Exchanging => "exchanging",
            Stage::Rebuilding => "rebuilding",
            Stage::Starting => "starting",
            Stage::Deleting => "deleting",
            Stage::Verifying => "verifying",
            Stage::Merging => "merging",
            Stage::Exporting => "exporting",
            Stage::Importing => "importing",
        }
    }
}

/// The job a request runs as: the engine tells it where it is and asks whether to go on. Called from the group's worker thread.
pub trait Job: Send + Sync {
    /// A stage begins.
    fn stage(&self, stage: Stage);
    /// Bytes done of bytes in total.
    fn progress(&self, done: u64, total: u64);
    /// Whether the caller wants it to end; asked at points where ending loses nothing.
    fn canceled(&self) -> bool;
    /// The group runs again and the checkpoint has this id (for [`Wait::Captured`]).
    fn captured(&self, id: &str);
    /// Something worth a journal entry that does not end the job.
    fn event(&self, event: Event);
}

/// What the engine wants told, besides results; the daemon's journal maps each to a MESSAGE_ID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A problem of severity warning met while doing the work.
    Warning(Problem),
    /// A group that had been left frozen was thawed.
    Thawed {
        /// The cgroup.
        cgroup: String,
    },
    /// A restore had been interrupted before its members ran: the subvolumes are the old ones again.
    RestoreReverted {
        /// The undo snapshot that went back to its place.
        undo: String,
    },
    /// Leftovers of an interrupted checkpoint were removed.
    LeftoverRemoved {
        /// What was removed.
        path: PathBuf,
    },
}

/// A unit of a group as systemd knows it now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Unit {
    /// Unit name.
    pub name: String,
    /// ControlGroup=, relative to the cgroup2 mount, leading slash; empty if it does not run.
    pub cgroup: String,
    /// ActiveState=.
    pub active_state: String,
    /// MainPID=, 0 if none.
    pub main_pid: i32,
    /// RuntimeDirectory= as absolute paths (/run/NAME).
    pub runtime_directories: Vec<PathBuf>,
    /// TemporaryFileSystem= but for those that are read-only.
    pub temporary_file_systems: Vec<PathBuf>,
    /// PrivateTmp=.
    pub private_tmp: bool,
    /// PrivateUsers=.
    pub private_users: bool,
    /// WatchdogUSec=, 0 if none.
    pub watchdog_usec: u64,
    /// NFileDescriptorStore: how many descriptors systemd keeps for it.
    pub stored_descriptors: u32,
    /// BusName= of a unit of Type=dbus; else empty.
    pub bus_name: String,
    /// Environment that the drop-in of ckpt puts in is in effect: the main process has the preload library mapped.
    pub preloaded: bool,
}

/// A stub that systemd started in place of a unit's program.
#[derive(Debug)]
pub struct Stub {
    /// Unit name.
    pub unit: String,
    /// Its pid, the unit's Main PID at that moment.
    pub pid: i32,
    /// Its pidfd.
    pub pidfd: OwnedFd,
    /// The unit's cgroup, relative to the cgroup2 mount, leading slash.
    pub cgroup: String,
}

/// What the engine needs of systemd. The daemon implements it over D-Bus; tests with a fake. All calls block.
pub trait Units: Send + Sync {
    /// The services of the group: of the slice and its nested slices, or the units listed; ordered by name. Inactive ones too where listed.
    fn units(&self, group: &Group) -> Result<Vec<Unit>, Error>;
    /// Stops the units: their processes are gone and nothing restarts them when this returns. Processes that are `killed_first` have been stopped
    /// by the caller and may be killed at once.
    fn stop(&self, units: &[String], kill: bool) -> Result<(), Error>;
    /// Starts each unit with ckpt-stub in place of its program (runtime drop-in, Type=notify, no ExecStartPre …), not waiting for READY.
    fn start_stubs(&self, units: &[String]) -> Result<Vec<Stub>, Error>;
    /// After the members told systemd MAINPID and READY: waits until each unit is active with that Main PID, takes the drop-ins away.
    fn adopt(&self, units: &[UnitMain]) -> Result<(), Error>;
    /// Gives a process that serves a group (PID 1 of its own PID namespace) a place that no unit's end touches, nor ours, and that at a
    /// shutdown stands longer than `units` do.
    fn shelter(&self, group: &str, helper: i32, units: &[String]) -> Result<(), Error>;
    /// Begins to start `ckpt-restore --keep SOCKET`, which brings a group's memory, as a service in such a place, for which systemd keeps
    /// descriptors and which it starts anew whenever it is killed.
    fn start_keeper(&self, group: &str, socket: &Path, units: &[String]) -> Result<(), Error>;
    /// Undoes `start_stubs`: stops the units, takes the drop-ins away.
    fn abandon(&self, units: &[String]) -> Result<(), Error>;
}

/// The engine as the daemon sees it. One thread per group calls it; calls for different groups run side by side.
pub trait Engine: Send + Sync {
    /// Takes a checkpoint.
    fn checkpoint(
        &self,
        group: &Group,
        request: &CheckpointRequest,
        job: &dyn Job,
    ) -> Result<CheckpointInfo, Error>;
    /// Restores a checkpoint.
    fn restore(&self, group: &Group, request: &RestoreRequest, job: &dyn Job) -> Result<RestoreInfo, Error>;
    /// What stands against a checkpoint, without trying. Errors only where it could not even look.
    fn check(&self, group: &Group) -> Result<Vec<Problem>, Error>;
    /// Checkpoints of a group, newest first; undo snapshots too, with state `undo`.
    fn list(&self, group: &str) -> Result<Vec<CheckpointInfo>, Error>;
    /// Removes checkpoints: images and snapshots.
    fn delete(&self, group: &Group, ids: &[String], job: &dyn Job) -> Result<(), Error>;
    /// Makes a checkpoint (empty: the newest) stand alone and removes those of its ancestors that no other rests on.
    fn merge(&self, group: &Group, upto: &str, job: &dyn Job) -> Result<CheckpointInfo, Error>;
    /// Makes the newest checkpoint stand alone if `max_chain` incrementals or more are in its chain; removes nothing. May run beside a checkpoint
    /// of the group. `None` where there was nothing to do.
    fn shorten(&self, group: &Group, job: &dyn Job) -> Result<Option<CheckpointInfo>, Error>;
    /// Decides what the rules of `[retention]` keep, and unless it is a dry run removes the rest, newest first. All decisions, newest first.
    fn prune(&self, group: &Group, dry_run: bool, job: &dyn Job) -> Result<Vec<Decision>, Error>;
    /// Writes a checkpoint, image and snapshots, to a file or a pipe.
    fn export(&self, group: &Group, id: &str, to: &File, job: &dyn Job) -> Result<(), Error>;
    /// Reads a checkpoint that was exported, checks it, and takes it into the store.
    fn import(&self, from: &Incoming, job: &dyn Job) -> Result<CheckpointInfo, Error>;
    /// Reads a checkpoint whole and compares all checksums.
    fn verify(&self, group: &Group, id: &str, job: &dyn Job) -> Result<(), Error>;
    /// Changes description and tags in the manifest.
    fn annotate(
        &self,
        group: &str,
        id: &str,
        description: Option<String>,
        tags: Option<Vec<String>>,
    ) -> Result<CheckpointInfo, Error>;
    /// The group is not registered any more: nothing of it is watched for a next checkpoint.
    fn forget(&self, _group: &str) {}
    /// Thaws what a former daemon left frozen, removes leftovers of interrupted checkpoints. Called once, at start.
    fn recover(&self, groups: &[Group]) -> Result<Vec<Event>, Error>;
}
