//! Copying while the group runs: what is written meanwhile is copied again, until what is left is small enough for the window.
//!
//! ```text
//!  scan + arm a mapping ─► copy its written pages ─► pipe ─► `pages`
//!        ▲                     this thread
//!        └──── next mapping; next round
//! ```
//! A group that writes faster than it is copied is not copied again and again: its rest is left for the window, where a frozen copy
//! takes it (`frozen_copies.rs`).
//!
//! A page is armed before it is copied, so what is written after the copy is found by the next round, or in the window. In the window
//! a page that is still clean is where the rounds put it; one that was armed and could not be copied is copied there.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::{Duration, Instant};

use ckpt_image::records::SpaceId;
use ckpt_image::{Container, PagesWriter};
use ckpt_sys::gather::gather;
use ckpt_sys::maps::{MapName, Mapping, read_maps};
use ckpt_sys::pagemap::Wanted;
use ckpt_sys::{AddrRange, VirtAddr};
use nix::unistd::Pid;

use super::direct::writes_directly;
use super::pipe::{self, CHUNK, Chunk, Pipe, piped};
use crate::api::Job;
use crate::error::Error;
use crate::track::{Chain, Outrun, PageSet, SpaceKey, WatchedSpace};

const PAGE: u64 = ckpt_image::PAGE_SIZE;
/// A rest that is not worth another round.
const SMALL: u64 = 1 << 20;
/// A rest that does not become smaller is copied no more from here on.
const LARGE: u64 = 32 << 20;
/// Rounds at most.
const ROUNDS: u32 = 12;

/// What the rounds did with one address space.
#[derive(Debug)]
pub struct Early {
    /// Where its pages are in `pages` until its number in the image is known.
    pub provisional: Container,
    /// Pages that were armed in a round.
    pub armed: PageSet,
    /// Pages that were copied after they had been armed.
    pub copied: PageSet,
    /// Devices may have written to what was copied without that anybody saw it (`direct.rs`): it is copied again.
    pub distrusted: bool,
}

impl Early {
    /// Pages were armed, and what was copied of them before may be old now.
    fn arm(&mut self, range: AddrRange) {
        let (first, count) = (range.start.0 / PAGE, range.len() / PAGE);
        self.armed.insert(first, count);
        self.copied.remove(first, count);
    }
}

/// The image as far as it was written while the group ran.
#[derive(Debug)]
pub struct Precopy {
    /// The file `pages`.
    pub pages: PagesWriter,
    /// By address space.
    pub spaces: HashMap<SpaceKey, Early>,
    /// Bytes that the last round found written: about what is left for the window.
    pub rest: u64,
    /// What is to be copied is left for frozen copies: the group writes faster than it is copied, or its tracker knows no rounds.
    pub diverges: bool,
    /// How fast memory was read.
    pub speed: Speed,
    /// Bytes a second that the last large round copied, up to the store.
    rate: f64,
    /// Address spaces that devices write to: left for the window.
    direct: HashSet<SpaceKey>,
}

/// How fast members' memory is copied into ours, as the rounds have measured it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Speed {
    bytes: u64,
    time: Duration,
}

impl Speed {
    /// So many bytes took so long.
    pub fn measured(bytes: u64, time: Duration) -> Self {
        Self { bytes, time }
    }

    /// How long so many bytes will take; by a usual machine's speed where little was measured.
    pub fn time_for(self, bytes: u64) -> Duration {
        const USUAL: u64 = 3 << 30;
        let rate = match self.bytes {
            0..0x100_0000 => USUAL as f64,
            measured => (measured as f64 / self.time.as_secs_f64().max(1e-6)).clamp(1e5, 2e10),
        };
        Duration::from_secs_f64(bytes as f64 / rate)
    }
}

impl Precopy {
    /// Begins the image; nothing is copied yet. Errors: NoSpace, Io.
    pub fn begin(directory: &Path) -> Result<Self, Error> {
        Ok(Self {
            pages: PagesWriter::create(directory)?,
            spaces: HashMap::new(),
            rest: 0,
            diverges: false,
            speed: Speed::default(),
            rate: 0.0,
            direct: HashSet::new(),
        })
    }

    /// Rounds until the rest is small or does not become smaller, each with all on the disk that was copied before.
    ///
    /// Errors: NoSpace, Canceled, Io.
    pub fn run(&mut self, chain: &mut Chain, job: &dyn Job) -> Result<(), Error> {
        if !chain.tracker.is_live() {
            self.diverges = chain.parent.is_none();
            return Ok(());
        }
        self.direct = chain.spaces.keys().filter(|key| writes_directly(key.pid())).cloned().collect();
        if let Some(before) = chain.outrun.take().filter(|_| chain.parent.is_some()) {
            let written = written(chain);
            if written >= LARGE && before.again(written) {
                self.outrun(chain, written, before.rate);
                return Ok(());
            }
        }
        self.rest = self.round(chain, chain.parent.is_none(), job)?;
        for _ in 1..ROUNDS {
            if self.rest <= SMALL {
                break;
            }
            // What the disk has not got yet the barrier would wait for, as everybody does who flushes the file system: it counts.
            self.pages.sync()?;
            let written = written(chain);
            if is_endless(written, self.rest) {
                self.outrun(chain, written, self.rate);
                break;
            }
            let bytes = self.round(chain, false, job)?;
            let shrinks = bytes < self.rest - self.rest / 4;
            self.rest = bytes;
            if !shrinks {
                break;
            }
        }
        Ok(())
    }

    fn outrun(&mut self, chain: &mut Chain, written: u64, rate: f64) {
        (self.diverges, self.rest) = (true, written);
        chain.outrun = Some(Outrun { since: Instant::now(), rate });
    }

    /// The round just before the window, if there were others: what was written during the barrier.
    ///
    /// Errors: as [`Precopy::run`].
    pub fn last_round(&mut self, chain: &mut Chain, job: &dyn Job) -> Result<(), Error> {
        if !self.spaces.is_empty() && !self.diverges {
            self.rest = self.round(chain, false, job)?;
        }
        Ok(())
    }

    /// One round over all that is watched: bytes that were written since the last. With `all`, bytes that there are.
    ///
    /// Errors: as [`Precopy::run`].
    pub fn round(&mut self, chain: &mut Chain, all: bool, job: &dyn Job) -> Result<u64, Error> {
        let begun = Instant::now();
        let Self { pages, spaces, speed, direct, .. } = self;
        let (bytes, read) = piped(pages, |pipe| {
            let mut line = Line { pipe, bytes: 0, speed: Speed::default(), job };
            for (key, watched) in chain.spaces.iter_mut().filter(|(key, _)| !direct.contains(key)) {
                let provisional = Container::Space(SpaceId(u32::MAX - spaces.len() as u32));
                let fresh = || Early {
                    provisional,
                    armed: PageSet::default(),
                    copied: PageSet::default(),
                    distrusted: false,
                };
                line.space(key, watched, spaces.entry(key.clone()).or_insert_with(fresh), all)?;
            }
            Ok((line.bytes, line.speed))
        })?;
        if read.bytes > 0 {
            *speed = read;
        }
        if bytes >= LARGE {
            self.rate = bytes as f64 / begun.elapsed().as_secs_f64();
        }
        Ok(bytes)
    }
}

/// Whether what was written is too much for another round, and about as much as before.
fn is_endless(written: u64, before: u64) -> bool {
    written >= LARGE && written >= before - before / 4
}

/// Bytes that were written since the last round, by a look that changes nothing.
fn written(chain: &mut Chain) -> u64 {
    let mut written = 0;
    for (key, watched) in &mut chain.spaces {
        let Some(watch) = &mut watched.watch else { continue };
        let maps = read_maps(Pid::from_raw(key.pid())).unwrap_or_default();
        written += maps.iter().filter(|m| has_own_pages(m)).map(|m| watch.written(m)).sum::<u64>();
    }
    written
}

/// This thread's end of the way to the disk.
struct Line<'a> {
    pipe: &'a Pipe,
    bytes: u64,
    speed: Speed,
    job: &'a dyn Job,
}

impl Line<'_> {
    fn space(
        &mut self,
        key: &SpaceKey,
        watched: &mut WatchedSpace,
        early: &mut Early,
        all: bool,
    ) -> Result<(), Error> {
        let Some(watch) = &mut watched.watch else { return Ok(()) };
        let pid = Pid::from_raw(key.pid());
        let Ok(maps) = read_maps(pid) else { return Ok(()) }; // it has ended
        for mapping in maps.iter().filter(|mapping| has_own_pages(mapping)) {
            // In a private mapping of a file the zero page hides the file.
            let wanted = match mapping.name {
                MapName::File { .. } => Wanted::OwnOrZero,
                _ => Wanted::Own,
            };
            let written = match watch.round(mapping, wanted, all) {
                Ok(Some(written)) => written,
                Ok(None) => return Ok(()),
                // It is gone meanwhile, or was changed; what of it was armed nobody knows: the window copies it.
                Err(_) => {
                    early.arm(mapping.range);
                    continue;
                }
            };
            written.iter().for_each(|range| early.arm(*range));
            self.copy(pid, &written, early)?;
        }
        Ok(())
    }

    /// Copies pages of a running process; those that cannot be read any more are left out.
    fn copy(&mut self, pid: Pid, ranges: &[AddrRange], early: &mut Early) -> Result<(), Error> {
        let mut open: Vec<AddrRange> = Vec::new();
        let mut bytes = 0;
        for range in ranges {
            let mut start = range.start;
            while start < range.end {
                let part = AddrRange::new(start, (CHUNK - bytes).min(range.end.0 - start.0));
                bytes += part.len();
                start = part.end;
                open.push(part);
                if bytes == CHUNK {
                    self.send(pid, &std::mem::take(&mut open), early)?;
                    bytes = 0;
                }
            }
        }
        if open.is_empty() { Ok(()) } else { self.send(pid, &open, early) }
    }

    fn send(&mut self, pid: Pid, ranges: &[AddrRange], early: &mut Early) -> Result<(), Error> {
        if self.job.canceled() {
            return Err(Error::Canceled);
        }
        let total: u64 = ranges.iter().map(AddrRange::len).sum();
        let mut bytes = self.pipe.buffer(total);
        let begun = Instant::now();
        let mut there: Vec<AddrRange> = ranges.to_vec();
        if gather(pid, ranges, &mut bytes).is_err() {
            // Something of it was unmapped: one by one.
            (there, bytes) = (Vec::new(), Vec::new());
            for range in ranges {
                let mut part = vec![0; range.len() as usize];
                if gather(pid, &[*range], &mut part).is_ok() {
                    there.push(*range);
                    bytes.append(&mut part);
                }
            }
        }
        self.speed.bytes += total;
        self.speed.time += begun.elapsed();
        let pieces: Vec<_> = there.iter().map(|range| (range.start.0 / PAGE, range.len() / PAGE)).collect();
        for (first, count) in &pieces {
            early.copied.insert(*first, *count);
        }
        self.bytes += total;
        let chunk = Chunk { container: early.provisional, pieces, bytes };
        if self.pipe.send(chunk) { Ok(()) } else { Err(pipe::ended()) }
    }
}

/// Private memory that the kernel does not make itself.
fn has_own_pages(mapping: &Mapping) -> bool {
    let special = |name: &str| matches!(name, "vdso" | "vsyscall") || name.starts_with("vvar");
    let kernels = matches!(&mapping.name, MapName::Special(name) if special(name));
    !mapping.shared && !kernels && mapping.range.end <= VirtAddr(1 << 47)
}
