//! What can fail here: operation, subject, source.

use std::fmt;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::unistd::Pid;

use crate::VirtAddr;

/// What an operation was about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A process or thread, by its id in our PID namespace.
    Task(Pid),
    /// A file.
    Path(PathBuf),
    /// An address in a member's memory.
    Memory(Pid, VirtAddr),
    /// Ourselves.
    Here,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Task(pid) => write!(f, "task {pid}"),
            Subject::Path(path) => write!(f, "{}", path.display()),
            Subject::Memory(pid, addr) => write!(f, "memory of {pid} at {addr}"),
            Subject::Here => f.write_str("this process"),
        }
    }
}

/// A failure of this layer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error("{op} on {subject}")]
    Kernel {
        /// The system call or request, by its manual's name.
        op: &'static str,
        /// What it was about.
        subject: Subject,
        /// The kernel's answer.
        #[source]
        source: Errno,
    },
    /// A wait reached its deadline.
    #[error("{op} on {subject}: deadline passed")]
    Deadline {
        /// What was waited for.
        op: &'static str,
        /// What it was about.
        subject: Subject,
    },
    /// The thread ended meanwhile.
    #[error("thread {0} is gone")]
    Gone(Pid),
    /// Another process traces the thread already, so nobody else can.
    #[error("process {pid} is already traced by process {tracer}")]
    AlreadyTraced {
        /// The process that is traced.
        pid: Pid,
        /// Who traces it.
        tracer: Pid,
    },
    /// A cgroup is frozen already, and not by us.
    #[error("cgroup {cgroup} is frozen already; thaw it first (systemctl thaw)")]
    Frozen {
        /// Its name.
        cgroup: String,
    },
    /// A thread stopped for another reason than the one waited for.
    #[error("thread {tid} stopped unexpectedly: {stop}")]
    UnexpectedStop {
        /// The thread.
        tid: Pid,
        /// What it reported.
        stop: String,
    },
    /// A batch holds more calls or data than its slot.
    #[error("batch does not fit its slot: {entries} calls, {data} bytes of data")]
    BatchTooLarge {
        /// Calls pushed.
        entries: usize,
        /// Bytes of data pushed.
        data: usize,
    },
    /// No runner can be placed in the process; says why.
    #[error("cannot run system calls inside process {pid}: {why}")]
    NoRunner {
        /// The process.
        pid: Pid,
        /// The reason, a clause.
        why: &'static str,
    },
    /// A file of the kernel held something that this code does not understand.
    #[error("{path}: unexpected content: {what}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What was not understood.
        what: String,
    },
}

impl Error {
    /// A refusal of the kernel about a task.
    #[must_use]
    pub fn task(op: &'static str, pid: Pid, source: Errno) -> Self {
        Error::Kernel { op, subject: Subject::Task(pid), source }
    }

    /// A refusal of the kernel about a file.
    pub fn path(op: &'static str, path: impl Into<PathBuf>, source: Errno) -> Self {
        Error::Kernel { op, subject: Subject::Path(path.into()), source }
    }

    /// An i/o error about a file; errors without a number count as EIO.
    pub fn io(op: &'static str, path: impl Into<PathBuf>, source: &std::io::Error) -> Self {
        Self::path(op, path, Errno::from_raw(source.raw_os_error().unwrap_or(libc::EIO)))
    }

    /// The kernel's error number, where there is one.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Error::Kernel { source, .. } => Some(*source),
            Error::Gone(_) => Some(Errno::ESRCH),
            _ => None,
        }
    }
}

/// The result of an operation of this layer.
pub type Result<T> = std::result::Result<T, Error>;
