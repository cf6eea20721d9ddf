//! `ckpt-restore`: rebuilds the members of a group inside their units.
#![forbid(unsafe_code)]

fn main() {}
