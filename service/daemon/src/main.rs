//! The checkpoint daemon.
#![forbid(unsafe_code)]

fn main() {}
