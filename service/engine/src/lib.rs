//! Checkpoint and restore of groups: blocking, silent, returns events.
#![forbid(unsafe_code)]
