//! What of processes and threads a checkpoint would refuse, told without stopping anything.
//!
//! A glance at what changes all the time: what is seen here may be gone, and the checkpoint itself looks again.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use ckpt_image::records::{NamespaceRecord, UnitIndex};
use ckpt_sys::task;
use nix::unistd::Pid;

use super::family::{self, children, namespaces, pid_namespaces, user_namespace};
use super::member::refusal;
use super::sharing::is_plain_thread;
use super::text;
use crate::api::Problem;

/// How often a parent is looked at that waits in vfork(2), and how long between.
const VFORK_LOOKS: u32 = 5;
const VFORK_PAUSE: Duration = Duration::from_millis(20);

/// A process to look at.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// Its id.
    pub pid: i32,
    /// A thread of it that lives.
    pub task: i32,
    /// Its unit.
    pub unit: UnitIndex,
    /// The unit's name.
    pub unit_name: &'a str,
    /// systemd made a user namespace for the unit.
    pub private_users: bool,
    /// It is its unit's main process.
    pub main: bool,
}

/// The problems of these processes, which are all of a group.
pub fn problems(candidates: &[Candidate<'_>]) -> Vec<Problem> {
    let pids: HashSet<i32> = candidates.iter().map(|c| c.pid).collect();
    let mut problems = Vec::new();
    let homes = homes(candidates);
    problems.extend(far_away(candidates));
    problems.extend(candidates.iter().filter_map(of_other_users));
    for candidate in candidates {
        let Ok(tids) = task::threads(Pid::from_raw(candidate.pid)) else { continue };
        problems.extend(homes.get(&candidate.unit).and_then(|home| away(candidate, home)));
        problems.extend(
            tids.iter().filter(|tid| tid.as_raw() != candidate.pid).find_map(|tid| unshared(candidate, *tid)),
        );
        problems.extend(tids.iter().find_map(|tid| in_vfork(candidate, *tid)));
        for child in tids.iter().flat_map(|tid| children(candidate.pid, tid.as_raw())) {
            if !pids.contains(&child) {
                problems.extend(outside(candidate, child));
            }
        }
    }
    problems
}

/// The main process of each unit, or the first of it that is met, and its namespaces.
fn homes(candidates: &[Candidate<'_>]) -> HashMap<UnitIndex, (i32, NamespaceRecord)> {
    let mut homes = HashMap::new();
    for candidate in candidates.iter().filter(|c| c.main).chain(candidates) {
        homes.entry(candidate.unit).or_insert_with(|| (candidate.task, namespaces(candidate.task)));
    }
    homes
}

/// It lives in other namespaces than its unit.
fn away(candidate: &Candidate<'_>, (home, spaces): &(i32, NamespaceRecord)) -> Option<Problem> {
    let own = namespaces(candidate.task);
    family::away((*home, spaces), (candidate.pid, &own), candidate.unit_name)
}

/// Those in PID namespaces that a restore cannot make.
fn far_away(candidates: &[Candidate<'_>]) -> Vec<Problem> {
    let lives = |c: &Candidate<'_>| {
        let status = ckpt_sys::proc_file::read(format!("/proc/{}/status", c.task)).ok()?;
        let status = text::parse_status(&status);
        Some((c.pid, c.unit, namespaces(c.task).pid, status.pid_namespaces, status.inner.pid))
    };
    let away = pid_namespaces(&candidates.iter().filter_map(lives).collect::<Vec<_>>());
    let text = "it lives in a PID namespace of its own";
    let remedy = "restart the unit, so that it runs without a PID namespace of its own";
    let unit = |index| candidates.iter().find(|c| c.unit == index).map_or("", |c| c.unit_name);
    away.into_iter()
        .map(|(pid, index)| refusal("namespace", unit(index), pid, "ns/pid", text, remedy))
        .collect()
}

/// It lives in a user namespace.
fn of_other_users(candidate: &Candidate<'_>) -> Option<Problem> {
    user_namespace(&namespaces(candidate.task), candidate.task, candidate.unit_name, candidate.private_users)
}

/// A thread that does not share what threads share.
fn unshared(candidate: &Candidate<'_>, tid: Pid) -> Option<Problem> {
    if is_plain_thread(Pid::from_raw(candidate.task), tid).unwrap_or(true) {
        return None;
    }
    let text = "a thread of it has descriptors or directories of its own (unshare(2))";
    let remedy = "it cannot be checkpointed in this state";
    let object = format!("thread {tid}");
    Some(refusal("thread-unshared", candidate.unit_name, candidate.pid, object, text, remedy))
}

/// A thread that waits for a child of vfork(2), for longer than a program takes to be executed.
fn in_vfork(candidate: &Candidate<'_>, tid: Pid) -> Option<Problem> {
    // One that makes a child after the other wakes in between.
    let asleep = || task::status(tid).ok().map(|status| status.sleeps).filter(|_| task::waits_in_vfork(tid));
    let first = asleep()?;
    for _ in 1..VFORK_LOOKS {
        std::thread::sleep(VFORK_PAUSE);
        if asleep() != Some(first) {
            return None;
        }
    }
    let text = "it waits in vfork(2) for a child that uses its memory, and cannot be stopped meanwhile";
    let remedy = "try again when the child has executed its program or has ended";
    Some(refusal("vfork", candidate.unit_name, candidate.pid, format!("thread {tid}"), text, remedy))
}

/// A living child that is not of the group. (It may just have been made, and be listed a moment later: then its cgroup is its parent's.)
fn outside(parent: &Candidate<'_>, child: i32) -> Option<Problem> {
    let cgroup_of = |pid| ckpt_sys::cgroup::of_process(Pid::from_raw(pid)).ok();
    let stat = text::parse_stat(&ckpt_sys::proc_file::read(format!("/proc/{child}/stat")).ok()?)?;
    let (own, parents) = (cgroup_of(child)?, cgroup_of(parent.pid)?);
    if stat.state == 'Z' || own == parents || own.starts_with(&format!("{parents}/")) {
        return None;
    }
    let text = format!("it is a child of member {} but not in the group's cgroups", parent.pid);
    let remedy = "add its unit to the group, or end it";
    Some(refusal("child-outside", parent.unit_name, child, own, &text, remedy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_processes_have_no_problems_and_gone_ones_neither() {
        let of = |pid| Candidate {
            pid,
            task: pid,
            unit: UnitIndex(0),
            unit_name: "u.service",
            private_users: false,
            main: true,
        };
        let gone = of(i32::MAX);
        let here = of(std::process::id() as i32);
        assert!(problems(&[here, gone]).iter().all(|p| p.code == "child-outside"));
    }

    #[test]
    fn another_namespace_is_named() {
        let candidate = Candidate {
            pid: std::process::id() as i32,
            task: std::process::id() as i32,
            unit: UnitIndex(0),
            unit_name: "u.service",
            private_users: false,
            main: false,
        };
        let mut home = namespaces(candidate.task);
        assert_eq!(away(&candidate, &(candidate.task, home)), None);
        home.net += 1;
        assert_eq!(away(&candidate, &(candidate.task, home)).map(|p| p.object), Some("ns/net".into()));
    }
}
