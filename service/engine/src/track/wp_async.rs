//! `wp-async`: userfaultfd write protection that the kernel lifts by itself at the first write, and PAGEMAP_SCAN (Linux 6.7).
//!
//! Only pages that exist are protected, so that no mark is left where nothing is. A page that comes into being later is not
//! protected, and so counts as written. What is not registered is not watched: mappings made or moved since, what a fork or an
//! exec made, what another userfaultfd has.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ckpt_image::Tracker as Kind;
use ckpt_sys::inject::Live;
use ckpt_sys::maps::Mapping;
use ckpt_sys::pagemap::{Census, Pagemap, Span, Tracked, Wanted};
use ckpt_sys::thread::Deadline;
use ckpt_sys::write_watch::{self, WriteWatch};
use ckpt_sys::{AddrRange, Error as SysError, VirtAddr};
use nix::unistd::Pid;

use super::{NewWatch, Trace, Tracker, Watch, Watched};
use crate::parallel;

/// Bytes of a mapping that one thread looks at before another may take the next: a quarter of a millisecond where nothing was written.
const PART: u64 = 256 << 20;

/// The tracker.
#[derive(Debug)]
pub(super) struct WpAsync;

/// Whether the machine has it; the error says why not.
pub(super) fn probe() -> Result<(), String> {
    write_watch::probe()
        .map_err(|e| format!("the kernel has no asynchronous write protection (Linux 6.7): {e}"))
}

impl Tracker for WpAsync {
    fn kind(&self) -> Kind {
        Kind::WpAsync
    }

    fn is_live(&self) -> bool {
        true
    }

    fn watch(&self, members: &mut [&mut Live], deadline: Deadline) -> Result<Vec<NewWatch>, SysError> {
        let made = WriteWatch::create(members, deadline)?;
        let watch = |(live, watch): (&&mut Live, Option<WriteWatch>)| -> Result<NewWatch, SysError> {
            let Some(watch) = watch else { return Ok(None) };
            let pid = live.pid();
            let _watched = Watched::note(pid.as_raw());
            Ok(Some(Box::new(Space {
                pid,
                name: Trace::new_name(),
                area: live.area(),
                watch,
                pagemap: Pagemap::open(pid)?,
                census: Census::default(),
                seen: HashSet::new(),
                _watched,
            })))
        };
        members.iter().zip(made).map(watch).collect()
    }
}

/// A watch that systemd has kept. `None`: the process is gone.
pub(super) fn go_on(pid: i32, fd: OwnedFd, trace: Trace) -> NewWatch {
    let range = |(start, end)| AddrRange { start: VirtAddr(start), end: VirtAddr(end) };
    let pid = Pid::from_raw(pid);
    let space = Space {
        pid,
        name: trace.name,
        area: trace.area.map(range),
        watch: WriteWatch::of_owned(pid, fd)?,
        pagemap: Pagemap::open(pid).ok()?,
        census: Census::default(),
        seen: trace.seen.into_iter().map(range).collect(),
        _watched: Watched::note(pid.as_raw()),
    };
    Some(Box::new(space))
}

/// One address space.
#[derive(Debug)]
struct Space {
    pid: Pid,
    /// In systemd's store.
    name: String,
    /// The runner's pages in it: ours, never stored.
    area: Option<AddrRange>,
    watch: WriteWatch,
    pagemap: Pagemap,
    /// What it told in this window.
    census: Census,
    /// Mappings that were registered as a whole.
    seen: HashSet<AddrRange>,
    _watched: Watched,
}

impl Space {
    /// Registers a mapping whose pages are all to count as written. False where it cannot be.
    fn register(&mut self, range: AddrRange) -> bool {
        let done = self.watch.register(range).and_then(|()| self.watch.forget(range)).is_ok();
        if done {
            self.seen.insert(range);
        }
        done
    }
}

impl Watch for Space {
    fn trace(&self) -> Option<(BorrowedFd<'_>, Trace)> {
        let pair = |range: &AddrRange| (range.start.0, range.end.0);
        let area = self.area.as_ref().map(pair);
        let seen = self.seen.iter().map(pair).collect();
        Some((self.watch.as_fd(), Trace { name: self.name.clone(), area, seen }))
    }

    fn look(&mut self, spans: &[Span]) -> Result<(), SysError> {
        // It is of the address space that it was opened on: after an exec it would show the old one.
        self.pagemap = Pagemap::open(self.pid)?;
        let parts: Vec<Span> = spans.iter().flat_map(|span| span.parted(PART)).collect();
        self.census = match parts.len() == spans.len() {
            true => self.pagemap.census(spans)?,
            false => {
                let of = |part: &Span| Pagemap::open(self.pid)?.census(&[*part]);
                let taken = parallel::map(&parts, 2, of);
                Census::of_parts(taken.into_iter().collect::<Result<Vec<_>, _>>()?)
            }
        };
        Ok(())
    }

    fn take(&mut self, mapping: &Mapping, wanted: Wanted, found: &mut Tracked) -> Result<(), SysError> {
        let range = mapping.range;
        let mut here = Tracked::default();
        self.census.tracked(range, wanted, &mut here);
        if here.unwatched {
            self.seen.remove(&range);
            self.register(range);
        }
        self.pagemap.arm_all(&here.written, wanted)?;
        found.written.append(&mut here.written);
        found.clean.append(&mut here.clean);
        found.guards.append(&mut here.guards);
        found.unwatched |= here.unwatched;
        Ok(())
    }

    fn settle(&mut self, _: &mut Live, _: Deadline) -> Result<(), SysError> {
        self.census = Census::default();
        Ok(())
    }

    fn round(
        &mut self,
        mapping: &Mapping,
        wanted: Wanted,
        all: bool,
    ) -> Result<Option<Vec<AddrRange>>, SysError> {
        let mut written = Vec::new();
        if self.area == Some(mapping.range) {
            return Ok(Some(written));
        }
        if (all || !self.seen.contains(&mapping.range)) && !self.register(mapping.range) {
            // It is stored in the window, or it is gone.
            self.seen.remove(&mapping.range);
            return Ok(Some(written));
        }
        self.pagemap.take_written(mapping.range, wanted, &mut written)?;
        Ok(Some(written))
    }

    fn written(&mut self, mapping: &Mapping) -> u64 {
        if !self.seen.contains(&mapping.range) {
            return 0;
        }
        // A mapping that is gone was not written either.
        self.pagemap.written_bytes(mapping.range, Wanted::Own).unwrap_or(0)
    }
}
