//! The on-disk format of checkpoints.
#![forbid(unsafe_code)]
