//! What can go wrong, in the words of the contract: each variant is one `org.ckpt.Error.*`.

use crate::api::Problem;

/// A failed request. [`Error::name`] is the last part of the D-Bus error name.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant is named in interface.md
pub enum Error {
    #[error("no group is called {name}; `ckptctl status` shows the groups, `ckptctl enable` makes one{}", perhaps_an_id(.0), name = .0)]
    NoSuchGroup(String),
    #[error("group {group} has no checkpoint{}; `ckptctl list {group}` shows what there is", space_before(.id))]
    NoSuchCheckpoint { group: String, id: String },
    #[error("group {group} is busy: {doing}; wait for it or `ckptctl cancel` it")]
    GroupBusy { group: String, doing: String },
    #[error("group {group} cannot be checkpointed: {}", Problem::summary(.problems))]
    NotCheckpointable { group: String, problems: Vec<Problem> },
    #[error("checkpoint {id} of group {group} cannot be restored: {why}")]
    NotRestorable { group: String, id: String, why: String },
    #[error("group {group} was thawed without a checkpoint: {why}")]
    FreezeTimeout { group: String, why: String },
    #[error("no snapshot of {subvolume}: {why}")]
    SnapshotFailed { subvolume: String, why: String },
    #[error("no space for the checkpoint: {0}")]
    NoSpace(String),
    #[error("{path} is damaged: {why}")]
    Corrupt { path: String, why: String },
    #[error("the image needs another kernel: {0}")]
    IncompatibleKernel(String),
    #[error("{path} is not the file it was at the checkpoint: {why}")]
    FileMismatch { path: String, why: String },
    #[error("hook failed: {0}")]
    HookFailed(String),
    #[error("canceled")]
    Canceled,
    #[error("{0} exists already")]
    Exists(String),
    #[error("not supported: {0}")]
    Unsupported(String),
    #[error("{0}")]
    InvalidArgs(String),
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    #[error("{0}")]
    Failed(String),
}

impl Error {
    /// The part after `org.ckpt.Error.`; [`Error::InvalidArgs`] is `org.freedesktop.DBus.Error.InvalidArgs` instead and
    /// [`Error::Io`] and [`Error::Failed`] are `Failed`.
    pub fn name(&self) -> &'static str {
        match self {
            Error::NoSuchGroup(_) => "NoSuchGroup",
            Error::NoSuchCheckpoint { .. } => "NoSuchCheckpoint",
            Error::GroupBusy { .. } => "GroupBusy",
            Error::NotCheckpointable { .. } => "NotCheckpointable",
            Error::NotRestorable { .. } => "NotRestorable",
            Error::FreezeTimeout { .. } => "FreezeTimeout",
            Error::SnapshotFailed { .. } => "SnapshotFailed",
            Error::NoSpace(_) => "NoSpace",
            Error::Corrupt { .. } => "Corrupt",
            Error::IncompatibleKernel(_) => "IncompatibleKernel",
            Error::FileMismatch { .. } => "FileMismatch",
            Error::HookFailed(_) => "HookFailed",
            Error::Canceled => "Canceled",
            Error::Exists(_) => "Exists",
            Error::Unsupported(_) => "Unsupported",
            Error::InvalidArgs(_) => "InvalidArgs",
            Error::Io { .. } | Error::Failed(_) => "Failed",
        }
    }

    /// An [`Error::Io`] that says what was tried.
    pub fn io(what: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Error::Io { what: what.into(), source: source.into() }
    }
}

/// A name may hold `@`, so what was to be a checkpoint's id and is none is taken for a part of it.
fn perhaps_an_id(name: &str) -> String {
    match name.rsplit_once('@') {
        Some((group, id)) => {
            format!(
                "; if {id} is to be a checkpoint of {group}: an id has 26 characters, see `ckptctl list {group}`"
            )
        }
        None => String::new(),
    }
}

/// ` ID`, or nothing where no id was given.
fn space_before(id: &str) -> String {
    if id.is_empty() { String::new() } else { format!(" {id}") }
}

impl From<ckpt_image::ImageError> for Error {
    fn from(error: ckpt_image::ImageError) -> Self {
        use ckpt_image::ImageError as Image;
        let text = with_sources(&error);
        if error.is_no_space() {
            return Error::NoSpace(text);
        }
        match error {
            Image::Io { source, op, path } => Error::io(format!("{op} {}", path.display()), source),
            Image::Version { .. } => Error::Unsupported(text),
            Image::Encode { .. } => Error::Failed(text),
            Image::NotOurs { path, .. } | Image::Corrupt { path, .. } | Image::TooLarge { path, .. } => {
                Error::Corrupt { path: path.display().to_string(), why: text }
            }
        }
    }
}

/// An error with what caused it, on one line.
pub fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}
