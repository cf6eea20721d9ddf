//! The memory of members, from their address spaces into the image, in three stages:
//!
//! ```text
//! before the window   Plan              refusals, how much it will be, memory to hold it
//! in the window       Capture::space    one address space: its record, which pages are to be copied     ┐ all threads
//!                     Capture::contents shared objects and unlinked files: which parts have data        │ threads
//!                     Capture::leave    what a frozen copy of the process holds is copied later             │ stopped
//!                     Capture::copy     all other pages into the arena, on two processors               ┘
//! after the thaw      Copied::write     frozen copies and arena into `pages`; zero pages and checksums are found here
//! ```
//! What a space's [`Watch`](crate::track::Watch) says was not written since the parent stays with the parent; so do pages of shared
//! objects and unlinked files whose hash is as it was.

mod classify;
mod contents;
mod copy;
mod files;
mod kept;
mod later;
mod plan;
mod space;
mod write;

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Instant;

use ckpt_image::Container;
use ckpt_image::records::{DescriptionId, FileId, UnitIndex};
use ckpt_sys::VirtAddr;
use ckpt_sys::arena::Arena;
use ckpt_sys::inject::FrozenCopy;

use self::copy::{Piece, Source};
use self::later::Later;
use super::{Files, Objects};
use crate::track::{Chain, Identity};
use crate::{Error, Problem};

pub use classify::{Class, ObjectClass, Refusal, classify};
pub use plan::{Plan, Survey, available, is_aio, survey};
pub use space::{Before, Looked, SpaceInput};
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

/// What an incremental's image tells of a container besides the pages that it stores.
#[derive(Debug)]
pub(crate) struct Told {
    pub container: Container,
    /// The container of the parent image that has the pages.
    pub inherits: Option<Container>,
    /// Pages that are as the parent has them: first, count.
    pub parents: Vec<(u64, u64)>,
    /// Where its pages were put before the window.
    pub early: Option<Container>,
    /// Pages that were put there and are no more what they were.
    pub stale: Vec<(u64, u64)>,
    /// Device and inode number, where the content is compared by hashes.
    pub identity: Option<Identity>,
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
    sources: Vec<Source>,
    pieces: Vec<Piece>,
    /// Those that a copy of the process would have too (fork(2)).
    inherited: Vec<Piece>,
    /// What frozen copies hold.
    later: Vec<Later>,
    told: Vec<Told>,
    /// Mapped files that were met, so that each is opened once.
    known: HashMap<Shown, FileId>,
    before: Before,
    /// Rings of io_uring(7), by inode.
    rings: HashMap<u64, DescriptionId>,
    /// Contexts of kernel AIO in which nothing is under way, by process and the address of the ring: events asked for.
    contexts: HashMap<(i32, VirtAddr), u32>,
    /// Bytes of each process's own, as they were then.
    own: HashMap<i32, u64>,
    problems: Vec<Problem>,
}

impl Capture {
    /// What was met that cannot be captured; if any, the checkpoint must not go on.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// What was seen before the window.
    pub fn before(&self) -> &Before {
        &self.before
    }

    /// The rings of io_uring(7) that were captured, by inode: they have the content of their mappings.
    pub fn know_rings(&mut self, rings: HashMap<u64, DescriptionId>) {
        self.rings = rings;
    }

    /// The contexts of kernel AIO that are quiet, by process and the address of the ring: how many events each was asked for.
    pub fn know_contexts(&mut self, contexts: HashMap<(i32, VirtAddr), u32>) {
        self.contexts = contexts;
    }

    /// Bytes that [`Capture::copy`] will copy.
    pub fn bytes(&self) -> u64 {
        self.pieces.iter().chain(&self.inherited).map(Piece::bytes).sum()
    }

    /// By process: bytes of those that a frozen copy of it would hold.
    pub fn inherited(&self) -> HashMap<i32, u64> {
        let mut bytes = HashMap::new();
        for piece in &self.inherited {
            if let Source::Memory(pid) = &self.sources[piece.source] {
                *bytes.entry(pid.as_raw()).or_default() += piece.bytes();
            }
        }
        bytes
    }

    /// Bytes of each process's own, before the window.
    pub fn own_bytes(&self) -> &HashMap<i32, u64> {
        &self.own
    }

    /// Leaves what a frozen copy of a process holds for after the window.
    pub fn leave(&mut self, pid: i32, copy: FrozenCopy) {
        let sources = &self.sources;
        let is_its =
            |piece: &Piece| matches!(sources[piece.source], Source::Memory(of) if of.as_raw() == pid);
        let (its, others) = std::mem::take(&mut self.inherited).into_iter().partition(is_its);
        self.inherited = others;
        self.later.push(Later::new(copy, its));
    }

    /// Adds the contents of all shared objects and unlinked files that the registries hold. Call it when both are complete. With
    /// a `chain` that has a parent, pages with the hash that it knows stay with the parent.
    pub fn contents(
        &mut self,
        files: &Files,
        objects: &Objects,
        chain: Option<&Chain>,
    ) -> Result<(), MemoryError> {
        for record in objects.records() {
            if let Some(fd) = objects.descriptor(record.id) {
                self.content(Container::Object(record.id), record.size, fd, chain)?;
            }
        }
        for (id, size, fd) in files.contents() {
            self.content(Container::File(id), size, fd, chain)?;
        }
        Ok(())
    }

    /// Copies everything. `deadline`: give up past it (Deadline).
    pub fn copy(mut self, deadline: Option<Instant>) -> Result<Copied, MemoryError> {
        let bytes = self.bytes() as usize;
        self.pieces.append(&mut self.inherited);
        if self.arena.len() < bytes {
            self.arena = Arena::new(0)?; // what is there already is free for it
            plan::room_for(bytes as u64)?;
            self.arena = Arena::new(bytes)?;
        }
        copy::copy(&self.sources, &self.pieces, &mut self.arena[..bytes], deadline)?;
        Ok(Copied { arena: self.arena, pieces: self.pieces, later: self.later, told: self.told })
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
