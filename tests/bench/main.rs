//! What it costs, each figure beside its target: runs inside the throwaway machine (`make bench`; `FILTER=part-of-a-name` chooses).

mod memory;
mod merge;
mod pwrite;
mod report;
mod restores;
mod scale;
mod service;
mod store;
mod throughput;
mod trackers;
mod window;

use std::process::ExitCode;

use report::Report;

/// A bench adds its figures to the report.
type Bench = fn(&mut Report);

/// The benches by name.
const BENCHES: &[(&str, Bench)] = &[
    ("library", pwrite::bench),
    ("stages", memory::bench),
    ("window-memory", window::memory),
    ("window-written", window::written),
    ("window-writers", window::writers),
    ("window-fast-writers", window::fast_writers),
    ("window-crowd", window::crowd),
    ("gap", window::gap),
    ("trackers", trackers::bench),
    ("restores", restores::bench),
    ("scale", scale::bench),
    ("store", store::bench),
    ("merge", merge::bench),
    ("throughput", throughput::bench),
];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        [pwrite::CHILD] => pwrite::child(),
        [service::CHILD, ref load @ ..] => {
            service::child(&service::Load::parse(load).expect("words of ours"))
        }
        [restores::CHILD, mib, threads, processes] => {
            let [mib, threads, processes] = [mib, threads, processes].map(|n| n.parse().expect("a number"));
            restores::child(mib, threads, processes);
        }
        [scale::CHILD, kind, count] => scale::child(kind, count.parse().expect("a number")),
        [restores::IDLE] => restores::idle(),
        [memory::SMALL] => memory::child(false),
        [memory::HUGE] => memory::child(true),
        _ if !std::path::Path::new("/run/machine").exists() => {
            eprintln!("bench: this is for the throwaway machine: make bench");
            return ExitCode::FAILURE;
        }
        [filter] => run(filter),
        _ => run(""),
    }
    ExitCode::SUCCESS
}

/// Those whose name has `filter` in it.
fn run(filter: &str) {
    let mut report = Report::default();
    for (name, bench) in BENCHES.iter().filter(|(name, _)| name.contains(filter)) {
        eprintln!("{name}");
        bench(&mut report);
    }
    match report.finish() {
        Ok(dir) => println!("the same as JSON, and plots: {}", dir.display()),
        Err(e) => eprintln!("bench: cannot write the report: {e}"),
    }
}
