//! Copying while the group runs: what is written meanwhile is copied again, until what is left is small enough for the window.
//!
//! ```text
//!  scan + arm a mapping ─► copy its written pages ─► channel, 4 chunks ─► zero pages, checksums, `pages`
//!        ▲                     this thread                                  a thread of its own
//!        └──── next mapping; next round
//! ```
//! A page is armed before it is copied, so what is written after the copy is found by the next round, or in the window. In the window
//! a page that is still clean is where the rounds put it; one that was armed and could not be copied is copied there.

use std::collections::HashMap;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use ckpt_image::records::SpaceId;
use ckpt_image::{Container, ImageError, PagesWriter};
use ckpt_sys::gather::gather;
use ckpt_sys::maps::{MapName, Mapping, read_maps};
use ckpt_sys::pagemap::Wanted;
use ckpt_sys::{AddrRange, VirtAddr};
use nix::unistd::Pid;

use crate::api::Job;
use crate::error::Error;
use crate::track::{Chain, PageSet, SpaceKey, WatchedSpace};

const PAGE: u64 = ckpt_image::PAGE_SIZE;
/// Bytes copied at a time.
const CHUNK: u64 = 4 << 20;
/// Chunks on their way to the disk.
const QUEUE: usize = 4;
/// A rest that is not worth another round.
const SMALL: u64 = 1 << 20;
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
}

/// Pages of one space, on their way.
struct Chunk {
    container: Container,
    /// First page, number of pages.
    pieces: Vec<(u64, u64)>,
    bytes: Vec<u8>,
}

impl Precopy {
    /// Begins the image; nothing is copied yet. Errors: NoSpace, Io.
    pub fn begin(directory: &Path) -> Result<Self, Error> {
        Ok(Self { pages: PagesWriter::create(directory)?, spaces: HashMap::new(), rest: 0 })
    }

    /// Rounds until the rest is small or does not become smaller, with all that was copied on the disk before the last.
    ///
    /// Errors: NoSpace, Canceled, Io.
    pub fn run(&mut self, chain: &mut Chain, job: &dyn Job) -> Result<(), Error> {
        if !chain.tracker.is_live() {
            return Ok(());
        }
        let mut last = self.round(chain, chain.parent.is_none(), job)?;
        if last > SMALL {
            for _ in 1..ROUNDS {
                let bytes = self.round(chain, false, job)?;
                let shrinks = bytes < last - last / 4;
                last = bytes;
                if bytes <= SMALL || !shrinks {
                    break;
                }
            }
            // What the disk has not got yet would be waited for by everybody who flushes the file system.
            self.pages.sync()?;
            last = self.round(chain, false, job)?;
        }
        self.rest = last;
        Ok(())
    }

    /// The round just before the window, if there were others: what was written during the barrier.
    ///
    /// Errors: as [`Precopy::run`].
    pub fn last_round(&mut self, chain: &mut Chain, job: &dyn Job) -> Result<(), Error> {
        if !self.spaces.is_empty() {
            self.rest = self.round(chain, false, job)?;
        }
        Ok(())
    }

    /// One round over all that is watched: bytes that were written since the last. With `all`, bytes that there are.
    ///
    /// Errors: as [`Precopy::run`].
    pub fn round(&mut self, chain: &mut Chain, all: bool, job: &dyn Job) -> Result<u64, Error> {
        let Self { pages, spaces, .. } = self;
        let (to_disk, chunks) = sync_channel(QUEUE);
        let (back, used) = channel();
        let mut line = Line { to_disk: Some(to_disk), used, bytes: 0, job };
        let written = std::thread::scope(|scope| {
            let writer = std::thread::Builder::new()
                .name("ckpt-write".into())
                .spawn_scoped(scope, move || write(pages, &chunks, &back))
                .map_err(|e| Error::io("start a thread that writes", e))?;
            let copied = chain.spaces.iter_mut().try_for_each(|(key, watched)| {
                let provisional = Container::Space(SpaceId(u32::MAX - spaces.len() as u32));
                let fresh = || Early { provisional, armed: PageSet::default(), copied: PageSet::default() };
                line.space(key, watched, spaces.entry(key.clone()).or_insert_with(fresh), all)
            });
            line.to_disk = None; // the end of the channel
            let written = writer.join().map_err(|_| Error::Failed("the thread that writes ended".into()))?;
            written?;
            copied.map_err(|stopped| match stopped {
                Stopped::Canceled => Error::Canceled,
                Stopped::Writer => Error::Failed("the thread that writes ended".into()),
            })
        });
        written?;
        Ok(line.bytes)
    }
}

/// Why a round ended early.
enum Stopped {
    Canceled,
    Writer,
}

/// This thread's end of the way to the disk.
struct Line<'a> {
    to_disk: Option<SyncSender<Chunk>>,
    used: Receiver<Vec<u8>>,
    bytes: u64,
    job: &'a dyn Job,
}

impl Line<'_> {
    fn space(
        &mut self,
        key: &SpaceKey,
        watched: &mut WatchedSpace,
        early: &mut Early,
        all: bool,
    ) -> Result<(), Stopped> {
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
    fn copy(&mut self, pid: Pid, ranges: &[AddrRange], early: &mut Early) -> Result<(), Stopped> {
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

    fn send(&mut self, pid: Pid, ranges: &[AddrRange], early: &mut Early) -> Result<(), Stopped> {
        if self.job.canceled() {
            return Err(Stopped::Canceled);
        }
        let total: u64 = ranges.iter().map(AddrRange::len).sum();
        let mut bytes = self.used.try_recv().unwrap_or_default();
        bytes.resize(total as usize, 0);
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
        let pieces: Vec<_> = there.iter().map(|range| (range.start.0 / PAGE, range.len() / PAGE)).collect();
        for (first, count) in &pieces {
            early.copied.insert(*first, *count);
        }
        self.bytes += total;
        let chunk = Chunk { container: early.provisional, pieces, bytes };
        let sent = self.to_disk.as_ref().map(|to_disk| to_disk.send(chunk).is_ok());
        if sent == Some(true) { Ok(()) } else { Err(Stopped::Writer) }
    }
}

/// Private memory that the kernel does not make itself.
fn has_own_pages(mapping: &Mapping) -> bool {
    let special = |name: &str| matches!(name, "vdso" | "vsyscall") || name.starts_with("vvar");
    let kernels = matches!(&mapping.name, MapName::Special(name) if special(name));
    !mapping.shared && !kernels && mapping.range.end <= VirtAddr(1 << 47)
}

/// The other end: until the channel ends or the disk refuses.
fn write(
    pages: &mut PagesWriter,
    chunks: &Receiver<Chunk>,
    back: &Sender<Vec<u8>>,
) -> Result<(), ImageError> {
    for chunk in chunks {
        let mut rest = &chunk.bytes[..];
        pages.append_all(chunk.pieces.iter().map(|(first, count)| {
            let (data, behind) = rest.split_at((count * PAGE) as usize);
            rest = behind;
            (chunk.container, *first, data)
        }))?;
        let _ = back.send(chunk.bytes);
    }
    Ok(())
}
