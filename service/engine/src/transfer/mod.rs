//! Checkpoints in one file, to be carried to another place: `ckptctl export` and `import`.
//!
//! ```text
//! a tar archive (ustar), in this order:
//! ckpt-export-1/manifest.json           the checkpoint as a full one; first, so that a reader knows what comes
//! ckpt-export-1/NAME                    each file that the manifest names, as in the store: state, pages, pages.index, ephemeral/N.tar
//! ckpt-export-1/snapshots/N/PPPPPPPP    parts of what btrfs-send(8) gives of snapshot N, in order
//! ckpt-export-1/end.json                BLAKE3 of the manifest, size and BLAKE3 of each stream; without it the file is cut off
//! ```
//! The number in the directory's name is the version. Nothing of an import shows up before all of it is there and checked.

mod archive;
mod export;
mod flow;
mod import;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use export::export;
pub use import::{Incoming, import};

/// The directory of all entries.
const ROOT: &str = "ckpt-export-1/";
/// Name of the first entry.
const MANIFEST: &str = "manifest.json";
/// Name of the last entry.
const END: &str = "end.json";
/// Bytes of a stream in one entry.
const PART: usize = 4 << 20;
/// A manifest, or what comes at the end, is not larger.
const SMALL: u64 = 16 << 20;

/// The last entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct End {
    /// BLAKE3 of the entry `manifest.json`, hex.
    manifest: String,
    /// The streams, in the order of the manifest's snapshots.
    snapshots: Vec<Stream>,
}

/// What was sent of one snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stream {
    bytes: u64,
    blake3: String,
}
