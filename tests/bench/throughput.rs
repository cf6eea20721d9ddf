//! What periodic checkpoints cost two databases: redis-benchmark and pgbench with and without.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ckpt_tests::databases::Databases;
use ckpt_tests::system::{must, run};

use crate::report::{Report, Target};

const SECONDS: u64 = 10;

/// Steps a second of Redis and of PostgreSQL without checkpoints, with one every second, and with one every 100 ms.
pub(crate) fn bench(report: &mut Report) {
    let databases = match Databases::prepare("throughput") {
        Ok(databases) => databases,
        Err(why) => return println!("left out: throughput of databases: {why}"),
    };
    let name = "throughput";
    must(&["ckptctl", "enable", &databases.slice, "--name", name, "--subvolume", &databases.subvolume]);
    databases.start();
    let _load = databases.load(600);
    databases.wait_for_progress();
    let mut shares = [Vec::new(), Vec::new()];
    for _ in 0..3 {
        // In turn, so that all meet the same moods of the host.
        let [every_second, every_100_ms] =
            [1000, 100].map(|period| share(&databases, Duration::from_millis(period)));
        shares[0].push(every_second);
        shares[1].push(every_100_ms);
    }
    for ((period, least), shares) in [("second", 95.0), ("100 ms", 80.0)].into_iter().zip(&shares) {
        for (which, database) in ["redis-benchmark", "pgbench"].iter().enumerate() {
            let share = crate::pwrite::median(shares.iter().map(|s| s[which]).collect());
            report.promised(
                format!("{database} with a checkpoint every {period}"),
                share * 100.0,
                "%",
                Target::AtLeast(least),
            );
        }
    }
    let _ = run(&["systemctl", "stop", databases.units()[0], databases.units()[1]]);
}

/// What is left of the steps a second while checkpoints are taken.
fn share(databases: &Databases, period: Duration) -> [f64; 2] {
    let before = rate(databases);
    let end = AtomicBool::new(false);
    let with = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !end.load(Ordering::Relaxed) {
                let start = Instant::now();
                must(&["ckptctl", "checkpoint", "throughput"]);
                std::thread::sleep(period.saturating_sub(start.elapsed()));
            }
        });
        let with = rate(databases);
        end.store(true, Ordering::Relaxed);
        with
    });
    let after = rate(databases);
    [0, 1].map(|i| with[i] / ((before[i] + after[i]) / 2.0))
}

fn rate(databases: &Databases) -> [f64; 2] {
    let start = Instant::now();
    let first = databases.progress();
    std::thread::sleep(Duration::from_secs(SECONDS));
    let last = databases.progress();
    let time = start.elapsed().as_secs_f64();
    [(last.0 - first.0) as f64 / time, (last.1 - first.1) as f64 / time]
}
