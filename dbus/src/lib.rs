//! Names, types and client proxies of the bus interface `org.ckpt` (org.ckpt(5)).
//!
//! ```text
//! /org/ckpt                       Manager1, ObjectManager
//! /org/ckpt/group/<escaped>       Group1
//! /org/ckpt/checkpoint/<id>       Checkpoint1
//! /org/ckpt/job/<n>               Job1
//! ```
#![forbid(unsafe_code)]

pub mod errors;
pub mod names;
pub mod proxy;
pub mod rows;

pub use proxy::{Checkpoint1Proxy, Group1Proxy, Job1Proxy, Manager1Proxy};
pub use rows::{CheckpointRow, GroupRow, MemberRow, ProblemRow, PruneRow, RestoreStats};
