//! The freeze window: against memory, written share, threads, processes and files being written; and as the service sees it.

use ckpt_sys::cgroup::Cgroup;
use ckpt_sys::maps::read_maps;
use ckpt_sys::pagemap::{Pagemap, Span};
use ckpt_sys::seize::seize_all;
use ckpt_sys::thread::Deadline;
use ckpt_sys::{AddrRange, proc_file};

use crate::pwrite::median;
use crate::report::{Curve, Figure, Report, Target};
use crate::service::{Cost, Load, Service};

const ROUNDS: usize = 10;
/// The cgroup of what is measured.
const SERVICE: &str = "/system.slice/bench.service";

/// One checkpoint that nobody counts (the first touch of memory after boot is slow), then `ROUNDS`, each after `before`.
fn costs(service: &Service, words: &[&str], before: impl Fn()) -> Vec<Cost> {
    service.checkpoint(&[]);
    (0..ROUNDS)
        .map(|_| {
            before();
            service.checkpoint(words)
        })
        .collect()
}

fn window(costs: &[Cost]) -> f64 {
    median(costs.iter().map(|c| c.window).collect())
}

/// Idle memory of 64 MiB to 4 GiB (8 GiB where the machine has the memory for it).
pub(crate) fn memory(report: &mut Report) {
    let mut points = Vec::new();
    for mib in sizes() {
        let service = Service::start(&Load { mib, ..Load::default() }, "");
        let cost = window(&costs(&service, &[], || ()));
        points.push([mib as f64, cost]);
        let small = points.iter().find(|p| p[0] == 1024.0).map_or(5.0, |p| p[1] * 1.2);
        let target = match mib {
            1024 => Some(Target::AtMost(5.0)),
            8192 => Some(Target::AtMost(small)),
            _ => None,
        };
        let beside = Some(("PAGEMAP_SCAN of what was written, alone", scan_alone()));
        let name = format!("freeze window, {mib} MiB idle");
        report.figure(Figure { name, value: cost, unit: "ms", target, beside });
    }
    report.curve(Curve { name: "freeze-window-memory", axes: ["memory, MiB", "freeze window, ms"], points });
}

/// What the kernel takes to tell that nothing was written in the largest mapping of the service, ms: its page table entries are looked at
/// one by one, whatever else a window does.
fn scan_alone() -> f64 {
    let once = || {
        let pid = Cgroup::open(SERVICE).and_then(|cgroup| cgroup.members()).expect("the service runs")[0].pid;
        let mappings = read_maps(pid).expect("a living process");
        let own = mappings.into_iter().filter(|m| !m.shared).map(|m| m.range);
        let range = own.max_by_key(AddrRange::len).expect("a process has memory");
        let start = std::time::Instant::now();
        let census = Pagemap::open(pid).and_then(|mut map| map.census(&[Span { range, watched: true }]));
        std::hint::black_box(census.expect("a living process"));
        start.elapsed().as_secs_f64() * 1e3
    };
    median((0..ROUNDS).map(|_| once()).collect())
}

fn sizes() -> Vec<usize> {
    let free = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib: usize = free
        .lines()
        .find_map(|l| l.strip_prefix("MemAvailable:")?.trim().strip_suffix("kB")?.trim().parse().ok())
        .unwrap_or(0);
    // The service, its image on the memory disk, and a copy on the way.
    let fits = |mib: &usize| {
        let fits = mib * 5 / 2 < kib / 1024;
        if !fits {
            println!(
                "left out: {mib} MiB need two and a half times as much memory, there is {} MiB",
                kib / 1024
            );
        }
        fits
    };
    [64, 256, 1024, 4096, 8192].into_iter().filter(fits).collect()
}

/// 1 GiB of which a share is written between two checkpoints; and what an incremental stores of it.
pub(crate) fn written(report: &mut Report) {
    let mut windows = Vec::new();
    let mut sizes = Vec::new();
    for share in [0.0, 0.01, 0.1, 0.5] {
        let pages = (share * 262_144.0) as usize;
        let service = Service::start(&Load { mib: 1024, pages, ..Load::default() }, "");
        let costs = costs(&service, &[], || {
            service.write_pages();
        });
        let percent = share * 100.0;
        windows.push([percent, window(&costs)]);
        let name = format!("freeze window, 1 GiB, {percent} % written between");
        if share <= 0.01 {
            report.promised(name, window(&costs), "ms", Target::AtMost(5.0));
        } else {
            report.plain(name, window(&costs), "ms");
        }
        let stored = median(costs.iter().map(|c| c.bytes).collect()) / 1024.0;
        let most = 1.1 * (pages * 4) as f64 + 64.0;
        sizes.push([(pages * 4) as f64, stored]);
        report.promised(
            format!("incremental image, {pages} pages written"),
            stored,
            "KiB",
            Target::AtMost(most),
        );
    }
    report.curve(Curve {
        name: "freeze-window-written",
        axes: ["written, %", "freeze window, ms"],
        points: windows,
    });
    report.curve(Curve { name: "stored-written", axes: ["written, KiB", "stored, KiB"], points: sizes });
}

/// Writers to memory and to files that do not stop for a checkpoint.
pub(crate) fn writers(report: &mut Report) {
    let load = Load { mib: 1024, processes: 3, memory_mbps: 200, ..Load::default() };
    let service = Service::start(&load, "");
    report.promised(
        "freeze window, 4 processes write 200 MB/s",
        window(&costs(&service, &[], || service.forget())), // on a busy machine images are large
        "ms",
        Target::AtMost(25.0),
    );
    drop(service);
    let service = Service::start(&Load { mib: 16, file_mbps: 50, ..Load::default() }, "");
    report.promised(
        "freeze window, 50 MB/s to files",
        window(&costs(&service, &[], || ())),
        "ms",
        Target::AtMost(15.0),
    );
}

/// Writers that no copying catches up with: beside what a fork of as much memory takes by itself, which bounds it from below.
pub(crate) fn fast_writers(report: &mut Report) {
    /// As fast as can be.
    const MBPS: usize = 400_000;
    let fork = fork_of(1024);
    report.plain("fork of 1 GiB in small pages, alone", fork, "ms");
    for (processes, what) in [(0, "1 process rewrites 1 GiB"), (3, "4 processes rewrite 1 GiB")] {
        let load = Load { mib: 1024, processes, memory_mbps: MBPS, ..Load::default() };
        let service = Service::start(&load, "");
        service.checkpoint(&[]);
        let costs: Vec<_> = (0..ROUNDS / 2)
            .map(|_| {
                service.forget(); // each image is larger than the memory
                service.checkpoint(&[])
            })
            .collect();
        let name = format!("freeze window, {what} as fast as can be");
        let beside = Some(("fork of 1 GiB alone", fork));
        report.figure(Figure { name, value: window(&costs), unit: "ms", target: None, beside });
        report.plain(
            format!("until durable, {what}"),
            median(costs.iter().map(|c| c.durable).collect()),
            "s",
        );
    }
}

/// What fork(2) of so many MiB in pages of 4 KiB takes, ms.
fn fork_of(mib: usize) -> f64 {
    use nix::sys::wait::waitpid;
    use nix::unistd::{ForkResult, fork};
    let _ = nix::sys::prctl::set_thp_disable(true);
    let memory = vec![1u8; mib << 20];
    let times = (0..5).map(|_| {
        let start = std::time::Instant::now();
        // SAFETY: the child only ends.
        match unsafe { fork() }.expect("fork") {
            ForkResult::Child => std::process::exit(0),
            ForkResult::Parent { child } => {
                let time = start.elapsed().as_secs_f64() * 1e3;
                let _ = waitpid(child, None);
                time
            }
        }
    });
    let fork = median(times.collect());
    std::hint::black_box(&memory);
    let _ = nix::sys::prctl::set_thp_disable(false);
    fork
}

/// Threads and processes: the window and the restore.
pub(crate) fn crowd(report: &mut Report) {
    let mut points = Vec::new();
    for threads in [1, 100, 500] {
        let service = Service::start(&Load { mib: 16, threads, ..Load::default() }, "");
        let (cost, restore) = both(&service);
        points.push([threads as f64, cost]);
        if threads == 500 {
            beside_kernel(report, "freeze window, 500 threads", cost, 40.0);
            report.promised("restore, 500 threads", restore, "ms", Target::AtMost(80.0));
        }
    }
    report.curve(Curve { name: "freeze-window-threads", axes: ["threads", "freeze window, ms"], points });
    let mut points = Vec::new();
    for processes in [1, 50, 200] {
        let service = Service::start(&Load { mib: 50, processes, ..Load::default() }, "");
        let (cost, restore) = both(&service);
        points.push([processes as f64, cost]);
        if processes == 200 {
            beside_kernel(report, "freeze window, 200 small processes", cost, 60.0);
            report.promised("restore, 200 small processes", restore, "ms", Target::AtMost(200.0));
        }
    }
    report.curve(Curve { name: "freeze-window-processes", axes: ["processes", "freeze window, ms"], points });
}

/// A window beside what the kernel takes for the same tasks.
fn beside_kernel(report: &mut Report, name: &str, value: f64, most: f64) {
    let beside = Some(("stopped, read once, let go", kernel_alone()));
    let target = Some(Target::AtMost(most));
    report.figure(Figure { name: name.into(), value, unit: "ms", target, beside });
}

/// The least that any window does, by one thread, ms: every task stopped, registers and status of each read once, mappings and page tables
/// of each process, and all let go.
fn kernel_alone() -> f64 {
    let cgroup = Cgroup::open(SERVICE).expect("the service runs");
    let once = || {
        let start = std::time::Instant::now();
        let deadline = Deadline::after(std::time::Duration::from_secs(20));
        let processes = seize_all(std::slice::from_ref(&cgroup), deadline).expect("nobody traces it");
        for process in &processes {
            let pid = process.pid;
            for thread in &process.threads {
                let read = thread.registers().and_then(|_| thread.extended_state());
                read.and_then(|_| thread.pending_signals(false)).expect("a stopped thread");
                let status = format!("/proc/{pid}/task/{}/status", thread.tid());
                std::hint::black_box(proc_file::read(status).expect("a living thread"));
            }
            let own: Vec<_> =
                read_maps(pid).expect("a living process").into_iter().filter(|m| !m.shared).collect();
            let ranges: Vec<_> = own.iter().map(|m| m.range).filter(|r| r.end.get() <= 1 << 47).collect();
            let whole = AddrRange { start: ranges[0].start, end: ranges[ranges.len() - 1].end };
            let census =
                Pagemap::open(pid).and_then(|mut map| map.census(&[Span { range: whole, watched: false }]));
            std::hint::black_box(census.expect("a living process"));
        }
        processes.into_iter().for_each(|process| process.release().expect("nobody else lets it go"));
        start.elapsed().as_secs_f64() * 1e3
    };
    median((0..ROUNDS).map(|_| once()).collect())
}

fn both(service: &Service) -> (f64, f64) {
    let cost = window(&costs(service, &["--full"], || ()));
    let restores: Vec<f64> = (0..ROUNDS / 2).map(|_| service.restore(&[])).collect();
    (cost, median(restores))
}

/// What the service itself notices: the longest time that its clock stood still.
pub(crate) fn gap(report: &mut Report) {
    let service = Service::start(&Load { mib: 1024, ..Load::default() }, "");
    service.checkpoint(&[]);
    let mut gaps = Vec::new();
    let mut windows = Vec::new();
    let mut quiet = Vec::new();
    for _ in 0..ROUNDS {
        service.gap();
        std::thread::sleep(std::time::Duration::from_millis(300));
        quiet.push(service.gap());
        windows.push(service.checkpoint(&[]).window);
        gaps.push(service.gap());
    }
    report.plain("longest gap seen by the service, no checkpoint", median(quiet), "ms");
    report.figure(Figure {
        name: "longest gap seen by the service, one checkpoint".into(),
        value: median(gaps),
        unit: "ms",
        target: None,
        beside: Some(("freeze window as reported", median(windows))),
    });
}
