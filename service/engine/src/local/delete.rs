//! Removing checkpoints and undo snapshots.

use ckpt_image::Manifest;

use super::LocalEngine;
use crate::api::Job;
use crate::error::Error;
use crate::storage::{self, UndoInfo};

/// Removes what the ids name, all of which are looked up before anything is removed.
///
/// Errors: NoSuchCheckpoint; InvalidArgs if an incremental rests on one that is named.
pub fn checkpoints(engine: &LocalEngine, group: &str, ids: &[String], job: &dyn Job) -> Result<(), Error> {
    let undos = storage::undos(&engine.place()?, group, &engine.known_subvolumes(group)?)?;
    let all = engine.store.list(group)?;
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
    for manifest in &chosen {
        stands_alone(manifest, &all, &chosen)?;
    }
    let total = ids.len() as u64;
    for (done, manifest) in chosen.iter().enumerate() {
        job.progress(done as u64, total);
        // The image first: a snapshot without a checkpoint is removed at the next start, the other way round is a checkpoint that lies.
        engine.store.remove(group, &manifest.id.to_string())?;
        storage::remove(&manifest.snapshots)?;
    }
    for undo in chosen_undos {
        storage::remove_undo(undo)?;
    }
    job.progress(total, total);
    Ok(())
}

fn stands_alone(manifest: &Manifest, all: &[Manifest], chosen: &[Manifest]) -> Result<(), Error> {
    let stays = |m: &&Manifest| chosen.iter().all(|c| c.id != m.id);
    match all.iter().filter(stays).find(|m| m.parent == Some(manifest.id)) {
        Some(child) => Err(Error::InvalidArgs(format!(
            "incremental {} rests on {}; merge the chain first, or delete both",
            child.id, manifest.id
        ))),
        None => Ok(()),
    }
}
