//! The plan by which the process tree is grown again: pure, from the records alone.
//!
//! A process gets its session from its maker, so who makes whom, and when, decides. Rules, the first that fits:
//!
//! ```text
//!  fork      the parent makes it, before or after its own setsid(2), when it is in the right session
//!  sibling   a process with the same parent makes it (CLONE_PARENT), being in the right session
//!  orphan    a process of the right session makes a temporary one, that makes it and ends: it falls to init or a subreaper
//! ```
//!
//! Sessions and process groups whose leader is gone get a temporary leader of that id, which ends when all are in place. Zombies
//! end last. [`model`] holds the plan to what the kernel does with it.

mod groups;
mod grow;
#[cfg(test)]
mod model;
#[cfg(test)]
pub(super) mod tests;

use std::collections::{BTreeMap, BTreeSet};

use ckpt_image::records::{GroupImage, Pid, ProcessRecord, ProcessState, UnitIndex};

/// One step of the plan; each is done before the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A process is made and stays stopped.
    Create {
        /// Its id.
        pid: Pid,
        /// Who makes it; `None` is ckpt-restore itself.
        maker: Option<Pid>,
        /// It becomes the maker's sibling (CLONE_PARENT), not its child.
        sibling: bool,
        /// The unit in whose namespaces and cgroup it is born (its own, or that of those a temporary process stands in for).
        unit: UnitIndex,
        /// It is of no record and ends before the plan does.
        temporary: bool,
        /// What it shares with its maker.
        share: Share,
    },
    /// The process calls setsid(2).
    Session {
        /// Which.
        pid: Pid,
    },
    /// The process calls setpgid(0, pgid).
    Group {
        /// Which.
        pid: Pid,
        /// The group.
        pgid: Pid,
    },
    /// The process becomes, or ceases to be, a child subreaper (prctl(2)).
    Subreaper {
        /// Which.
        pid: Pid,
        /// PR_SET_CHILD_SUBREAPER's argument.
        on: bool,
    },
    /// A temporary process ends.
    End {
        /// Which.
        pid: Pid,
        /// The member that waits for it; `None` is ckpt-restore itself.
        waiter: Option<Pid>,
    },
    /// A zombie ends as its record says; nobody waits for it.
    Die {
        /// Which.
        pid: Pid,
    },
}

/// What a process shares with its maker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Share {
    /// CLONE_VM.
    pub space: bool,
    /// CLONE_FILES.
    pub files: bool,
    /// CLONE_FS.
    pub fs: bool,
    /// CLONE_SIGHAND.
    pub sighand: bool,
}

/// Why a tree cannot be grown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// Two records have the same id.
    #[error("the image has two records for pid {0}")]
    Twice(Pid),
    /// An id that no process of this PID namespace can have.
    #[error("process {pid} has {what} {id}, which lies outside the group's PID namespace")]
    Outside {
        /// The process.
        pid: Pid,
        /// `session` or `process group`.
        what: &'static str,
        /// The id.
        id: Pid,
    },
    /// No order of calls gives the process its parent and session.
    #[error("process {pid}: no sequence of system calls gives it parent {ppid} and session {sid}")]
    NoWay {
        /// The process.
        pid: Pid,
        /// Its parent.
        ppid: Pid,
        /// Its session.
        sid: Pid,
    },
    /// Processes share something that only clone(2) by one of them can make them share, and the tree does not allow that.
    #[error("process {pid} shares its {what} with a process that cannot have made it")]
    Sharing {
        /// The process.
        pid: Pid,
        /// `memory`, `descriptors`, `working directory`, `signal handlers`.
        what: &'static str,
    },
    /// A process group that spans sessions.
    #[error("process {pid} is in process group {pgid}, which belongs to another session")]
    Group {
        /// The process.
        pid: Pid,
        /// The group.
        pgid: Pid,
    },
    /// A process left the namespaces of its unit.
    #[error("process {pid} has namespaces of its own, apart from those of {unit}")]
    Namespaces {
        /// The process.
        pid: Pid,
        /// Its unit.
        unit: String,
    },
    /// There are no free ids for temporary processes.
    #[error("no free process id for a temporary process")]
    NoSpare,
}

/// The steps, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// The steps.
    pub steps: Vec<Step>,
}

impl Plan {
    /// Plans the tree of an image. `spare` gives ids that nobody uses, for temporary processes; those of the image are skipped.
    pub fn of(image: &GroupImage, spare: impl Iterator<Item = Pid>) -> Result<Self, TreeError> {
        let records = index(image)?;
        let taken = taken_ids(image);
        let mut spare = spare.filter(|pid| !taken.contains(pid));
        let mut grower = grow::Grower::new(&records, &mut spare);
        grower.grow()?;
        let mut steps = grower.finish();
        groups::settle(&records, &mut steps, &mut spare)?;
        Ok(Self { steps })
    }

    /// Every id that the plan needs to be free, temporary ones too, ascending; thread ids are not among them.
    #[must_use]
    pub fn ids(&self) -> BTreeSet<Pid> {
        self.steps
            .iter()
            .filter_map(|step| match step {
                Step::Create { pid, .. } => Some(*pid),
                _ => None,
            })
            .collect()
    }
}

/// The processes by id, checked for what no plan can give.
fn index(image: &GroupImage) -> Result<BTreeMap<Pid, &ProcessRecord>, TreeError> {
    let mut records = BTreeMap::new();
    let members: BTreeSet<Pid> = image.processes.iter().map(|p| p.pid).collect();
    for process in &image.processes {
        // A zombie whose parent is not of the group is about to be waited for: it is nothing that a restore could give back.
        let zombie = matches!(process.state, ProcessState::Zombie { .. });
        if zombie && !members.contains(&process.ppid) {
            continue;
        }
        if records.insert(process.pid, process).is_some() {
            return Err(TreeError::Twice(process.pid));
        }
        for (what, id) in [("session", process.sid), ("process group", process.pgid), ("id", process.pid)] {
            if id.0 <= 1 {
                return Err(TreeError::Outside { pid: process.pid, what, id });
            }
        }
        if let Some(unit) = image.units.get(process.unit.index())
            && !zombie
            && process.namespaces != unit.namespaces
        {
            return Err(TreeError::Namespaces { pid: process.pid, unit: unit.name.clone() });
        }
    }
    Ok(records)
}

/// All ids of the image: processes, threads, sessions, groups.
fn taken_ids(image: &GroupImage) -> BTreeSet<Pid> {
    let mut ids = BTreeSet::new();
    for process in &image.processes {
        ids.extend([process.pid, process.pgid, process.sid]);
        ids.extend(process.body.iter().flat_map(|b| &b.threads).map(|t| t.tid));
    }
    ids
}
