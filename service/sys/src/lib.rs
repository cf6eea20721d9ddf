//! The kernel, safely: everything of ckpt that needs `unsafe` outside the preload library.
//!
//! One module is one noun of the kernel. What is traced goes through [`thread`] (a running and a stopped thread are
//! two types), what runs inside a member goes through [`batch`] and [`runner`].

pub mod addr;
pub mod aio;
pub mod arena;
pub mod attributes;
pub mod batch;
pub mod btrfs;
pub mod cgroup;
pub mod clone;
pub mod crew;
pub mod descriptor;
pub mod detached_mount;
pub mod error;
pub mod event_log;
pub mod gate;
pub mod gather;
pub mod inject;
pub mod io_uring;
pub mod maps;
pub mod message_queues;
pub mod missing;
pub mod namespace;
pub mod nursery;
pub mod pagemap;
pub mod passed;
pub mod posix_queues;
pub mod priority;
pub mod proc_file;
pub mod protect;
pub mod ptrace;
pub mod reflink;
pub mod remote;
pub mod restart;
pub mod runner;
pub mod seccomp;
pub mod seize;
pub mod semaphores;
pub mod shared;
pub mod sysctl;
pub mod task;
pub mod thread;
pub mod time_limit;
pub mod time_namespace;
pub mod vdso;
pub mod write_watch;
pub mod xattr;

pub use addr::{AddrRange, VirtAddr};
pub use error::{Error, Result, Subject};
