//! The on-disk format of checkpoints: the records that capture writes and restore reads, and the files they lie in.
//!
//! ```text
//! /var/lib/ckpt/GROUP/ID/
//!   manifest.json     what the checkpoint is; its rename commits the checkpoint
//!   state             kernel state: header, postcard of records::GroupImage, BLAKE3
//!   pages             page contents, page-aligned, in the order they were stored
//!   pages.index       which page of which container lies where in `pages`
//!   ephemeral/N.tar   files that systemd removes with the unit (RuntimeDirectory=, PrivateTmp=), unit N
//! ```
#![forbid(unsafe_code)]

pub mod records;
