//! What each tracker costs a program that writes all of its memory.

use ckpt_tests::system::run;

use crate::pwrite::median;
use crate::report::{Figure, Report};
use crate::service::{Load, Service};

const MIB: usize = 256;
const PAGES: usize = MIB << 8;
const ROUNDS: usize = 10;

/// A loop over all memory with a checkpoint before it, beside the same loop without one: what is written first after a checkpoint.
pub(crate) fn bench(report: &mut Report) {
    for tracker in ["wp-async", "soft-dirty", "write-protect", "none"] {
        let load = Load { mib: MIB, pages: PAGES, ..Load::default() };
        let service = Service::start(&load, &format!("tracker = \"{tracker}\""));
        let tried = run(&["ckptctl", "checkpoint", "bench"]);
        if !tried.status.success() {
            let why = String::from_utf8_lossy(&tried.stderr);
            println!("left out: a loop over all memory with tracker {tracker}: {}", why.trim());
            continue;
        }
        service.write_pages();
        let (mut first, mut second) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            service.checkpoint(&[]);
            first.push(service.write_pages());
            second.push(service.write_pages());
        }
        let [first, second] = [first, second].map(median);
        let name = format!("{MIB} MiB written after a checkpoint, {tracker}");
        let beside = Some(("written once more", second));
        report.figure(Figure { name, value: first, unit: "ms", target: None, beside });
        let name = format!("added to the first write of a page, {tracker}");
        report.plain(name, (first - second) * 1e6 / PAGES as f64, "ns");
    }
}
