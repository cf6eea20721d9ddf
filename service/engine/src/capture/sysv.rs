//! System V objects that no mapping leads to: semaphores, which are captured; queues and segments that nobody is attached to, which are
//! refused. They belong to an IPC namespace, not to a process: of a namespace that only the group has, all are its own; of one that others
//! use too, those that a member used last.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::os::unix::fs::MetadataExt;

use ckpt_image::records::{SemaphoreSetRecord, SysvRecord, UnitIndex};
use ckpt_sys::semaphores::{SemaphoreSet, sets};
use ckpt_sys::task;
use nix::libc;
use nix::sched::{CloneFlags, setns};
use nix::unistd::Pid;

use super::member::refusal;
use crate::api::Problem;
use crate::error::Error;

/// What an IPC namespace holds.
struct Namespace {
    semaphores: Vec<SemaphoreSet>,
    /// /proc/sysvipc/msg and /proc/sysvipc/shm.
    queues: String,
    segments: String,
}

/// The objects of the group, and those that cannot be captured. `members`: unit and pid, in our PID namespace, of each process; `unit`
/// names a unit. A process that is gone meanwhile is left out.
pub fn look(
    members: &[(UnitIndex, i32)],
    unit: impl Fn(UnitIndex) -> String,
) -> Result<(SysvRecord, Vec<Problem>), Error> {
    let pids: HashSet<i32> = members.iter().map(|(_, pid)| *pid).collect();
    let inode = |pid: &str| std::fs::metadata(format!("/proc/{pid}/ns/ipc")).map(|m| m.ino());
    let ours = inode("self").map_err(|e| Error::io("look at /proc/self/ns/ipc", e))?;
    let init = inode("1").unwrap_or(ours);
    let mut namespaces: BTreeMap<u64, (UnitIndex, i32)> = BTreeMap::new();
    for (unit, pid) in members {
        if let Ok(number) = inode(&pid.to_string()) {
            namespaces.entry(number).or_insert((*unit, *pid));
        }
    }
    let (mut record, mut problems) = (SysvRecord::default(), Vec::new());
    for (number, (index, pid)) in namespaces {
        let namespace = enter(pid)?;
        let shared = number == ours || number == init;
        let ours = |users: &[i32]| !shared || users.iter().any(|pid| pids.contains(pid));
        let sets = namespace.semaphores.into_iter().filter(|set| ours(&set.pids));
        record.semaphores.extend(sets.map(|set| semaphores(index, set)));
        let queues = queues(&namespace.queues);
        let waited_for = if queues.is_empty() { HashSet::new() } else { waited_for(members) };
        for (id, users) in queues.into_iter().filter(|(id, users)| ours(users) || waited_for.contains(id)) {
            let (text, remedy) = ("message queues cannot be captured", "remove the queue: ipcrm -q");
            let object = format!("System V queue {id}");
            problems.push(refusal("sysv-queue", &unit(index), in_group(&users, &pids), object, text, remedy));
        }
        for (id, users) in unattached(&namespace.segments).into_iter().filter(|(_, users)| ours(users)) {
            let text = "nobody is attached to the segment, so that it cannot be read";
            let remedy = "attach to it, or remove it: ipcrm -m";
            let object = format!("System V segment {id}");
            problems.push(refusal(
                "sysv-unattached",
                &unit(index),
                in_group(&users, &pids),
                object,
                text,
                remedy,
            ));
        }
    }
    Ok((record, problems))
}

/// The user that is a member, 0 if none is.
fn in_group(users: &[i32], pids: &HashSet<i32>) -> i32 {
    users.iter().copied().find(|pid| pids.contains(pid)).unwrap_or(0)
}

fn semaphores(unit: UnitIndex, set: SemaphoreSet) -> SemaphoreSetRecord {
    let SemaphoreSet { semid, key, mode, owner, values, .. } = set;
    SemaphoreSetRecord { unit, semid, key, mode, owner, values }
}

/// The queues that threads of members are about to send to or wait for, which the kernel notes only when it has happened: the first
/// argument of msgsnd(2) and msgrcv(2).
fn waited_for(members: &[(UnitIndex, i32)]) -> HashSet<i32> {
    let threads = members.iter().filter_map(|(_, pid)| task::threads(Pid::from_raw(*pid)).ok()).flatten();
    let queue_of = |(number, arguments): (i64, [u64; 6])| {
        [libc::SYS_msgsnd, libc::SYS_msgrcv].contains(&number).then(|| i32::try_from(arguments[0]).ok())
    };
    threads.filter_map(|tid| queue_of(task::blocked_in(tid)?)?).collect()
}

/// Id and last users of each line of /proc/sysvipc/msg: key msqid perms cbytes qnum lspid lrpid …
fn queues(text: &str) -> Vec<(i32, Vec<i32>)> {
    lines(text, |field| Some((field(1)?, vec![field(5)?, field(6)?])))
}

/// The same of /proc/sysvipc/shm, for segments that nobody is attached to: key shmid perms size cpid lpid nattch …
fn unattached(text: &str) -> Vec<(i32, Vec<i32>)> {
    lines(text, |field| (field(6)? == 0).then_some((field(1)?, vec![field(4)?, field(5)?])))
}

fn lines<T>(text: &str, line: impl Fn(&dyn Fn(usize) -> Option<i32>) -> Option<T>) -> Vec<T> {
    text.lines()
        .skip(1)
        .filter_map(|one| {
            let fields: Vec<&str> = one.split_ascii_whitespace().collect();
            line(&|at| fields.get(at)?.parse().ok())
        })
        .collect()
}

/// What a process's IPC namespace holds; a thread of its own enters that.
fn enter(pid: i32) -> Result<Namespace, Error> {
    let failed = |e: std::io::Error| Error::io(format!("look at the System V objects of pid {pid}"), e);
    let namespace = File::open(format!("/proc/{pid}/ns/ipc")).map_err(failed)?;
    let read = std::thread::spawn(move || -> std::io::Result<_> {
        setns(namespace, CloneFlags::CLONE_NEWIPC)?;
        let read = std::fs::read_to_string;
        Ok((sets(), read("/proc/sysvipc/msg")?, read("/proc/sysvipc/shm")?))
    });
    let read = read.join().unwrap_or_else(|_| Err(std::io::Error::other("the thread ended unexpectedly")));
    let (semaphores, queues, segments) = read.map_err(failed)?;
    let semaphores = semaphores.map_err(|e| Error::Failed(crate::error::with_sources(&e)))?;
    Ok(Namespace { semaphores, queues, segments })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read() {
        let text = "key msqid perms cbytes qnum lspid lrpid uid gid\n 0 5 644 0 0 77 78 0 0\nbroken\n";
        assert_eq!(queues(text), [(5, vec![77, 78])]);
        let text =
            "key shmid perms size cpid lpid nattch uid\n 0 3 600 99999999999 7 8 0 0\n 0 4 600 1 7 8 1 0\n";
        assert_eq!(unattached(text), [(3, vec![7, 8])]);
    }
}
