//! Which processes are the group: those in the cgroups of its units.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use ckpt_image::records::UnitIndex;
use ckpt_sys::cgroup::Cgroup;
use ckpt_sys::task;
use nix::errno::Errno;
use nix::unistd::Pid;

use crate::api::Unit;
use crate::error::{Error, with_sources};

/// Processes that are in a unit's cgroup for a moment and are no members.
static OURS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// Says of a process of ours in a unit's cgroup, as long as this lives, that it is no member.
#[derive(Debug)]
pub struct NotAMember(i32);

impl NotAMember {
    /// Notes it.
    pub fn note(pid: i32) -> Self {
        OURS.lock().unwrap_or_else(PoisonError::into_inner).insert(pid);
        Self(pid)
    }
}

impl Drop for NotAMember {
    fn drop(&mut self) {
        OURS.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

fn is_ours(pid: i32) -> bool {
    OURS.lock().unwrap_or_else(PoisonError::into_inner).contains(&pid)
}

/// A process of a group, by the place where it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its pid, in our PID namespace.
    pub pid: i32,
    /// A thread of it that lives: of a leader that ended before others /proc shows little.
    pub task: i32,
    /// Its unit.
    pub unit: UnitIndex,
    /// Its cgroup below the unit's, "" for the unit's own.
    pub cgroup: String,
}

/// The members of the units now; without zombies, whose cgroup the kernel lists nobody in.
pub fn list(units: &[Unit]) -> Result<Vec<Member>, Error> {
    let mut members = Vec::new();
    for (index, unit) in units.iter().enumerate().filter(|(_, u)| !u.cgroup.is_empty()) {
        let failed = |e: ckpt_sys::Error| {
            Error::Failed(format!("cannot list the processes of {}: {}", unit.name, with_sources(&e)))
        };
        let found = Cgroup::open(&unit.cgroup).and_then(|cgroup| cgroup.members());
        // A unit that has just ended takes its cgroup with it.
        let gone = |e: &ckpt_sys::Error| matches!(e.errno(), Some(Errno::ENOENT | Errno::ENODEV));
        let found = found.or_else(|e| if gone(&e) { Ok(Vec::new()) } else { Err(failed(e)) })?;
        for member in found.into_iter().filter(|m| !is_ours(m.pid.as_raw())) {
            members.push(Member {
                pid: member.pid.as_raw(),
                task: living_task(member.pid),
                unit: UnitIndex(index as u32),
                cgroup: below(&unit.cgroup, &member.cgroup).unwrap_or_default().to_owned(),
            });
        }
    }
    Ok(members)
}

/// The first thread that lives; the leader's id if the process is gone.
pub fn living_task(pid: Pid) -> i32 {
    let lives = |tid: &Pid| task::status(*tid).is_ok_and(|status| !matches!(status.state, 'Z' | 'X'));
    if lives(&pid) {
        return pid.as_raw();
    }
    let others = task::threads(pid).unwrap_or_default();
    others.into_iter().find(lives).unwrap_or(pid).as_raw()
}

/// What is left of `path` below `parent`, without a leading slash; `None` if it is not below it.
fn below<'p>(parent: &str, path: &'p str) -> Option<&'p str> {
    match path.strip_prefix(parent)? {
        "" => Some(""),
        rest => rest.strip_prefix('/'),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_below_another_by_whole_names_only() {
        let unit = "/a.slice/x.service";
        assert_eq!(below(unit, "/a.slice/x.service"), Some(""));
        assert_eq!(below(unit, "/a.slice/x.service/worker/1"), Some("worker/1"));
        assert_eq!(below(unit, "/a.slice/x.service2"), None);
        assert_eq!(below(unit, "/b.slice"), None);
    }
}
