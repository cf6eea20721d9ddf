//! `ckptctl`, the command line of ckpt.
#![forbid(unsafe_code)]

fn main() {}
