//! System V objects: made before the members are, then used by those who used them last, so that the next checkpoint knows whose they are.
//!
//! ```text
//!  make     semaphores with their values; queues with their messages   ckpt-restore, in the unit's IPC namespace
//!  calls    shmat and shmdt; a message received, a message sent;       the members
//!           semop with SEM_UNDO
//!  finish   what the calls left, limits of queues                      ckpt-restore
//! ```

use std::fs::File;

use ckpt_image::records::{GroupImage, Pid, SemaphoreSetRecord, SysvQueueRecord, UndoRecord, UnitIndex};
use ckpt_sys::message_queues::{Message, MessageQueue};
use ckpt_sys::semaphores::SemaphoreSet;
use nix::libc;

use super::content::Within;
use super::process::living;
use super::{Failure, holes};
use crate::capture::undo;
use crate::kinds::late::LateCall;

/// A message of more bytes is not sent by the member that sent it.
const SHORT: usize = 1024;

/// Makes semaphores and queues. Errors name the object.
pub fn make(image: &GroupImage, within: Within<'_>) -> Result<(), Failure> {
    for record in &image.sysv.semaphores {
        within(record.unit, &mut || Ok(semaphores(record).restore().map(|()| None)?))
            .map_err(|e| e.of_object(format!("System V semaphores {}", record.semid)))?;
    }
    for record in &image.sysv.queues {
        let plan = Plan::of(image, record);
        in_queue(record, within, &|queue| queue.restore(plan.last, plan.extra))?;
    }
    Ok(())
}

/// Completes the queues, when the calls are made.
pub fn finish(image: &GroupImage, within: Within<'_>) -> Result<(), Failure> {
    image.sysv.queues.iter().try_for_each(|record| in_queue(record, within, &MessageQueue::finish))
}

fn in_queue(
    record: &SysvQueueRecord,
    within: Within<'_>,
    deed: &dyn Fn(&MessageQueue) -> Result<(), ckpt_sys::Error>,
) -> Result<(), Failure> {
    let queue = queue(record);
    let done = within(record.unit, &mut || Ok(deed(&queue).map(|()| None::<File>)?));
    done.map(drop).map_err(|e| e.of_object(format!("System V queue {}", record.msqid)))
}

fn semaphores(record: &SemaphoreSetRecord) -> SemaphoreSet {
    let SemaphoreSetRecord { semid, key, mode, owner, ref values, .. } = *record;
    SemaphoreSet { semid, key, mode, owner, values: values.clone(), pids: Vec::new() }
}

fn queue(record: &SysvQueueRecord) -> MessageQueue {
    let SysvQueueRecord { msqid, key, mode, owner, most, ref messages, .. } = *record;
    let messages = messages.iter().map(|(kind, text)| Message { kind: *kind, text: text.clone() }).collect();
    MessageQueue { msqid, key, mode, owner, most, messages, ..MessageQueue::default() }
}

/// How a queue's last users become that again.
struct Plan {
    sender: Option<Pid>,
    receiver: Option<Pid>,
    /// The sender sends the last message itself, else one besides, if it is to send.
    last: bool,
    /// We send one besides, for the receiver.
    extra: bool,
}

impl Plan {
    fn of(image: &GroupImage, record: &SysvQueueRecord) -> Self {
        let user = |pid: Option<Pid>| pid.and_then(|pid| user(image, pid, record.unit));
        let (sender, receiver) = (user(record.sender), user(record.receiver));
        let last = sender.is_some() && record.messages.last().is_some_and(|(_, text)| text.len() <= SHORT);
        Self { sender, receiver, last, extra: receiver.is_some() && (last || sender.is_none()) }
    }
}

/// The process, or another of its unit if it does not live.
fn user(image: &GroupImage, pid: Pid, unit: UnitIndex) -> Option<Pid> {
    let itself = living(image).find(|(process, _)| process.pid == pid);
    itself.or_else(|| living(image).find(|(process, _)| process.unit == unit)).map(|(process, _)| process.pid)
}

/// What members are to do, in this order, when they exist and have their ids.
pub fn calls(image: &GroupImage) -> Vec<LateCall> {
    let mut calls: Vec<_> = image.sysv.queues.iter().flat_map(|record| of_queue(image, record)).collect();
    calls.extend(image.sysv.undo.iter().filter_map(|record| of_undo(image, record)));
    for (object, last) in &image.sysv.unattached {
        if let (Some(object), Some(pid)) = (image.objects.get(object.index()), last) {
            calls.extend(of_segment(image, object, *pid).into_iter().flatten());
        }
    }
    calls
}

fn call(pid: Pid, nr: libc::c_long, args: [u64; 6], what: String) -> LateCall {
    LateCall { pid, nr, args, data: None, moved_to: Vec::new(), must: false, what }
}

fn of_queue(image: &GroupImage, record: &SysvQueueRecord) -> Vec<LateCall> {
    let plan = Plan::of(image, record);
    let (id, nowait) = (record.msqid as u64, libc::IPC_NOWAIT as u64);
    let send = |pid: Pid, kind: i64, text: &[u8]| {
        let what = format!("send to System V queue {id}");
        let args = [id, 0, text.len() as u64, nowait, 0, 0];
        let data = [&kind.to_ne_bytes(), text].concat();
        LateCall { data: Some((1, data)), ..call(pid, libc::SYS_msgsnd, args, what) }
    };
    let unused = queue(record).unused_kind();
    let mut calls = Vec::new();
    if let Some(pid) = plan.sender.filter(|_| !plan.last) {
        calls.push(send(pid, unused, &[]));
    }
    if let Some(pid) = plan.receiver {
        let args = [id, 0, 0, unused as u64, nowait | libc::MSG_NOERROR as u64, 0];
        let receive = call(pid, libc::SYS_msgrcv, args, format!("receive from System V queue {id}"));
        calls.push(LateCall { data: Some((1, vec![0; 8])), ..receive });
    }
    if let (Some(pid), true, Some((kind, text))) = (plan.sender, plan.last, record.messages.last()) {
        calls.push(send(pid, *kind, text));
    }
    calls
}

/// The values are those of the image by then.
fn of_undo(image: &GroupImage, record: &UndoRecord) -> Option<LateCall> {
    let UndoRecord { pid, semid, number, adjustment } = *record;
    let set = image.sysv.semaphores.iter().find(|set| set.semid == semid)?;
    let value = i32::from(*set.values.get(usize::from(number))?);
    let operations = undo::adjusting(value, i32::from(adjustment));
    let args = [semid as u64, 0, operations.len() as u64, 0, 0, 0];
    let what = format!("give System V semaphores {semid} back what is to be undone");
    let data = Some((1, undo::sembufs(number, &operations)));
    Some(LateCall { data, must: true, ..call(pid, libc::SYS_semop, args, what) })
}

fn of_segment(
    image: &GroupImage,
    object: &ckpt_image::records::ObjectRecord,
    pid: Pid,
) -> Option<[LateCall; 2]> {
    let ckpt_image::records::ObjectKind::SysvShm { shmid, unit, .. } = object.kind else { return None };
    let pid = user(image, pid, unit)?;
    let (_, body) = living(image).find(|(process, _)| process.pid == pid)?;
    let space = image.spaces.get(body.space.index())?;
    let used = space.mappings.iter().map(|mapping| (mapping.start, mapping.end)).collect();
    let at = holes::for_a_moment(used, object.size)?.get();
    let what = |what: &str| format!("{what} System V segment {shmid}");
    Some([
        call(pid, libc::SYS_shmat, [shmid as u64, at, libc::SHM_RDONLY as u64, 0, 0, 0], what("attach to")),
        call(pid, libc::SYS_shmdt, [at, 0, 0, 0, 0, 0], what("detach from")),
    ])
}
