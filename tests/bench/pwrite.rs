//! The cost of the preload library: pwrite(2) of 4 KiB to a page-cached file, and a loop that only computes.

use std::fs::File;
use std::hint::black_box;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::Instant;

use libc::{c_int, c_void, off_t, size_t, ssize_t};

use crate::report::{Figure, Report, Target};

/// How this program calls itself to measure in a process with or without the library.
pub(crate) const CHILD: &str = "--pwrite";

const LIBRARY: &str = "/usr/lib/ckpt/libckpt_preload.so";
const BATCHES: usize = 400;
const CALLS: u32 = 1000;
/// Processes of each kind, taken in turn, so that both meet the same moods of the host.
const PROCESSES: usize = 9;
const PROMISE: f64 = 60.0;

/// What it adds, and both medians.
pub(crate) fn bench(report: &mut Report) {
    let (mut without, mut with): (Vec<_>, Vec<_>) = (Vec::new(), Vec::new());
    for _ in 0..PROCESSES {
        without.push(measure(None));
        with.push(measure(Some(LIBRARY)));
    }
    let pwrite = |runs: &[[f64; 3]]| median(runs.iter().map(|r| r[0]).collect());
    let compute = |runs: &[[f64; 3]]| median(runs.iter().map(|r| r[2]).collect());
    // Where a process has its pages makes more of a difference than the library does: so it is taken within each.
    report.figure(Figure {
        name: "added to a pwrite of 4 KiB, page-cached".into(),
        value: median(with.iter().map(|r| r[0] - r[1]).collect()),
        unit: "ns",
        target: Some(Target::AtMost(PROMISE)),
        beside: Some(("libc's own in the same processes", median(with.iter().map(|r| r[1]).collect()))),
    });
    report.figure(Figure {
        name: "a pwrite in processes with the library".into(),
        value: pwrite(&with),
        unit: "ns",
        target: None,
        beside: Some(("in processes without", pwrite(&without))),
    });
    report.figure(Figure {
        name: "a loop that only computes, with the library".into(),
        value: compute(&with),
        unit: "ms",
        target: None,
        beside: Some(("without", compute(&without))),
    });
}

/// Median nanoseconds of a pwrite as the program calls it, and of libc's own, and milliseconds of the loop, in a process of its own.
fn measure(library: Option<&str>) -> [f64; 3] {
    let mut command = Command::new("/proc/self/exe");
    command.arg(CHILD).env_remove("LD_PRELOAD");
    if let Some(path) = library {
        command.env("LD_PRELOAD", path);
    }
    let out = command.output().expect("this program starts itself");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    let numbers: Vec<f64> = said.split_whitespace().map(|w| w.parse().expect("a number")).collect();
    [numbers[0], numbers[1], numbers[2]]
}

type Pwrite = unsafe extern "C" fn(c_int, *const c_void, size_t, off_t) -> ssize_t;

/// pwrite(3) of libc itself, whatever stands before it.
fn libcs_own() -> Pwrite {
    // SAFETY: C strings; the library is loaded already, and its function has this type.
    unsafe {
        let library = libc::dlopen(c"libc.so.6".as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD);
        let symbol = libc::dlsym(library, c"pwrite".as_ptr());
        assert!(!symbol.is_null(), "libc has a pwrite");
        std::mem::transmute::<*mut c_void, Pwrite>(symbol)
    }
}

/// Measures in this process and prints the numbers.
pub(crate) fn child() {
    let path = format!("/tmp/pwrite-{}", std::process::id());
    let file = File::create(&path).expect("/tmp is writable");
    let page = [7_u8; 4096];
    let batch = |call: Pwrite| {
        let start = Instant::now();
        for _ in 0..CALLS {
            // SAFETY: the page has so many bytes, and the descriptor is open.
            let written = unsafe { call(file.as_raw_fd(), page.as_ptr().cast(), page.len(), 0) };
            assert_eq!(written, page.len() as ssize_t);
        }
        start.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS)
    };
    let (hooked, own) = (libc::pwrite as Pwrite, libcs_own());
    let (with, without): (Vec<_>, Vec<_>) = (0..BATCHES).map(|_| (batch(hooked), batch(own))).unzip();
    std::fs::remove_file(&path).expect("removed");
    let start = Instant::now();
    let mut sum = 0_u64;
    for i in 0..100_000_000_u64 {
        sum = black_box(sum.wrapping_add(i));
    }
    black_box(sum);
    println!("{} {} {}", median(with), median(without), start.elapsed().as_secs_f64() * 1e3);
}

/// The middle of a set of numbers.
pub(crate) fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}
