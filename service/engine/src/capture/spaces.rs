//! The address spaces of stopped members: who watches each; mappings and pages, looked at side by side; then the records.

use std::collections::{HashMap, HashSet};

use ckpt_image::Tracker;
use ckpt_image::records::{SpaceId, SpaceRecord, UnitRecord};
use ckpt_sys::Error as SysError;
use ckpt_sys::thread::Deadline;

use super::members::{Members, SpaceFacts};
use super::memory::{self, Looked, SpaceInput};
use super::precopy::Early;
use super::{Files, Objects};
use crate::error::{Error, with_sources};
use crate::parallel;
use crate::timeline::Timeline;
use crate::track::{Chain, SpaceKey, WatchedSpace};

/// Whose spaces are taken, and until when.
pub(super) struct Spaces<'a> {
    /// Group name.
    pub group: &'a str,
    /// By [`UnitIndex`](ckpt_image::records::UnitIndex).
    pub units: &'a [UnitRecord],
    /// The end of the window.
    pub deadline: Deadline,
    /// Those that devices write to unseen (`direct.rs`).
    pub direct: HashSet<SpaceId>,
    /// Those that user space must not protect.
    pub not_protected: HashSet<SpaceId>,
}

/// A space with what watches it.
type Watched<'f> = (&'f SpaceFacts, WatchedSpace);

impl Spaces<'_> {
    /// Takes down all spaces. The chain has a watch of each afterwards, and of no other; what was copied before the window and met again is
    /// taken out of `early`.
    ///
    /// Errors: FreezeTimeout past the deadline; those of the kernel. What cannot be captured is in the problems of `memory`.
    pub fn take(
        &self,
        all: &[SpaceFacts],
        members: &mut Members,
        chain: &mut Chain,
        memory: &mut memory::Capture,
        early: &mut HashMap<SpaceKey, Early>,
        (files, objects, time): (&mut Files, &mut Objects, &mut Timeline),
    ) -> Result<Vec<SpaceRecord>, Error> {
        let key = |facts: &SpaceFacts| SpaceKey::new(facts.pid, facts.start_time, facts.auxv.clone());
        let keys = parallel::map(all, 64, key);
        let mut watched = self.watches(all, &keys, members, chain)?;
        time.lap("watches");
        let before = memory.before();
        let looked: Vec<Result<Looked, Error>> = parallel::map_mut(&mut watched, 4, |(facts, space)| {
            in_time(self.group, self.deadline)?;
            let looked = before.look(facts, space.watch.as_deref_mut().map(|watch| watch as _));
            looked.map_err(|e| e.for_group(self.group))
        });
        time.lap("pages");
        let mut spaces = Vec::with_capacity(all.len());
        for (((facts, watched), key), looked) in watched.into_iter().zip(keys).zip(looked) {
            in_time(self.group, self.deadline)?;
            let (id, unit_name) = (SpaceId(spaces.len() as u32), &self.units[facts.unit.index()].name);
            let pid = facts.pid.as_raw();
            let member = memory::Member { pid, tid: pid, unit: facts.unit, unit_name };
            let mut before = early.remove(&key);
            if let Some(before) = &mut before {
                before.distrusted = self.direct.contains(&id);
            }
            let input = SpaceInput {
                id,
                facts,
                looked: looked?,
                parent: watched.stored.filter(|_| chain.parent.is_some()),
                early: before.as_ref(),
            };
            let space = memory.space(&member, input, files, objects);
            spaces.push(space.map_err(|e| e.for_group(self.group))?);
            chain.spaces.insert(key, WatchedSpace { stored: Some(id), ..watched });
        }
        Ok(spaces)
    }

    /// Takes the watches out of the chain; what nobody watches yet is from here on.
    fn watches<'f>(
        &self,
        all: &'f [SpaceFacts],
        keys: &[SpaceKey],
        members: &mut Members,
        chain: &mut Chain,
    ) -> Result<Vec<Watched<'f>>, Error> {
        // What is watched no more makes room first: a space can have one userfaultfd only.
        let known: HashSet<&SpaceKey> = keys.iter().collect();
        // What must not be protected once may be the next time: a child of vfork(2) is gone soon.
        let protects = chain.tracker.kind() == Tracker::WriteProtect;
        let is_kept = |space: &WatchedSpace| !protects || space.watch.is_some();
        chain.spaces.retain(|key, space| known.contains(key) && is_kept(space));
        let unwatched = keys.iter().filter(|key| !chain.spaces.contains_key(*key)).map(SpaceKey::pid);
        let mut new = members.watch(unwatched.collect(), chain, self.deadline).map_err(|e| self.failed(e))?;
        let watched = |(index, (facts, key)): (usize, (&'f SpaceFacts, &SpaceKey))| {
            in_time(self.group, self.deadline)?;
            let live = members.live(facts.pid).ok_or_else(|| self.failed(SysError::Gone(facts.pid)))?;
            let mut space = match chain.spaces.remove(key) {
                Some(space) => space,
                None => WatchedSpace { stored: None, watch: new.remove(&key.pid()).flatten() },
            };
            if let Some(watch) = &mut space.watch {
                watch.enter(live);
            }
            if protects && self.not_protected.contains(&SpaceId(index as u32)) {
                space.watch = None;
            }
            Ok((facts, space))
        };
        all.iter().zip(keys).enumerate().map(watched).collect()
    }

    fn failed(&self, error: SysError) -> Error {
        failed(self.group, error)
    }
}

/// Errors: FreezeTimeout past the deadline.
pub(super) fn in_time(group: &str, deadline: Deadline) -> Result<(), Error> {
    if !deadline.passed() {
        return Ok(());
    }
    Err(Error::FreezeTimeout { group: group.into(), why: TOO_LONG.into() })
}

/// What helps, whatever it was that the deadline met.
const TOO_LONG: &str = "capture took longer than capture.max_freeze allows; make it longer";

/// A failure of the kernel's in the window, in the words of the contract.
pub(super) fn failed(group: &str, error: SysError) -> Error {
    let why = with_sources(&error);
    match error {
        SysError::Deadline { .. } => {
            Error::FreezeTimeout { group: group.into(), why: format!("{TOO_LONG} ({why})") }
        }
        _ => Error::Failed(format!("capture of {group}: {why}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_in_the_window_says_what_helps() {
        let deadline = SysError::Deadline {
            op: "wait for stop",
            subject: ckpt_sys::Subject::Task(nix::unistd::Pid::from_raw(7)),
        };
        let text = failed("web", deadline).to_string();
        assert!(text.contains("capture.max_freeze") && text.contains("task 7"), "{text}");
    }
}
