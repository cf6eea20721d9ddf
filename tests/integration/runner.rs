//! Runs tests: each in a process of its own, with a time limit; on failure its output and the journals are shown.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::AsFd;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::fixture;

/// Exit status of a test that cannot be run here; what it prints last is the reason.
const SKIPPED: i32 = 77;
const RUN_ONE: &str = "--one";

/// A property and how to check it. The check panics if it does not hold.
pub(crate) struct Test {
    pub(crate) name: String,
    pub(crate) limit: Duration,
    pub(crate) check: Box<dyn Fn(&str)>,
}

/// A test with the usual limit of a minute. `check` gets the test's name, which is the group's name as well.
pub(crate) fn test(name: &str, check: impl Fn(&str) + 'static) -> Test {
    Test { name: name.into(), limit: Duration::from_secs(60), check: Box::new(check) }
}

impl Test {
    /// The same test with another limit.
    pub(crate) fn limit(mut self, seconds: u64) -> Self {
        self.limit = Duration::from_secs(seconds);
        self
    }
}

/// Ends the calling test as skipped, for a reason that is shown in one line.
pub(crate) fn skip(reason: &str) -> ! {
    println!("{}", reason.trim().replace('\n', " "));
    std::process::exit(SKIPPED)
}

enum Outcome {
    Passed,
    Failed(String),
    Skipped(String),
}

/// Runs the tests whose name contains one of `filters`, or all.
pub(crate) fn run(tests: &[Test], arguments: Vec<String>) -> ExitCode {
    if let [flag, name] = &arguments[..]
        && flag == RUN_ONE
    {
        let test = tests.iter().find(|t| t.name == *name).unwrap_or_else(|| panic!("no test {name}"));
        (test.check)(&test.name);
        return ExitCode::SUCCESS;
    }
    if !std::path::Path::new("/run/machine").exists() {
        eprintln!("integration: this is for the throwaway machine: make integration");
        return ExitCode::FAILURE;
    }
    let wanted: Vec<&Test> = tests
        .iter()
        .filter(|t| arguments.is_empty() || arguments.iter().any(|a| t.name.contains(a.as_str())))
        .collect();
    println!("running {} integration tests", wanted.len());
    let (mut passed, mut failed, mut skipped) = (0, Vec::new(), 0);
    for test in wanted {
        let start = Instant::now();
        let outcome = run_one(test);
        let took = start.elapsed().as_secs_f64();
        match outcome {
            Outcome::Passed => {
                passed += 1;
                println!("  ok      {} ({took:.1} s)", test.name);
            }
            Outcome::Skipped(reason) => {
                skipped += 1;
                println!("  skipped {}: {reason}", test.name);
            }
            Outcome::Failed(report) => {
                println!("  FAILED  {} ({took:.1} s)\n{report}", test.name);
                failed.push(test.name.clone());
            }
        }
    }
    if !failed.is_empty() {
        println!("\nfailed:\n  {}", failed.join("\n  "));
    }
    println!("\n{passed} passed, {} failed, {skipped} skipped", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run_one(test: &Test) -> Outcome {
    let since = journal_cursor();
    let mut output = File::from(
        nix::sys::memfd::memfd_create(c"output", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)
            .expect("a memory file"),
    );
    let child = Command::new("/proc/self/exe")
        .args([RUN_ONE, &test.name])
        .env("RUST_BACKTRACE", "0")
        .stdin(std::process::Stdio::null())
        .stdout(output.try_clone().expect("a descriptor"))
        .stderr(output.try_clone().expect("a descriptor"))
        .spawn()
        .expect("the test's process starts");
    let status = wait(child, test.limit);
    let mut said = String::new();
    output.rewind().expect("seekable");
    // What is not UTF-8 is not worth failing for.
    let mut bytes = Vec::new();
    if output.read_to_end(&mut bytes).is_ok() {
        said = String::from_utf8_lossy(&bytes).into_owned();
    }
    let outcome = match status {
        Some(s) if s.success() => Outcome::Passed,
        Some(s) if s.code() == Some(SKIPPED) => {
            Outcome::Skipped(said.lines().last().unwrap_or("no reason").into())
        }
        Some(_) => Outcome::Failed(report(&said, "", &since)),
        None => {
            Outcome::Failed(report(&said, &format!("not done within {} s\n", test.limit.as_secs()), &since))
        }
    };
    fixture::clean_up(&test.name);
    outcome
}

/// The child's status, or nothing if the limit passed and it was killed.
fn wait(mut child: Child, limit: Duration) -> Option<ExitStatus> {
    let pidfd = ckpt_tests::open_pidfd(child.id()).expect("a pidfd");
    let millis = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    let in_time = poll(&mut fds, PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)) == Ok(1);
    if !in_time {
        let _ = child.kill();
    }
    let status = child.wait().expect("the child is ours");
    in_time.then_some(status)
}

fn journal_cursor() -> String {
    let out = Command::new("journalctl").args(["-q", "-n0", "--show-cursor", "--no-pager"]).output();
    let text = out.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    text.lines().find_map(|l| l.strip_prefix("-- cursor: ")).unwrap_or("").into()
}

fn report(said: &str, first: &str, since: &str) -> String {
    let mut text = format!("{first}{said}");
    let mut args = vec!["-q", "--no-pager", "-o", "short-monotonic", "-n", "120"];
    let after = format!("--after-cursor={since}");
    if !since.is_empty() {
        args.push(&after);
    }
    if let Ok(out) = Command::new("journalctl").args(args).output() {
        text += "--- journal\n";
        text += &String::from_utf8_lossy(&out.stdout);
    }
    text.lines().map(|l| format!("    {l}\n")).collect()
}
