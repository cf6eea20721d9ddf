use serde::{Deserialize, Serialize};
use std::path::PathBuf;

use super::UnitIndex;

/// A file in a file system: what a descriptor, a mapping, an executable or a working directory refers to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FileRecord {
    /// The unit in whose mount namespace `path` is to be looked up.
    pub unit: UnitIndex,
    /// Absolute path in that namespace, as /proc/PID/fd, maps or exe tell it, without ` (deleted)`.
    #[serde(with = "super::path")]
    pub path: PathBuf,
    /// Device number of the file system (st_dev; btrfs: of the subvolume, so it changes at a restore).
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// st_mode, type bits included.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Owning group.
    pub gid: u32,
    /// Size in bytes at the checkpoint.
    pub size: u64,
    /// Modification time, nanoseconds since the epoch.
    pub mtime: i64,
    /// st_rdev of a device node, else 0.
    pub rdev: u64,
    /// Extended attributes (xattr(7)), of a file whose content is in the image: names and values.
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
    /// How the file is found again.
    pub source: FileSource,
}

/// Where a file comes from at a restore.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum FileSource {
    /// By its path; it lies in a subvolume of the group, so its content is that of the snapshot.
    Paired,
    /// By its path, and its content is not ours: must be the same size and mtime if `immutable` (executables, libraries).
    Path {
        /// Refuse the restore (FileMismatch) when size or mtime differ.
        immutable: bool,
    },
    /// By its path, in a directory that is captured with the image (RuntimeDirectory=, PrivateTmp=, tmpfs).
    Ephemeral,
    /// By its path, in a file system that lives in memory (/dev/shm): its content is in the page container of this file, and it is written
    /// anew.
    Memory,
    /// It has no name any more: its content is in the page container of this file.
    Unlinked,
}
