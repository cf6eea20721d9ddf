//! Properties of the script alone; that it makes the memory it should is tested with real processes in `tests`.

use ckpt_image::records::{
    FileId, GroupImage, LayoutRecord, MappingFlags, MappingKind, MappingRecord, Pid, ProcessRecord,
    ProcessState, SpaceId, SpaceRecord, UnitIndex,
};
use ckpt_image::{Container, PageReader, PagesWriter};
use ckpt_sys::{AddrRange, VirtAddr};
use nix::libc;

use super::{Arg, Expect, FdRef, Ground, Heritage, PAGE, Script, Special, script, script_with};
use crate::rebuild::tree::tests::{body, process};
use crate::rebuild::tree::{Plan, Share, Step};

const RUNNER: AddrRange = AddrRange { start: VirtAddr(0x7_0000_0000), end: VirtAddr(0x7_0010_0000) };

fn mapping(start: u64, pages: u64, prot: u32, kind: MappingKind) -> MappingRecord {
    let flags = MappingFlags::default();
    MappingRecord {
        start,
        end: start + pages * PAGE,
        prot,
        shared: false,
        kind,
        flags,
        name: None,
        guards: vec![],
    }
}

fn space(mappings: Vec<MappingRecord>) -> SpaceRecord {
    SpaceRecord {
        id: SpaceId(0),
        layout: LayoutRecord::default(),
        auxv: vec![0; 32],
        exe: FileId(0),
        mappings,
        thp_disabled: false,
        mlock_future: 0,
    }
}

fn special(start: u64) -> Vec<Special> {
    let one = |at, pages, vdso| Special { range: AddrRange::new(VirtAddr(at), pages * PAGE), vdso };
    vec![one(start, 4, false), one(start + 4 * PAGE, 2, false), one(start + 6 * PAGE, 2, true)]
}

fn vdso_records(start: u64) -> Vec<MappingRecord> {
    vec![
        mapping(start, 4, 1, MappingKind::Vvar),
        mapping(start + 4 * PAGE, 2, 1, MappingKind::Vvar),
        mapping(start + 6 * PAGE, 2, 5, MappingKind::Vdso),
    ]
}

/// A reader of an image in which the given pages of space 0 are stored, in this order.
fn pages(name: &str, stored: &[(u64, u8)]) -> PageReader {
    let of_space = |(page, byte): &(u64, u8)| (0, *page, *byte);
    pages_of_spaces(name, &stored.iter().map(of_space).collect::<Vec<_>>())
}

fn numbers(script: &Script, nr: i64) -> Vec<Vec<u64>> {
    let value = |arg: &Arg| if let Arg::Value(value) = arg { *value } else { u64::MAX };
    script
        .calls
        .iter()
        .filter(|call| call.nr == nr)
        .map(|call| call.args.iter().map(value).collect())
        .collect()
}

#[test]
fn pages_that_lie_together_in_the_image_are_read_by_one_call() {
    let stored: Vec<(u64, u8)> = (0..3000u64).map(|n| (0x1000 + 2 * n, 1)).collect();
    let reader = pages("vector", &stored);
    let record = space(vec![mapping(0x1000 * PAGE, 8000, 3, MappingKind::Anonymous)]);
    let ground = Ground { runner: RUNNER, special: special(0x6_0000_0000) };
    let script = script(&record, &[], &reader, &ground).unwrap();
    let reads = numbers(&script, libc::SYS_preadv);
    assert_eq!(
        reads.iter().map(|args| (args[2], args[3])).collect::<Vec<_>>(),
        [(1024, PAGE), (1024, 1025 * PAGE), (952, 2049 * PAGE)]
    );
    let read: u64 = script
        .calls
        .iter()
        .filter(|call| call.nr == libc::SYS_preadv)
        .map(|call| if let Expect::Value(bytes) = call.must { bytes } else { 0 })
        .sum();
    assert_eq!(read, 3000 * PAGE);
    assert_eq!(
        script.descriptors().into_iter().collect::<Vec<_>>(),
        [FdRef::Pages(0), FdRef::File { file: FileId(0), write: false }]
    );
}

#[test]
fn zero_pages_are_written_over_files_only() {
    let reader = pages("zero", &[(0x1000, 0), (0x2000, 0), (0x2001, 7)]);
    let file = MappingKind::File { file: FileId(3), offset: 0, may_write: true };
    let record =
        space(vec![mapping(0x1000 * PAGE, 4, 3, MappingKind::Anonymous), mapping(0x2000 * PAGE, 4, 1, file)]);
    let ground = Ground { runner: RUNNER, special: special(0x6_0000_0000) };
    let script = script(&record, &[], &reader, &ground).unwrap();
    let zero = script.calls.iter().filter(|call| call.args[0] == Arg::Fd(FdRef::Zero)).count();
    assert_eq!((zero, numbers(&script, libc::SYS_preadv).len()), (1, 2));
    // Only what was filled is made writable and then as it was.
    assert_eq!(numbers(&script, libc::SYS_mmap).iter().map(|args| args[2]).collect::<Vec<_>>(), [3, 3]);
    assert_eq!(numbers(&script, libc::SYS_mprotect), [[0x2000 * PAGE, 4 * PAGE, 1, 0, 0, 0]]);
}

#[test]
fn everything_but_runner_and_kernel_pages_is_unmapped() {
    let ground = Ground { runner: RUNNER, special: special(0x7fff_0000_0000) };
    let script = script(&space(vec![]), &[], &pages("clear", &[]), &ground).unwrap();
    let kernel = 0x7fff_0000_0000u64;
    let unmapped: Vec<(u64, u64)> =
        numbers(&script, libc::SYS_munmap).iter().map(|args| (args[0], args[0] + args[1])).collect();
    assert_eq!(
        unmapped,
        [(0, RUNNER.start.0), (RUNNER.end.0, kernel), (kernel + 8 * PAGE, super::ground::TASK_SIZE)]
    );
}

/// Follows the mremap calls and gives where each of the kernel's mappings ends, asserting that none is moved over another.
fn moved(script: &Script, from: Vec<Special>) -> Vec<u64> {
    let mut now: Vec<AddrRange> = from.iter().map(|special| special.range).collect();
    for args in numbers(script, libc::SYS_mremap) {
        let to = AddrRange::new(VirtAddr(args[4]), args[1]);
        let which = now.iter().position(|range| range.start.0 == args[0]).expect("nothing lies there");
        assert!(
            !now.iter().enumerate().any(|(n, r)| n != which && super::ground::overlap(*r, to)),
            "moved over another"
        );
        assert!(!super::ground::overlap(now[which], to) && !super::ground::overlap(RUNNER, to));
        now[which] = to;
    }
    now.iter().map(|range| range.start.0).collect()
}

#[test]
fn kernel_pages_come_to_their_old_places_even_where_old_and_new_overlap() {
    let base = 0x7ff0_0000_0000u64;
    for distance in [0i64, 1, -1, 3, 4, 8, -8, 6, 1000, -1000] {
        let to = base.wrapping_add_signed(distance * PAGE as i64);
        let ground = Ground { runner: RUNNER, special: special(base) };
        let script = script(&space(vdso_records(to)), &[], &pages("vdso", &[]), &ground).unwrap();
        assert_eq!(moved(&script, special(base)), [to, to + 4 * PAGE, to + 6 * PAGE], "{distance}");
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let reader = pages("refused", &[]);
    let refused = |record: SpaceRecord, base: u64| {
        let ground = Ground { runner: RUNNER, special: special(base) };
        script(&record, &[], &reader, &ground).unwrap_err().error
    };
    let anonymous = |start| mapping(start, 4, 3, MappingKind::Anonymous);
    assert_eq!(refused(space(vec![anonymous(RUNNER.start.0 + PAGE)]), 0x6_0000_0000), "NotRestorable");
    assert_eq!(refused(space(vec![anonymous(0x10_0000), anonymous(0x10_1000)]), 0x6_0000_0000), "Corrupt");
    assert_eq!(refused(space(vec![anonymous(0x10_0001)]), 0x6_0000_0000), "Corrupt");
    assert_eq!(refused(space(vec![anonymous(u64::MAX - 5 * PAGE + 1)]), 0x6_0000_0000), "Corrupt");
    let mut other_kernel = vdso_records(0x5_0000_0000);
    other_kernel.pop();
    assert_eq!(refused(space(other_kernel), 0x6_0000_0000), "IncompatibleKernel");
}

/// A reader of an image in which pages of spaces are stored: space, page, byte.
fn pages_of_spaces(name: &str, stored: &[(u32, u64, u8)]) -> PageReader {
    let dir = std::env::temp_dir().join(format!("ckpt-script-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir(&dir).unwrap();
    let mut writer = PagesWriter::create(&dir).unwrap();
    for (space, page, byte) in stored {
        writer.append(Container::Space(SpaceId(*space)), *page, &[*byte; PAGE as usize]).unwrap();
    }
    writer.finish().unwrap();
    let reader = PageReader::open(std::slice::from_ref(&dir)).unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    reader
}

/// A group of a parent (100) and its child (101), each with a space of its own.
fn family(spaces: Vec<SpaceRecord>) -> (GroupImage, Plan) {
    let share = Share::default();
    let create = |pid, maker| {
        let (sibling, unit, temporary) = (false, UnitIndex(0), false);
        Step::Create { pid: Pid(pid), maker, sibling, unit, temporary, share }
    };
    let process = |(n, pid): (u32, i32)| ProcessRecord {
        body: Some(body(n, false)),
        ..process(Pid(pid), Pid(1), ProcessState::Running)
    };
    let processes = [(0, 100), (1, 101)].map(process).into();
    let plan = Plan { steps: vec![create(100, None), create(101, Some(Pid(100)))] };
    (GroupImage { processes, spaces, ..GroupImage::default() }, plan)
}

/// Pages 0 to 3 of each: alike, written by the child, given back by the child, of the parent alone (never there in the child).
#[test]
fn a_child_keeps_what_it_and_its_parent_have_alike() {
    let at = 0x1000;
    let stored = [(0, at, 1), (0, at + 1, 1), (0, at + 2, 1), (1, at, 1), (1, at + 1, 2), (1, at + 3, 3)];
    let reader = pages_of_spaces("heritage", &stored);
    let memory = |pages| vec![mapping(at * PAGE, pages, 1, MappingKind::Anonymous)];
    let child = SpaceRecord { id: SpaceId(1), ..space(memory(6)) };
    let (image, plan) = family(vec![space(memory(4)), child]);
    let ground = Ground { runner: RUNNER, special: special(0x6_0000_0000) };
    let heritage = Heritage::of(&image, &plan, &reader, &ground).unwrap();
    // The parent: the one page, before it makes the child; the two others at its own turn.
    let stage = heritage.stage(SpaceId(0)).unwrap();
    assert_eq!(reads(stage), PAGE);
    assert_eq!(numbers(stage, libc::SYS_mmap)[0][..3], [at * PAGE, 4 * PAGE, 3]);
    let own = |n: usize| {
        let left = heritage.left(image.spaces[n].id);
        script_with(&image.spaces[n], &[], &reader, &ground, (left, None)).unwrap()
    };
    assert_eq!((reads(&own(0)), numbers(&own(0), libc::SYS_mmap).len()), (2 * PAGE, 0));
    // The child: what it wrote, and the rest of its mapping.
    let script = own(1);
    assert_eq!(reads(&script), 2 * PAGE);
    assert_eq!(numbers(&script, libc::SYS_mmap)[0][..2], [(at + 4) * PAGE, 2 * PAGE]);
    assert_eq!(numbers(&script, libc::SYS_mprotect)[0][..3], [at * PAGE, 6 * PAGE, 1]);
}

/// What was inherited for others and is not a process's own goes.
#[test]
fn pages_that_only_others_have_are_given_back() {
    let at = 0x1000;
    let stored = [(0, at, 1), (0, at + 1, 1), (1, at, 1), (2, at, 1), (2, at + 1, 1)];
    let reader = pages_of_spaces("stale", &stored);
    let memory = || vec![mapping(at * PAGE, 4, 3, MappingKind::Anonymous)];
    let (mut image, mut plan) =
        family(vec![space(memory()), SpaceRecord { id: SpaceId(1), ..space(memory()) }]);
    // A second child has both pages.
    image.spaces.push(SpaceRecord { id: SpaceId(2), ..space(memory()) });
    let second = ProcessRecord { pid: Pid(102), body: Some(body(2, false)), ..image.processes[1].clone() };
    image.processes.push(second);
    let Step::Create { maker, sibling, unit, temporary, share, .. } = plan.steps[1] else { panic!() };
    plan.steps.push(Step::Create { pid: Pid(102), maker, sibling, unit, temporary, share });
    let ground = Ground { runner: RUNNER, special: special(0x6_0000_0000) };
    let heritage = Heritage::of(&image, &plan, &reader, &ground).unwrap();
    let left = heritage.left(SpaceId(1));
    let script = script_with(&image.spaces[1], &[], &reader, &ground, (left, None)).unwrap();
    assert_eq!(reads(&script), 0);
    assert_eq!(numbers(&script, libc::SYS_madvise)[0], [(at + 1) * PAGE, PAGE, 4, 0, 0, 0]);
}

/// Bytes that a script reads.
fn reads(script: &Script) -> u64 {
    script.filled.iter().map(|run| run.count * PAGE).sum()
}
