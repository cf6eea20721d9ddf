//! Taking the state of a frozen group.
//!
//! Registries first: what descriptors, mappings and processes have in common is recorded once, whoever meets it first.

mod close_on_exec;
mod contexts;
pub mod direct;
pub mod ephemeral;
pub mod family;
pub mod files;
pub mod filters;
pub mod foresee;
pub mod frozen_copies;
pub mod identities;
pub mod member;
pub mod members;
pub mod memory;
pub mod messages;
pub mod objects;
pub mod pipe;
pub mod precopy;
pub mod process;
pub mod questions;
mod rings;
mod sandbox;
pub mod session;
pub mod sharing;
mod shown;
mod spaces;
pub mod sysv;
pub mod text;
pub mod thread;
pub mod under_way;
pub mod undo;

pub use files::Files;
pub use identities::Identities;
pub use member::Member;
pub use members::Members;
pub use messages::Freezer;
pub use objects::Objects;
pub use precopy::Precopy;
pub use session::{Capture, Captured, Written};
