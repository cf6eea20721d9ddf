use serde::{Deserialize, Serialize};

use super::{DescriptionId, FdTableId, Pid, UnitIndex};

/// One descriptor table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FdTableRecord {
    /// Its own number.
    pub id: FdTableId,
    /// The descriptors, ascending by number.
    pub descriptors: Vec<DescriptorRecord>,
    /// POSIX record locks (fcntl(2) F_SETLK), which belong to the table.
    pub posix_locks: Vec<FileLock>,
}

/// One descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorRecord {
    /// Its number.
    pub fd: i32,
    /// FD_CLOEXEC.
    pub cloexec: bool,
    /// The open file description.
    pub description: DescriptionId,
}

/// A lock on a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileLock {
    /// A description through which it can be set again.
    pub description: DescriptionId,
    /// F_RDLCK or F_WRLCK (flock: LOCK_SH or LOCK_EX as those).
    pub kind: i32,
    /// First byte.
    pub start: u64,
    /// Length, 0 to the end of the file.
    pub len: u64,
}

/// One open file description.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DescriptionRecord {
    /// Its own number.
    pub id: DescriptionId,
    /// The unit in whose namespaces it is made again.
    pub unit: UnitIndex,
    /// Access mode and status flags (F_GETFL), without creation flags.
    pub flags: u32,
    /// File offset.
    pub offset: u64,
    /// F_GETOWN_EX and F_GETSIG where set.
    pub owner: Option<OwnerRecord>,
    /// Its kind, with all that kind needs.
    pub kind: DescriptionKind,
}

/// Who gets SIGIO.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerRecord {
    /// F_OWNER_TID, F_OWNER_PID or F_OWNER_PGRP.
    pub kind: i32,
    /// The id.
    pub pid: Pid,
    /// F_SETSIG, 0 for SIGIO.
    pub signal: i32,
}

/// The kinds of open file descriptions; each has a file of its own in the engine, `kinds/`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum DescriptionKind {
    /// A file by its record: regular, directory, device node, symlink, or anything opened with O_PATH.
    File {
        /// The file.
        file: super::FileId,
        /// A BSD lock (flock(2)) it holds: F_RDLCK or F_WRLCK.
        flock: Option<i32>,
        /// OFD locks (fcntl(2) F_OFD_SETLK).
        ofd_locks: Vec<FileLock>,
        /// A lease (fcntl(2) F_SETLEASE): F_RDLCK or F_WRLCK.
        lease: Option<i32>,
    },
    /// A file of /proc/PID of a member: opened in the members that hold it, when that member is there.
    ProcFile {
        /// The member it tells of.
        pid: Pid,
        /// Its path, with /proc/PID.
        #[serde(with = "super::path")]
        path: std::path::PathBuf,
    },
    /// An end (or both, O_RDWR) of a pipe or FIFO, by the access mode.
    Pipe {
        /// The pipe.
        pipe: super::PipeId,
        /// It reads a FIFO that nobody has had open for writing since it was opened: poll(2) tells no hang-up.
        unmet: bool,
    },
    /// eventfd(2).
    Eventfd(super::EventfdRecord),
    /// epoll(7).
    Epoll(super::EpollRecord),
    /// timerfd_create(2).
    Timerfd(super::TimerfdRecord),
    /// signalfd(2).
    Signalfd(super::SignalfdRecord),
    /// inotify(7).
    Inotify(super::InotifyRecord),
    /// fanotify(7).
    Fanotify(super::FanotifyRecord),
    /// A pidfd of a process that ended and was waited for.
    PidfdGone,
    /// pidfd_open(2): made in the members that hold it, when its target is there.
    Pidfd(super::PidfdRecord),
    /// memfd_create(2).
    Memfd {
        /// The object.
        object: super::ObjectId,
    },
    /// The unit's stream to the journal: taken from the stub that systemd started.
    Journal {
        /// It was the standard error output, and not the standard output.
        stderr: bool,
    },
    /// unix(7).
    Unix(super::UnixRecord),
    /// TCP and UDP.
    Inet(super::InetRecord),
    /// netlink(7).
    Netlink(super::NetlinkRecord),
    /// pty(7).
    Terminal(super::TerminalRecord),
    /// mq_overview(7).
    MessageQueue {
        /// The queue.
        queue: super::QueueId,
    },
    /// packet(7).
    Packet(super::PacketRecord),
    /// io_uring(7).
    IoUring(super::IoUringRecord),
}
