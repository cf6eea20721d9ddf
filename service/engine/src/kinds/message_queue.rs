//! POSIX message queues (mq_overview(7)): a file of the IPC namespace's mqueue, which lives as long as it has a name or somebody has it open.
//! What is in them is read when all descriptors are known, by [`crate::capture::messages`].

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::{File, Permissions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};

use ckpt_image::records::{DescriptionKind, DescriptionRecord, QueueId, QueueRecord};
use ckpt_sys::descriptor::Place;
use ckpt_sys::posix_queues::{self, Limits};
use nix::errno::Errno;
use nix::libc;

use super::collect::{DescriptorCapture, Found};
use super::rebuild::Rebuild;
use super::{Error, Refusal, file};

/// The queues that were met.
#[derive(Debug, Default)]
pub(super) struct Queues {
    known: HashMap<(u64, u64), QueueId>,
    pub records: Vec<QueueRecord>,
    pub open: Vec<OpenQueue>,
}

/// A queue that members have, by a descriptor of ours.
#[derive(Debug)]
pub struct OpenQueue {
    /// Open for sending and receiving, without waiting.
    pub queue: File,
    /// Where a member has it.
    pub place: Place,
    /// What problems with it name.
    pub object: String,
}

fn refusal(text: impl Into<String>) -> Refusal {
    Refusal::new("message-queue", text, "close it before the checkpoint")
}

pub(super) fn capture(cx: &mut DescriptorCapture<'_>, found: &Found) -> Result<DescriptionKind, Refusal> {
    if found.info.flags & libc::O_PATH as u32 != 0 {
        return Err(refusal("a POSIX message queue that is open as a path (O_PATH) cannot be captured"));
    }
    let key = (found.stat.st_dev, found.stat.st_ino);
    if let Some(queue) = cx.queues.known.get(&key) {
        return Ok(DescriptionKind::MessageQueue { queue: *queue });
    }
    if found.in_flight {
        return Err(refusal("a POSIX message queue that is in flight in a socket cannot be captured"));
    }
    let call =
        |e: ckpt_sys::Error| refusal(format!("it cannot be looked at: {}", crate::error::with_sources(&e)));
    let limits = posix_queues::limits(found.fd()).map_err(call)?;
    let queue = posix_queues::reopen(found.fd()).map_err(call)?;
    let (_, notification) = posix_queues::state(&queue).map_err(call)?;
    let registered = match notification {
        None => None,
        Some(told) if told.method == libc::SIGEV_NONE && limits.now == 0 => cx.identities().member(told.pid),
        Some(_) => {
            return Err(Refusal::new(
                "message-queue",
                "a process is registered to be told of messages (mq_notify), by what the kernel does not tell",
                "receive in another way: by a thread, or with epoll",
            ));
        }
    };
    let (path, unlinked) = file::path_of(&found.link);
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path).to_vec();
    let record = QueueRecord {
        unit: found.unit,
        name,
        unlinked,
        mode: found.stat.st_mode & 0o7777,
        owner: (found.stat.st_uid, found.stat.st_gid),
        most: limits.messages,
        size: limits.size,
        registered,
        messages: Vec::new(),
    };
    let id = QueueId(cx.queues.records.len() as u32);
    let object = format!("fd {} ({})", found.place.fd, String::from_utf8_lossy(&found.link));
    cx.queues.open.push(OpenQueue { queue, place: found.place, object });
    cx.queues.records.push(record);
    cx.queues.known.insert(key, id);
    Ok(DescriptionKind::MessageQueue { queue: id })
}

pub(super) fn create(cx: &mut Rebuild<'_>, record: &DescriptionRecord, queue: QueueId) -> Result<(), Error> {
    if !cx.queues.contains_key(&queue) {
        let Some(wanted) = cx.image.queues.get(queue.index()) else {
            return Err(Error::Dangling(format!("message queue {queue}")));
        };
        cx.enter(wanted.unit)?;
        posix_queues::raise_limit();
        let made = make(wanted, cx.asides)?;
        cx.asides += 1;
        cx.queues.insert(queue, made);
    }
    let flags = record.flags as i32 & (libc::O_ACCMODE | libc::O_NONBLOCK);
    let Some(made) = cx.queues.get(&queue) else { return Ok(()) };
    let fd = cx.files.reopen(made.as_fd(), flags).map_err(Error::call("open", cx.describe(record)))?;
    cx.put(record.id, fd)
}

/// Makes a queue, or takes the one that has its name and owner and is like it, and fills it.
fn make(record: &QueueRecord, nth: u32) -> Result<OwnedFd, Error> {
    let shown = format!("message queue /{}", String::from_utf8_lossy(&record.name));
    let failed = |op| {
        let shown = shown.clone();
        move |e: ckpt_sys::Error| Error::call(op, shown)(e.errno().unwrap_or(Errno::EIO))
    };
    let limits = Limits { messages: record.most, size: record.size, now: 0 };
    let named = |name: &[u8]| {
        CString::new([b"/", name].concat()).map_err(|_| Error::Dangling(format!("the name of {shown}")))
    };
    let name = named(&record.name)?;
    let there = posix_queues::open(&name).map_err(failed("mq_open"))?;
    let queue = match there {
        // Somebody has made another of the name since: it stays.
        Some(_) if record.unlinked => {
            let other = named(format!("ckpt-{}-{nth}", std::process::id()).as_bytes())?;
            let queue = posix_queues::make(&other, limits).map_err(failed("mq_open"))?;
            posix_queues::unlink(&other).map_err(failed("mq_unlink"))?;
            queue
        }
        Some(there) => {
            let now = posix_queues::limits(there.as_fd()).map_err(failed("mq_getattr"))?;
            let there = File::from(there);
            let owner = there.metadata().map(|meta| (meta.uid(), meta.gid())).ok();
            if owner.is_some_and(|(uid, _)| uid != record.owner.0) {
                let why = "a queue of another user has its name".to_owned();
                return Err(Error::FileMismatch { path: shown, why });
            }
            if (now.messages, now.size) == (record.most, record.size) {
                posix_queues::empty(there.as_fd()).map_err(failed("mq_receive"))?;
                there.into()
            } else {
                posix_queues::unlink(&name).map_err(failed("mq_unlink"))?;
                posix_queues::make(&name, limits).map_err(failed("mq_open"))?
            }
        }
        None => {
            let queue = posix_queues::make(&name, limits).map_err(failed("mq_open"))?;
            if record.unlinked {
                posix_queues::unlink(&name).map_err(failed("mq_unlink"))?;
            }
            queue
        }
    };
    for (priority, text) in &record.messages {
        posix_queues::send(queue.as_fd(), *priority, text).map_err(failed("mq_send"))?;
    }
    let queue = File::from(queue);
    let io = |op| {
        let shown = shown.clone();
        move |e: std::io::Error| Error::call(op, shown)(e.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
    };
    fchown(&queue, Some(record.owner.0), Some(record.owner.1)).map_err(io("fchown"))?;
    queue.set_permissions(Permissions::from_mode(record.mode & 0o7777)).map_err(io("fchmod"))?;
    Ok(queue.into())
}
