use serde::{Deserialize, Serialize};

use super::{FilterId, Pid, QueuedSignal};

/// One thread.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ThreadRecord {
    /// Its id.
    pub tid: Pid,
    /// Its name (comm), at most 15 bytes.
    pub comm: Vec<u8>,
    /// struct user_regs_struct (27 words), as a restored thread must have them: an interrupted system call is already wound back.
    pub registers: Vec<u64>,
    /// NT_X86_XSTATE, raw.
    pub xstate: Vec<u8>,
    /// The system call that was interrupted, if one was; for events and tests, and for calls that are re-issued with the rest of their time.
    pub interrupted: Option<InterruptedCall>,
    /// Blocked signals, bit n-1 is signal n.
    pub sigmask: u64,
    /// sigaltstack(2).
    pub altstack: AltStack,
    /// Signals pending for this thread, oldest first.
    pub pending: Vec<QueuedSignal>,
    /// Robust futex list head and length (get_robust_list(2)).
    pub robust_list: (u64, u64),
    /// set_tid_address(2), 0 if none.
    pub tid_address: u64,
    /// rseq(2): address (0 if none), length, signature, flags.
    pub rseq: RseqRecord,
    /// Credentials.
    pub credentials: Credentials,
    /// Seccomp: 0 none, 1 strict, 2 filter.
    pub seccomp_mode: u32,
    /// Its filters, the oldest first.
    pub seccomp_filters: Vec<FilterId>,
    /// PR_GET_NO_NEW_PRIVS.
    pub no_new_privs: bool,
    /// Parent-death signal, 0 if none.
    pub pdeathsig: i32,
    /// PR_GET_TIMERSLACK, nanoseconds.
    pub timer_slack: u64,
    /// Scheduling.
    pub sched: SchedRecord,
    /// CPUs it may run on, bit mask, 64 a word.
    pub affinity: Vec<u64>,
    /// ioprio_get(2), 0 if none is set.
    pub io_priority: i32,
    /// PR_MCE_KILL_GET: 0 late, 1 early, 2 as the system does.
    pub mce_kill: u32,
    /// PR_GET_TSC: 1 the time stamp counter may be read, 2 it may not.
    pub tsc: u32,
    /// What prctl(2) and its like keep besides.
    pub settings: ThreadSettings,
    /// Syscall User Dispatch, where the application has it on.
    pub dispatch: Option<DispatchRecord>,
}

/// Settings of a thread; those that nobody made are zero.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ThreadSettings {
    /// PR_GET_SPECULATION_CTRL of store bypass, indirect branches and L1D flushing: what was set.
    pub speculation: [u32; 3],
    /// PR_GET_IO_FLUSHER.
    pub io_flusher: bool,
    /// get_mempolicy(2), with its flags; 0 is the default.
    pub memory_policy: u32,
    /// Its nodes, 64 a word.
    pub memory_nodes: Vec<u64>,
    /// CPUID faults (ARCH_GET_CPUID).
    pub cpuid_faults: bool,
}

/// A system call that the stop interrupted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterruptedCall {
    /// System call number.
    pub nr: u64,
    /// Its six arguments.
    pub args: [u64; 6],
    /// What rax held at the stop (−512, −516, −EINTR, …).
    pub result: i64,
}

/// sigaltstack(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct AltStack {
    pub sp: u64,
    pub flags: i32,
    pub size: u64,
}

/// PTRACE_GET_RSEQ_CONFIGURATION.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct RseqRecord {
    pub address: u64,
    pub length: u32,
    pub signature: u32,
    pub flags: u32,
}

/// PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DispatchRecord {
    /// Address of the selector byte, 0 if there is none.
    pub selector: u64,
    /// First address from which calls always pass.
    pub offset: u64,
    /// How many bytes from there.
    pub len: u64,
}

/// Credentials of a thread (credentials(7), capabilities(7)).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Credentials {
    /// Real, effective, saved and file-system uid.
    pub uids: [u32; 4],
    /// Real, effective, saved and file-system gid.
    pub gids: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Inheritable, permitted, effective, bounding, ambient capability sets.
    pub caps: [u64; 5],
    /// PR_GET_SECUREBITS.
    pub securebits: u32,
}

/// sched_getattr(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct SchedRecord {
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
}
