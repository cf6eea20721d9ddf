//! Rebuilding the members of a group: what ckpt-restore does.
//!
//! ```text
//!  image, units ► check ► plan ► descriptions, objects opened once, here ► tree grown ► in every member, by batches:
//!    descriptors ► memory ► layout, handlers, limits, timers ► threads ► in every thread: credentials, seccomp, …
//!  ► registers, masks, pending signals ► all let go at once ► systemd told
//! ```
//! Until all are let go every member is traced with PTRACE_O_EXITKILL: whatever fails, nothing half-done lives.

mod checksums;
mod clocks;
pub mod content;
mod cpus;
mod credentials;
mod driver;
mod ephemeral;
mod failure;
mod fitproc;
mod grow;
pub mod holes;
mod host;
mod ids;
pub mod lazy;
mod leader;
mod member;
pub mod memory;
pub(crate) mod notify;
mod opened;
mod parentage;
mod pidspace;
mod places;
mod prepared;
mod process;
mod release;
mod sysv;
mod tables;
mod thread;
pub mod tree;
mod users;
mod waves;

pub use driver::{Reply, Report, Request};
pub use failure::Failure;
pub use ids::{check, in_use};
pub use member::Member;
pub use places::{Place, Places, UnitPlace};
use prepared::Prepared;
pub use prepared::{Preparation, serve};
