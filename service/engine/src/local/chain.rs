//! Whether the next checkpoint of a group can be an incremental, and what it rests on.

use super::LocalEngine;
use crate::api::{Group, Mode};
use crate::error::Error;
use crate::track::{self, Chain};

/// The watches to begin a checkpoint with; their parent is there if it is to be an incremental. They are out of the engine's hands
/// until the checkpoint is durable, so that after a failure the next one is a full.
///
/// Errors: Unsupported where the machine lacks the tracker, or where an incremental is asked for and cannot be.
pub fn begin(engine: &LocalEngine, group: &Group, mode: Mode) -> Result<Chain, Error> {
    let tracker = track::choose(group.config.capture.tracker)?;
    let kept = engine.take_chain(&group.name).filter(|chain| chain.tracker.kind() == tracker.kind());
    let mut chain = kept.unwrap_or_else(|| Chain::new(tracker));
    if mode == Mode::Full {
        chain.parent = None;
        return Ok(chain);
    }
    match why_full(engine, group, &chain) {
        None => Ok(chain),
        Some(why) if mode == Mode::Incremental => {
            let text =
                format!("an incremental of group {}: {why}; take a full one first (--full)", group.name);
            let error = Err(Error::Unsupported(text));
            engine.keep_chain(&group.name, chain); // nothing was armed
            error
        }
        Some(_) => {
            chain.parent = None;
            Ok(chain)
        }
    }
}

/// Why the next checkpoint has to stand alone.
fn why_full(engine: &LocalEngine, group: &Group, chain: &Chain) -> Option<String> {
    let Some(parent) = chain.parent else {
        return Some("what was written since its last checkpoint is not known".into());
    };
    match engine.store.ancestry(&group.name, &parent.to_string()) {
        Ok(ancestry) if ancestry.len() as u32 > group.config.capture.max_chain => {
            Some(format!("its chain has {} checkpoints (capture.max_chain)", ancestry.len()))
        }
        Ok(_) => None,
        Err(e) => Some(format!("its parent {parent} is not whole: {e}")),
    }
}
