use std::path::{Path, PathBuf};

/// What can go wrong with the files of a checkpoint: the operation, the file, the cause.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file system refused.
    #[error("cannot {op} {}", path.display())]
    Io {
        /// What was tried: a verb.
        op: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The first bytes are not those of this kind of file.
    #[error("{} is not a {kind} file of a checkpoint", path.display())]
    NotOurs {
        /// The file.
        path: PathBuf,
        /// What it should be.
        kind: &'static str,
    },
    /// A format that this program does not know.
    #[error("{} has format version {found}, this program reads up to {supported}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: u32,
        /// The newest that is known.
        supported: u32,
    },
    /// The content is damaged.
    #[error("{} is damaged: {what}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A file is larger than any that this program writes.
    #[error("{} has {found} bytes, more than the limit of {limit}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        found: u64,
        /// The most that is read.
        limit: u64,
    },
    /// A value cannot be written in this format.
    #[error("cannot encode {}: {what}", path.display())]
    Encode {
        /// The file.
        path: PathBuf,
        /// What cannot be written.
        what: String,
    },
}

impl ImageError {
    /// Makes the closure for `map_err` that adds what was tried on which file.
    pub(crate) fn io(op: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_path_buf();
        move |source| Self::Io { op, path, source }
    }

    pub(crate) fn corrupt(path: &Path, what: impl Into<String>) -> Self {
        Self::Corrupt { path: path.to_path_buf(), what: what.into() }
    }

    /// Whether a full file system or quota is the cause (ENOSPC, EDQUOT).
    pub fn is_no_space(&self) -> bool {
        const ENOSPC: i32 = 28;
        const EDQUOT: i32 = 122;
        matches!(self, Self::Io { source, .. } if matches!(source.raw_os_error(), Some(ENOSPC | EDQUOT)))
    }
}

/// The result of anything in this crate.
pub type Result<T, E = ImageError> = std::result::Result<T, E>;
