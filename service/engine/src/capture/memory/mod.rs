//! The memory of members, from their address spaces into the image, in three stages:
//!
//! ```text
//! before the window   Plan::prepare     refusals, how much it will be, memory to hold it
//! in the window       Capture::space    one address space: its record, which pages are to be copied     ┐ all threads
//!                     Capture::contents shared objects and unlinked files: which parts have data        │ stopped
//!                     Capture::copy     all pages into the arena, on two processors                     ┘
//! after the thaw      Copied::write     the arena into `pages`; zero pages and checksums are found here
//! ```
//! Which of a space's own pages are copied inside the window is up to a [`Selection`]: all of them, or what a tracker says.

mod classify;
mod copy;
mod files;
mod plan;
mod space;
mod write;

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::time::Instant;

use ckpt_image::Container;
use ckpt_image::records::{FileId, SpaceId, UnitIndex};
use ckpt_sys::AddrRange;
use ckpt_sys::arena::Arena;
use ckpt_sys::maps::Mapping;

use self::copy::{Piece, Source};
use super::files::data_ranges;
use super::{Files, Objects};
use crate::{Error, Problem};

pub use classify::{Class, ObjectClass, Refusal, classify};
pub use plan::{Plan, Survey, survey};
pub use write::Copied;

const PAGE: u64 = ckpt_image::PAGE_SIZE;

/// A process whose memory is captured.
#[derive(Debug, Clone, Copy)]
pub struct Member<'a> {
    /// Its id, as problems name it.
    pub pid: i32,
    /// A thread of it that lives: /proc of a leader that ended shows no memory.
    pub tid: i32,
    /// Its unit.
    pub unit: UnitIndex,
    /// The unit's name, as problems name it.
    pub unit_name: &'a str,
}

impl Member<'_> {
    /// A problem with an object of this process.
    fn problem(&self, object: String, refusal: Refusal) -> Problem {
        Problem {
            code: refusal.code.into(),
            severity: crate::Severity::Error,
            unit: self.unit_name.into(),
            pid: self.pid,
            object,
            text: refusal.text.into(),
            remedy: refusal.remedy.into(),
        }
    }
}

/// Why memory could not be captured.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] ckpt_sys::Error),
    /// The window would have become longer than it may be.
    #[error("{bytes} bytes of memory could not be copied in time")]
    Deadline {
        /// All that was to be copied.
        bytes: u64,
    },
    /// The copying thread died.
    #[error("the copying thread ended unexpectedly")]
    Thread,
    /// A shared object or an unlinked file could not be read.
    #[error("cannot read the content of {container:?}")]
    Content {
        /// Whose content.
        container: Container,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// There is not enough memory to hold the copy.
    #[error("the copy of the group's memory needs {need} bytes, {available} bytes are available")]
    NoMemory {
        /// Bytes needed.
        need: u64,
        /// Bytes that could be had (MemAvailable).
        available: u64,
    },
    /// A file of /proc could not be read.
    #[error("cannot read {path}")]
    Proc {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl MemoryError {
    /// In the words of the contract.
    pub fn for_group(self, group: &str) -> Error {
        match self {
            Self::NoMemory { .. } => Error::NoSpace(self.to_string()),
            Self::Deadline { .. } => Error::FreezeTimeout { group: group.into(), why: self.to_string() },
            other => {
                let mut text = other.to_string();
                let mut source = std::error::Error::source(&other);
                while let Some(cause) = source {
                    text.push_str(&format!(": {cause}"));
                    source = cause.source();
                }
                Error::Failed(text)
            }
        }
    }
}

/// Chooses, in the window, which of the pages that a mapping owns are copied there.
pub trait Selection: Send {
    /// Takes away from `own` (ascending) what need not be copied: it is in the parent image and was not written since, or was
    /// copied before the window.
    fn select(&mut self, space: SpaceId, mapping: &Mapping, own: &mut Vec<AddrRange>);
}

/// Every page: a full image, copied in the window.
#[derive(Debug, Clone, Copy, Default)]
pub struct Everything;

impl Selection for Everything {
    fn select(&mut self, _: SpaceId, _: &Mapping, _: &mut Vec<AddrRange>) {}
}

/// A mapped file by what maps shows of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Shown {
    unit: UnitIndex,
    dev: (u32, u32),
    ino: u64,
    path: PathBuf,
    deleted: bool,
    shared: bool,
}

/// The window's stage. Made by [`Plan::begin`].
pub struct Capture {
    arena: Arena,
    selection: Box<dyn Selection>,
    shm_dev: (u32, u32),
    sources: Vec<Source>,
    pieces: Vec<Piece>,
    /// Mapped files that were met, so that each is opened once.
    known: HashMap<Shown, FileId>,
    problems: Vec<Problem>,
}

impl Capture {
    /// What was met that cannot be captured; if any, the checkpoint must not go on.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Bytes that [`Capture::copy`] will copy.
    pub fn bytes(&self) -> u64 {
        self.pieces.iter().map(Piece::bytes).sum()
    }

    /// Adds the contents of all shared objects and unlinked files that the registries hold. Call it when both are complete.
    pub fn contents(&mut self, files: &Files, objects: &Objects) -> Result<(), MemoryError> {
        for record in objects.records() {
            if let Some(fd) = objects.descriptor(record.id) {
                self.content(Container::Object(record.id), record.size, fd)?;
            }
        }
        for (id, size, fd) in files.contents() {
            self.content(Container::File(id), size, fd)?;
        }
        Ok(())
    }

    fn content(&mut self, container: Container, size: u64, fd: BorrowedFd<'_>) -> Result<(), MemoryError> {
        let failed = |source| MemoryError::Content { container, source };
        // A description of our own: seeking for data must not move the member's offset.
        let file = File::open(format!("/proc/self/fd/{}", fd.as_raw_fd())).map_err(failed)?;
        let ranges = data_ranges(file.as_fd(), size).map_err(|errno| failed(errno.into()))?;
        let source = self.sources.len();
        let mut done = 0;
        for (start, len) in ranges {
            let first = (start / PAGE).max(done);
            let end = (start + len).div_ceil(PAGE);
            if first < end {
                self.pieces.push(Piece { container, source, first, count: end - first });
                done = end;
            }
        }
        self.sources.push(Source::File(file, size));
        Ok(())
    }

    /// Copies everything. `deadline`: give up past it (Deadline).
    pub fn copy(mut self, deadline: Option<Instant>) -> Result<Copied, MemoryError> {
        let bytes = self.bytes() as usize;
        if self.arena.len() < bytes {
            self.arena = Arena::new(bytes)?;
        }
        copy::copy(&self.sources, &self.pieces, &mut self.arena[..bytes], deadline)?;
        Ok(Copied { arena: self.arena, pieces: self.pieces })
    }
}

impl std::fmt::Debug for Capture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Capture")
            .field("pieces", &self.pieces.len())
            .field("problems", &self.problems)
            .finish()
    }
}
