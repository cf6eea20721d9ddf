//! `/etc/ckpt/groups.d/NAME.toml` (ckpt-group(5)): names, files, and configurations that came over the bus.

pub mod file;
pub mod load;
pub mod make;
pub mod names;
