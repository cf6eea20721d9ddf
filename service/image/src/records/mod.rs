//! The vocabulary that capture and restore share: what a group was made of at the instant of a checkpoint.
//!
//! Everything refers to everything else by number, so that sharing is kept: two processes with the same [`SpaceId`] share their
//! memory, two descriptors with the same [`DescriptionId`] share their offset.
//!
//! ```text
//! GroupImage ─┬─ units[]         UnitIndex
//!             ├─ processes[] ────┬─ threads[]          the first is the leader
//!             │                  ├─ space    ► spaces[]        ─► mappings[] ─► objects[], files[]
//!             │                  ├─ fd_table ► fd_tables[]     ─► descriptions[] ─► files[], objects[], pipes[]
//!             │                  ├─ fs       ► fs[]            ─► files[]
//!             │                  └─ sighand  ► sighands[]
//!             └─ clocks, kernel
//! ```

mod descriptor;
mod file;
mod kinds;
mod memory;
mod path;
mod process;
mod signal;
mod thread;

pub use descriptor::*;
pub use file::*;
pub use kinds::*;
pub use memory::*;
pub use process::*;
pub use signal::*;
pub use thread::*;

use serde::{Deserialize, Serialize};

/// Declares a number that names one record, so that numbers of different kinds cannot be mixed.
macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub u32);

        impl $name {
            /// The place of the record in its vector.
            pub fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    )*};
}

ids! {
    /// A unit of the group: index into [`GroupImage::units`].
    UnitIndex,
    /// An address space: index into [`GroupImage::spaces`]; shared by processes made with CLONE_VM.
    SpaceId,
    /// A descriptor table: index into [`GroupImage::fd_tables`]; shared by CLONE_FILES.
    FdTableId,
    /// Working directory, root and umask: index into [`GroupImage::fs`]; shared by CLONE_FS.
    FsId,
    /// Signal handlers: index into [`GroupImage::sighands`]; shared by CLONE_SIGHAND.
    SighandId,
    /// An open file description (open(2)): index into [`GroupImage::descriptions`].
    DescriptionId,
    /// A file in a file system: index into [`GroupImage::files`].
    FileId,
    /// Shared memory that has no file in a file system the group keeps: index into [`GroupImage::objects`].
    ObjectId,
    /// A pipe or FIFO: index into [`GroupImage::pipes`].
    PipeId,
    /// A POSIX message queue: index into [`GroupImage::queues`].
    QueueId,
    /// A seccomp filter program: index into [`GroupImage::seccomp_filters`].
    FilterId,
}

/// A process id as the members see it, in the PID namespace of the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Pid(pub i32);

impl std::fmt::Display for Pid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Kernel state of the whole group at one instant.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct GroupImage {
    /// The units, in the order of their names.
    pub units: Vec<UnitRecord>,
    /// The processes, parents before their children; zombies too.
    pub processes: Vec<ProcessRecord>,
    /// The address spaces.
    pub spaces: Vec<SpaceRecord>,
    /// The descriptor tables.
    pub fd_tables: Vec<FdTableRecord>,
    /// Working directories, roots and umasks.
    pub fs: Vec<FsRecord>,
    /// Signal dispositions.
    pub sighands: Vec<SighandRecord>,
    /// The open file descriptions.
    pub descriptions: Vec<DescriptionRecord>,
    /// Pipes and FIFOs.
    pub pipes: Vec<PipeRecord>,
    /// POSIX message queues.
    pub queues: Vec<QueueRecord>,
    /// Files that are open, mapped, executed or a working directory.
    pub files: Vec<FileRecord>,
    /// Shared memory objects.
    pub objects: Vec<ObjectRecord>,
    /// seccomp filter programs: arrays of struct sock_filter (8 bytes each), as PTRACE_SECCOMP_GET_FILTER gives them.
    pub seccomp_filters: Vec<Vec<u8>>,
    /// System V objects that no mapping leads to.
    pub sysv: SysvRecord,
    /// The clocks at the instant of the checkpoint.
    pub clocks: ClockRecord,
    /// The kernel that ran.
    pub kernel: KernelRecord,
}

/// Clock readings, nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct ClockRecord {
    /// CLOCK_REALTIME.
    pub realtime: i64,
    /// CLOCK_MONOTONIC.
    pub monotonic: i64,
    /// CLOCK_BOOTTIME.
    pub boottime: i64,
}

/// Clock readings of a unit's processes, nanoseconds; 0 where it had none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UnitClocks {
    /// CLOCK_MONOTONIC.
    pub monotonic: i64,
    /// CLOCK_BOOTTIME.
    pub boottime: i64,
}

/// What the kernel was, as far as a restore depends on it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct KernelRecord {
    /// uname(2) release.
    pub release: String,
    /// uname(2) machine.
    pub machine: String,
    /// /proc/sys/kernel/random/boot_id.
    pub boot_id: String,
    /// BLAKE3 of the vDSO's pages: equal means that old addresses into it are still right.
    pub vdso: [u8; 32],
    /// XCR0: the extended CPU state that the image may hold.
    pub xcr0: u64,
}

/// One unit of the group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UnitRecord {
    /// The unit's name, with its suffix.
    pub name: String,
    /// Its cgroup, relative to the cgroup2 mount, with a leading slash.
    pub cgroup: String,
    /// Main PID as systemd knew it; `None` where the service had none.
    pub main_pid: Option<Pid>,
    /// Namespaces of its main process.
    pub namespaces: NamespaceRecord,
    /// The clocks that its main process saw, which a time namespace may set apart from those of the host.
    pub clocks: UnitClocks,
    /// Directories whose content is in `ephemeral/N.tar`, as the unit's processes see them.
    #[serde(with = "path::list")]
    pub ephemeral: Vec<std::path::PathBuf>,
    /// systemd makes a user namespace for it (PrivateUsers=).
    pub private_users: bool,
    /// What is mounted in its mount namespace, if it has one of its own, and not in the host's.
    pub mounts: Vec<MountRecord>,
}

/// A mount of a unit's own mount namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MountRecord {
    /// Where, as the unit's processes see it.
    #[serde(with = "path")]
    pub point: std::path::PathBuf,
    /// The type of the file system.
    pub fs_type: String,
}

/// Inode numbers of /proc/PID/ns/*: equal numbers, same namespace, at the time of the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct NamespaceRecord {
    /// Mount namespace.
    pub mnt: u64,
    /// Network namespace.
    pub net: u64,
    /// System V IPC and POSIX message queue namespace.
    pub ipc: u64,
    /// Host name namespace.
    pub uts: u64,
    /// User namespace.
    pub user: u64,
    /// PID namespace.
    pub pid: u64,
    /// Cgroup namespace.
    pub cgroup: u64,
    /// Time namespace.
    pub time: u64,
}
