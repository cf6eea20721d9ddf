use serde::{Deserialize, Serialize};

use crate::records::{Pid, UnitIndex};

/// A POSIX message queue (mq_overview(7)).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QueueRecord {
    /// The unit in whose IPC namespace it lies.
    pub unit: UnitIndex,
    /// Its name, without the slash.
    pub name: Vec<u8>,
    /// The name is gone (mq_unlink(3)).
    pub unlinked: bool,
    /// Permission bits.
    pub mode: u32,
    /// Owner and owning group.
    pub owner: (u32, u32),
    /// mq_maxmsg.
    pub most: i64,
    /// mq_msgsize.
    pub size: i64,
    /// The process that is registered by mq_notify(3) with SIGEV_NONE.
    pub registered: Option<Pid>,
    /// The messages, the one to be received next first: priority and text.
    pub messages: Vec<(u32, Vec<u8>)>,
}
