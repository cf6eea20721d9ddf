//! The contract in shared memory between the preload library and the daemon.
#![no_std]
