//! Removing checkpoints and undo snapshots.

use super::{LocalEngine, merge};
use crate::api::{Job, Stage};
use crate::error::Error;
use crate::storage::{self, UndoInfo};

/// Removes what the ids name, all of which are looked up before anything is removed. What is named and others rest on is first merged into
/// those.
///
/// Errors: NoSuchCheckpoint, and those of a merge.
pub fn checkpoints(engine: &LocalEngine, group: &str, ids: &[String], job: &dyn Job) -> Result<(), Error> {
    let undos = storage::undos(&engine.place()?, group, &engine.known_subvolumes(group)?)?;
    let mut chosen = Vec::new();
    let mut chosen_undos: Vec<&UndoInfo> = Vec::new();
    for id in ids {
        match undos.iter().find(|u| u.id == *id) {
            Some(undo) => chosen_undos.push(undo),
            None if id.is_empty() => {
                return Err(Error::InvalidArgs("an empty id names no checkpoint to delete".into()));
            }
            None => chosen.push(engine.store.find(group, id)?),
        }
    }
    let total = ids.len() as u64;
    engine.store.alone(group, || {
        let going: Vec<_> = chosen.iter().map(|m| m.id).collect();
        merge::detach(engine, group, &going, job)?;
        job.stage(Stage::Deleting);
        // The newest first: what is left after a crash rests on what is left.
        chosen.sort_by_key(|m| std::cmp::Reverse(m.id));
        chosen.dedup_by_key(|m| m.id);
        for (done, manifest) in chosen.iter().enumerate() {
            job.progress(done as u64, total);
            merge::remove(engine, manifest)?;
        }
        Ok::<_, Error>(())
    })?;
    for undo in chosen_undos {
        storage::remove_undo(undo)?;
    }
    job.progress(total, total);
    Ok(())
}
