//! What is kept of a group between two checkpoints: its watches, and the checkpoint that they rest on.
//!
//! ```text
//!  checkpoint N durable ─► Chain ─ taken out ─► checkpoint N+1 begins ─ durable ─► Chain
//!                                                      └ failed, canceled: dropped, and the next one is a full
//! ```
//! Watches of `wp-async` outlive ckptd: see `kept.rs`.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Instant;

use ckpt_image::records::SpaceId;
use ckpt_image::{Container, PAGE_SIZE};
use ckpt_sys::vdso::auxv_value;
use ckpt_sys::{Error as SysError, VirtAddr, remote, task};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_128;
use ulid::Ulid;

use super::{Tracker, Watch};

/// An address space across checkpoints: a process between two execs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SpaceKey {
    pid: i32,
    start_time: u64,
    /// Made anew by every exec: addresses, and the 16 random bytes that AT_RANDOM points to (getauxval(3)).
    auxv: Vec<u8>,
    random: [u8; 16],
}

impl SpaceKey {
    /// That of a process as it is now. Errors: it is gone.
    pub fn of(pid: Pid) -> Result<Self, SysError> {
        let start_time = task::start_time(pid)?;
        let path = format!("/proc/{pid}/auxv");
        let auxv = ckpt_sys::proc_file::read(&path).map_err(|e| SysError::io("read", path, &e))?;
        Ok(Self::new(pid, start_time, auxv))
    }

    /// The same where its start time (clock ticks since boot) and its raw auxiliary vector are known.
    pub fn new(pid: Pid, start_time: u64, auxv: Vec<u8>) -> Self {
        const AT_RANDOM: u64 = 25;
        let mut random = [0; 16];
        if let Some(at) = auxv_value(&auxv, AT_RANDOM) {
            // Unmapped by the program: the rest still tells.
            let _ = remote::read(pid, VirtAddr(at), &mut random);
        }
        Self { pid: pid.as_raw(), start_time, auxv, random }
    }

    /// The process.
    pub fn pid(&self) -> i32 {
        self.pid
    }
}

/// A watched space.
#[derive(Debug)]
pub struct WatchedSpace {
    /// Its number in the image of the last durable checkpoint; `None` where there is none yet.
    pub stored: Option<SpaceId>,
    /// What watches it; `None` where it cannot be watched: all of it is stored each time.
    pub watch: Option<Box<dyn Watch>>,
}

/// Hashes of what is stored of a shared object or an unlinked file: nobody watches those, their contents are compared.
#[derive(Debug, Clone, Default)]
pub struct ContentHashes {
    /// Its container in the image of the last durable checkpoint.
    pub container: Option<Container>,
    /// By page number.
    pub pages: HashMap<u64, u128>,
}

/// Device and inode number.
pub type Identity = (u64, u64);

/// How a group outran the copying.
#[derive(Debug, Clone, Copy)]
pub struct Outrun {
    /// From when on what it writes is counted.
    pub since: Instant,
    /// Bytes a second that were copied, up to the store.
    pub rate: f64,
}

impl Outrun {
    /// Whether it will do so again, by what it has written since. If it has become quieter meanwhile, or the time was long, it is tried.
    pub fn again(self, written: u64) -> bool {
        written as f64 >= 0.75 * self.rate * self.since.elapsed().as_secs_f64()
    }
}

/// The watches of a group.
#[derive(Debug)]
pub struct Chain {
    /// What watches.
    pub tracker: Arc<dyn Tracker>,
    /// The last durable checkpoint, if what is written since then is known.
    pub parent: Option<Ulid>,
    /// Its address spaces.
    pub spaces: HashMap<SpaceKey, WatchedSpace>,
    /// Its shared objects and unlinked files.
    pub contents: HashMap<Identity, ContentHashes>,
    /// The group wrote faster than it was copied, the last time.
    pub outrun: Option<Outrun>,
    hasher: PageHasher,
}

impl Chain {
    /// One without a checkpoint yet.
    pub fn new(tracker: Arc<dyn Tracker>) -> Self {
        let hasher = PageHasher::new();
        Self { tracker, parent: None, spaces: HashMap::new(), contents: HashMap::new(), outrun: None, hasher }
    }

    /// The hash of one page.
    pub fn hash(&self, page: &[u8]) -> u128 {
        self.hasher.hash(page)
    }
}

/// Hashes pages, to see whether they are what they were.
#[derive(Debug, Clone, Copy)]
pub struct PageHasher {
    /// Secret: nobody outside can make two pages collide on purpose without it.
    seed: u64,
}

impl PageHasher {
    /// One with a seed of its own.
    pub(super) fn new() -> Self {
        Self { seed: RandomState::new().hash_one(0) }
    }

    /// The hash of one page.
    pub fn hash(self, page: &[u8]) -> u128 {
        debug_assert_eq!(page.len() as u64, PAGE_SIZE);
        XxHash3_128::oneshot_with_seed(self.seed, page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_itself_and_no_other() {
        let here = SpaceKey::of(Pid::this()).unwrap();
        assert_eq!(here, SpaceKey::of(Pid::this()).unwrap());
        assert_ne!(here.random, [0; 16]);
        assert!(here.start_time > 0);
        assert_ne!(
            here,
            SpaceKey::of(Pid::from_raw(1)).unwrap_or_else(|_| SpaceKey { pid: 1, ..here.clone() })
        );
        assert!(SpaceKey::of(Pid::from_raw(i32::MAX)).is_err());
    }
}
