//! Debian's own Redis and PostgreSQL, under load, go back together.

use std::fs;

use crate::runner::{Test, skip, test};
use ckpt_tests::databases::Databases;
use ckpt_tests::system::{ckptctl, main_pid, must, run};

/// Debian's unit, as it is.
const REDIS: &str = "redis-server.service";

/// Rounds of load, checkpoint, more load, loss, restore, unless CKPT_ROUNDS says how many.
const ROUNDS: u64 = 3;

/// Seconds that one round may take.
const ROUND_LIMIT: u64 = 80;

pub(crate) fn tests() -> Vec<Test> {
    vec![test("databases", rounds_under_load).limit(rounds() * ROUND_LIMIT)]
}

fn rounds() -> u64 {
    std::env::var("CKPT_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS)
}

/// After each restore the invariants hold in memory and on disk, the Main PIDs are the captured ones, clients connect.
fn rounds_under_load(name: &str) {
    let databases = match Databases::prepare(name) {
        Ok(databases) => databases,
        Err(reason) => skip(&reason),
    };
    must(&["ckptctl", "enable", &databases.slice, "--name", name, "--subvolume", &databases.subvolume]);
    databases.start();
    let told = ckptctl(&["check", name]);
    let problems = told["problems"].as_array().cloned().unwrap_or_default();
    assert!(problems.iter().all(|p| p["unit"] != REDIS), "{told}");
    for round in 0..rounds() {
        let mut load = databases.load(60);
        databases.wait_for_progress();
        let pids = databases.main_pids();
        must(&["ckptctl", "checkpoint", name]);
        databases.wait_for_progress();
        let _ = run(&["systemctl", "kill", "--signal=KILL", &databases.slice]);
        must(&["systemctl", "stop", &databases.slice]);
        load.end();
        databases.wipe();
        must(&["ckptctl", "restore", name]);
        assert_eq!(databases.main_pids(), pids, "round {round}");
        // Debian's unit has PrivateUsers=yes.
        let users = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/user")).expect("a process");
        assert_ne!(users(&main_pid(REDIS).to_string()), users("self"), "round {round}");
        let state = databases.state();
        assert!(state.holds(), "round {round}: {state:?}");
    }
}
