//! The demo: Redis and PostgreSQL under load go back together, memory, processes and files, to the moment of a checkpoint.
//!
//! Runs inside the throwaway machine (`make demo`) and uses nothing but Debian's units, busctl, systemctl and ckptctl.

mod stage;

use std::process::ExitCode;
use std::time::Instant;

use ckpt_tests::databases::{Databases, State};
use ckpt_tests::system::{ckptctl, must, property, run, text};
use stage::Stage;

const GROUP: &str = "demo";

fn main() -> ExitCode {
    if !std::path::Path::new("/run/machine").exists() {
        eprintln!("demo: this is for the throwaway machine: make demo");
        return ExitCode::FAILURE;
    }
    let stage = Stage::new();
    let databases = match Databases::prepare(GROUP) {
        Ok(databases) => databases,
        Err(reason) => {
            eprintln!("demo: {reason}");
            return ExitCode::FAILURE;
        }
    };
    if play(&stage, &databases) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The whole play; true if everything agrees at its end.
fn play(stage: &Stage, databases: &Databases) -> bool {
    let pids = open(stage, databases);
    let (before, after) = checkpoint(stage, databases);
    let lost = disaster(stage, databases);
    restore(stage);
    verdict(stage, databases, &pids, &before, &after, &lost)
}

/// Both services run under load. Gives their Main PIDs.
fn open(stage: &Stage, databases: &Databases) -> [u32; 2] {
    stage.act("Redis and PostgreSQL, Debian's own units, in one slice, files on one btrfs subvolume");
    stage.command(&[
        "ckptctl",
        "enable",
        &databases.slice,
        "--name",
        GROUP,
        "--subvolume",
        &databases.subvolume,
    ]);
    databases.start();
    let pids = databases.main_pids();
    for (unit, pid) in databases.units().iter().zip(pids) {
        stage.fact(unit, &format!("active, Main PID {pid}"));
    }
    pids
}

/// Load, and the call of the manual in the middle of it. Gives progress right before and right after.
fn checkpoint(stage: &Stage, databases: &Databases) -> ((i64, i64), (i64, i64)) {
    stage.act("Eight clients write; in the middle of it, one checkpoint by a plain bus call");
    let mut load = databases.load(60);
    databases.wait_for_progress();
    let before = databases.progress();
    let start = Instant::now();
    stage.command(&[
        "busctl",
        "call",
        "org.ckpt",
        "/org/ckpt",
        "org.ckpt.Manager1",
        "Checkpoint",
        "sa{sv}",
        GROUP,
        "0",
    ]);
    let took = start.elapsed();
    let after = databases.progress();
    let list = ckptctl(&["list", GROUP]);
    let made = &list[0];
    stage.fact("freeze window", &format!("{:.1} ms", made["freeze_usec"].as_f64().unwrap_or(0.0) / 1000.0));
    stage.fact("call to durable", &format!("{:.2} s", took.as_secs_f64()));
    stage.fact("members", &format!("{} processes, {} threads", made["processes"], made["threads"]));
    stage.fact(
        "image",
        &format!("{:.1} MiB", made["image_bytes"].as_f64().unwrap_or(0.0) / f64::from(1 << 20)),
    );
    stage.fact("snapshot", made["snapshots"][0]["path"].as_str().unwrap_or("none"));
    stage.act("They go on as if nothing had happened, past the checkpoint");
    databases.wait_for_progress();
    let later = databases.progress();
    stage.fact("Redis counter", &format!("{} → {} → {}", before.0, after.0, later.0));
    stage.fact("PostgreSQL transactions", &format!("{} → {} → {}", before.1, after.1, later.1));
    load.end();
    (before, after)
}

/// Everything is lost. Gives what the databases said last.
fn disaster(stage: &Stage, databases: &Databases) -> State {
    let lost = databases.state();
    stage.act("Disaster: SIGKILL to every process, and every file of both databases is removed");
    // Some processes end by the death of others before the signal reaches them.
    let _ = run(&["systemctl", "kill", "--signal=KILL", &databases.slice]);
    must(&["systemctl", "stop", &databases.slice]);
    databases.wipe();
    let left = must(&["ls", "-A", &databases.subvolume]);
    stage.fact(&databases.subvolume, if left.trim().is_empty() { "empty" } else { left.trim() });
    for unit in databases.units() {
        stage.fact(unit, &property(unit, "ActiveState"));
    }
    lost
}

fn restore(stage: &Stage) {
    stage.act("One command brings them back");
    let start = Instant::now();
    stage.command(&["ckptctl", "restore", GROUP]);
    stage.fact("restore", &format!("{:.2} s", start.elapsed().as_secs_f64()));
}

/// Compares memory, files, processes and clients with the moment of the checkpoint.
fn verdict(
    stage: &Stage,
    databases: &Databases,
    pids: &[u32; 2],
    before: &(i64, i64),
    after: &(i64, i64),
    lost: &State,
) -> bool {
    stage.act("What they say now");
    let now = databases.state();
    let disk = databases.counter_on_disk();
    let within = |value: i64, from: i64, to: i64| (from..=to).contains(&value);
    let mut good = true;
    let mut check = |what: &str, said: String, holds: bool| {
        stage.check(what, &said, holds);
        good &= holds;
    };
    check(
        "Redis counter",
        format!(
            "{} (was {} at the end; {} to {} around the checkpoint)",
            now.counter, lost.counter, before.0, after.0
        ),
        within(now.counter, before.0, after.0),
    );
    let history = format!("{} entries, the last is {}", now.history_len, now.history_last);
    check("Redis history", history, now.history_len == now.counter && now.history_last == now.counter);
    check("append-only file, read by another Redis", disk.to_string(), disk == now.counter);
    check(
        "PostgreSQL transactions",
        format!("{} (was {}; {} to {})", now.transactions, lost.transactions, before.1, after.1),
        within(now.transactions, before.1, after.1),
    );
    check(
        "accounts = tellers = branches = history",
        format!("{} = {} = {} = {}", now.accounts, now.tellers, now.branches, now.history_sum),
        now.holds(),
    );
    let pids_now = databases.main_pids();
    check("Main PIDs", format!("{} and {}", pids_now[0], pids_now[1]), pids_now == *pids);
    let mut load = databases.load(20);
    databases.wait_for_progress();
    load.end();
    let later = databases.state();
    let said = format!(
        "{} more counts, {} more transactions",
        later.counter - now.counter,
        later.transactions - now.transactions
    );
    check("new clients write", said, later.holds() && later.counter > now.counter);
    let units = databases.units().map(|unit| property(unit, "ActiveState"));
    check("units", units.join(" and "), units.iter().all(|s| s == "active"));
    stage.end(good);
    if !good {
        let journal = run(&["journalctl", "-q", "--no-pager", "-u", "ckptd", "-n", "50"]);
        eprintln!("{}", text(&journal.stdout));
    }
    good
}
