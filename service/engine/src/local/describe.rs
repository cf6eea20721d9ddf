//! A manifest in the words of the bus and of `ckptctl list`.

use ckpt_image::{CheckpointState, Kind, Manifest, Tracker};

use crate::api::{CheckpointInfo, SnapshotInfo, UnitMain};
use crate::storage::UndoInfo;

/// What is shown of a checkpoint.
pub fn info(manifest: &Manifest) -> CheckpointInfo {
    CheckpointInfo {
        id: manifest.id.to_string(),
        group: manifest.group.clone(),
        kind: match manifest.kind {
            Kind::Full => "full",
            Kind::Incremental => "incremental",
        }
        .into(),
        parent: manifest.parent.map(|id| id.to_string()),
        created: manifest.created,
        freeze_usec: manifest.freeze_usec,
        processes: saturate(manifest.processes),
        threads: saturate(manifest.threads),
        pages_written: manifest.pages_written,
        image_bytes: manifest.image_bytes,
        snapshots: manifest
            .snapshots
            .iter()
            .map(|s| SnapshotInfo { subvolume: s.subvolume.clone(), path: s.path.clone() })
            .collect(),
        state: match manifest.state {
            CheckpointState::Captured => "writing",
            CheckpointState::Durable => "durable",
        }
        .into(),
        tracker: match manifest.tracker {
            Tracker::WpAsync => "wp-async",
            Tracker::SoftDirty => "soft-dirty",
            Tracker::WriteProtect => "write-protect",
            Tracker::None => "none",
        }
        .into(),
        description: manifest.description.clone(),
        tags: manifest.tags.clone(),
        stages: Vec::new(),
        units: manifest
            .units
            .iter()
            .map(|u| UnitMain { unit: u.name.clone(), main_pid: u.main_pid.unwrap_or(0) })
            .collect(),
    }
}

/// What is shown of what a restore put aside: files only, no image.
pub fn undo(group: &str, undo: &UndoInfo) -> CheckpointInfo {
    CheckpointInfo {
        id: undo.id.clone(),
        group: group.into(),
        kind: "full".into(),
        parent: None,
        created: undo.created,
        freeze_usec: 0,
        processes: 0,
        threads: 0,
        pages_written: 0,
        image_bytes: 0,
        snapshots: undo.snapshots.clone(),
        state: "undo".into(),
        tracker: "none".into(),
        description: "files that a restore put aside".into(),
        tags: Vec::new(),
        units: Vec::new(),
        stages: Vec::new(),
    }
}

fn saturate(count: u64) -> u32 {
    count.try_into().unwrap_or(u32::MAX)
}
