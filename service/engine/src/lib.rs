//! Checkpoint and restore of groups: blocking, silent, returns events. What the daemon shows on the bus and writes to the
//! journal comes from here; nothing here knows D-Bus or logs.
//!
//! ```text
//! checkpoint: barrier ► flush ► freeze ► seize ► capture ‖ snapshots ► thaw ► commit
//! restore:    verify ► stop units ► exchange subvolumes ► stubs ► ckpt-restore ► adopt
//! ```
#![forbid(unsafe_code)]

pub mod api;
pub mod barrier;
pub mod capture;
pub mod check;
pub mod config;
pub mod error;
pub mod frozen;
pub mod host;
pub mod kinds;
pub mod local;
pub mod machine;
pub mod members;
mod parallel;
pub mod pinned;
pub mod rebuild;
pub mod retention;
pub mod storage;
pub mod store;
pub mod support;
pub mod timeline;
pub mod track;
pub mod transfer;

pub use api::*;
pub use error::Error;
