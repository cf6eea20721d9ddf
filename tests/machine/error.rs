//! What can go wrong with a machine.

use std::path::PathBuf;

/// A failure: what was tried, on what, and why it failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A system call on a path.
    #[error("cannot {op} {path}: {source}", path = path.display())]
    Path { op: &'static str, path: PathBuf, source: std::io::Error },
    /// A system call.
    #[error("cannot {op}: {source}")]
    Call { op: &'static str, source: std::io::Error },
    /// A helper program failed.
    #[error("{program} failed: {text}")]
    Program { program: &'static str, text: String },
    /// The machine did not come up.
    #[error("the machine did not boot: {0}")]
    Boot(String),
    /// Something that the machine needs is not there.
    #[error("{what} is missing; {remedy}")]
    Missing { what: String, remedy: &'static str },
}

/// Result with [`Error`].
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Adds operation and subject to a result of the standard library or of nix.
pub(crate) trait Context<T> {
    /// With a path as the subject.
    fn on(self, op: &'static str, path: impl Into<PathBuf>) -> Result<T>;
    /// Without a subject.
    fn of(self, op: &'static str) -> Result<T>;
}

impl<T, E: Into<std::io::Error>> Context<T> for std::result::Result<T, E> {
    fn on(self, op: &'static str, path: impl Into<PathBuf>) -> Result<T> {
        self.map_err(|e| Error::Path { op, path: path.into(), source: e.into() })
    }
    fn of(self, op: &'static str) -> Result<T> {
        self.map_err(|e| Error::Call { op, source: e.into() })
    }
}
