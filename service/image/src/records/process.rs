use serde::{Deserialize, Serialize};

use super::{
    Credentials, FdTableId, FileId, FsId, ItimerRecord, NamespaceRecord, Pid, PosixTimerRecord, QueuedSignal,
    SighandId, SpaceId, ThreadRecord, UnitIndex,
};

/// One process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProcessRecord {
    /// Its unit.
    pub unit: UnitIndex,
    /// Its cgroup below the unit's, "" for the unit's own.
    pub cgroup: String,
    /// Its namespaces.
    pub namespaces: NamespaceRecord,
    /// Its id.
    pub pid: Pid,
    /// Its parent; a pid that is not of the group (PID 1, a subreaper) makes it a root.
    pub ppid: Pid,
    /// Its process group.
    pub pgid: Pid,
    /// Its session.
    pub sid: Pid,
    /// The signal its parent gets when it ends (clone(2)); SIGCHLD as a rule.
    pub exit_signal: i32,
    /// Alive, stopped or a zombie. A zombie has no threads and none of what `body` holds.
    pub state: ProcessState,
    /// What an ended process has no more.
    pub body: Option<ProcessBody>,
}

/// Whether a process runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProcessState {
    /// It runs or sleeps.
    Running,
    /// Stopped by job control, by this signal.
    Stopped {
        /// SIGSTOP, SIGTSTP, SIGTTIN or SIGTTOU.
        signal: i32,
    },
    /// Ended, not waited for.
    Zombie {
        /// Its name (comm).
        comm: Vec<u8>,
        /// The status wait(2) gives.
        status: i32,
        /// Real uid and gid.
        owner: (u32, u32),
    },
}

/// What a living process has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProcessBody {
    /// Its address space.
    pub space: SpaceId,
    /// Its descriptor table.
    pub fd_table: FdTableId,
    /// Its working directory, root and umask.
    pub fs: FsId,
    /// Its signal handlers.
    pub sighand: SighandId,
    /// Its threads that live, the leader first, unless that has ended.
    pub threads: Vec<ThreadRecord>,
    /// What is left of its leader, where that ended before other threads.
    pub ended_leader: Option<EndedLeader>,
    /// Signals pending for the whole process, oldest first.
    pub pending: Vec<QueuedSignal>,
    /// getitimer(2): ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF.
    pub itimers: [ItimerRecord; 3],
    /// timer_create(2) timers.
    pub posix_timers: Vec<PosixTimerRecord>,
    /// Resource limits by number (RLIMIT_CPU = 0 …): soft, hard; u64::MAX is unlimited.
    pub limits: Vec<(u64, u64)>,
    /// personality(2).
    pub personality: u32,
    /// PR_GET_DUMPABLE: 0, 1 or 2.
    pub dumpable: u32,
    /// PR_GET_CHILD_SUBREAPER.
    pub child_subreaper: bool,
    /// /proc/PID/oom_score_adj.
    pub oom_score_adj: i32,
    /// /proc/PID/coredump_filter.
    pub coredump_filter: u32,
    /// The controlling terminal's device number, 0 if none.
    pub tty: u64,
    /// What prctl(2) and its like keep besides.
    pub settings: ProcessSettings,
}

/// Settings of a process; those that nobody made are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProcessSettings {
    /// PR_GET_MDWE.
    pub deny_write_execute: u32,
    /// PR_GET_MEMORY_MERGE.
    pub memory_merge: bool,
    /// MEMBARRIER_CMD_GET_REGISTRATIONS.
    pub membarrier: u32,
    /// It may use the tiles of AMX (ARCH_REQ_XCOMP_PERM).
    pub tiles: bool,
    /// PR_GET_THP_DISABLE with PR_THP_DISABLE_EXCEPT_ADVISED. Linux 6.18.
    pub huge_pages_if_advised: bool,
    /// PR_TIMER_CREATE_RESTORE_IDS. Linux 6.15.
    pub chooses_timer_ids: bool,
    /// /proc/PID/autogroup.
    pub autogroup_nice: i32,
}

/// The first thread of a process, which ended before others (pthread_exit(3)). It is a zombie until these end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedLeader {
    /// Its name (comm).
    pub comm: Vec<u8>,
    /// The status it ended with, which is the process's if the others end alike.
    pub status: i32,
    /// Its credentials, by which others may send signals to the process.
    pub credentials: Credentials,
}

/// What CLONE_FS shares.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FsRecord {
    /// Working directory.
    pub cwd: FileId,
    /// Root directory; `None` where it is that of the unit's mount namespace.
    pub root: Option<FileId>,
    /// umask(2).
    pub umask: u32,
}
