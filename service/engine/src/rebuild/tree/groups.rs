//! Puts every process into its process group, when all exist; then ends what must not live on.

use std::collections::{BTreeMap, BTreeSet};

use ckpt_image::records::{Pid, ProcessState};

use super::grow::Records;
use super::{Share, Step, TreeError};

/// Adds the steps for process groups before the first temporary leader ends, and the deaths of zombies at the end.
pub(super) fn settle(
    records: &Records<'_>,
    steps: &mut Vec<Step>,
    spare: &mut dyn Iterator<Item = Pid>,
) -> Result<(), TreeError> {
    // Temporary session leaders end last: they may lead process groups, too.
    let ends =
        steps.iter().rposition(|s| !matches!(s, Step::End { waiter: None, .. })).map_or(0, |last| last + 1);
    let tail = steps.split_off(ends);
    let sessions: BTreeMap<Pid, Pid> = records.values().map(|r| (r.pid, r.sid)).collect();
    lead(records, steps);
    let mut temporary = make_lost_leaders(records, steps)?;
    temporary.extend(hold_left_groups(records, steps, spare)?);
    for record in records.values().filter(|r| r.pgid != r.pid) {
        if sessions.get(&record.pgid).is_some_and(|sid| *sid != record.sid) {
            return Err(TreeError::Group { pid: record.pid, pgid: record.pgid });
        }
        steps.push(Step::Group { pid: record.pid, pgid: record.pgid });
    }
    steps.extend(temporary.into_iter().map(|(pid, maker)| Step::End { pid, waiter: Some(maker) }));
    steps.extend(tail);
    for record in records.values().filter(|r| matches!(r.state, ProcessState::Zombie { .. })) {
        steps.push(Step::Die { pid: record.pid });
    }
    Ok(())
}

/// Leaders of process groups that do not lead a session.
fn lead(records: &Records<'_>, steps: &mut Vec<Step>) {
    for record in records.values().filter(|r| r.pgid == r.pid && r.sid != r.pid) {
        steps.push(Step::Group { pid: record.pid, pgid: record.pid });
    }
}

/// A leader may have left its group for another: it leads first, and a temporary child keeps the group until all have joined
/// theirs. Gives those children with their makers.
fn hold_left_groups(
    records: &Records<'_>,
    steps: &mut Vec<Step>,
    spare: &mut dyn Iterator<Item = Pid>,
) -> Result<Vec<(Pid, Pid)>, TreeError> {
    let left: BTreeSet<Pid> = records
        .values()
        .filter_map(|r| records.get(&r.pgid))
        .filter(|leader| leader.pgid != leader.pid)
        .map(|leader| leader.pid)
        .collect();
    let mut holders = Vec::new();
    for leader in left {
        let pid = spare.next().ok_or(TreeError::NoSpare)?;
        let (unit, share) = (records[&leader].unit, Share::default());
        steps.push(Step::Group { pid: leader, pgid: leader });
        steps.push(Step::Create { pid, maker: Some(leader), sibling: false, unit, temporary: true, share });
        holders.push((pid, leader));
    }
    Ok(holders)
}

/// Process groups whose leader is gone get a temporary one, a child of any member of that session. Gives them with their makers.
fn make_lost_leaders(records: &Records<'_>, steps: &mut Vec<Step>) -> Result<Vec<(Pid, Pid)>, TreeError> {
    let mut lost = BTreeMap::<Pid, Pid>::new();
    for record in records.values().filter(|r| !records.contains_key(&r.pgid) && r.pgid != r.sid) {
        let maker = *lost.entry(record.pgid).or_insert(record.pid);
        let session = records.values().any(|r| r.sid == record.pgid);
        if session || records[&maker].sid != record.sid {
            return Err(TreeError::Group { pid: record.pid, pgid: record.pgid });
        }
    }
    for (pid, maker) in &lost {
        let unit = records[maker].unit;
        let share = Share::default();
        steps.push(Step::Create {
            pid: *pid,
            maker: Some(*maker),
            sibling: false,
            unit,
            temporary: true,
            share,
        });
        steps.push(Step::Group { pid: *pid, pgid: *pid });
    }
    Ok(lost.into_iter().collect())
}
