//! Pruning: removing what the rules of `[retention]` do not keep.

use ckpt_image::CheckpointState;
use jiff::tz::TimeZone;

use super::{LocalEngine, delete};
use crate::api::{Group, Job, Stage};
use crate::error::Error;
use crate::retention::{Action, Candidate, Decision, decide};
use crate::storage;

/// Decides, and unless it is a dry run removes: checkpoints that others rest on are merged into those first. Days begin as they do for this
/// host.
///
/// Errors: those of listing, merging and removing.
pub fn run(
    engine: &LocalEngine,
    group: &Group,
    dry_run: bool,
    job: &dyn Job,
) -> Result<Vec<Decision>, Error> {
    job.stage(Stage::Checking);
    let name = &group.name;
    let durable = engine.store.list(name)?.into_iter().filter(|m| m.state == CheckpointState::Durable);
    let mut candidates: Vec<_> =
        durable.map(|m| Candidate { id: m.id.to_string(), created: m.created, undo: false }).collect();
    let undos = storage::undos(&engine.place()?, name, &engine.known_subvolumes(name)?)?;
    candidates.extend(undos.into_iter().map(|u| Candidate { id: u.id, created: u.created, undo: true }));
    let decisions = decide(&candidates, &group.config.retention, &TimeZone::system());
    let going = decisions.iter().filter(|d| d.action == Action::Remove).map(|d| d.id.clone());
    let going: Vec<_> = going.collect();
    if !dry_run && !going.is_empty() {
        delete::checkpoints(engine, name, &going, job)?;
    }
    Ok(decisions)
}
