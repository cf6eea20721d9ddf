//! The cost of the preload library: pwrite(2) of 4 KiB to a page-cached file, and a loop that only computes.

use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::Instant;

use crate::report::{Figure, Report, Target};

/// How this program calls itself to measure in a process with or without the library.
pub(crate) const CHILD: &str = "--pwrite";

const LIBRARY: &str = "/usr/lib/ckpt/libckpt_preload.so";
const BATCHES: usize = 400;
const CALLS: u32 = 1000;
/// Processes of each kind, taken in turn, so that both meet the same moods of the host.
const PROCESSES: usize = 9;
const PROMISE: f64 = 60.0;

/// Both medians and their difference.
pub(crate) fn bench(report: &mut Report) {
    let (mut without, mut with): (Vec<_>, Vec<_>) = (Vec::new(), Vec::new());
    for _ in 0..PROCESSES {
        without.push(measure(None));
        with.push(measure(Some(LIBRARY)));
    }
    let pwrite = |runs: &[[f64; 2]]| median(runs.iter().map(|r| r[0]).collect());
    let compute = |runs: &[[f64; 2]]| median(runs.iter().map(|r| r[1]).collect());
    report.figure(Figure {
        name: "added to a pwrite of 4 KiB, page-cached".into(),
        value: pwrite(&with) - pwrite(&without),
        unit: "ns",
        target: Some(Target::AtMost(PROMISE)),
        beside: Some(("without the library", pwrite(&without))),
    });
    report.figure(Figure {
        name: "a loop that only computes, with the library".into(),
        value: compute(&with),
        unit: "ms",
        target: None,
        beside: Some(("without", compute(&without))),
    });
}

/// Median nanoseconds of a pwrite, and milliseconds of the loop, in a process of its own.
fn measure(library: Option<&str>) -> [f64; 2] {
    let mut command = Command::new("/proc/self/exe");
    command.arg(CHILD).env_remove("LD_PRELOAD");
    if let Some(path) = library {
        command.env("LD_PRELOAD", path);
    }
    let out = command.output().expect("this program starts itself");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    let numbers: Vec<f64> = said.split_whitespace().map(|w| w.parse().expect("a number")).collect();
    [numbers[0], numbers[1]]
}

/// Measures in this process and prints both numbers.
pub(crate) fn child() {
    let path = format!("/tmp/pwrite-{}", std::process::id());
    let file = File::create(&path).expect("/tmp is writable");
    let page = [7_u8; 4096];
    let mut batches = Vec::with_capacity(BATCHES);
    for _ in 0..BATCHES {
        let start = Instant::now();
        for _ in 0..CALLS {
            file.write_all_at(&page, 0).expect("written");
        }
        batches.push(start.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS));
    }
    std::fs::remove_file(&path).expect("removed");
    let start = Instant::now();
    let mut sum = 0_u64;
    for i in 0..100_000_000_u64 {
        sum = black_box(sum.wrapping_add(i));
    }
    black_box(sum);
    println!("{} {}", median(batches), start.elapsed().as_secs_f64() * 1e3);
}

/// The middle of a set of numbers.
pub(crate) fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}
