//! What goes through the store: time to durable of a full, time of a restore, each beside what the bytes alone cost.

use std::fs::File;
use std::io::Write;
use std::time::Instant;

use crate::pwrite::median;
use crate::report::{Figure, Report, Target};
use crate::service::{Load, Service};

const ROUNDS: usize = 5;
const MIB: usize = 1024;

/// A full of 1 GiB against writing and syncing 1 GiB; its restore against a copy of 1 GiB.
pub(crate) fn bench(report: &mut Report) {
    let service = Service::start(&Load { mib: MIB, ..Load::default() }, "");
    service.checkpoint(&["--full"]);
    service.forget();
    let (mut durable, mut plain) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        plain.push(write_and_sync());
        durable.push(service.checkpoint(&["--full"]).durable);
        service.forget();
    }
    beside(
        report,
        "time to durable of a full, 1 GiB",
        median(durable) * 1e3,
        "write and fsync of as much",
        median(plain) * 1e3,
    );
    service.checkpoint(&["--full"]);
    let copies: Vec<f64> = (0..ROUNDS).map(|_| copy()).collect();
    let restores: Vec<f64> = (0..ROUNDS).map(|_| service.restore(&[])).collect();
    report.promised("restore, 1 GiB, as it is by default", median(restores), "ms", Target::AtMost(60.0));
    let busctl = |lazy: &str| {
        let start = Instant::now();
        let words = [
            "busctl",
            "call",
            "--timeout=300",
            "org.ckpt",
            "/org/ckpt",
            "org.ckpt.Manager1",
            "Restore",
            "ssa{sv}",
            "bench",
            "",
            "1",
            "lazy",
            "b",
            lazy,
        ];
        ckpt_tests::system::must(&words);
        start.elapsed().as_secs_f64() * 1e3
    };
    let eager: Vec<f64> = (0..ROUNDS).map(|_| busctl("false")).collect();
    beside(
        report,
        "restore, 1 GiB, eager",
        median(eager),
        "a copy of as much into new memory",
        median(copies),
    );
}

fn beside(report: &mut Report, name: &str, value: f64, what: &'static str, other: f64) {
    let target = Some(Target::AtMost((other * 1.3).round()));
    report.figure(Figure { name: name.into(), value, unit: "ms", target, beside: Some((what, other)) });
}

/// Seconds that it takes to write as many bytes to the store, and to sync them.
fn write_and_sync() -> f64 {
    let mut state = 88_172_645_463_325_252_u64;
    let block: Vec<u8> = (0..1 << 20)
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .collect();
    let path = "/var/lib/ckpt/plain";
    let start = Instant::now();
    let mut file = File::create(path).expect("the store is ours in the machine");
    (0..MIB / 8).for_each(|_| file.write_all(&block).expect("room"));
    file.sync_all().expect("fsync");
    let time = start.elapsed().as_secs_f64();
    std::fs::remove_file(path).expect("our own file");
    time
}

/// Milliseconds of a copy of as many bytes into memory that was not touched before.
fn copy() -> f64 {
    let source = vec![1_u8; MIB << 20];
    let start = Instant::now();
    let copy = std::hint::black_box(&source).clone();
    let time = start.elapsed().as_secs_f64() * 1e3;
    drop(std::hint::black_box(copy));
    time
}
