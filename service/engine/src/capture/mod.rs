//! Taking the state of a frozen group.
//!
//! Registries first: what descriptors, mappings and processes have in common is recorded once, whoever meets it first.

pub mod files;
pub mod memory;
pub mod objects;

pub use files::Files;
pub use objects::Objects;
