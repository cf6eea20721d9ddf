//! The checkpoint daemon: puts the engine on the bus.
//!
//! ```text
//! bus/            one interface a file; a method is: authorize, parse, ask the service, map the result
//! authorization   polkit, asked about the sender of the message
//! service/        groups, jobs and checkpoints as the bus shows them; one worker thread per group runs the engine
//! groups/         groups.d/NAME.toml: load, make from a dictionary, write
//! systemd/        the units of a group, drop-ins, stubs, stopping
//! journal         the only file that logs: one MESSAGE_ID an event
//! settings        ckptd.toml
//! ```
#![forbid(unsafe_code)]

pub mod authorization;
pub mod bus;
pub mod groups;
pub mod journal;
pub mod service;
pub mod settings;
pub mod systemd;
