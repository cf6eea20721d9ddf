//! Private memory that a process and its maker have alike stays one: the maker has it before it makes the process, which keeps what it finds
//! (copy-on-write), and reads only what differs.
//!
//! ```text
//!  maker     mmap, preadv of what it and those that it makes have alike ── clone3(2) ──► keeps that, reads the rest
//!                └─────────────────────────────────► at its own turn: reads the rest
//! ```
//! What is alike is told by content, page by page at the same address, as the image does not tell what the kernel had shared.

use std::collections::BTreeMap;

use ckpt_image::records::{
    GroupImage, MappingKind, MappingRecord, ObjectRecord, Pid, ProcessRecord, SpaceId, SpaceRecord,
};
use ckpt_image::{PageReader, Place, Run};
use ckpt_sys::AddrRange;
use nix::libc;

use super::{Ground, PAGE, Script, fill, ground, maps, range_of, v};
use crate::error::with_sources;
use crate::rebuild::Failure;
use crate::rebuild::tree::{Plan, Step};
use crate::track::PageSet;

/// What a process has of memory before its own is made.
#[derive(Debug, Clone, Default)]
pub struct Left {
    areas: Vec<Area>,
    present: PageSet,
    /// Those of `present` that its own record has so.
    alike: PageSet,
}

/// A private anonymous mapping that was inherited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Area {
    range: AddrRange,
    /// Advice for huge pages, against them; MAP_NORESERVE.
    kind: (bool, bool, bool),
}

/// For all spaces of a group.
#[derive(Debug, Default)]
pub struct Heritage {
    stages: BTreeMap<SpaceId, Script>,
    left: BTreeMap<SpaceId, Left>,
}

/// Who makes whom.
#[derive(Debug, Default)]
struct Makers {
    /// Spaces with that of their maker, makers first.
    order: Vec<(SpaceId, Option<SpaceId>)>,
    /// The spaces made out of one.
    of: BTreeMap<SpaceId, Vec<SpaceId>>,
}

impl Heritage {
    /// What the plan's processes inherit. Errors: those of reading the image.
    pub fn of(image: &GroupImage, plan: &Plan, pages: &PageReader, ground: &Ground) -> Result<Self, Failure> {
        let makers = Makers::of(image, plan);
        let mut alike = BTreeMap::new();
        for (space, maker) in &makers.order {
            let (Some(space), Some(maker)) = (record(image, *space), maker.and_then(|m| record(image, m)))
            else {
                continue;
            };
            alike.insert(space.id, pages_alike(space, maker, pages, ground)?);
        }
        let mut heritage = Self::default();
        for (space, maker) in &makers.order {
            let Some(record) = record(image, *space) else { continue };
            let left = maker.and_then(|maker| heritage.left.get(&maker));
            let mut left = left.map(|left| left.passed_on(alike.get(space))).unwrap_or_default();
            if let Some(made) = makers.of.get(space) {
                let mut wanted = left.alike.clone();
                for set in made.iter().filter_map(|space| alike.get(space)) {
                    set.iter().for_each(|(first, count)| wanted.insert(first, count));
                }
                if wanted.iter().next().is_some() || !left.areas.is_empty() {
                    let (script, staged) = stage(record, &image.objects, pages, &left, &wanted);
                    heritage.stages.insert(*space, script);
                    left = staged;
                }
            }
            heritage.left.insert(*space, left);
        }
        Ok(heritage)
    }

    /// The calls that a process of this space makes before the first that has a space of its own out of it.
    pub fn stage(&self, space: SpaceId) -> Option<&Script> {
        self.stages.get(&space)
    }

    /// All such calls.
    pub fn stages(&self) -> impl Iterator<Item = &Script> {
        self.stages.values()
    }

    /// What is there when the script of a space begins.
    pub fn left(&self, space: SpaceId) -> Option<&Left> {
        self.left.get(&space)
    }
}

impl Makers {
    fn of(image: &GroupImage, plan: &Plan) -> Self {
        let records: BTreeMap<Pid, &ProcessRecord> = image.processes.iter().map(|p| (p.pid, p)).collect();
        let space = |pid: &Pid| records.get(pid)?.body.as_ref().map(|body| body.space);
        let (mut makers, mut out_of) = (Self::default(), BTreeMap::<Pid, Option<SpaceId>>::new());
        for step in &plan.steps {
            let Step::Create { pid, maker, share, .. } = step else { continue };
            let before = maker.and_then(|maker| out_of.get(&maker).copied().flatten());
            let own = space(pid);
            // A temporary process passes on what it got.
            out_of.insert(*pid, own.or(before));
            let Some(own) = own.filter(|_| !share.space) else { continue };
            makers.order.push((own, before));
            if let Some(maker) = before {
                makers.of.entry(maker).or_default().push(own);
            }
        }
        makers
    }
}

impl Left {
    /// What of a mapping is there, ascending.
    pub(super) fn kept(&self, mapping: &MappingRecord) -> Vec<AddrRange> {
        let Some(area) = heritable(mapping) else { return Vec::new() };
        let same = self.areas.iter().filter(|other| other.kind == area.kind);
        same.filter_map(|other| other.range.common(area.range)).collect()
    }

    /// Of the pages of a mapping those that have to be read.
    pub(super) fn unlike(&self, runs: &[Run]) -> Vec<Run> {
        fill::those(runs, &self.alike, false)
    }

    /// Lets go of the pages in `kept` that are neither as they are to be nor about to be read (`runs`).
    pub(super) fn drop_stale(&self, kept: &[AddrRange], runs: &[Run], script: &mut Script) {
        let mut stale = PageSet::default();
        for range in kept {
            let parts = self.present.split(range.start.0 / PAGE, range.len() / PAGE);
            parts.into_iter().filter(|part| part.2).for_each(|(first, count, _)| stale.insert(first, count));
        }
        let right = runs.iter().map(|run| (run.first, run.count)).chain(self.alike.iter());
        right.for_each(|(first, count)| stale.remove(first, count));
        for (first, count) in stale.iter() {
            let args = [v(first * PAGE), v(count * PAGE), v(libc::MADV_DONTNEED as u64), v(0), v(0), v(0)];
            script.must(libc::SYS_madvise, args);
        }
    }

    /// The same for a process that is made, which has these pages as its maker.
    fn passed_on(&self, alike: Option<&PageSet>) -> Self {
        let mut left = self.clone();
        left.alike = PageSet::default();
        for (first, count) in alike.into_iter().flat_map(PageSet::iter) {
            let parts = self.present.split(first, count).into_iter().filter(|part| part.2);
            parts.for_each(|(first, count, _)| left.alike.insert(first, count));
        }
        left
    }
}

/// The calls that leave the `wanted` pages of a space, and nothing else, in a process that has what is `left`; and what it has then.
fn stage(
    space: &SpaceRecord,
    objects: &[ObjectRecord],
    pages: &PageReader,
    left: &Left,
    wanted: &PageSet,
) -> (Script, Left) {
    let mut script = Script::default();
    let mut staged = Left { areas: Vec::new(), present: wanted.clone(), alike: wanted.clone() };
    let (mut mappings, mut filled, mut all_kept) = (Vec::new(), Vec::new(), Vec::<AddrRange>::new());
    for mapping in &space.mappings {
        let Some(area) = heritable(mapping) else { continue };
        let runs = fill::those(&fill::runs(space.id, mapping, pages), wanted, true);
        if runs.is_empty() {
            continue;
        }
        let kept = left.kept(mapping);
        all_kept.extend(kept.iter().copied());
        staged.areas.push(area);
        mappings.push((mapping, kept, runs));
    }
    all_kept.sort_by_key(|kept| kept.start);
    let gone = left.areas.iter().flat_map(|area| area.range.without(&all_kept));
    gone.for_each(|range| script.unmap(range));
    for (mapping, kept, runs) in &mappings {
        maps::map(space, mapping, (true, kept), objects, &mut script);
        let runs = left.unlike(runs);
        left.drop_stale(kept, &runs, &mut script);
        filled.push(runs);
    }
    fill::fill(&filled, &mut script);
    script.filled = filled.into_iter().flatten().collect();
    (script, staged)
}

/// The pages that two spaces have alike in memory that can be inherited.
fn pages_alike(
    space: &SpaceRecord,
    maker: &SpaceRecord,
    pages: &PageReader,
    ground: &Ground,
) -> Result<PageSet, Failure> {
    let mut alike = PageSet::default();
    let in_the_way = |range| {
        let mut kept = ground.special.iter().map(|special| special.range).chain([ground.runner]);
        kept.any(|other| ground::overlap(range, other))
    };
    let areas = |space: &SpaceRecord| space.mappings.iter().filter_map(heritable).collect::<Vec<_>>();
    let theirs: Vec<Area> = areas(maker).into_iter().filter(|area| !in_the_way(area.range)).collect();
    for area in areas(space) {
        let from = theirs.partition_point(|other| other.range.end <= area.range.start);
        for other in theirs[from..].iter().take_while(|other| other.range.start < area.range.end) {
            let Some(range) = area.range.common(other.range).filter(|_| area.kind == other.kind) else {
                continue;
            };
            compare(space.id, maker.id, range, pages, &mut alike)?;
        }
    }
    Ok(alike)
}

fn compare(
    space: SpaceId,
    maker: SpaceId,
    range: AddrRange,
    pages: &PageReader,
    alike: &mut PageSet,
) -> Result<(), Failure> {
    let (first, end) = (range.start.0 / PAGE, range.end.0 / PAGE);
    let [own, theirs] = [space, maker].map(|id| pages.runs(ckpt_image::Container::Space(id), first, end));
    let mut theirs = theirs.iter().peekable();
    for run in &own {
        while theirs.peek().is_some_and(|other| other.end() <= run.first) {
            theirs.next();
        }
        let mut ahead = theirs.clone();
        while let Some(other) = ahead.next_if(|other| other.first < run.end()) {
            let first = run.first.max(other.first);
            let count = run.end().min(other.end()) - first;
            let places = [fill::part(run, first, count).place, fill::part(other, first, count).place];
            let [Place::File { image, offset }, Place::File { image: from, offset: at }] = places else {
                continue;
            };
            let found = pages.alike((image, offset), (from, at), count);
            let found = found.map_err(|e| Failure::corrupt(with_sources(&e)))?;
            found.into_iter().for_each(|(n, count)| alike.insert(first + n, count));
        }
    }
    Ok(())
}

/// A mapping that fork(2) gives a child as it is.
fn heritable(mapping: &MappingRecord) -> Option<Area> {
    let flags = mapping.flags;
    let other = flags.grows_down
        || flags.hugetlb != 0
        || flags.droppable
        || flags.dont_fork
        || flags.wipe_on_fork
        || mapping.shared
        || mapping.kind != MappingKind::Anonymous;
    let range = range_of(mapping);
    (!other).then_some(Area { range, kind: (flags.huge, flags.no_huge, flags.no_reserve) })
}

fn record(image: &GroupImage, space: SpaceId) -> Option<&SpaceRecord> {
    image.spaces.get(space.index())
}
