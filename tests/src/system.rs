//! Commands of the system, and waiting for things.

use std::ffi::OsStr;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Runs a program; gives its output whatever its status.
pub fn run<S: AsRef<OsStr>>(words: &[S]) -> Output {
    let (program, args) = words.split_first().expect("a program");
    Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{:?}: {e}", program.as_ref()))
}

/// Standard output of a program that must succeed.
pub fn must<S: AsRef<OsStr>>(words: &[S]) -> String {
    let out = run(words);
    let line: Vec<_> = words.iter().map(|w| w.as_ref().to_string_lossy()).collect();
    assert!(
        out.status.success(),
        "{} ended with {}:\n{}{}",
        line.join(" "),
        out.status,
        text(&out.stdout),
        text(&out.stderr)
    );
    text(&out.stdout)
}

/// JSON that a successful `ckptctl --json …` prints.
pub fn ckptctl(args: &[&str]) -> Value {
    let said = must(&[&["ckptctl", "--json"], args].concat());
    serde_json::from_str(&said).unwrap_or_else(|e| panic!("ckptctl {}: {e} in:\n{said}", args.join(" ")))
}

/// Bytes as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Waits until `ready` gives something; fails with `what` after `seconds`.
pub fn eventually<T>(what: &str, seconds: u64, mut ready: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {seconds} s: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A property of a unit, as systemctl shows it.
pub fn property(unit: &str, name: &str) -> String {
    must(&["systemctl", "show", "--value", "-p", name, unit]).trim().to_string()
}

/// Main PID of a unit; 0: none.
pub fn main_pid(unit: &str) -> u32 {
    property(unit, "MainPID").parse().expect("a number")
}
