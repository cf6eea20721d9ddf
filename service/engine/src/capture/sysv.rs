//! System V objects that no mapping leads to: semaphores, message queues, segments that nobody is attached to. They belong to an IPC
//! namespace, not to a process: of a namespace that only the group has, all are its own. Of one that others use too, those that a member
//! used last or waits for, and those that were made by a user that only members are.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use ckpt_image::records::{
    ObjectKind, Pid, SemaphoreSetRecord, SysvQueueRecord, SysvRecord, UndoRecord, UnitIndex, UnitRecord,
};
use ckpt_sys::message_queues::{MessageQueue, queues};
use ckpt_sys::namespace::aside;
use ckpt_sys::semaphores::{SemaphoreSet, sets};
use ckpt_sys::shared::open_segment;
use ckpt_sys::task::Shared;
use ckpt_sys::thread::Deadline;
use ckpt_sys::{VirtAddr, maps, task};
use nix::libc;
use nix::sched::CloneFlags;
use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
use nix::unistd::Pid as TaskId;

use super::member::refusal;
use super::members::{Captured, Members};
use super::questions::{Conversation, Question};
use super::{Identities, Objects, text, undo};
use crate::api::Problem;
use crate::error::{Error, with_sources};
use crate::rebuild::holes;

/// What the group has in one IPC namespace.
struct Namespace {
    unit: UnitIndex,
    /// A member that is in it.
    pid: i32,
    number: u64,
    shared: bool,
    semaphores: Vec<SemaphoreSet>,
    queues: Vec<MessageQueue>,
    segments: Vec<Segment>,
}

/// A segment that nobody is attached to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Segment {
    shmid: i32,
    key: i32,
    mode: u32,
    size: u64,
    owner: [u32; 4],
    /// Who made it, who was attached last.
    users: [i32; 2],
}

/// Takes the objects of the group. Problems are those that cannot be taken.
pub fn take(
    units: &[UnitRecord],
    people: &Captured,
    members: &mut Members,
    objects: &mut Objects,
    deadline: Deadline,
) -> Result<(SysvRecord, Vec<Problem>), Error> {
    let (mut record, mut problems) = (SysvRecord::default(), Vec::new());
    for mut namespace in look(&people.living)? {
        let Namespace { unit, pid, .. } = namespace;
        let sets: Vec<_> = namespace.semaphores.drain(..).map(|set| semaphores(unit, set)).collect();
        for (unit, pid) in namespace.who_undoes(&sets, people) {
            let undone = to_undo(pid, &sets, people, members, deadline)?;
            let why = "it is not told what it has to undo of System V semaphores at its end (SEM_UNDO)";
            match undone {
                Some(undone) => record.undo.extend(undone),
                None => {
                    let name = units.get(unit.index()).map_or("", |unit| &unit.name);
                    problems.push(refusal(
                        "semaphore-undo",
                        name,
                        pid,
                        format!("pid {pid}"),
                        why,
                        "try again",
                    ));
                }
            }
        }
        record.semaphores.extend(sets);
        let name = units.get(unit.index()).map_or("", |unit| &unit.name);
        let read = read(pid, &mut namespace.queues)?;
        for (queue, failure) in namespace.queues.drain(..).zip(read) {
            let Some(why) = failure else {
                record.queues.push(message_queue(unit, queue, &people.identities));
                continue;
            };
            let object = format!("System V queue {}", queue.msqid);
            let why = format!("its messages cannot be read: {why}");
            problems.push(refusal("sysv-queue", name, 0, object, &why, "remove the queue: ipcrm -q"));
        }
        for segment in std::mem::take(&mut namespace.segments) {
            match namespace.take_segment(&segment, members, objects, deadline)? {
                Ok(id) => {
                    let user = segment.users.iter().rev().find_map(|pid| people.identities.member(*pid));
                    record.unattached.push((id, user));
                }
                Err((code, why)) => {
                    let object = format!("System V segment {}", segment.shmid);
                    let remedy = "attach to it, or remove it: ipcrm -m";
                    problems.push(refusal(code, name, 0, object, why, remedy));
                }
            }
        }
    }
    Ok((record, problems))
}

/// What the group has in each namespace that a member is in. `members`: unit and pid, in our PID namespace, of each process; one that is gone
/// meanwhile is left out.
fn look(members: &[(UnitIndex, i32)]) -> Result<Vec<Namespace>, Error> {
    let ours = inode("self").map_err(|e| Error::io("look at /proc/self/ns/ipc", e))?;
    let init = inode("1").unwrap_or(ours);
    let mut namespaces: BTreeMap<u64, (UnitIndex, i32)> = BTreeMap::new();
    for (unit, pid) in members {
        if let Ok(number) = inode(&pid.to_string()) {
            namespaces.entry(number).or_insert((*unit, *pid));
        }
    }
    let look = |(number, (unit, pid)): (u64, (UnitIndex, i32))| {
        let (semaphores, queues, segments) = within(pid, || {
            let segments = ckpt_sys::proc_file::read_text("/proc/sysvipc/shm");
            let segments = segments.map_err(|e| Error::io("read /proc/sysvipc/shm", e))?;
            Ok::<_, Error>((sets().map_err(failed)?, queues().map_err(failed)?, unattached(&segments)))
        })??;
        let shared = number == ours || number == init;
        let mut namespace = Namespace { unit, pid, number, shared, semaphores, queues, segments };
        if shared {
            namespace.keep_own(members);
        }
        Ok(namespace)
    };
    namespaces.into_iter().map(look).collect()
}

/// What a process has to undo; `None` if it cannot be told, or undoes it together with another process.
fn to_undo(
    pid: i32,
    sets: &[SemaphoreSetRecord],
    people: &Captured,
    members: &mut Members,
    deadline: Deadline,
) -> Result<Option<Vec<UndoRecord>>, Error> {
    let task = TaskId::from_raw(pid);
    let Some(live) = members.live(task) else { return Ok(Some(Vec::new())) };
    let sets: Vec<_> = sets.iter().collect();
    let Some(found) = undo::adjustments(live, &sets, deadline).map_err(failed)? else { return Ok(None) };
    let others =
        people.living.iter().map(|(_, other)| TaskId::from_raw(*other)).filter(|other| *other != task);
    let same = |other: TaskId| task::compare(task, other, Shared::SysvSem).is_ok_and(Ordering::is_eq);
    if !found.is_empty() && others.into_iter().any(same) {
        return Ok(None);
    }
    let pid = people.identities.known(pid);
    let record = |(semid, number, adjustment)| UndoRecord { pid, semid, number, adjustment };
    Ok(Some(found.into_iter().map(record).collect()))
}

impl Namespace {
    /// The members that may have something to undo of these sets. One that has done nothing with SEM_UNDO, and no thread, has no list of such
    /// things, as PID 1, which has one thread.
    fn who_undoes(&self, sets: &[SemaphoreSetRecord], people: &Captured) -> Vec<(UnitIndex, i32)> {
        if sets.is_empty() {
            return Vec::new();
        }
        let one = TaskId::from_raw(1);
        let has_none =
            |pid: i32| task::compare(one, TaskId::from_raw(pid), Shared::SysvSem).is_ok_and(Ordering::is_eq);
        let inside = |pid: i32| {
            std::fs::metadata(format!("/proc/{pid}/ns/ipc")).is_ok_and(|meta| meta.ino() == self.number)
        };
        people.living.iter().filter(|(_, pid)| inside(*pid) && !has_none(*pid)).copied().collect()
    }

    /// Forgets what is not the group's.
    fn keep_own(&mut self, members: &[(UnitIndex, i32)]) {
        let pids: HashSet<i32> = members.iter().map(|(_, pid)| *pid).collect();
        let nothing = self.queues.is_empty() && self.semaphores.is_empty();
        let (waited_queues, waited_sets) = if nothing { Default::default() } else { waited_for(members) };
        let creators = self.semaphores.iter().map(|set| set.owner[2]);
        let creators = creators.chain(self.queues.iter().map(|queue| queue.owner[2]));
        let creators: HashSet<u32> = creators.chain(self.segments.iter().map(|s| s.owner[2])).collect();
        let users = own_users(&pids, creators);
        let own = |used_by: &[i32], owner: &[u32; 4]| {
            used_by.iter().any(|pid| pids.contains(pid)) || users.contains(&owner[2])
        };
        self.semaphores.retain(|set| own(&set.pids, &set.owner) || waited_sets.contains(&set.semid));
        self.queues.retain(|queue| own(&queue.users, &queue.owner) || waited_queues.contains(&queue.msqid));
        self.segments.retain(|segment| own(&segment.users, &segment.owner));
    }

    /// Opens a segment. In a namespace of others the member that was attached last is so again afterwards: by that the next checkpoint
    /// knows whose it is, if who made it has ended.
    fn take_segment(
        &self,
        segment: &Segment,
        members: &mut Members,
        objects: &mut Objects,
        deadline: Deadline,
    ) -> Result<Result<ckpt_image::records::ObjectId, (&'static str, &'static str)>, Error> {
        let [maker, last] = segment.users;
        let mut touch = || match members.live(TaskId::from_raw(last)) {
            Some(live) if self.shared && maker != last => attach_for_a_moment(live, segment, deadline),
            _ => Ok(true),
        };
        let unknown = (
            "sysv-unattached",
            "nobody is attached to it, and its last user cannot be told to the next checkpoint",
        );
        if !touch()? {
            return Ok(Err(unknown));
        }
        let file = within(self.pid, || open_segment(segment.shmid, segment.size, false))?;
        let Ok(file) = file else {
            return Ok(Err(("sysv-unattached", "nobody is attached to it, and it cannot be read")));
        };
        if fstatfs(&file).is_ok_and(|fs| fs.filesystem_type() == HUGETLBFS_MAGIC) {
            return Ok(Err(("hugetlb-shared", "it is shared memory in huge pages of hugetlbfs")));
        }
        if !touch()? {
            return Ok(Err(unknown));
        }
        let Segment { shmid, key, mode, size, owner, .. } = *segment;
        let kind = || ObjectKind::SysvShm { shmid, key, mode, owner, unit: self.unit };
        // As mappings name it.
        let id = objects.record((self.number | 1 << 63, shmid as u64), size, kind);
        objects.keep_descriptor(id, file.into());
        Ok(Ok(id))
    }
}

fn failed(e: ckpt_sys::Error) -> Error {
    Error::Failed(with_sources(&e))
}

/// Attaches a member to a segment and detaches it again; false if it cannot.
fn attach_for_a_moment(
    live: &mut ckpt_sys::inject::Live,
    segment: &Segment,
    deadline: Deadline,
) -> Result<bool, Error> {
    let maps = maps::read_maps(live.pid()).map_err(failed)?;
    let used = maps.iter().map(|m| (m.range.start.get(), m.range.end.get())).collect();
    let Some(VirtAddr(at)) = holes::for_a_moment(used, segment.size) else { return Ok(false) };
    let attach = [segment.shmid as u64, at, libc::SHM_RDONLY as u64, 0, 0, 0];
    let questions = vec![
        Question::result(libc::SYS_shmat, attach),
        Question::result(libc::SYS_shmdt, [at, 0, 0, 0, 0, 0]),
    ];
    let mut conversation = Conversation::new(vec![questions]);
    conversation.hold(live, deadline).map_err(failed)?;
    Ok(conversation.answers().iter().flatten().all(|answer| answer.result.is_ok()))
}

/// Those of these users that members are and nobody else is; never root.
fn own_users(pids: &HashSet<i32>, mut candidates: HashSet<u32>) -> HashSet<u32> {
    candidates.remove(&0);
    let users = |pid: i32| {
        let text = ckpt_sys::proc_file::read(format!("/proc/{pid}/status")).unwrap_or_default();
        text::parse_status(&text).credentials.uids
    };
    let of_members: HashSet<u32> = match candidates.is_empty() {
        true => HashSet::new(),
        false => pids.iter().flat_map(|pid| users(*pid)).collect(),
    };
    candidates.retain(|user| of_members.contains(user));
    if candidates.is_empty() {
        return candidates;
    }
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    for pid in processes.filter(|pid| !pids.contains(pid)) {
        users(pid).iter().for_each(|user| {
            candidates.remove(user);
        });
    }
    candidates
}

fn semaphores(unit: UnitIndex, set: SemaphoreSet) -> SemaphoreSetRecord {
    let SemaphoreSet { semid, key, mode, owner, values, .. } = set;
    SemaphoreSetRecord { unit, semid, key, mode, owner, values }
}

fn message_queue(unit: UnitIndex, queue: MessageQueue, ids: &Identities) -> SysvQueueRecord {
    let MessageQueue { msqid, key, mode, owner, users: [sender, receiver], most, messages, .. } = queue;
    let member = |pid: i32| -> Option<Pid> { ids.member(pid) };
    let (sender, receiver) = (member(sender), member(receiver));
    let messages = messages.into_iter().map(|message| (message.kind, message.text)).collect();
    SysvQueueRecord { unit, msqid, key, mode, owner, most, sender, receiver, messages }
}

/// Reads queues; gives of each why it could not be read.
fn read(pid: i32, queues: &mut [MessageQueue]) -> Result<Vec<Option<String>>, Error> {
    if queues.is_empty() {
        return Ok(Vec::new());
    }
    within(pid, || queues.iter_mut().map(|queue| queue.read().err().map(|e| with_sources(&e))).collect())
}

/// The queues and semaphore sets that threads of members wait for, which the kernel notes only when it has happened: the first argument of
/// msgsnd(2), msgrcv(2), semop(2).
fn waited_for(members: &[(UnitIndex, i32)]) -> (HashSet<i32>, HashSet<i32>) {
    let (mut queues, mut sets) = (HashSet::new(), HashSet::new());
    let threads = members.iter().filter_map(|(_, pid)| task::threads(TaskId::from_raw(*pid)).ok()).flatten();
    for call in threads.filter_map(task::blocked_in) {
        let waited_for = match call.nr as i64 {
            libc::SYS_msgsnd | libc::SYS_msgrcv => &mut queues,
            libc::SYS_semop | libc::SYS_semtimedop => &mut sets,
            _ => continue,
        };
        waited_for.extend(i32::try_from(call.args[0]));
    }
    (queues, sets)
}

/// The lines of /proc/sysvipc/shm for segments that nobody is attached to: key shmid perms size cpid lpid nattch uid gid cuid cgid …
fn unattached(text: &str) -> Vec<Segment> {
    let line = |line: &str| {
        let field: Vec<&str> = line.split_ascii_whitespace().collect();
        let number = |at: usize| field.get(at)?.parse::<u32>().ok();
        let segment = Segment {
            key: field.first()?.parse::<i64>().ok()? as i32,
            shmid: field.get(1)?.parse().ok()?,
            mode: u32::from_str_radix(field.get(2)?, 8).ok()?,
            size: field.get(3)?.parse().ok()?,
            users: [field.get(4)?.parse().ok()?, field.get(5)?.parse().ok()?],
            owner: [number(7)?, number(8)?, number(9)?, number(10)?],
        };
        (number(6)? == 0).then_some(segment)
    };
    text.lines().skip(1).filter_map(line).collect()
}

/// The inode number of a process's IPC namespace.
fn inode(pid: &str) -> std::io::Result<u64> {
    std::fs::metadata(format!("/proc/{pid}/ns/ipc")).map(|m| m.ino())
}

/// Does something in a process's IPC namespace, by a thread of its own where that is not ours.
fn within<T: Send>(pid: i32, deed: impl FnOnce() -> T + Send) -> Result<T, Error> {
    if inode(&pid.to_string()).is_ok_and(|theirs| inode("self").is_ok_and(|ours| ours == theirs)) {
        return Ok(deed());
    }
    let failed = |e: std::io::Error| Error::io(format!("look at the System V objects of pid {pid}"), e);
    let namespace = File::open(format!("/proc/{pid}/ns/ipc")).map_err(failed)?;
    aside(namespace.as_fd(), CloneFlags::CLONE_NEWIPC, deed).map_err(|e| failed(e.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_that_nobody_is_attached_to_are_read() {
        let text = "key shmid perms size cpid lpid nattch uid gid cuid cgid\n\
                    -2 3 1600 99999999999 7 8 0 1 2 3 4\n 0 4 600 1 7 8 1 0 0 0 0\nbroken\n";
        let owner = [1, 2, 3, 4];
        let segment = Segment { shmid: 3, key: -2, mode: 0o1600, size: 99_999_999_999, owner, users: [7, 8] };
        assert_eq!(unattached(text), [segment]);
    }

    #[test]
    fn a_user_that_others_are_is_nobodys_own() {
        assert!(
            own_users(&HashSet::from([std::process::id() as i32]), HashSet::from([0, 4_000_000_000]))
                .is_empty()
        );
    }
}
