//! One address space in the window: its record, and which of its pages are to be copied.

use std::collections::HashMap;
use std::path::PathBuf;

use ckpt_image::Container;
use ckpt_image::records::{MappingKind, MappingRecord, SpaceId, SpaceRecord};
use ckpt_sys::inject;
use ckpt_sys::maps::{Details, MapName, Mapping, read_maps, read_smaps};
use ckpt_sys::pagemap::{Census, Found, Pagemap, Span, Tracked, Wanted};
use ckpt_sys::{AddrRange, VirtAddr};
use nix::unistd::Pid;

use super::classify::record_flags;
use super::copy::{Piece, Source};
use super::kept::{context_content, gate_content, is_nameless_gate};
use super::plan::describe;
use super::{Capture, Class, Member, MemoryError, ObjectClass, PAGE, Refusal, Told, classify};
use crate::capture::members::SpaceFacts;
use crate::capture::precopy::Early;
use crate::capture::{Files, Objects};
use crate::kinds::aio;
use crate::track::{Cursor, Watch, is_watched};

const WITHOUT_DESCRIPTOR: Refusal = Refusal {
    code: "io-uring",
    text: "it is memory of a ring of io_uring(7) that no process of the group has open",
    remedy: "configure the application not to use io_uring",
};
const WHILE_IT_BEGAN: Refusal = Refusal { code: aio::CODE, text: aio::YOUNG, remedy: aio::AGAIN };
/// Bytes of a mapping from which on a look at its pages is not worth taking where the kernel can tell which were written.
const LARGE: u64 = 1 << 20;
const MCL_FUTURE: u32 = 2;
const MCL_ONFAULT: u32 = 4;

/// What is known of an address space before it is looked at.
#[derive(Debug)]
pub struct SpaceInput<'a> {
    /// Its number in the image.
    pub id: SpaceId,
    /// What is known besides its mappings.
    pub facts: &'a SpaceFacts,
    /// Its mappings and pages.
    pub looked: Looked,
    /// Its number in the parent's image, which has all pages that were not written since.
    pub parent: Option<SpaceId>,
    /// What was copied before the window.
    pub early: Option<&'a Early>,
}

impl<'a> SpaceInput<'a> {
    /// A space of which all pages are taken.
    pub fn whole(id: SpaceId, facts: &'a SpaceFacts, looked: Looked) -> Self {
        Self { id, facts, looked, parent: None, early: None }
    }
}

/// What [`Before::look`] saw: the mappings without the runner's pages, as the application made them.
#[derive(Debug)]
pub struct Looked {
    mappings: Vec<LookedAt>,
}

/// A mapping, what it is, and the pages that are its own.
#[derive(Debug)]
struct LookedAt {
    mapping: Mapping,
    class: Result<Class, Refusal>,
    found: Tracked,
}

/// What was known shortly before the window.
#[derive(Debug, Default)]
pub struct Before {
    /// The mappings of each process with all details, which take long to read.
    pub(super) mappings: HashMap<i32, Vec<Mapping>>,
    /// The device of the kernel's internal tmpfs, as maps shows it.
    pub(super) shm_dev: (u32, u32),
}

impl Before {
    /// Looks at an address space of a stopped process, on any thread. `watch`: what knows which pages were written, without which all are;
    /// all that it tells of is armed.
    ///
    /// Errors: the kernel's.
    pub fn look(&self, facts: &SpaceFacts, mut watch: Option<&mut dyn Watch>) -> Result<Looked, MemoryError> {
        let pid = facts.pid;
        let mut mappings =
            facts.runner.iter().fold(self.mappings(pid)?, |mappings, ours| without(mappings, *ours));
        mappings.retain(|mapping| !is_runner(pid, mapping));
        let spans = spans_of_private(&mappings, watch.is_some());
        let census = match &mut watch {
            Some(watch) => watch.look(&spans).map(|()| Census::default())?,
            None => Pagemap::open(pid)?.census(&spans)?,
        };
        let with_pages = |mapping: Mapping| {
            let class = classify(&mapping, self.shm_dev, || is_watched(pid.as_raw()));
            let mut found = Tracked::default();
            match (wanted(&mapping, class), &mut watch) {
                (None, _) => {}
                (Some(wanted), Some(watch)) => watch.take(&mapping, wanted, &mut found)?,
                (Some(wanted), None) => {
                    let mut all = Found::default();
                    census.scan(mapping.range, wanted, &mut all);
                    (found.written, found.guards) = (all.pages, all.guards);
                }
            }
            Ok(LookedAt { mapping, class, found })
        };
        Ok(Looked { mappings: mappings.into_iter().map(with_pages).collect::<Result<_, MemoryError>>()? })
    }

    /// The mappings of a stopped process with all details. Those that are as they were before the window have the details from then.
    fn mappings(&self, tid: Pid) -> Result<Vec<Mapping>, MemoryError> {
        let Some(before) = self.mappings.get(&tid.as_raw()) else { return Ok(read_smaps(tid)?) };
        let mut now = read_maps(tid)?;
        for mapping in &mut now {
            let same = before.binary_search_by_key(&mapping.range.start, |old| old.range.start);
            let Ok(same) = same.map(|at| &before[at]) else { return Ok(read_smaps(tid)?) };
            mapping.details = same.details;
            if mapping != same {
                return Ok(read_smaps(tid)?);
            }
        }
        Ok(now)
    }
}

impl Capture {
    /// Takes down one address space of a stopped process. What cannot be captured is added to [`Capture::problems`] and is not in the
    /// record.
    ///
    /// Errors: the kernel's.
    pub fn space(
        &mut self,
        member: &Member<'_>,
        input: SpaceInput<'_>,
        files: &mut Files,
        objects: &mut Objects,
    ) -> Result<SpaceRecord, MemoryError> {
        let (id, facts) = (input.id, input.facts);
        let tid = Pid::from_raw(member.tid);
        let source = self.sources.len();
        self.sources.push(Source::Memory(tid));
        let Looked { mappings: shown } = input.looked;
        let mut pages = Pages {
            source,
            told: Told {
                container: Container::Space(id),
                inherits: input.parent.map(Container::Space),
                parents: Vec::new(),
                early: input.early.map(|early| early.provisional),
                stale: Vec::new(),
                identity: None,
            },
            early: input.early.map(|early| (early, early.armed.cursor(), early.copied.cursor())),
            kept: Vec::new(),
        };
        let mut mappings = Vec::with_capacity(shown.len());
        for LookedAt { mapping, class, found } in shown {
            let Some(mut record) = self.mapping(member, (&mapping, class), files, objects)? else { continue };
            self.own_pages(&mapping, &mut record, found, &mut pages);
            mappings.push(record);
        }
        if let Some(early) = input.early {
            pages.told.stale = early.copied.without(pages.kept.into_iter());
        }
        self.told.push(pages.told);
        let exe = PathBuf::from(format!("/proc/{tid}/exe"));
        let stat = nix::sys::stat::stat(&exe).map_err(|e| read_error(&exe, e))?;
        Ok(SpaceRecord {
            id,
            layout: facts.layout,
            auxv: facts.auxv.clone(),
            exe: self.file(member, &exe, &stat, true, files)?,
            mlock_future: mlock_future(&mappings),
            mappings,
            thp_disabled: facts.thp_disabled,
        })
    }

    /// The record of a mapping; `None` if it is not recorded, or refused.
    fn mapping(
        &mut self,
        member: &Member<'_>,
        (mapping, class): (&Mapping, Result<Class, Refusal>),
        files: &mut Files,
        objects: &mut Objects,
    ) -> Result<Option<MappingRecord>, MemoryError> {
        let kind = match class {
            Ok(Class::Vsyscall) => return Ok(None),
            Ok(Class::Vdso) => MappingKind::Vdso,
            Ok(Class::Vvar) => MappingKind::Vvar,
            Ok(Class::Anonymous) => MappingKind::Anonymous,
            Ok(Class::Ring) => match self.rings.get(&mapping.ino) {
                Some(ring) => MappingKind::Ring { ring: *ring, offset: mapping.offset },
                None => {
                    self.problems.push(member.problem(describe(mapping), WITHOUT_DESCRIPTOR));
                    return Ok(None);
                }
            },
            Ok(Class::Aio) => match self.contexts.get(&(member.pid, mapping.range.start)) {
                Some(events) => {
                    MappingKind::Aio { events: *events, content: context_content(member, mapping, *events)? }
                }
                None => {
                    self.problems.push(member.problem(describe(mapping), WHILE_IT_BEGAN));
                    return Ok(None);
                }
            },
            Ok(Class::Gate) => MappingKind::Gate { content: gate_content(member, mapping)? },
            Ok(Class::Object(ObjectClass::Anonymous)) if is_nameless_gate(member, mapping) => {
                MappingKind::Gate { content: gate_content(member, mapping)? }
            }
            Ok(Class::Object(class)) => MappingKind::Object {
                object: self.mapped_object(member, mapping, class, objects)?,
                offset: mapping.offset,
            },
            Ok(Class::File) => match self.mapped_file(member, mapping, files)? {
                Ok(file) => {
                    let may_write = mapping.details.is_some_and(|details| details.flags.has(b"mw"));
                    MappingKind::File { file, offset: mapping.offset, may_write }
                }
                Err(refusal) => {
                    self.problems.push(member.problem(describe(mapping), refusal));
                    return Ok(None);
                }
            },
            Err(refusal) => {
                self.problems.push(member.problem(describe(mapping), refusal));
                return Ok(None);
            }
        };
        Ok(Some(MappingRecord {
            start: mapping.range.start.0,
            end: mapping.range.end.0,
            prot: mapping.prot,
            shared: mapping.shared,
            kind,
            flags: record_flags(mapping),
            name: match &mapping.name {
                MapName::Anon(name) => Some(name.clone()),
                _ => None,
            },
            guards: Vec::new(),
        }))
    }

    /// Queues the pages that a mapping owns, those excepted that are as the parent has them, and records its guards.
    fn own_pages(
        &mut self,
        mapping: &Mapping,
        record: &mut MappingRecord,
        mut found: Tracked,
        pages: &mut Pages<'_>,
    ) {
        record.guards = found.guards.iter().map(|range| (range.start.0, range.end.0)).collect();
        for (first, count) in found.clean.iter().map(in_pages) {
            pages.place(first, count, &mut found.written);
        }
        let list = if is_inherited(mapping, record) { &mut self.inherited } else { &mut self.pieces };
        list.extend(found.written.iter().map(|range| {
            let (first, count) = in_pages(range);
            Piece { container: pages.told.container, source: pages.source, first, count }
        }));
    }
}

/// Which pages of a mapping are its own; `None` for those that have none, or are refused.
fn wanted(mapping: &Mapping, class: Result<Class, Refusal>) -> Option<Wanted> {
    match class.ok()? {
        _ if mapping.shared => None,
        Class::Vsyscall | Class::Vdso | Class::Vvar => None,
        Class::Anonymous => Some(Wanted::Own),
        Class::File | Class::Object(_) | Class::Gate | Class::Ring | Class::Aio => Some(Wanted::OwnOrZero),
    }
}

/// Where the pages of a space come from and what the image tells of them.
struct Pages<'a> {
    source: usize,
    told: Told,
    /// What was copied before the window, with what of it was armed, and copied.
    early: Option<(&'a Early, Cursor<'a>, Cursor<'a>)>,
    /// What of it is still what it was: first page, number of pages; ascending.
    kept: Vec<(u64, u64)>,
}

impl Pages<'_> {
    /// Says where pages are that were not written since they were armed: copied before the window, or with the parent. Where
    /// neither has them they are added to `copy`. Call it in ascending order.
    fn place(&mut self, first: u64, count: u64, copy: &mut Vec<AddrRange>) {
        let Self { told, early, kept, .. } = self;
        let mut copy = |first, count| copy.push(AddrRange::new(VirtAddr(first * PAGE), count * PAGE));
        let mut not_armed = |first, count, copy: &mut dyn FnMut(u64, u64)| match told.inherits {
            Some(_) => told.parents.push((first, count)),
            None => copy(first, count),
        };
        let Some((early, armed, copied)) = early else { return not_armed(first, count, &mut copy) };
        armed.split(first, count, |first, count, is_armed| match is_armed {
            false => not_armed(first, count, &mut copy),
            true if early.distrusted => copy(first, count),
            true => copied.split(first, count, |first, count, is_copied| match is_copied {
                true => kept.push((first, count)),
                false => copy(first, count),
            }),
        });
    }
}

/// Whether a child that fork(2) makes has the same pages: not with MADV_DONTFORK or MADV_WIPEONFORK, and reserved huge pages of a mapping
/// may be taken from the child. What a file lies below is too little to matter.
fn is_inherited(mapping: &Mapping, record: &MappingRecord) -> bool {
    let plain =
        |details: Details| ![b"dc", b"wf", b"ht", b"io", b"pf"].iter().any(|flag| details.flags.has(flag));
    record.kind == MappingKind::Anonymous && mapping.details.is_some_and(plain)
}

/// First page and number of pages.
fn in_pages(range: &AddrRange) -> (u64, u64) {
    (range.start.0 / PAGE, range.len() / PAGE)
}

/// Spans that hold all private mappings below the kernel's own addresses, and of shared ones none: their page tables may be large. Large
/// anonymous mappings of a space that is `watched` are spans of their own.
fn spans_of_private(mappings: &[Mapping], watched: bool) -> Vec<Span> {
    let is_private = |mapping: &Mapping| !mapping.shared && mapping.range.end <= VirtAddr(1 << 47);
    let is_large = |mapping: &Mapping| {
        let anonymous = mapping.ino == 0 && !matches!(mapping.name, MapName::File { .. });
        watched && anonymous && mapping.range.len() >= LARGE
    };
    let sort = |mapping: &Mapping| (is_private(mapping), is_large(mapping));
    mappings
        .chunk_by(|one, next| sort(one) == sort(next) && !is_large(one))
        .filter(|run| run.first().is_some_and(is_private))
        .filter_map(|run| {
            let (first, last) = (run.first()?, run.last()?);
            let range = AddrRange { start: first.range.start, end: last.range.end };
            Some(Span { range, watched: is_large(first) })
        })
        .collect()
}

/// The mappings without a range; the kernel may have joined it to its neighbours.
fn without(mappings: Vec<Mapping>, ours: AddrRange) -> Vec<Mapping> {
    let rest = |mapping: Mapping| {
        let parts = mapping.range.without(&[ours]);
        parts.into_iter().map(move |range| Mapping { range, ..mapping.clone() })
    };
    mappings.into_iter().flat_map(rest).collect()
}

/// The pages that injected calls run on: ours, made anew by the next checkpoint that needs them.
fn is_runner(tid: Pid, mapping: &Mapping) -> bool {
    let flags = mapping.details.map(|details| details.flags);
    flags.is_some_and(|flags| flags.has(b"dd") && flags.has(b"dc")) && inject::is_area(tid, mapping.range)
}

/// The kernel tells nobody whether mlockall(MCL_FUTURE) is set; if every mapping is locked it was called.
fn mlock_future(mappings: &[MappingRecord]) -> u32 {
    let mut ordinary = mappings
        .iter()
        .filter(|m| {
            !matches!(
                m.kind,
                MappingKind::Vdso
                    | MappingKind::Vvar
                    | MappingKind::Gate { .. }
                    | MappingKind::Ring { .. }
                    | MappingKind::Aio { .. }
            )
        })
        .peekable();
    if ordinary.peek().is_none() || !ordinary.clone().all(|m| m.flags.locked) {
        return 0;
    }
    if ordinary.all(|m| m.flags.lock_on_fault) { MCL_FUTURE | MCL_ONFAULT } else { MCL_FUTURE }
}

fn read_error(path: &std::path::Path, source: nix::errno::Errno) -> MemoryError {
    MemoryError::Proc { path: path.display().to_string(), source: source.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ckpt_sys::VirtAddr;

    #[test]
    fn what_is_ours_is_cut_out_of_what_the_kernel_joined() {
        let text = b"10000-20000 rw-p 00000000 00:00 0 \n30000-40000 rw-p 00000000 00:00 0 \n";
        let left = |start, end| {
            let ours = AddrRange { start: VirtAddr(start), end: VirtAddr(end) };
            let rest = without(ckpt_sys::maps::parse(text).unwrap(), ours);
            rest.iter().map(|m| (m.range.start.0, m.range.end.0)).collect::<Vec<_>>()
        };
        assert_eq!(left(0x12000, 0x14000), [(0x10000, 0x12000), (0x14000, 0x20000), (0x30000, 0x40000)]);
        assert_eq!(left(0x10000, 0x20000), [(0x30000, 0x40000)]);
        assert_eq!(left(0x3f000, 0x40000), [(0x10000, 0x20000), (0x30000, 0x3f000)]);
        assert_eq!(left(0x50000, 0x60000), [(0x10000, 0x20000), (0x30000, 0x40000)]);
    }

    #[test]
    fn page_tables_of_shared_memory_are_passed_over() {
        let text = b"1000-2000 r--p 00000000 00:00 0 \n3000-5000 rw-p 00000000 00:00 0 \n5000-9000 rw-s 00000000 00:00 0 \n\
                     9000-a000 rw-p 00000000 00:00 0 \n\
                     ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]\n";
        let spans = spans_of_private(&ckpt_sys::maps::parse(text).unwrap(), true);
        let span = |start, end, watched| Span {
            range: AddrRange { start: VirtAddr(start), end: VirtAddr(end) },
            watched,
        };
        assert_eq!(spans, [span(0x1000, 0x5000, false), span(0x9000, 0xa000, false)]);
        let text = b"1000-2000 rw-p 00000000 00:00 0 \n100000-300000 rw-p 00000000 00:00 0 \n300000-500000 rw-p 00000000 00:00 0 \n\
                     500000-900000 rw-p 00000000 00:01 7                              /lib/x\n";
        let mappings = ckpt_sys::maps::parse(text).unwrap();
        let split = [
            span(0x1000, 0x2000, false),
            span(0x10_0000, 0x30_0000, true),
            span(0x30_0000, 0x50_0000, true),
            span(0x50_0000, 0x90_0000, false),
        ];
        assert_eq!(spans_of_private(&mappings, true), split);
        assert_eq!(spans_of_private(&mappings, false), [span(0x1000, 0x90_0000, false)]);
    }
}
