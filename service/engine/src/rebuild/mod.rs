//! Rebuilding the members of a group: what ckpt-restore does.

pub mod tree;
