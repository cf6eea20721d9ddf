//! Checkpoint and restore of groups: blocking, silent, returns events. What the daemon shows on the bus and writes to the
//! journal comes from here; nothing here knows D-Bus or logs.
//!
//! ```text
//! checkpoint: barrier ► flush ► freeze ► seize ► capture ‖ snapshots ► thaw ► commit
//! restore:    verify ► stop units ► exchange subvolumes ► stubs ► ckpt-restore ► adopt
//! ```
#![forbid(unsafe_code)]

pub mod api;
pub mod capture;
pub mod barrier;
pub mod config;
pub mod error;
<<<<<<< HEAD
pub mod frozen;
pub mod local;
pub mod rebuild;
pub mod store;
=======
pub mod storage;
>>>>>>> 330dc6e (Pair checkpoints with btrfs snapshots: prepare, take, exchange, undo)

pub use api::*;
pub use error::Error;
