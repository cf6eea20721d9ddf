//! Why a rebuild ended: one line for a person, and the parts of it for a program.

use serde::{Deserialize, Serialize};

use crate::error::{Error, with_sources};

/// A failed rebuild; nothing of it lives on. ckpt-restore prints it as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{}{text}", self.subject())]
pub struct Failure {
    /// The last part of the D-Bus error name: NotRestorable, IncompatibleKernel, FileMismatch, Corrupt, Unsupported, Failed.
    pub error: String,
    /// Unit, empty if it concerns none.
    pub unit: String,
    /// Process, 0 if it concerns none.
    pub pid: i32,
    /// What: `fd 7`, `mapping 7f12…`, a path; may be empty.
    pub object: String,
    /// What went wrong, one sentence without a full stop.
    pub text: String,
}

impl Failure {
    /// A failure that concerns no process yet.
    pub fn new(error: &str, text: impl Into<String>) -> Self {
        Self { error: error.into(), unit: String::new(), pid: 0, object: String::new(), text: text.into() }
    }

    /// The image cannot be restored here.
    pub fn not_restorable(text: impl Into<String>) -> Self {
        Self::new("NotRestorable", text)
    }

    /// The image holds what this program cannot rebuild.
    pub fn unsupported(text: impl Into<String>) -> Self {
        Self::new("Unsupported", text)
    }

    /// The image contradicts itself.
    pub fn corrupt(text: impl Into<String>) -> Self {
        Self::new("Corrupt", text)
    }

    /// An error of a layer below, with all its causes.
    pub fn from_error(error: &dyn std::error::Error) -> Self {
        Self::new("NotRestorable", with_sources(error))
    }

    /// Same, naming the process unless one is named.
    #[must_use]
    pub fn of_pid(mut self, pid: i32) -> Self {
        if self.pid == 0 {
            self.pid = pid;
        }
        self
    }

    /// Same, naming the object unless one is named.
    #[must_use]
    pub fn of_object(mut self, object: impl Into<String>) -> Self {
        if self.object.is_empty() {
            self.object = object.into();
        }
        self
    }

    /// Same, naming the unit unless one is named.
    #[must_use]
    pub fn of_unit(mut self, unit: impl Into<String>) -> Self {
        if self.unit.is_empty() {
            self.unit = unit.into();
        }
        self
    }

    /// `unit, pid, object: `, as far as known.
    fn subject(&self) -> String {
        let mut parts = Vec::new();
        if !self.unit.is_empty() {
            parts.push(self.unit.clone());
        }
        if self.pid != 0 {
            parts.push(format!("pid {}", self.pid));
        }
        if !self.object.is_empty() {
            parts.push(self.object.clone());
        }
        if parts.is_empty() { String::new() } else { format!("{}: ", parts.join(", ")) }
    }

    /// The engine's error for it, for this checkpoint.
    #[must_use]
    pub fn into_error(self, group: &str, id: &str) -> Error {
        let why = self.to_string();
        match self.error.as_str() {
            "IncompatibleKernel" => Error::IncompatibleKernel(why),
            "FileMismatch" => Error::FileMismatch { path: self.object, why: self.text },
            "Corrupt" => Error::Corrupt { path: "the image".into(), why },
            "Unsupported" => Error::Unsupported(why),
            _ => Error::NotRestorable { group: group.into(), id: id.into(), why },
        }
    }
}

impl From<ckpt_sys::Error> for Failure {
    fn from(error: ckpt_sys::Error) -> Self {
        Self::from_error(&error)
    }
}

impl From<ckpt_image::ImageError> for Failure {
    fn from(error: ckpt_image::ImageError) -> Self {
        let error = Error::from(error);
        Self::new(error.name(), error.to_string())
    }
}

impl From<super::tree::TreeError> for Failure {
    fn from(error: super::tree::TreeError) -> Self {
        Self::from_error(&error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_where_and_why() {
        let failure = Failure::not_restorable("the pid is taken").of_pid(7).of_unit("a.service").of_pid(8);
        assert_eq!(failure.to_string(), "a.service, pid 7: the pid is taken");
        assert_eq!(Failure::unsupported("x").to_string(), "x");
        assert_eq!(failure.into_error("g", "1").name(), "NotRestorable");
    }
}
