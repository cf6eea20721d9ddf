//! `none`: nothing tells what was written, so the contents are compared: by a hash of 128 bits with a secret seed, page by page.
//!
//! A page that has the same content at the same address as when it was stored may stay with the parent, whatever happened to the
//! mapping in between.

use std::collections::HashMap;

use ckpt_image::Tracker as Kind;
use ckpt_sys::gather::gather;
use ckpt_sys::inject::Live;
use ckpt_sys::maps::Mapping;
use ckpt_sys::pagemap::{Found, Pagemap, Tracked, Wanted};
use ckpt_sys::thread::Deadline;
use ckpt_sys::{AddrRange, Error as SysError};
use nix::unistd::Pid;

use super::{NewWatch, PageHasher, Tracker, Watch};

const PAGE: u64 = ckpt_image::PAGE_SIZE;
/// Bytes read at a time.
const CHUNK: u64 = 1 << 20;

/// The tracker.
#[derive(Debug)]
pub(super) struct Compare {
    hasher: PageHasher,
}

impl Compare {
    pub(super) fn new() -> Self {
        Self { hasher: PageHasher::new() }
    }
}

impl Tracker for Compare {
    fn kind(&self) -> Kind {
        Kind::None
    }

    fn watch(&self, members: &mut [&mut Live], _: Deadline) -> Result<Vec<NewWatch>, SysError> {
        let watch = |live: &&mut Live| -> NewWatch {
            Some(Box::new(Space {
                pid: live.pid(),
                hasher: self.hasher,
                pagemap: None,
                known: HashMap::new(),
                next: HashMap::new(),
                bytes: Vec::new(),
            }))
        };
        Ok(members.iter().map(watch).collect())
    }
}

/// One address space: a hash of each page as it was stored.
struct Space {
    pid: Pid,
    hasher: PageHasher,
    /// Open in the window.
    pagemap: Option<Pagemap>,
    known: HashMap<u64, u128>,
    next: HashMap<u64, u128>,
    bytes: Vec<u8>,
}

impl std::fmt::Debug for Space {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Space").field("pid", &self.pid).field("pages", &self.known.len()).finish()
    }
}

impl Space {
    fn compare(&mut self, range: AddrRange, found: &mut Tracked) -> Result<(), SysError> {
        self.bytes.resize(range.len() as usize, 0);
        gather(self.pid, &[range], &mut self.bytes)?;
        for (n, bytes) in self.bytes.chunks_exact(PAGE as usize).enumerate() {
            let at = range.start.add(n as u64 * PAGE);
            let hash = self.hasher.hash(bytes);
            let same = self.known.get(&at.0) == Some(&hash);
            self.next.insert(at.0, hash);
            let list = if same { &mut found.clean } else { &mut found.written };
            AddrRange::new(at, PAGE).append_to(list);
        }
        Ok(())
    }
}

impl Watch for Space {
    fn take(&mut self, mapping: &Mapping, wanted: Wanted, found: &mut Tracked) -> Result<(), SysError> {
        let mut own = Found::default();
        let pagemap = match &mut self.pagemap {
            Some(pagemap) => pagemap,
            none => none.insert(Pagemap::open(self.pid)?),
        };
        pagemap.scan(mapping.range, wanted, &mut own)?;
        found.guards.append(&mut own.guards);
        for pages in own.pages {
            let mut start = pages.start;
            while start < pages.end {
                let part = AddrRange::new(start, CHUNK.min(pages.end.0 - start.0));
                self.compare(part, found)?;
                start = part.end;
            }
        }
        Ok(())
    }

    fn settle(&mut self, _: &mut Live, _: Deadline) -> Result<(), SysError> {
        self.known = std::mem::take(&mut self.next);
        self.pagemap = None;
        self.bytes = Vec::new();
        Ok(())
    }
}
