//! Memory that is written faster than it is copied: in the window a process is forked, and its frozen copy is read when the group runs.
//!
//! ```text
//!  rest of a process: how long to copy?  ─ longer than to fork ─► may it?  ─► clone in all of them side by side ─► read after the window
//!                                        └ copied in the window ◄─ no, or the kernel refuses ┘
//! ```
//! A fork takes time by all the memory that a process has, a copy by what of it was written. A process is not forked where
//! somebody of the application would get the copy's end (subreapers), where its seccomp filter forbids it, and where there
//! is not as much free memory as it may come to take: what it writes after the fork is there twice until the copy is read.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use ckpt_image::records::UnitRecord;
use ckpt_sys::Error as SysError;
use ckpt_sys::cgroup::Cgroup;
use ckpt_sys::inject::{Copying, orphans_fall_to_init};
use ckpt_sys::thread::Deadline;
use nix::unistd::Pid;

use super::members::{Captured, Members};
use super::memory::{self, available};
use super::precopy::Speed;

/// A copy in the window that takes less is not worth what a fork costs the application later: some 2 µs for each page that it writes.
const BEARABLE: Duration = Duration::from_millis(10);
/// What the fork of a process takes by itself, and of each GiB that it has in pages of 4 KiB.
const FORK: Duration = Duration::from_micros(1500);
const FORK_PER_GIB: Duration = Duration::from_millis(25);

/// A process with memory that is to be copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Candidate {
    pid: i32,
    /// Bytes to be copied of what a fork has too.
    rest: u64,
    /// Bytes of its own, all in all.
    own: u64,
}

impl Candidate {
    fn fork(&self) -> Duration {
        FORK + FORK_PER_GIB.mul_f64(self.own.max(self.rest) as f64 / f64::from(1 << 30))
    }
}

/// Those that are to be forked, by time alone. Nothing is where all together is copied soon enough.
fn worth_a_fork(candidates: Vec<Candidate>, speed: Speed, left: Duration) -> Vec<Candidate> {
    let rest: u64 = candidates.iter().map(|candidate| candidate.rest).sum();
    if speed.time_for(rest) <= BEARABLE {
        return Vec::new();
    }
    let is_worth = |c: &Candidate| speed.time_for(c.rest) > c.fork() && c.fork() < left / 2;
    candidates.into_iter().filter(is_worth).collect()
}

/// Makes frozen copies of those members where that is faster than to copy their rest in the window, and leaves that to them.
///
/// Errors: those of running batches; Deadline.
pub fn make(
    memory: &mut memory::Capture,
    members: &mut Members,
    people: &Captured,
    units: &[UnitRecord],
    speed: Speed,
    deadline: Deadline,
) -> Result<(), SysError> {
    let own = memory.own_bytes();
    let candidates = memory.inherited().into_iter().map(|(pid, rest)| {
        let own = own.get(&pid).copied().unwrap_or(rest);
        Candidate { pid, rest, own }
    });
    let mut chosen = worth_a_fork(candidates.collect(), speed, deadline.left());
    if chosen.is_empty() {
        return Ok(());
    }
    chosen.retain(|candidate| orphans_go(candidate.pid, members, people));
    let mut room = Room::look(people, units);
    chosen.retain(|candidate| room.take(candidate));
    fork(memory, members, &chosen, deadline)
}

/// Begins in all, then sets the helpers going one after another, so that the copies are made side by side.
fn fork(
    memory: &mut memory::Capture,
    members: &mut Members,
    chosen: &[Candidate],
    deadline: Deadline,
) -> Result<(), SysError> {
    let mut begun: Vec<(i32, Copying)> = Vec::new();
    let mut done = Ok(());
    for candidate in chosen {
        let Some(live) = members.live(Pid::from_raw(candidate.pid)) else { continue };
        done = live.begin_copy().and_then(|copying| {
            let Some(mut copying) = copying else { return Ok(()) };
            let launched = live.launch_copy(&mut copying, deadline);
            begun.push((candidate.pid, copying));
            launched
        });
        if done.is_err() {
            break;
        }
    }
    for (pid, copying) in begun {
        let Some(live) = members.live(Pid::from_raw(pid)) else { continue };
        match live.end_copy(copying, deadline) {
            Ok(Some(copy)) => memory.leave(pid, copy),
            Ok(None) => {} // it is copied in the window
            Err(e) => done = done.and(Err(e)),
        }
    }
    done
}

/// Whether nobody of the application gets the orphans of a process.
fn orphans_go(pid: i32, members: &Members, people: &Captured) -> bool {
    let lives = || members.members.iter().map(|member| &member.live);
    let knows = |pid: Pid| {
        lives().find(|live| live.process() == pid)?;
        let known = people.identities.known(pid.as_raw());
        let record = people.processes.iter().find(|process| process.pid == known);
        Some(record.and_then(|process| process.body.as_ref()).is_some_and(|body| body.child_subreaper))
    };
    lives()
        .find(|live| live.pid().as_raw() == pid)
        .is_some_and(|live| orphans_fall_to_init(live.process(), knows))
}

/// Memory that may be taken: on the machine, and in each cgroup that has a limit.
struct Room {
    machine: u64,
    limited: HashMap<PathBuf, u64>,
    /// The limited cgroups that a process is in.
    of: HashMap<i32, Vec<PathBuf>>,
}

impl Room {
    fn look(people: &Captured, units: &[UnitRecord]) -> Self {
        let machine = available().map_or(0, |bytes| bytes - bytes / 8);
        let (mut limited, mut of) = (HashMap::new(), HashMap::new());
        for facts in &people.spaces {
            let cgroup = units.get(facts.unit.index()).and_then(|unit| Cgroup::open(&unit.cgroup).ok());
            let left = cgroup.map(|cgroup| cgroup.memory_left()).unwrap_or_default();
            of.insert(facts.pid.as_raw(), left.iter().map(|(dir, _)| dir.clone()).collect());
            limited.extend(left);
        }
        Self { machine, limited, of }
    }

    /// Takes what a fork may come to need, if it is there.
    fn take(&mut self, candidate: &Candidate) -> bool {
        let need = candidate.own.max(candidate.rest);
        let Some(of) = self.of.get(&candidate.pid) else { return false };
        if need > self.machine || of.iter().any(|dir| self.limited.get(dir).is_none_or(|left| need > *left)) {
            return false;
        }
        self.machine -= need;
        of.iter().for_each(|dir| *self.limited.entry(dir.clone()).or_default() -= need);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_process_is_forked_where_that_is_faster() {
        let candidate = |pid, rest, own| Candidate { pid, rest: rest * MIB, own: own * MIB };
        let chosen = |candidates: &[Candidate]| -> Vec<i32> {
            let left = Duration::from_millis(450);
            worth_a_fork(candidates.to_vec(), Speed::default(), left).iter().map(|c| c.pid).collect()
        };
        assert_eq!(chosen(&[candidate(1, 1024, 1024)]), [1]);
        assert!(chosen(&[candidate(1, 20, 1024)]).is_empty()); // copied in no time
        assert_eq!(chosen(&[candidate(1, 60, 4096), candidate(2, 60, 60)]), [2]); // much memory, little of it written
        assert!(chosen(&[candidate(1, 64 * 1024, 64 * 1024)]).is_empty()); // neither fits the window
        assert!(chosen(&[]).is_empty());
    }

    #[test]
    fn no_more_is_forked_than_there_is_room_for() {
        let (slice, unit) = (PathBuf::from("slice"), PathBuf::from("slice/unit"));
        let mut room = Room {
            machine: 20 * MIB,
            limited: HashMap::from([(slice.clone(), 12 * MIB), (unit.clone(), 4 * MIB)]),
            of: HashMap::from([(1, vec![unit, slice.clone()]), (2, vec![slice]), (3, vec![])]),
        };
        let candidate = |pid, own| Candidate { pid, rest: 0, own: own * MIB };
        assert!(!room.take(&candidate(1, 5)) && room.take(&candidate(1, 3)) && !room.take(&candidate(1, 3)));
        assert!(!room.take(&candidate(2, 10)) && room.take(&candidate(2, 9)) && !room.take(&candidate(2, 1)));
        assert!(!room.take(&candidate(3, 9)) && room.take(&candidate(3, 8)) && !room.take(&candidate(9, 0)));
    }
}
