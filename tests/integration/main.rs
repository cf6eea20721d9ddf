//! Integration tests: properties of the installed project, checked inside a throwaway machine with ckptctl, busctl and
//! systemctl only.
//!
//! `integration [PART-OF-A-NAME]…` runs the tests, each in a process of its own with a time limit, and ends with the line
//! `N passed, N failed, N skipped`. A test that fails shows what it printed, the daemon's journal and its units' journal.

mod apps;
mod bus;
mod cases;
mod daemon;
mod databases;
mod fixture;
mod incremental;
mod lazy;
mod lifetimes;
mod outside;
mod pids;
mod runner;
mod sandboxes;
mod services;
mod storage;
mod store;
mod unit_types;
mod units;
mod victims;
mod writers;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut tests = Vec::new();
    tests.extend(bus::tests());
    tests.extend(victims::tests());
    tests.extend(cases::tests());
    tests.extend(outside::tests());
    tests.extend(storage::tests());
    tests.extend(store::tests());
    tests.extend(units::tests());
    tests.extend(pids::tests());
    tests.extend(sandboxes::tests());
    tests.extend(unit_types::tests());
    tests.extend(lifetimes::tests());
    tests.extend(daemon::tests());
    tests.extend(services::tests());
    tests.extend(databases::tests());
    tests.extend(apps::tests());
    tests.extend(incremental::tests());
    tests.extend(writers::tests());
    tests.extend(lazy::tests());
    runner::run(&tests, std::env::args().skip(1).collect())
}
