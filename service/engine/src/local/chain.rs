//! Whether the next checkpoint of a group can be an incremental, and what it rests on.

use std::collections::HashSet;
use std::time::Duration;

use ckpt_sys::Error as SysError;
use ckpt_sys::inject::Live;
use ckpt_sys::task::Shared;
use ckpt_sys::thread::Deadline;

use super::LocalEngine;
use super::window::Window;
use crate::api::{Group, Mode};
use crate::capture::Capture;
use crate::capture::sharing::shared;
use crate::error::{Error, with_sources};
use crate::parallel;
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

/// How many members are watched side by side.
const TOGETHER: usize = 64;

/// Watches members until all are watched, or half of the time is gone: what is begun must end in time. True: all are.
fn watch_some(members: &mut [Live], chain: &mut Chain, deadline: Deadline) -> Result<bool, SysError> {
    let enough = deadline.left() / 2;
    let pids: Vec<_> = members.iter().map(Live::pid).collect();
    // One space must not be watched twice: neither watch would know what the other armed.
    let spaces = shared(&pids, Shared::Space)?;
    // A process whose first thread has ended shows no auxv; the window says what is wrong with it.
    let keys = parallel::map(&pids, 16, |pid| SpaceKey::of(*pid).ok());
    let there: HashSet<&SpaceKey> = keys.iter().flatten().collect();
    chain.spaces.retain(|known, _| there.contains(known));
    let is_known = |key: &SpaceKey| chain.spaces.contains_key(key);
    let of_known = keys.iter().zip(&spaces.of).filter(|(key, _)| key.as_ref().is_some_and(is_known));
    let known: HashSet<usize> = of_known.map(|(_, space)| *space as usize).collect();
    let is_new = |place: usize| {
        let space = spaces.of[place] as usize;
        spaces.first[space] == place && keys[place].is_some() && !known.contains(&space)
    };
    let mut new: Vec<(usize, &mut Live)> =
        members.iter_mut().enumerate().filter(|(place, _)| is_new(*place)).collect();
    for some in new.chunks_mut(TOGETHER) {
        if deadline.left() < enough {
            return Ok(false);
        }
        let mut prepared = prepare(some, deadline)?;
        let mut lives: Vec<&mut Live> = prepared.iter_mut().map(|(_, live)| &mut **live).collect();
        let watches = chain.tracker.watch(&mut lives, deadline)?;
        for ((place, _), watch) in prepared.into_iter().zip(watches) {
            if let Some(key) = &keys[place] {
                chain.spaces.insert(key.clone(), WatchedSpace { stored: None, watch });
            }
        }
    }
    Ok(true)
}

/// Makes members able to run batches, side by side; those that cannot are left out: the window says so.
fn prepare<'m>(
    members: &'m mut [(usize, &mut Live)],
    deadline: Deadline,
) -> Result<Vec<(usize, &'m mut Live)>, SysError> {
    let able = |done: Result<(), SysError>| match done {
        Ok(()) => Ok(true),
        Err(SysError::NoRunner { .. }) => Ok(false),
        Err(e) => Err(e),
    };
    let mut begun = Vec::with_capacity(members.len());
    for (place, live) in members {
        if able(live.begin_prepare())? {
            begun.push((*place, &mut **live));
        }
    }
    let mut prepared = Vec::with_capacity(begun.len());
    for (place, live) in begun {
        if able(live.end_prepare(deadline))? {
            prepared.push((place, live));
        }
    }
    Ok(prepared)
}
