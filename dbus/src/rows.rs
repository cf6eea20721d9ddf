//! The dictionaries (`a{sv}`) of the interface as types. Keys are the field names; a missing key is a missing value.

use zbus::{DeserializeDict, SerializeDict, Type};

/// One checkpoint: an element of `ListCheckpoints`, and the statistics of a completed checkpoint job.
/// The keys are those of the JSON of `ckptctl list`.
#[derive(Debug, Clone, PartialEq, Default, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "dict")]
pub struct CheckpointRow {
    /// ULID.
    pub id: String,
    /// Group name.
    pub group: String,
    /// `full` or `incremental`.
    pub kind: String,
    /// The checkpoint it rests on; absent for a full one.
    pub parent: Option<String>,
    /// When the group stood still, RFC 3339.
    pub created: String,
    /// The same, microseconds since 1970.
    pub created_usec: u64,
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
    /// Pairs of subvolume and snapshot.
    pub snapshots: Vec<(String, String)>,
    /// `durable`, `undo`, …
    pub state: String,
    /// Which tracker found the written pages.
    pub tracker: String,
    /// Free text.
    pub description: String,
    /// Free words.
    pub tags: Vec<String>,
    /// Pairs of unit and Main PID.
    pub units: Vec<(String, i32)>,
}

/// The statistics of a completed restore job; the keys are those of the JSON of `ckptctl restore`.
#[derive(Debug, Clone, PartialEq, Default, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "dict")]
pub struct RestoreStats {
    /// The checkpoint.
    pub id: String,
    /// Group name.
    pub group: String,
    /// Number of processes.
    pub processes: u32,
    /// From the request to the moment the members run, microseconds.
    pub restore_usec: u64,
    /// Pairs of unit and Main PID.
    pub units: Vec<(String, i32)>,
}

/// One group: an element of `ListGroups`.
#[derive(Debug, Clone, PartialEq, Default, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "dict")]
pub struct GroupRow {
    /// Name.
    pub name: String,
    /// Whether it is registered (groups.d); else it is a service that was checkpointed as a group of one.
    pub enabled: bool,
    /// The slice; empty for a list of units.
    pub slice: String,
    /// The units listed, or those now in the slice.
    pub units: Vec<String>,
    /// Subvolumes snapshotted together.
    pub subvolumes: Vec<String>,
    /// `idle`, `checkpointing`, `restoring`, …
    pub state: String,
    /// Number of durable checkpoints.
    pub checkpoints: u32,
    /// Id of the newest durable checkpoint; empty if there is none.
    pub last_checkpoint: String,
    /// When that was taken, microseconds since 1970; 0 if there is none.
    pub last_checkpoint_usec: u64,
    /// Its freeze window, microseconds.
    pub last_freeze_usec: u64,
    /// The units as systemd knows them now.
    pub members: Vec<MemberRow>,
}

/// One unit of a group.
#[derive(Debug, Clone, PartialEq, Default, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "dict")]
pub struct MemberRow {
    /// Unit name.
    pub unit: String,
    /// ActiveState=.
    pub active_state: String,
    /// MainPID=, 0 if none.
    pub main_pid: i32,
    /// Whether the main process has the preload library; without it a checkpoint works, and costs more.
    pub preloaded: bool,
}

/// Something that stands against a checkpoint: an element of `Check`.
#[derive(Debug, Clone, PartialEq, Default, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "dict")]
pub struct ProblemRow {
    /// Stable name of the kind of problem.
    pub code: String,
    /// `error` or `warning`.
    pub severity: String,
    /// Unit, empty if it concerns none.
    pub unit: String,
    /// Process, 0 if it concerns none.
    pub pid: u32,
    /// What object.
    pub object: String,
    /// What is wrong.
    pub text: String,
    /// What to do about it.
    pub remedy: String,
}

/// What retention would do with one checkpoint: an element of `Prune`.
#[derive(Debug, Clone, PartialEq, Default, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "dict")]
pub struct PruneRow {
    /// The checkpoint.
    pub id: String,
    /// `keep` or `remove`.
    pub action: String,
    /// The rule that keeps it: `newest`, `keep_last`, …; `none` if none does, `not-configured` where none is set.
    pub rule: String,
    /// The same in words.
    pub reason: String,
    /// The instant it shows, RFC 3339.
    pub created: String,
    /// The same, microseconds since 1970.
    pub created_usec: u64,
}
