//! The on-disk format of checkpoints: the records that capture writes and restore reads, and the files they lie in.
//!
//! ```text
//! /var/lib/ckpt/GROUP/ID/
//!   manifest.json     what the checkpoint is; its rename commits the checkpoint        (manifest)
//!   state             kernel state: header, postcard of records::GroupImage, BLAKE3    (frame, state)
//!   pages             page contents, page-aligned, in the order they were stored       (pages)
//!   pages.index       which page of which container lies where in `pages`, checksums   (index)
//!   ephemeral/N.tar   files that systemd removes with the unit (RuntimeDirectory=, PrivateTmp=), unit N
//! ```
#![forbid(unsafe_code)]

mod chain;
mod error;
mod fold;
mod frame;
mod index;
mod manifest;
mod pack;
mod page_map;
mod pages;
mod pages_file;
mod reader;
pub mod records;
mod state;

pub use error::{ImageError, Result};
pub use fold::{Share, fold};
pub use index::{Chunk, Codec, Container, ContainerIndex, Extent, INDEX_FILE, PageIndex, Store};
pub use manifest::{
    CheckpointState, Digest, Kind, MANIFEST_FILE, MANIFEST_VERSION, Manifest, SnapshotEntry, Tracker,
    UnitEntry,
};
pub use page_map::PageMap;
pub use pages::{PAGES_FILE, PagesSummary, PagesWriter};
pub use reader::{PageFile, PageFiles, PageReader, Place, Run, verify};

/// Bytes of a page, and of a block of the file `pages`.
pub const PAGE_SIZE: u64 = 4096;

pub use state::{STATE_FILE, read_state, write_state};

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// A new directory of this test run, below cargo's target directory.
    pub(crate) fn temp_dir(name: &str) -> PathBuf {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("../../target/test-image")
            .join(format!("{name}-{}-{n}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }
}
