//! Merging chains: by request, after `max_chain`, and so that a checkpoint can be deleted that others rest on.

use ckpt_image::{CheckpointState, Manifest};
use ulid::Ulid;

use super::{LocalEngine, describe};
use crate::api::{CheckpointInfo, Group, Job, Stage};
use crate::error::Error;
use crate::storage;

/// Makes a checkpoint (empty: the newest) stand alone, then removes those of its former ancestors that no other rests on: they are
/// folded in.
///
/// Errors: NoSuchCheckpoint, Canceled, NoSpace, Corrupt.
pub fn run(engine: &LocalEngine, group: &str, upto: &str, job: &dyn Job) -> Result<CheckpointInfo, Error> {
    job.stage(Stage::Merging);
    engine.store.alone(group, || {
        let chain = engine.store.ancestry(group, upto)?;
        engine.store.fold(&chain, &mut |done, total| going_on(job, done, total))?;
        for ancestor in &chain[1..] {
            if engine.store.list(group)?.iter().any(|m| m.parent == Some(ancestor.id)) {
                break;
            }
            remove(engine, ancestor)?;
        }
        info(engine, &chain[0])
    })
}

/// Makes the newest checkpoint of a group stand alone if it rests on `max_chain` incrementals or more. Removes nothing. `None` where the chain is
/// shorter.
///
/// Errors: as [`run`].
pub fn shorten(engine: &LocalEngine, group: &Group, job: &dyn Job) -> Result<Option<CheckpointInfo>, Error> {
    let _low = ckpt_sys::priority::Low::begin();
    let max_chain = group.config.capture.max_chain as usize;
    engine.store.alone(&group.name, || {
        let chain = engine.store.ancestry(&group.name, "")?;
        // The full is not an incremental.
        if chain.len() < 2 || chain.len() - 1 < max_chain {
            return Ok(None);
        }
        job.stage(Stage::Merging);
        engine.store.fold(&chain, &mut |done, total| going_on(job, done, total))?;
        info(engine, &chain[0]).map(Some)
    })
}

/// Lets those that rest on checkpoints which are to go, and stay themselves, rest on what stays: folds what goes into each of them.
pub fn detach(engine: &LocalEngine, group: &str, going: &[Ulid], job: &dyn Job) -> Result<(), Error> {
    for manifest in engine.store.list(group)? {
        let Some(parent) = manifest.parent else { continue };
        if going.contains(&manifest.id) || !going.contains(&parent) {
            continue;
        }
        job.stage(Stage::Merging);
        let chain = engine.store.ancestry(group, &manifest.id.to_string())?;
        let end = chain.iter().skip(1).position(|m| !going.contains(&m.id)).map_or(chain.len(), |n| n + 1);
        engine.store.fold(&chain[..end], &mut |done, total| going_on(job, done, total))?;
    }
    Ok(())
}

/// Removes a checkpoint that nothing rests on: the image first, since a snapshot without a checkpoint is removed at the next start, and a
/// checkpoint without its snapshots would be one that lies.
pub fn remove(engine: &LocalEngine, manifest: &Manifest) -> Result<(), Error> {
    engine.store.remove(&manifest.group, &manifest.id.to_string())?;
    storage::remove(&manifest.snapshots)
}

fn going_on(job: &dyn Job, done: u64, total: u64) -> bool {
    job.progress(done, total);
    !job.canceled()
}

fn info(engine: &LocalEngine, manifest: &Manifest) -> Result<CheckpointInfo, Error> {
    debug_assert_eq!(manifest.state, CheckpointState::Durable);
    Ok(describe::info(&engine.store.find(&manifest.group, &manifest.id.to_string())?))
}
