//! Freeze window, time and size of checkpoints, and time of restores, of one process with much memory.

use std::time::Instant;

use ckpt_tests::system::{ckptctl, must, run};

use crate::pwrite::median;

/// How this program calls itself to be the service with much memory.
pub(crate) const CHILD: &str = "--memory";

const SIZES_MIB: [u32; 3] = [16, 256, 1024];
const ROUNDS: usize = 5;
const UNIT: &str = "bench.service";

/// Prints one line for each size.
pub(crate) fn bench() {
    println!("\nmemory     freeze window   checkpoint   restore     image     (medians of {ROUNDS})");
    for mib in SIZES_MIB {
        let rounds = rounds(mib);
        let of = |i: usize| median(rounds.iter().map(|r| r[i]).collect());
        println!("{mib:5} MiB   {:9.1} ms   {:8.2} s   {:6.2} s   {:7.1} MiB", of(0), of(1), of(2), of(3));
    }
}

/// Freeze window in ms, checkpoint in s, restore in s, image in MiB, of each round.
fn rounds(mib: u32) -> Vec<[f64; 4]> {
    let program = std::env::current_exe().expect("this program's path");
    let unit =
        format!("[Service]\nType=notify\nNotifyAccess=all\nExecStart={} {CHILD} {mib}\n", program.display());
    std::fs::write(format!("/run/systemd/system/{UNIT}"), unit).expect("/run is the machine's own");
    must(&["systemctl", "daemon-reload"]);
    must(&["ckptctl", "enable", UNIT, "--name", "bench"]);
    must(&["systemctl", "start", UNIT]);
    let rounds = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            let made = ckptctl(&["checkpoint", "bench"]);
            let taken = start.elapsed().as_secs_f64();
            let start = Instant::now();
            ckptctl(&["restore", "bench"]);
            let restored = start.elapsed().as_secs_f64();
            let id = made["id"].as_str().unwrap_or("").to_string();
            must(&["ckptctl", "delete", &format!("bench@{id}")]);
            let number = |field: &str| made[field].as_f64().unwrap_or(f64::NAN);
            [number("freeze_usec") / 1e3, taken, restored, number("image_bytes") / f64::from(1 << 20)]
        })
        .collect();
    must(&["systemctl", "stop", UNIT]);
    let _ = run(&["ckptctl", "disable", "bench"]);
    rounds
}

/// Fills memory with what does not compress, tells that it is ready, waits for ever.
pub(crate) fn child(mib: usize) {
    let mut state = 88_172_645_463_325_252_u64;
    let memory: Vec<u64> = (0..mib << 17)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        })
        .collect();
    must(&["systemd-notify", "--ready"]);
    loop {
        std::hint::black_box(&memory);
        std::thread::park();
    }
}
