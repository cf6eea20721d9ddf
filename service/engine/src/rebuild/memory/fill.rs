//! Pages into mappings: preadv(2) from the image, as many places as one call takes.

use std::collections::{BTreeMap, BTreeSet};

use ckpt_image::records::{MappingKind, MappingRecord, SpaceId};
use ckpt_image::{Container, PageReader, Place, Run};
use nix::libc;

use super::{Arg, Blob, FdRef, PAGE, Script, v};
use crate::track::PageSet;

/// IOV_MAX.
const MAX_PLACES: usize = 1024;
/// Below MAX_RW_COUNT, the most that one call reads.
const MAX_BYTES: u64 = 1 << 30;

/// The runs that must be put into a private mapping. Zero pages of anonymous memory are there by themselves; over a file they are not.
pub(super) fn runs(space: SpaceId, mapping: &MappingRecord, pages: &PageReader) -> Vec<Run> {
    if mapping.shared || matches!(mapping.kind, MappingKind::Vdso | MappingKind::Vvar) {
        return Vec::new();
    }
    let mut runs = pages.runs(Container::Space(space), mapping.start / PAGE, mapping.end / PAGE);
    if mapping.kind == MappingKind::Anonymous {
        runs.retain(|run| run.place != Place::Zero);
    }
    runs
}

/// A part of a run.
pub(super) fn part(run: &Run, first: u64, count: u64) -> Run {
    let place = match run.place {
        Place::File { image, offset } => Place::File { image, offset: offset + (first - run.first) * PAGE },
        Place::Zero => Place::Zero,
    };
    Run { first, count, place }
}

/// The parts of the runs that are in the set, or are not.
pub(super) fn those(runs: &[Run], set: &PageSet, wanted: bool) -> Vec<Run> {
    let parts = runs.iter().flat_map(|run| {
        let parts = set.split(run.first, run.count).into_iter();
        parts.filter(|(.., within)| *within == wanted).map(|(first, count, _)| part(run, first, count))
    });
    parts.collect()
}

/// Runs of the pages that are in `hot`, and of the others.
pub(super) fn split(runs: &[Run], hot: &BTreeSet<u64>) -> (Vec<Run>, Vec<Run>) {
    let (mut now, mut late) = (Vec::new(), Vec::new());
    for run in runs {
        let mut at = run.first;
        let end = run.first + run.count;
        let piece = |from: u64, to: u64| part(run, from, to - from);
        for page in hot.range(run.first..end) {
            if *page > at {
                late.push(piece(at, *page));
            }
            now.push(piece(*page, page + 1));
            at = page + 1;
        }
        if at < end {
            late.push(piece(at, end));
        }
    }
    (now, late)
}

/// One call in the making.
#[derive(Default)]
struct Vector {
    /// Address and length of each place.
    places: Vec<(u64, u64)>,
    bytes: u64,
    /// Where in the file it begins.
    offset: u64,
}

impl Vector {
    fn add(&mut self, fd: FdRef, offset: u64, addr: u64, len: u64, script: &mut Script) {
        let mut done = 0;
        while done < len {
            let (addr, offset) = (addr + done, offset + done);
            let follows = fd == FdRef::Zero || self.offset + self.bytes == offset;
            if !follows || self.places.len() == MAX_PLACES || self.bytes == MAX_BYTES {
                self.flush(fd, script);
            }
            if self.places.is_empty() {
                self.offset = offset;
            }
            let part = (len - done).min(MAX_BYTES - self.bytes);
            match self.places.last_mut() {
                Some((last, count)) if *last + *count == addr => *count += part,
                _ => self.places.push((addr, part)),
            }
            self.bytes += part;
            done += part;
        }
    }

    fn flush(&mut self, fd: FdRef, script: &mut Script) {
        if self.places.is_empty() {
            return;
        }
        let count = self.places.len() as u64;
        let bytes =
            self.places.iter().flat_map(|(addr, len)| [addr.to_le_bytes(), len.to_le_bytes()].concat());
        let blob = script.blob(Blob { bytes: bytes.collect(), ..Blob::default() });
        let offset = if fd == FdRef::Zero { 0 } else { self.offset };
        script.exactly(
            libc::SYS_preadv,
            [Arg::Fd(fd), Arg::Data(blob), v(count), v(offset), v(0), v(0)],
            self.bytes,
        );
        *self = Self::default();
    }
}

/// The calls that fill all mappings; `filled` has the runs of each.
pub(super) fn fill(filled: &[Vec<Run>], script: &mut Script) {
    let (mut stored, mut zero) = (BTreeMap::<usize, Vector>::new(), Vector::default());
    for runs in filled {
        for run in runs {
            let (addr, len) = (run.first * PAGE, run.count * PAGE);
            match run.place {
                Place::File { image, offset } => {
                    stored.entry(image).or_default().add(FdRef::Pages(image), offset, addr, len, script);
                }
                Place::Zero => zero.add(FdRef::Zero, 0, addr, len, script),
            }
        }
    }
    for (image, mut vector) in stored {
        vector.flush(FdRef::Pages(image), script);
    }
    zero.flush(FdRef::Zero, script);
}
