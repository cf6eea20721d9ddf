use serde::{Deserialize, Serialize};

/// Signal dispositions of a process (what CLONE_SIGHAND shares). Signals not listed have SIG_DFL.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SighandRecord {
    /// Those that are not SIG_DFL, ascending.
    pub actions: Vec<SignalAction>,
}

/// struct kernel_sigaction of one signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalAction {
    /// Signal number.
    pub signal: i32,
    /// Handler address, or 1 for SIG_IGN.
    pub handler: u64,
    /// SA_* flags.
    pub flags: u64,
    /// sa_restorer.
    pub restorer: u64,
    /// sa_mask.
    pub mask: u64,
}

/// A pending signal: siginfo_t, raw, 128 bytes (PTRACE_PEEKSIGINFO).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuedSignal {
    /// The bytes.
    pub siginfo: Vec<u8>,
}

/// getitimer(2), nanoseconds; 0 value is disarmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ItimerRecord {
    pub value: u64,
    pub interval: u64,
}

/// A POSIX timer (/proc/PID/timers, timer_gettime(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PosixTimerRecord {
    /// Kernel timer id.
    pub id: i32,
    /// Clock id.
    pub clock: i32,
    /// sigev_notify (SIGEV_SIGNAL, SIGEV_NONE, SIGEV_THREAD_ID).
    pub notify: i32,
    /// sigev_signo.
    pub signal: i32,
    /// sigev_value.
    pub value: u64,
    /// Thread of SIGEV_THREAD_ID, else 0.
    pub tid: i32,
    /// Time to the next expiry and interval, nanoseconds; 0 is disarmed.
    pub setting: ItimerRecord,
    /// timer_getoverrun(2).
    pub overrun: i32,
}
