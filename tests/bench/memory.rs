//! The stages that cost time in proportion to memory, each beside the kernel's own price: copying inside the window against a copy
//! within this process, writing the image against writing and syncing as many bytes.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use ckpt_engine::capture::members::SpaceFacts;
use ckpt_engine::capture::memory::{Member, Plan, SpaceInput};
use ckpt_engine::capture::{Files, Objects};
use ckpt_image::records::{LayoutRecord, SpaceId, UnitIndex};
use ckpt_image::{PageReader, PagesWriter};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::pwrite::median;
use crate::report::{Figure, Report};

/// How this program calls itself to be the process whose memory is captured; 4 KiB pages, or huge ones.
pub(crate) const SMALL: &str = "--memory-small";
/// See [`SMALL`].
pub(crate) const HUGE: &str = "--memory-huge";

const MIB: usize = 1024;
const ROUNDS: usize = 5;

/// One figure for each stage.
pub(crate) fn bench(report: &mut Report) {
    for (pages, how) in [("4 KiB pages", SMALL), ("huge pages", HUGE)] {
        let victim = Victim::start(how);
        let rounds: Vec<[f64; 6]> = (0..ROUNDS).map(|_| round(victim.pid)).collect();
        let of = |i: usize| median(rounds.iter().map(|r| r[i]).collect()) * 1e3;
        let mut stage = |name: &str, value, beside| {
            let name = format!("{MIB} MiB in {pages}: {name}");
            report.figure(Figure { name, value, unit: "ms", target: None, beside });
        };
        stage("look, take memory", of(0), None);
        stage("mappings and their pages", of(1), None);
        stage("copy", of(2), Some(("the same in this process, one thread", of(3))));
        stage("write and fsync", of(4), Some(("of plain bytes", of(5))));
    }
}

/// Seconds of each stage.
fn round(pid: Pid) -> [f64; 6] {
    let dir = directory();
    let member = Member { pid: pid.as_raw(), tid: pid.as_raw(), unit: UnitIndex(0), unit_name: "" };
    let (plan, prepare) = timed(|| {
        let mut plan = Plan::prepare(&[member]).expect("a victim that can be captured");
        plan.make_room(plan.bytes()).expect("room for the copy");
        plan
    });
    let (mut files, mut objects) = (Files::new(vec![], vec![]), Objects::new());
    let mut capture = plan.begin();
    let facts = SpaceFacts {
        pid,
        unit: UnitIndex(0),
        layout: LayoutRecord::default(),
        auxv: Vec::new(),
        start_time: 0,
        thp_disabled: false,
        runner: Vec::new(),
    };
    let (_, space) = timed(|| {
        let looked = capture.before().look(&facts, None).expect("a stopped victim");
        let input = SpaceInput::whole(SpaceId(0), &facts, looked);
        capture.space(&member, input, &mut files, &mut objects).expect("a stopped victim")
    });
    let (mut copied, copy) = timed(|| capture.copy(None).expect("a stopped victim"));
    let (_, write) = timed(|| {
        let mut pages = PagesWriter::create(&dir).expect("room for the image");
        copied.write(&mut pages, |_| true).expect("room for the image");
        pages.finish().expect("room for the image")
    });
    drop(copied);
    assert!(PageReader::open(std::slice::from_ref(&dir)).is_ok());
    remove(&dir);
    let mut source = vec![1u8; MIB << 20];
    scramble(&mut source); // a disk may be quicker with what compresses
    let mut target = vec![2u8; MIB << 20];
    let (_, memcpy) = timed(|| target.copy_from_slice(std::hint::black_box(&source)));
    let dir = directory();
    let (_, plain) = timed(|| {
        let mut file = File::create(dir.join("plain")).expect("room");
        target.chunks(8 << 20).for_each(|part| file.write_all(part).expect("room"));
        file.sync_all().expect("room");
    });
    remove(&dir);
    [prepare, space, copy, memcpy, write, plain]
}

fn timed<T>(deed: impl FnOnce() -> T) -> (T, f64) {
    let start = Instant::now();
    let result = deed();
    (result, start.elapsed().as_secs_f64())
}

/// A new directory where the store is.
fn directory() -> PathBuf {
    let store = Path::new("/var/lib/ckpt");
    let dir = if store.is_dir() { store.to_owned() } else { std::env::temp_dir() };
    let dir = dir.join(format!("bench-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a place for the image");
    dir
}

fn remove(dir: &Path) {
    std::fs::remove_dir_all(dir).expect("our own directory");
}

/// A process with much memory, stopped.
struct Victim {
    pid: Pid,
}

impl Victim {
    fn start(how: &str) -> Self {
        let program = std::env::current_exe().expect("this program's path");
        #[expect(clippy::zombie_processes, reason = "ended and waited for when dropped")]
        let child = std::process::Command::new(program).arg(how).spawn().expect("a second process");
        let pid = Pid::from_raw(child.id() as i32);
        waitpid(pid, Some(WaitPidFlag::WUNTRACED)).expect("our child");
        Self { pid }
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = waitpid(self.pid, None);
    }
}

/// Fills memory and stops.
pub(crate) fn child(huge: bool) {
    let mut arena = ckpt_sys::arena::Arena::new(MIB << 20).expect("memory");
    if !huge {
        nix::sys::prctl::set_thp_disable(true).expect("prctl");
    }
    scramble(&mut arena);
    loop {
        nix::sys::signal::raise(Signal::SIGSTOP).expect("raise");
    }
}

/// Fills memory with what does not compress.
fn scramble(bytes: &mut [u8]) {
    let mut state = 88_172_645_463_325_252_u64;
    for word in bytes.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
}
