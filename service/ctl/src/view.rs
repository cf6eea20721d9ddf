//! What is printed as JSON: the field names of the contract.

use ckpt_dbus::{CheckpointRow, GroupRow, ProblemRow, PruneRow, RestoreStats};
use serde::Serialize;

/// One checkpoint: JSON of `checkpoint`, an element of that of `list`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Checkpoint {
    pub id: String,
    pub group: String,
    pub kind: String,
    pub parent: Option<String>,
    pub created: String,
    pub freeze_usec: u64,
    pub processes: u32,
    pub threads: u32,
    pub pages_written: u64,
    pub image_bytes: u64,
    pub snapshots: Vec<Snapshot>,
    pub state: String,
    pub tracker: String,
    pub description: String,
    pub tags: Vec<String>,
    pub units: Vec<UnitMain>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Snapshot {
    pub subvolume: String,
    pub path: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct UnitMain {
    pub unit: String,
    pub main_pid: i32,
}

fn units(units: Vec<(String, i32)>) -> Vec<UnitMain> {
    units.into_iter().map(|(unit, main_pid)| UnitMain { unit, main_pid }).collect()
}

impl From<CheckpointRow> for Checkpoint {
    fn from(row: CheckpointRow) -> Self {
        Self {
            id: row.id,
            group: row.group,
            kind: row.kind,
            parent: row.parent.filter(|p| !p.is_empty()),
            created: row.created,
            freeze_usec: row.freeze_usec,
            processes: row.processes,
            threads: row.threads,
            pages_written: row.pages_written,
            image_bytes: row.image_bytes,
            snapshots: row
                .snapshots
                .into_iter()
                .map(|(subvolume, path)| Snapshot { subvolume, path })
                .collect(),
            state: row.state,
            tracker: row.tracker,
            description: row.description,
            tags: row.tags,
            units: units(row.units),
        }
    }
}

/// JSON of `restore`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Restore {
    pub id: String,
    pub group: String,
    pub processes: u32,
    pub restore_usec: u64,
    pub units: Vec<UnitMain>,
}

impl From<RestoreStats> for Restore {
    fn from(stats: RestoreStats) -> Self {
        Self {
            id: stats.id,
            group: stats.group,
            processes: stats.processes,
            restore_usec: stats.restore_usec,
            units: units(stats.units),
        }
    }
}

/// JSON of `check`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    pub ok: bool,
    pub problems: Vec<Problem>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Problem {
    pub code: String,
    pub severity: String,
    pub unit: String,
    pub pid: u32,
    pub object: String,
    pub text: String,
    pub remedy: String,
}

impl From<ProblemRow> for Problem {
    fn from(row: ProblemRow) -> Self {
        let ProblemRow { code, severity, unit, pid, object, text, remedy } = row;
        Self { code, severity, unit, pid, object, text, remedy }
    }
}

/// An element of the JSON of `status`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Group {
    pub name: String,
    pub enabled: bool,
    pub slice: String,
    pub units: Vec<String>,
    pub subvolumes: Vec<String>,
    pub state: String,
    pub checkpoints: u32,
    pub last_checkpoint: Option<String>,
    pub last_checkpoint_usec: u64,
    pub last_freeze_usec: u64,
    pub members: Vec<Member>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Member {
    pub unit: String,
    pub active_state: String,
    pub main_pid: i32,
    pub preloaded: bool,
}

impl From<GroupRow> for Group {
    fn from(row: GroupRow) -> Self {
        Self {
            name: row.name,
            enabled: row.enabled,
            slice: row.slice,
            units: row.units,
            subvolumes: row.subvolumes,
            state: row.state,
            checkpoints: row.checkpoints,
            last_checkpoint: Some(row.last_checkpoint).filter(|id| !id.is_empty()),
            last_checkpoint_usec: row.last_checkpoint_usec,
            last_freeze_usec: row.last_freeze_usec,
            members: row
                .members
                .into_iter()
                .map(|m| Member {
                    unit: m.unit,
                    active_state: m.active_state,
                    main_pid: m.main_pid,
                    preloaded: m.preloaded,
                })
                .collect(),
        }
    }
}

/// An element of the JSON of `prune`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Decision {
    pub id: String,
    pub group: String,
    pub created: String,
    pub action: String,
    pub rule: String,
    pub reason: String,
}

impl Decision {
    /// Of a group's row.
    pub fn of(group: &str, row: PruneRow) -> Self {
        let PruneRow { id, action, rule, reason, created, .. } = row;
        Self { id, group: group.to_owned(), created, action, rule, reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The contract's JSON of `checkpoint`, `check` and `restore`.
    #[test]
    fn the_promised_fields_are_there() {
        let row = CheckpointRow {
            id: "X".into(),
            snapshots: vec![("/srv/web".into(), "/srv/.ckpt/web/X/srv-web".into())],
            ..CheckpointRow::default()
        };
        let json = serde_json::to_value(Checkpoint::from(row)).unwrap();
        for key in [
            "id",
            "group",
            "kind",
            "parent",
            "created",
            "freeze_usec",
            "processes",
            "threads",
            "pages_written",
            "image_bytes",
            "snapshots",
            "state",
            "tracker",
        ] {
            assert!(json.get(key).is_some(), "{key}");
        }
        assert!(json["parent"].is_null());
        assert_eq!(json["snapshots"][0]["subvolume"], "/srv/web");
        let stats = RestoreStats { units: vec![("a.service".into(), 7)], ..RestoreStats::default() };
        let json = serde_json::to_value(Restore::from(stats)).unwrap();
        assert_eq!(json["units"][0], serde_json::json!({"unit": "a.service", "main_pid": 7}));
        let check = Check { ok: false, problems: vec![ProblemRow::default().into()] };
        let json = serde_json::to_value(check).unwrap();
        for key in ["code", "severity", "unit", "pid", "object", "text", "remedy"] {
            assert!(json["problems"][0].get(key).is_some(), "{key}");
        }
    }
}
