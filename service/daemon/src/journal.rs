//! The only file that logs. Each event has one MESSAGE_ID (systemd.journal-fields(7)), `CKPT_*` fields and a text in ckpt.catalog.

use ckpt_engine::{Action, Decision, Error, Event, Group};
use tracing::{error, info, warn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::groups::load;
use crate::service::{Done, Work};

/// MESSAGE_IDs; ckpt.catalog has a text for each.
pub mod ids {
    /// A checkpoint is durable.
    pub const CHECKPOINT_DONE: &str = "5c7a1d0c2f3e4b6f9f2d8f1a60b34e01";
    /// A checkpoint was not taken.
    pub const CHECKPOINT_FAILED: &str = "0e7b7f8c6a4d4c519d0c64a1c1fd5b02";
    /// A group was restored.
    pub const RESTORE_DONE: &str = "b1f6d2a94a584d0e8a3f6a7f9e0c2d03";
    /// A group was not restored.
    pub const RESTORE_FAILED: &str = "e3d9a5c07b1f4b52a6c48d1b2f7e9a04";
    /// Checkpoints were deleted.
    pub const DELETED: &str = "9a4c3e61d85f4f0b8b7d2c5e1f60a705";
    /// Deleting failed.
    pub const DELETE_FAILED: &str = "7d20f5b98c3e4a16b5e9f04a3c8d1b06";
    /// A checkpoint was read whole and is sound.
    pub const VERIFIED: &str = "2f8e6b4d0a9c4173a1d5c7e3b9f04807";
    /// A checkpoint is damaged or could not be read.
    pub const VERIFY_FAILED: &str = "c6b13f7e5d2a48909e4f8a1c0d7b3508";
    /// A chain was merged.
    pub const MERGED: &str = "0c94d7e1b85a4f36a2e1c7f05d3b6911";
    /// A chain was not merged.
    pub const MERGE_FAILED: &str = "7ea1f43b0d924c58b6d02e9f8c5a1712";
    /// Checkpoints were pruned.
    pub const PRUNED: &str = "d35c08b2f6e147a9905e1b7a4c2f8d13";
    /// Pruning failed.
    pub const PRUNE_FAILED: &str = "486fb0e5c1d34d7f8a27e6c9b3051f14";
    /// A checkpoint was exported.
    pub const EXPORTED: &str = "e2b70d94a6c84f1fb3580c7de1f49a15";
    /// A checkpoint was imported.
    pub const IMPORTED: &str = "91fd3c60b7ea4a258d40e5b2f7c61316";
    /// An export or import failed.
    pub const TRANSFER_FAILED: &str = "5ac8e0f2d1774b3ca96b31f08e2d7417";
    /// Something will not be as it was.
    pub const WARNING: &str = "4b9d0e2c7f61435ca8e3d5b1f9260c09";
    /// A group that was left frozen was thawed.
    pub const THAWED: &str = "d8f5a3b16e0c4972b4c7e9d20a1f6b0a";
    /// Leftovers of an interrupted checkpoint were removed.
    pub const LEFTOVER_REMOVED: &str = "618c2d9f4e7b4a05938f1e6dc0b5a70b";
    /// An interrupted restore was taken back.
    pub const RESTORE_REVERTED: &str = "5e0b7d92c4a84f16b3f9a1d6e8c27015";
    /// A file of groups.d is wrong.
    pub const BAD_GROUP_FILE: &str = "f07e4b5a1d9c46e28c3b6f8d2a59e10c";
    /// A file of settings is wrong.
    pub const BAD_SETTINGS: &str = "3a6f1c8e9b2d4750a9d4e7f5c0b8160d";
    /// A group was enabled.
    pub const ENABLED: &str = "85e2d7c3f0a94b1d8e6c5a9f1b3d740e";
    /// A group was disabled.
    pub const DISABLED: &str = "ae19c4f6b57d4380b2f0d8e3a6c1950f";
    /// The daemon itself could not do something.
    pub const PROBLEM: &str = "1b5d8f3a6c0e4297ad7e2b9c4f81d610";
    /// A group was ended because its memory cannot come.
    pub const MEMORY_LOST: &str = ckpt_engine::rebuild::lazy::mark::LOST;
    /// All of them.
    pub const ALL: [&str; 25] = [
        CHECKPOINT_DONE,
        CHECKPOINT_FAILED,
        RESTORE_DONE,
        RESTORE_FAILED,
        DELETED,
        DELETE_FAILED,
        VERIFIED,
        VERIFY_FAILED,
        MERGED,
        MERGE_FAILED,
        PRUNED,
        PRUNE_FAILED,
        EXPORTED,
        IMPORTED,
        TRANSFER_FAILED,
        WARNING,
        THAWED,
        LEFTOVER_REMOVED,
        RESTORE_REVERTED,
        BAD_GROUP_FILE,
        BAD_SETTINGS,
        ENABLED,
        DISABLED,
        PROBLEM,
        MEMORY_LOST,
    ];
}

/// Logs to the journal; to standard error where there is none.
pub fn init() {
    match tracing_journald::layer() {
        // Without a prefix: fields are named MESSAGE_ID and CKPT_… as the catalog and `journalctl CKPT_GROUP=…` expect.
        Ok(layer) => {
            let layer = layer.with_field_prefix(None).with_syslog_identifier("ckptd".into());
            tracing_subscriber::registry().with(layer).with(filter()).init();
        }
        Err(_) => {
            let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).without_time();
            tracing_subscriber::registry().with(layer).with(filter()).init();
        }
    }
}

/// Our own words, and warnings of libraries.
fn filter() -> tracing_subscriber::EnvFilter {
    tracing_subscriber::EnvFilter::new("warn,ckptd=info")
}

/// The one entry of a job.
pub fn outcome(group: &str, work: &Work, result: &Result<Done, Error>) {
    match (work, result) {
        (_, Ok(Done::Checkpoint(i))) => info!(
            MESSAGE_ID = ids::CHECKPOINT_DONE,
            CKPT_GROUP = group,
            CKPT_ID = i.id,
            CKPT_KIND = i.kind,
            CKPT_FREEZE_USEC = i.freeze_usec,
            CKPT_BYTES = i.image_bytes,
            CKPT_PROCESSES = i.processes,
            CKPT_STAGES = ckpt_engine::timeline::line(&i.stages),
            "checkpoint {} of group {group} is durable: {} processes stood still for {} µs, {} bytes",
            i.id,
            i.processes,
            i.freeze_usec,
            i.image_bytes
        ),
        (_, Ok(Done::Restore(i))) => info!(
            MESSAGE_ID = ids::RESTORE_DONE,
            CKPT_GROUP = group,
            CKPT_ID = i.id,
            CKPT_RESTORE_USEC = i.restore_usec,
            CKPT_LATE_BYTES = i.late,
            CKPT_STAGES = ckpt_engine::timeline::line(&i.stages),
            CKPT_PROCESSES = i.processes,
            "group {group} is back at checkpoint {}: {} processes run again after {} µs{}",
            i.id,
            i.processes,
            i.restore_usec,
            if i.late == 0 {
                String::new()
            } else {
                format!(", while {} bytes of their memory arrive", i.late)
            }
        ),
        (Work::Delete(ids), Ok(_)) => info!(
            MESSAGE_ID = ids::DELETED,
            CKPT_GROUP = group,
            CKPT_ID = ids.join(" "),
            "checkpoints of group {group} deleted: {}",
            ids.join(" ")
        ),
        (Work::Verify(id), Ok(_)) => info!(
            MESSAGE_ID = ids::VERIFIED,
            CKPT_GROUP = group,
            CKPT_ID = id,
            "checkpoint {id} of group {group} is sound"
        ),
        (_, Ok(Done::Merged(i))) => info!(
            MESSAGE_ID = ids::MERGED,
            CKPT_GROUP = group,
            CKPT_ID = i.id,
            CKPT_BYTES = i.image_bytes,
            "checkpoint {} of group {group} stands alone: what it rested on is folded into it",
            i.id
        ),
        (_, Ok(Done::Imported(i))) => info!(
            MESSAGE_ID = ids::IMPORTED,
            CKPT_GROUP = group,
            CKPT_ID = i.id,
            CKPT_BYTES = i.image_bytes,
            "checkpoint {} of group {group} was imported",
            i.id
        ),
        (Work::Export(id, _), Ok(_)) => info!(
            MESSAGE_ID = ids::EXPORTED,
            CKPT_GROUP = group,
            CKPT_ID = id,
            "checkpoint {id} of group {group} was exported"
        ),
        (_, Ok(Done::Pruned(decisions))) => pruned(group, decisions),
        (_, Ok(Done::Plain)) => {}
        (work, Err(failure)) => failed(group, work, failure),
    }
}

fn pruned(group: &str, decisions: &[Decision]) {
    let removed = decisions.iter().filter(|d| d.action == Action::Remove);
    let ids = removed.map(|d| d.id.as_str()).collect::<Vec<_>>().join(" ");
    if ids.is_empty() {
        return;
    }
    info!(
        MESSAGE_ID = ids::PRUNED,
        CKPT_GROUP = group,
        CKPT_ID = ids,
        "checkpoints of group {group} that no rule of its retention keeps were removed: {ids}"
    );
}

fn failed(group: &str, work: &Work, failure: &Error) {
    let name = ckpt_dbus::errors::full_name(failure.name());
    match work {
        Work::Checkpoint(request) => error!(
            MESSAGE_ID = ids::CHECKPOINT_FAILED,
            CKPT_GROUP = group,
            CKPT_ID = request.id,
            CKPT_ERROR = name,
            "no checkpoint of group {group}: {failure}"
        ),
        Work::Restore(request) => error!(
            MESSAGE_ID = ids::RESTORE_FAILED,
            CKPT_GROUP = group,
            CKPT_ID = request.checkpoint,
            CKPT_ERROR = name,
            "group {group} was not restored: {failure}"
        ),
        Work::Delete(ids) => error!(
            MESSAGE_ID = ids::DELETE_FAILED,
            CKPT_GROUP = group,
            CKPT_ID = ids.join(" "),
            CKPT_ERROR = name,
            "checkpoints of group {group} were not all deleted: {failure}"
        ),
        Work::Verify(id) => error!(
            MESSAGE_ID = ids::VERIFY_FAILED,
            CKPT_GROUP = group,
            CKPT_ID = id,
            CKPT_ERROR = name,
            "checkpoint {id} of group {group} is not sound: {failure}"
        ),
        // It makes room for what somebody asked for, and is done another time.
        Work::Shorten if matches!(failure, Error::Canceled) => {}
        Work::Merge(_) | Work::Shorten => error!(
            MESSAGE_ID = ids::MERGE_FAILED,
            CKPT_GROUP = group,
            CKPT_ERROR = name,
            "the chain of group {group} was not merged: {failure}"
        ),
        Work::Export(..) | Work::Import(_) => error!(
            MESSAGE_ID = ids::TRANSFER_FAILED,
            CKPT_GROUP = group,
            CKPT_ERROR = name,
            "the {} of a checkpoint of group {group} failed: {failure}",
            work.kind()
        ),
        Work::Prune => error!(
            MESSAGE_ID = ids::PRUNE_FAILED,
            CKPT_GROUP = group,
            CKPT_ERROR = name,
            "group {group} was not pruned: {failure}"
        ),
    }
}

/// What the engine tells on the way.
pub fn event(group: &str, event: &Event) {
    match event {
        Event::Warning(problem) => warn!(
            MESSAGE_ID = ids::WARNING,
            CKPT_GROUP = group,
            CKPT_CODE = problem.code,
            CKPT_UNIT = problem.unit,
            CKPT_PID = problem.pid,
            "{problem}"
        ),
        Event::Thawed { cgroup } => warn!(
            MESSAGE_ID = ids::THAWED,
            CKPT_GROUP = group,
            CKPT_CGROUP = cgroup,
            "{cgroup} had been left frozen and was thawed"
        ),
        Event::LeftoverRemoved { path } => info!(
            MESSAGE_ID = ids::LEFTOVER_REMOVED,
            CKPT_GROUP = group,
            CKPT_PATH = %path.display(),
            "{} of an interrupted checkpoint was removed",
            path.display()
        ),
        Event::RestoreReverted { undo } => warn!(
            MESSAGE_ID = ids::RESTORE_REVERTED,
            CKPT_GROUP = group,
            CKPT_ID = undo,
            "a restore of group {group} was interrupted before anything ran: its subvolumes are again what they were before it"
        ),
    }
}

/// A group file that is no group, and what becomes of the group; the daemon goes on.
pub fn bad_group_file(error: &load::Error, outcome: &str) {
    warn!(
        MESSAGE_ID = ids::BAD_GROUP_FILE,
        CKPT_GROUP = error.group,
        CKPT_PATH = %error.file.display(),
        "{error}; {outcome}"
    );
}

/// A settings file that is wrong; the daemon goes on without it.
pub fn bad_settings(error: &crate::settings::Error) {
    warn!(MESSAGE_ID = ids::BAD_SETTINGS, "{error}; the file is left out");
}

/// A group was enabled or disabled.
pub fn enabled(group: &Group, on: bool) {
    let (id, word) = if on { (ids::ENABLED, "enabled") } else { (ids::DISABLED, "disabled") };
    info!(MESSAGE_ID = id, CKPT_GROUP = group.name, "group {} is {word}", group.name);
}

/// Something that the daemon could not do and nobody asked for.
pub fn problem(group: &str, failure: &Error) {
    warn!(MESSAGE_ID = ids::PROBLEM, CKPT_GROUP = group, "{failure}");
}

/// The daemon cannot go on.
pub fn fatal(why: &str) {
    error!(MESSAGE_ID = ids::PROBLEM, "ckptd cannot go on: {why}");
}

#[cfg(test)]
mod tests {
    use super::ids;

    #[test]
    fn every_message_id_is_32_hex_digits_unique_and_in_the_catalog() {
        let catalog = include_str!("../../../units/ckpt.catalog");
        let mut seen = std::collections::BTreeSet::new();
        for id in ids::ALL {
            assert!(
                id.len() == 32 && id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)),
                "{id}"
            );
            assert!(seen.insert(id), "{id} twice");
            assert!(catalog.contains(&format!("-- {id}\n")), "{id} is not in the catalog");
        }
        assert_eq!(catalog.lines().filter(|l| l.starts_with("-- ")).count(), ids::ALL.len());
        // The list is complete: as many constants as entries.
        let is_id = |line: &&str| line.trim_start().starts_with("pub const ") && line.contains(": &str = ");
        assert_eq!(include_str!("journal.rs").lines().filter(is_id).count(), ids::ALL.len());
    }
}
