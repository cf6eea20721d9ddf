use serde::{Deserialize, Serialize};
use std::path::PathBuf;

use crate::records::{DescriptionId, Pid};

/// eventfd(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventfdRecord {
    /// The counter.
    pub count: u64,
    /// EFD_SEMAPHORE.
    pub semaphore: bool,
}

/// epoll(7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpollRecord {
    /// The interest list.
    pub items: Vec<EpollItem>,
}

/// One registration of an epoll instance. The kernel keys it by description *and* descriptor number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EpollItem {
    /// The number the descriptor had when it was added.
    pub fd: i32,
    /// The description.
    pub target: DescriptionId,
    /// EPOLL* event and behaviour bits; without EPOLLERR and EPOLLHUP the item is a disarmed EPOLLONESHOT.
    pub events: u32,
    /// epoll_data.
    pub data: u64,
}

/// timerfd_create(2); times in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimerfdRecord {
    /// CLOCK_*.
    pub clock: i32,
    /// Flags of the last timerfd_settime(2): TFD_TIMER_ABSTIME, TFD_TIMER_CANCEL_ON_SET.
    pub flags: u32,
    /// Expirations not read yet.
    pub ticks: u64,
    /// Time to the next expiration, 0 disarmed.
    pub value: u64,
    /// Interval, 0 for once.
    pub interval: u64,
}

/// signalfd(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalfdRecord {
    /// The signals, bit n-1 is signal n.
    pub mask: u64,
}

/// inotify(7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InotifyRecord {
    /// The watches, ascending by descriptor.
    pub watches: Vec<InotifyWatch>,
}

/// One watch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InotifyWatch {
    /// Watch descriptor.
    pub wd: i32,
    /// The file, as a path in the unit's mount namespace.
    #[serde(with = "crate::records::path")]
    pub path: PathBuf,
    /// IN_* bits.
    pub mask: u32,
}

/// fanotify(7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FanotifyRecord {
    /// Flags of fanotify_init(2).
    pub flags: u32,
    /// Flags of the descriptors that come with events.
    pub event_flags: u32,
    /// The marks.
    pub marks: Vec<FanotifyMark>,
}

/// One mark.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FanotifyMark {
    /// FAN_MARK_INODE, FAN_MARK_MOUNT or FAN_MARK_FILESYSTEM.
    pub kind: u32,
    /// What it is of, as a path in the unit's mount namespace.
    #[serde(with = "crate::records::path")]
    pub path: PathBuf,
    /// FAN_MARK_* bits.
    pub flags: u32,
    /// Events.
    pub mask: u64,
    /// Events that are ignored.
    pub ignored: u64,
}

/// pidfd_open(2) of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PidfdRecord {
    /// The member.
    pub pid: Pid,
}
