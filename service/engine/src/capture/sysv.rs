//! System V semaphores. They belong to an IPC namespace, not to a process: of a namespace that only the group has, all are its own; of one that
//! others use too, those that a member used last.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::os::unix::fs::MetadataExt;

use ckpt_image::records::{SemaphoreSetRecord, UnitIndex};
use ckpt_sys::semaphores::{SemaphoreSet, sets};
use nix::sched::{CloneFlags, setns};

use crate::error::Error;

/// The semaphore sets of the group. `members`: unit and pid, in our PID namespace, of each process.
pub fn semaphores(members: &[(UnitIndex, i32)]) -> Result<Vec<SemaphoreSetRecord>, Error> {
    let pids: HashSet<i32> = members.iter().map(|(_, pid)| *pid).collect();
    let inode = |pid: &str| std::fs::metadata(format!("/proc/{pid}/ns/ipc")).map(|m| m.ino());
    let ours = inode("self").map_err(|e| Error::io("look at /proc/self/ns/ipc", e))?;
    let init = inode("1").unwrap_or(ours);
    let mut namespaces: BTreeMap<u64, (UnitIndex, i32)> = BTreeMap::new();
    for (unit, pid) in members {
        let number =
            inode(&pid.to_string()).map_err(|e| Error::io(format!("look at /proc/{pid}/ns/ipc"), e))?;
        namespaces.entry(number).or_insert((*unit, *pid));
    }
    let mut records = Vec::new();
    for (number, (unit, pid)) in namespaces {
        let shared = number == ours || number == init;
        let sets = sets_of(pid)?.into_iter();
        let of_group = sets.filter(|set| !shared || set.pids.iter().any(|pid| pids.contains(pid)));
        records.extend(of_group.map(|set| record(unit, set)));
    }
    Ok(records)
}

fn record(unit: UnitIndex, set: SemaphoreSet) -> SemaphoreSetRecord {
    let SemaphoreSet { semid, key, mode, owner, values, .. } = set;
    SemaphoreSetRecord { unit, semid, key, mode, owner, values }
}

/// The sets of a process's IPC namespace; a thread of its own enters that.
fn sets_of(pid: i32) -> Result<Vec<SemaphoreSet>, Error> {
    let failed = |e: std::io::Error| Error::io(format!("look at the semaphores of pid {pid}"), e);
    let namespace = File::open(format!("/proc/{pid}/ns/ipc")).map_err(failed)?;
    let read = std::thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWIPC)?;
        Ok(sets())
    });
    let read: std::io::Result<_> =
        read.join().unwrap_or_else(|_| Err(std::io::Error::other("the thread ended unexpectedly")));
    read.map_err(failed)?.map_err(|e| Error::Failed(crate::error::with_sources(&e)))
}
