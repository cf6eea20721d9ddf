//! Processes under test in a cgroup of their own: this program again, with one of its ignored tests.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use ckpt_sys::cgroup::{self, Cgroup};

/// The victim has seen what must not be.
pub fn fail(what: &str) -> ! {
    println!("HARMED {what}");
    std::process::exit(1);
}

/// A cgroup of the test's own.
pub struct TestCgroup(pub PathBuf, pub Cgroup);

impl TestCgroup {
    pub fn new(name: &str) -> Self {
        let name = format!("ckpt-test-{}-{name}", std::process::id());
        let dir = cgroup::mount_point().unwrap().join(&name);
        std::fs::create_dir(&dir).unwrap();
        let cgroup = Cgroup::open(&name).unwrap();
        Self(dir, cgroup)
    }
}

impl Drop for TestCgroup {
    fn drop(&mut self) {
        let _ = self.1.set_freeze(false);
        let _ = self.1.kill();
        let end = Instant::now() + Duration::from_secs(2);
        while std::fs::remove_dir(&self.0).is_err() && Instant::now() < end {
            std::thread::yield_now();
        }
    }
}

/// A process that runs one of the ignored tests.
pub struct Started {
    pub child: Child,
    pub out: BufReader<ChildStdout>,
    /// What it said before it was ready.
    pub said: String,
}

/// Starts one and waits until it is ready.
pub fn start(test: &str, cgroup: Option<&TestCgroup>, env: (&str, &str)) -> Started {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"]).env(env.0, env.1);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    if let Some(cgroup) = cgroup {
        std::fs::write(cgroup.0.join("cgroup.procs"), child.id().to_string()).unwrap();
    }
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut said = String::new();
    while !said.contains("READY") {
        assert_ne!(out.read_line(&mut said).unwrap(), 0, "{test} ended before it was ready");
    }
    Started { child, out, said }
}

impl Started {
    /// Ends it and asserts that all its checks held.
    pub fn assert_unharmed(mut self) {
        drop(self.child.stdin.take());
        let mut text = String::new();
        self.out.read_to_string(&mut text).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success() && text.contains("UNHARMED"), "{status}: {}{text}", self.said);
        println!("{text}");
    }
}

/// Kills tracers of the cgroup, one after the other, at random instants of their first microseconds; `after` each something is looked at.
pub fn kill_tracers(cgroup: &TestCgroup, rounds: u32, microseconds: u64, mut after: impl FnMut()) {
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    for _ in 0..rounds {
        let mut tracer = start("tracer", None, ("CKPT_TEST_CGROUP", cgroup.1.name()));
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        std::thread::sleep(Duration::from_micros(random % microseconds));
        tracer.child.kill().unwrap();
        tracer.child.wait().unwrap();
        // A killed tracer may leave the cgroup frozen; its successor thaws it, as the daemon does at its start.
        cgroup.1.set_freeze(false).unwrap();
        after();
    }
}
