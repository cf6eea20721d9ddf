//! What the engine answers, as the dictionaries of the contract.

use ckpt_dbus::{CheckpointRow, MemberRow, ProblemRow, PruneRow, RestoreStats};
use ckpt_engine::{Action, CheckpointInfo, Decision, Problem, RestoreInfo, Severity, Unit, UnitMain};

/// A row of ListCheckpoints.
pub fn checkpoint(info: &CheckpointInfo) -> CheckpointRow {
    CheckpointRow {
        id: info.id.clone(),
        group: info.group.clone(),
        kind: info.kind.clone(),
        parent: info.parent.clone(),
        created: info.created.to_string(),
        created_usec: created_usec(info),
        freeze_usec: info.freeze_usec,
        processes: info.processes,
        threads: info.threads,
        pages_written: info.pages_written,
        image_bytes: info.image_bytes,
        snapshots: snapshots(info),
        state: info.state.clone(),
        tracker: info.tracker.clone(),
        description: info.description.clone(),
        tags: info.tags.clone(),
        units: units(&info.units),
    }
}

/// Pairs of subvolume and snapshot. Bytes that are not UTF-8 cannot go over the bus and become U+FFFD.
pub fn snapshots(info: &CheckpointInfo) -> Vec<(String, String)> {
    info.snapshots
        .iter()
        .map(|s| (s.subvolume.to_string_lossy().into_owned(), s.path.to_string_lossy().into_owned()))
        .collect()
}

/// When the group stood still, microseconds since 1970.
pub fn created_usec(info: &CheckpointInfo) -> u64 {
    u64::try_from(info.created.as_microsecond()).unwrap_or(0)
}

fn units(units: &[UnitMain]) -> Vec<(String, i32)> {
    units.iter().map(|u| (u.unit.clone(), u.main_pid)).collect()
}

/// The statistics of a restore.
pub fn restore(info: &RestoreInfo) -> RestoreStats {
    RestoreStats {
        id: info.id.clone(),
        group: info.group.clone(),
        processes: info.processes,
        restore_usec: info.restore_usec,
        units: units(&info.units),
    }
}

/// A row of Check.
pub fn problem(problem: &Problem) -> ProblemRow {
    ProblemRow {
        code: problem.code.clone(),
        severity: match problem.severity {
            Severity::Error => "error".into(),
            Severity::Warning => "warning".into(),
        },
        unit: problem.unit.clone(),
        pid: u32::try_from(problem.pid).unwrap_or(0),
        object: problem.object.clone(),
        text: problem.text.clone(),
        remedy: problem.remedy.clone(),
    }
}

/// A row of Prune.
pub fn decision(decision: &Decision) -> PruneRow {
    PruneRow {
        id: decision.id.clone(),
        action: match decision.action {
            Action::Keep => "keep".into(),
            Action::Remove => "remove".into(),
        },
        rule: decision.rule.into(),
        reason: decision.reason.clone(),
        created: decision.created.to_string(),
        created_usec: u64::try_from(decision.created.as_microsecond()).unwrap_or(0),
    }
}

/// A member unit of ListGroups.
pub fn member(unit: &Unit) -> MemberRow {
    MemberRow {
        unit: unit.name.clone(),
        active_state: unit.active_state.clone(),
        main_pid: unit.main_pid,
        preloaded: unit.preloaded,
    }
}
