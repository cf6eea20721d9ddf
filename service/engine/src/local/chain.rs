//! Whether the next checkpoint of a group can be an incremental, and what it rests on.

use std::time::Duration;

use ckpt_sys::Error as SysError;
use ckpt_sys::task::Shared;
use ckpt_sys::thread::Deadline;

use super::LocalEngine;
use super::window::Window;
use crate::api::{Group, Mode};
use crate::capture::sharing::shared;
use crate::capture::{Capture, Members};
use crate::error::{Error, with_sources};
use crate::track::{self, Chain, SpaceKey, WatchedSpace};

/// Memory that is not watched yet and is worth a short stop of its own, so that it can be copied while the group runs.
const WORTH_A_PAUSE: u64 = 32 << 20;

/// Many processes are watched in several stops; what is not watched after these is copied in the window.
const PAUSES: usize = 8;

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

/// Begins to watch members that are not watched yet, if they have so much memory that it should not be copied in the window. The
/// group stands still for it as long as it tells; registering and arming is done while it runs.
///
/// Errors: FreezeTimeout.
pub fn watch(window: &Window<'_>, capture: &Capture, chain: &mut Chain) -> Result<Duration, Error> {
    if !chain.tracker.is_live() {
        return Ok(Duration::ZERO);
    }
    let mut pauses = Duration::ZERO;
    for _ in 0..PAUSES {
        if capture.untried(chain) < WORTH_A_PAUSE {
            break;
        }
        let (all, pause) = window.pause(|members, deadline| {
            watch_some(members, chain, deadline)
                .map_err(|e| Error::Failed(format!("cannot watch the members: {}", with_sources(&e))))
        })?;
        pauses += pause;
        if all {
            break;
        }
    }
    Ok(pauses)
}

/// Watches members until all are watched, or half of the time is gone: what is begun must end in time. True: all are.
fn watch_some(members: &mut Members, chain: &mut Chain, deadline: Deadline) -> Result<bool, SysError> {
    let enough = deadline.left() / 2;
    let pids: Vec<_> = members.members.iter().map(|member| member.live.pid()).collect();
    // One space must not be watched twice: neither watch would know what the other armed.
    let spaces = shared(&pids, Shared::Space)?;
    // A process whose first thread has ended shows no auxv; the window says what is wrong with it.
    let keys: Vec<_> = pids.iter().map(|pid| SpaceKey::of(*pid).ok()).collect();
    chain.spaces.retain(|key, _| keys.iter().flatten().any(|known| known == key));
    let of_space = |space| spaces.of.iter().zip(&keys).filter(move |(of, _)| **of as usize == space);
    for (space, first) in spaces.first.iter().enumerate() {
        let Some(key) = &keys[*first] else { continue };
        if of_space(space).filter_map(|(_, key)| key.as_ref()).any(|key| chain.spaces.contains_key(key)) {
            continue;
        }
        if deadline.left() < enough {
            return Ok(false);
        }
        let live = &mut members.members[*first].live;
        match live.prepare(deadline) {
            Ok(()) => {}
            Err(SysError::NoRunner { .. }) => continue, // the window says so
            Err(e) => return Err(e),
        }
        let watch = chain.tracker.watch(live, deadline)?;
        chain.spaces.insert(key.clone(), WatchedSpace { stored: None, watch });
    }
    Ok(true)
}
