//! System V message queues of the caller's IPC namespace (sysvipc(7), msgctl(2), msgop(2)).

use nix::errno::Errno;

use crate::error::{Error, Result, Subject};
use crate::sysctl::write_sysctl;

const LIST: &str = "/proc/sysvipc/msg";
/// Reads the message at a place without taking it (CONFIG_CHECKPOINT_RESTORE, Linux 3.8).
const MSG_COPY: libc::c_int = 0o40000;

/// No message is longer: msgmax is an int, and memory is not what holds a message of more.
const LONGEST: usize = 1 << 30;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its type, greater than 0.
    pub kind: i64,
    /// Its text.
    pub text: Vec<u8>,
}

/// One queue.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MessageQueue {
    /// Its id.
    pub msqid: i32,
    /// Its key, 0 for IPC_PRIVATE.
    pub key: i32,
    /// Permission bits.
    pub mode: u32,
    /// Owner uid, gid, creator uid, gid.
    pub owner: [u32; 4],
    /// Who sent and who received last, in our PID namespace; 0 nobody, or somebody who is not in it. Not restored here.
    pub users: [i32; 2],
    /// Bytes in it.
    pub bytes: u64,
    /// The number of its messages.
    pub count: u64,
    /// How many bytes it may hold. Not told by [`queues`].
    pub most: u64,
    /// The messages. Not told by [`queues`].
    pub messages: Vec<Message>,
}

fn fail(op: &'static str) -> Error {
    Error::Kernel { op, subject: Subject::Here, source: Errno::last() }
}

fn exists(op: &'static str) -> Error {
    Error::Kernel { op, subject: Subject::Here, source: Errno::EEXIST }
}

/// All queues, without what is in them.
pub fn queues() -> Result<Vec<MessageQueue>> {
    let text = crate::proc_file::read_text(LIST).map_err(|e| Error::io("read", LIST, &e))?;
    Ok(parse_list(&text))
}

/// The lines of /proc/sysvipc/msg: key msqid perms cbytes qnum lspid lrpid uid gid cuid cgid …
fn parse_list(text: &str) -> Vec<MessageQueue> {
    let line = |line: &str| {
        let field: Vec<&str> = line.split_ascii_whitespace().collect();
        let number = |at: usize| field.get(at)?.parse::<u32>().ok();
        Some(MessageQueue {
            key: field.first()?.parse::<i64>().ok()? as i32,
            msqid: field.get(1)?.parse().ok()?,
            mode: u32::from_str_radix(field.get(2)?, 8).ok()?,
            bytes: field.get(3)?.parse().ok()?,
            count: field.get(4)?.parse().ok()?,
            users: [field.get(5)?.parse().ok()?, field.get(6)?.parse().ok()?],
            owner: [number(7)?, number(8)?, number(9)?, number(10)?],
            ..MessageQueue::default()
        })
    };
    text.lines().skip(1).filter_map(line).collect()
}

/// msgbuf: the type, then the text.
fn buffer(kind: i64, text: &[u8]) -> Vec<u8> {
    let mut bytes = kind.to_ne_bytes().to_vec();
    bytes.extend_from_slice(text);
    bytes
}

/// msgsnd(2) that never waits.
fn send(msqid: i32, kind: i64, text: &[u8]) -> Result<()> {
    let bytes = buffer(kind, text);
    // SAFETY: the buffer holds the type and text.len() bytes behind it, and is only read.
    if unsafe { libc::msgsnd(msqid, bytes.as_ptr().cast(), text.len(), libc::IPC_NOWAIT) } != 0 {
        return Err(fail("msgsnd"));
    }
    Ok(())
}

/// msgrcv(2) that never waits; `None` where there is no such message.
fn receive(msqid: i32, kind: i64, flags: libc::c_int, room: usize) -> Result<Option<Message>> {
    let mut bytes = vec![0; size_of::<i64>() + room];
    let flags = flags | libc::IPC_NOWAIT;
    // SAFETY: the buffer has room for the type and `room` bytes behind it.
    let got = unsafe { libc::msgrcv(msqid, bytes.as_mut_ptr().cast(), room, kind, flags) };
    if got < 0 {
        return if Errno::last() == Errno::ENOMSG { Ok(None) } else { Err(fail("msgrcv")) };
    }
    let (kind, text) = bytes.split_at(size_of::<i64>());
    let kind = kind.try_into().map_or(0, i64::from_ne_bytes);
    Ok(Some(Message { kind, text: text[..got as usize].to_vec() }))
}

fn status(msqid: i32) -> Result<libc::msqid_ds> {
    // SAFETY: msqid_ds is plain numbers, for which zero is a value.
    let mut ds: libc::msqid_ds = unsafe { std::mem::zeroed() };
    // SAFETY: ds outlives the call.
    if unsafe { libc::msgctl(msqid, libc::IPC_STAT, &raw mut ds) } != 0 {
        return Err(fail("msgctl IPC_STAT"));
    }
    Ok(ds)
}

/// Key and owners of a queue; `None` if there is none of that id.
fn perm(msqid: i32) -> Result<Option<libc::ipc_perm>> {
    match status(msqid) {
        Ok(ds) => Ok(Some(ds.msg_perm)),
        Err(Error::Kernel { source: Errno::EINVAL | Errno::EIDRM, .. }) => Ok(None),
        Err(e) => Err(e),
    }
}

impl MessageQueue {
    fn status(&self) -> Result<libc::msqid_ds> {
        status(self.msqid)
    }

    /// Reads the limit and the messages, and leaves all of them there. Errors: EINVAL, EIDRM where it is gone; ENOSYS where the kernel cannot
    /// read a message without taking it.
    pub fn read(&mut self) -> Result<()> {
        self.most = self.status()?.msg_qbytes;
        self.messages.clear();
        // The kernel takes a buffer of this size for each look, so it is no more than the longest message needs.
        let mut room = 256;
        loop {
            match receive(self.msqid, self.messages.len() as i64, MSG_COPY, room) {
                Ok(Some(message)) => self.messages.push(message),
                Ok(None) => return Ok(()),
                Err(Error::Kernel { source: Errno::E2BIG, .. }) if room < LONGEST => room *= 4,
                Err(e) => return Err(e),
            }
        }
    }

    /// A type that no message has, for one that is sent and taken again.
    pub fn unused_kind(&self) -> i64 {
        let used: std::collections::HashSet<i64> = self.messages.iter().map(|m| m.kind).collect();
        (1..).map(|n| i64::MAX - n).find(|kind| !used.contains(kind)).unwrap_or(i64::MAX)
    }

    /// Makes it in the caller's IPC namespace, or gives the one that is there its messages and owner back, perhaps without the last, perhaps
    /// with an empty one more of [`unused_kind`](Self::unused_kind), both for others to send and to take. [`finish`](Self::finish) follows.
    ///
    /// Errors: EEXIST where a queue of another creator has its id or key; ENOENT where the kernel does not let the id be chosen.
    pub fn restore(&self, without_last: bool, with_extra: bool) -> Result<()> {
        let mut found = false;
        // Asked one by one: a list of all, for each of thousands, takes minutes.
        for msqid in std::iter::once(self.msqid).chain(self.of_the_key()) {
            let Some(there) = perm(msqid)? else { continue };
            if there.cuid != self.owner[2] {
                return Err(exists("make a message queue with its old id"));
            }
            if (msqid, there.__key) == (self.msqid, self.key) {
                found = true;
            } else {
                // SAFETY: IPC_RMID takes no buffer.
                unsafe { libc::msgctl(msqid, libc::IPC_RMID, std::ptr::null_mut()) };
            }
        }
        if !found {
            self.make()?;
        }
        while receive(self.msqid, 0, libc::MSG_NOERROR, 0)?.is_some() {}
        let bytes = self.messages.iter().map(|m| m.text.len()).sum::<usize>() as u64;
        self.set(self.most.max(bytes).max(self.messages.len() as u64 + 1))?;
        let now = self.messages.len().saturating_sub(usize::from(without_last));
        self.messages[..now].iter().try_for_each(|message| send(self.msqid, message.kind, &message.text))?;
        if with_extra { send(self.msqid, self.unused_kind(), &[]) } else { Ok(()) }
    }

    /// Takes away what there is of [`unused_kind`](Self::unused_kind), sends the last message if nobody has, and sets the limit.
    pub fn finish(&self) -> Result<()> {
        while receive(self.msqid, self.unused_kind(), libc::MSG_NOERROR, 0)?.is_some() {}
        let last = self
            .messages
            .last()
            .filter(|_| self.status().is_ok_and(|ds| (ds.msg_qnum as usize) < self.messages.len()));
        if let Some(message) = last {
            send(self.msqid, message.kind, &message.text)?;
        }
        self.set(self.most)
    }

    /// The queue that has its key.
    fn of_the_key(&self) -> Option<i32> {
        // SAFETY: no pointers.
        (self.key != 0).then(|| unsafe { libc::msgget(self.key, 0) }).filter(|id| *id >= 0)
    }

    fn make(&self) -> Result<()> {
        write_sysctl("kernel/msg_next_id", &self.msqid.to_string())?;
        let flags = libc::IPC_CREAT | libc::IPC_EXCL | (self.mode & 0o777) as i32;
        // SAFETY: no pointers.
        let id = unsafe { libc::msgget(self.key, flags) };
        if id < 0 {
            return Err(fail("msgget"));
        }
        if id != self.msqid {
            // SAFETY: IPC_RMID takes no buffer.
            unsafe { libc::msgctl(id, libc::IPC_RMID, std::ptr::null_mut()) };
            return Err(exists("msgget with the old id"));
        }
        Ok(())
    }

    fn set(&self, most: u64) -> Result<()> {
        let mut ds = self.status()?;
        (ds.msg_perm.uid, ds.msg_perm.gid) = (self.owner[0], self.owner[1]);
        ds.msg_perm.mode = (self.mode & 0o777) as _;
        ds.msg_qbytes = most;
        // SAFETY: ds outlives the call, which only reads it.
        if unsafe { libc::msgctl(self.msqid, libc::IPC_SET, &raw mut ds) } != 0 {
            return Err(fail("msgctl IPC_SET"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read() {
        let text = "       key      msqid perms      cbytes       qnum lspid lrpid   uid   gid  cuid  cgid\n\
                    \x20-559038737          5   644          7          2    77    78     1     2     3     4\n\
                    broken 1 2\n";
        let [queue] = &parse_list(text)[..] else { panic!("not one") };
        assert_eq!((queue.msqid, queue.key as u32, queue.mode), (5, 0xdead_beef, 0o644));
        assert_eq!((queue.bytes, queue.count, queue.users, queue.owner), (7, 2, [77, 78], [1, 2, 3, 4]));
    }

    #[test]
    fn a_queue_comes_back_with_its_id_and_messages() {
        // In an IPC namespace of our own: ids of the host are not ours to take.
        std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWIPC).unwrap();
            let message = |kind, text: &[u8]| Message { kind, text: text.to_vec() };
            let queue = MessageQueue {
                msqid: 32_800,
                key: 0x77,
                mode: 0o640,
                owner: [5, 6, 0, 0],
                most: 9,
                messages: vec![message(7, b"seven"), message(i64::MAX - 1, b""), message(7, b"four")],
                ..MessageQueue::default()
            };
            let there = || {
                let mut found = queues().unwrap();
                assert_eq!(found.len(), 1);
                let mut queue = found.remove(0);
                queue.read().unwrap();
                MessageQueue { users: [0; 2], bytes: 0, count: 0, ..queue }
            };
            queue.restore(true, true).unwrap();
            queue.finish().unwrap();
            assert_eq!((there(), there()), (queue.clone(), queue.clone()), "reading it changes nothing");
            // It is there, with other messages and less room.
            receive(queue.msqid, 0, 0, 100).unwrap();
            queue.set(1).unwrap();
            queue.restore(false, false).unwrap();
            queue.finish().unwrap();
            assert_eq!(there(), queue);
            // Made anew by its owner meanwhile, with the same key.
            MessageQueue { msqid: 7, messages: vec![], ..queue.clone() }.restore(false, false).unwrap();
            queue.restore(false, false).unwrap();
            queue.finish().unwrap();
            assert_eq!(there(), queue);
        })
        .join()
        .unwrap();
    }
}
