//! The `write-protect` tracker on real programs: they never see it, and no written page is missed. Needs root and a cgroup2 tree.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use ckpt_sys::cgroup::{self, Cgroup};
use ckpt_sys::inject::Live;
use ckpt_sys::maps::{Mapping, read_smaps};
use ckpt_sys::thread::Deadline;
use ckpt_sys::{VirtAddr, remote, seize};
use nix::unistd::Pid;

const PAGE: usize = 4096;

fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let status =
            Command::new(env!("CARGO")).args(["build", "-q", "-p", "ckpt-preload"]).status().unwrap();
        assert!(status.success());
        Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("debug").join("libckpt_preload.so")
    })
}

fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| compiled("preload/protected.c", "protected"))
}

/// A victim, compiled for this test alone.
fn compiled(source: &str, name: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("victims").join(source);
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    let mut compile = Command::new("cc");
    compile.args(["-g", "-O1", "-Wall", "-Wextra", "-pthread", "-o"]).arg(&program).arg(source);
    assert!(compile.status().unwrap().success());
    program
}

/// A cgroup of the test's own.
struct Place(PathBuf, Cgroup);

impl Place {
    fn new(name: &str) -> Option<Self> {
        let name = format!("/ckpt-protect-{name}-{}", std::process::id());
        let dir = cgroup::mount_point().ok()?.join(&name[1..]);
        if let Err(e) = std::fs::create_dir(&dir) {
            eprintln!("skipped: a cgroup of its own needs root: {e}");
            return None;
        }
        let cgroup = Cgroup::open(&name).unwrap();
        Some(Self(dir, cgroup))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.1.set_freeze(false);
        let _ = std::fs::write(self.0.join("cgroup.kill"), "1");
        for _ in 0..200 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The victim with some of its parts, in a cgroup.
struct Victim {
    place: Place,
    child: Child,
    /// By process: its memory when it was armed last.
    known: BTreeMap<i32, Vec<(u64, Vec<u8>)>>,
    armed: usize,
    clean: usize,
    own: usize,
}

impl Victim {
    fn start(name: &str, parts: &[&str]) -> Option<Self> {
        let mut victim = Self::launch(name, program(), parts)?;
        let mut line = String::new();
        BufReader::new(victim.child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Some(victim)
    }

    fn launch(name: &str, program: &Path, parts: &[&str]) -> Option<Self> {
        let place = Place::new(name)?;
        let procs = place.0.join("cgroup.procs");
        let script = "echo $$ > \"$0\" && library=$1 && shift && LD_PRELOAD=$library exec \"$@\"";
        let mut command = Command::new("sh");
        command.arg("-c").arg(script).arg(&procs).arg(library()).arg(program).args(parts);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let child = command.spawn().unwrap();
        Some(Self { place, child, known: BTreeMap::new(), armed: 0, clean: 0, own: 0 })
    }

    /// What a checkpoint does with the tracker: stop, lift, look, arm, go on.
    fn checkpoint(&mut self) {
        let deadline = Deadline::after(Duration::from_secs(20));
        let mut known = BTreeMap::new();
        for process in seize::seize_all(std::slice::from_ref(&self.place.1), deadline).unwrap() {
            let pid = process.pid;
            let mut live = Live::hold(process, deadline).unwrap();
            live.prepare(deadline).unwrap();
            live.lift(deadline).unwrap();
            self.compare(pid, &live);
            let mappings = read_smaps(pid).unwrap();
            let now = memory(pid, &mappings);
            if live.arm(&mappings, deadline).unwrap() {
                self.armed += 1;
                known.insert(pid.as_raw(), now);
            }
            live.release().unwrap();
        }
        self.known = known;
    }

    /// Every page that has changed since it was armed is among the written.
    fn compare(&mut self, pid: Pid, live: &Live) {
        let Some(known) = self.known.remove(&pid.as_raw()) else { return };
        let clean = live.protection().clean();
        for (start, bytes) in known {
            for (n, old) in bytes.chunks(PAGE).enumerate() {
                let at = VirtAddr(start + (n * PAGE) as u64);
                self.own += 1;
                let place = clean.partition_point(|range| range.end <= at);
                if clean.get(place).is_some_and(|range| range.contains(at)) {
                    self.clean += 1;
                    let mut now = [0; PAGE];
                    remote::read(pid, at, &mut now).unwrap();
                    assert!(now == old, "{at} of {pid} has changed and was not seen");
                }
            }
        }
    }

    fn end(mut self) {
        drop(self.child.stdin.take());
        let mut rest = String::new();
        BufReader::new(self.child.stdout.as_mut().unwrap()).read_line(&mut rest).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success() && rest == "unharmed\n", "{status}: {rest:?}");
        assert!(self.armed > 0, "never armed");
        eprintln!("armed {} times; of {} pages {} were clean", self.armed, self.own, self.clean);
    }
}

/// The private writable memory of a process.
fn memory(pid: Pid, mappings: &[Mapping]) -> Vec<(u64, Vec<u8>)> {
    let own = mappings.iter().filter(|m| !m.shared && m.prot & 2 != 0);
    own.map(|mapping| {
        let mut bytes = vec![0; mapping.range.len() as usize];
        remote::read(pid, mapping.range.start, &mut bytes).unwrap();
        (mapping.range.start.0, bytes)
    })
    .collect()
}

/// A victim of the integration tests, armed three times, then asked to change all of its memory and to check itself.
#[test]
fn a_program_that_waits_for_signals_changes_all_its_memory() {
    let program = compiled("memory.c", "protected-memory");
    let dir = program.with_extension("dir");
    std::fs::create_dir_all(&dir).unwrap();
    let generation = || std::fs::read_to_string(dir.join("generation")).unwrap_or_default();
    let Some(mut victim) = Victim::launch("memory", &program, &[dir.to_str().unwrap()]) else { return };
    let until = |what: &str, done: &dyn Fn() -> bool| {
        let begun = Instant::now();
        while !done() {
            assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    };
    until("ready", &|| generation() == "0\n");
    let pid = Pid::from_raw(i32::try_from(victim.child.id()).unwrap());
    for round in 1..=5 {
        (0..3).for_each(|_| victim.checkpoint());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGUSR2).unwrap();
        until("changed", &|| generation() == format!("{round}\n"));
        victim.checkpoint();
        let _ = std::fs::remove_file(dir.join("report"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGUSR1).unwrap();
        until("checked", &|| dir.join("report").exists());
        let report = std::fs::read_to_string(dir.join("report")).unwrap();
        assert_eq!(report, format!("ok {round} {round}\n"));
    }
    assert!(victim.armed == 20, "armed {} times", victim.armed);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(victim.child.wait().unwrap().success());
    let _ = (std::fs::remove_file(&program), std::fs::remove_dir_all(&dir));
}

/// Armed for the first time inside two handlers of its own, which the kernel has entered before.
#[test]
fn handlers_that_run_when_it_begins_return_to_what_they_interrupted() {
    let program = compiled("preload/handler.c", "protected-handler");
    let Some(mut victim) = Victim::launch("handler", &program, &[]) else { return };
    let mut lines = BufReader::new(victim.child.stdout.take().unwrap()).lines();
    let mut says = |word: &str| assert_eq!(lines.next().unwrap().unwrap(), word);
    for _ in 0..3 {
        says("in");
        victim.checkpoint();
        victim.child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        says("out");
    }
    assert!(victim.child.wait().unwrap().success());
    assert_eq!(victim.armed, 3);
    let _ = std::fs::remove_file(&program);
}

fn unharmed(name: &str, parts: &[&str], seconds: u64) {
    let Some(mut victim) = Victim::start(name, parts) else { return };
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut pause = 1;
    while Instant::now() < end {
        victim.checkpoint();
        pause = pause * 7 % 31;
        std::thread::sleep(Duration::from_millis(pause));
    }
    victim.end();
}

macro_rules! parts {
    ($($test:ident: $($part:literal)*;)*) => { $(
        #[test]
        fn $test() {
            unharmed(stringify!($test), &[$($part),*], 4);
        }
    )* };
}

parts! {
    plain_writes_are_seen: "writes";
    the_kernels_writes_are_seen: "kernel";
    a_buffer_of_a_sleeping_call_is_written_whole: "sleeps";
    changed_mappings_are_right: "layout";
    the_applications_own_faults_are_its_own: "faults";
    signals_are_as_the_application_believes: "signals";
    children_are_right: "children";
    threads_come_and_go: "threads";
    stacks_may_lie_anywhere: "coroutines";
    streams_lose_nothing: "streams";
    all_at_once: "writes" "kernel" "sleeps" "layout" "faults" "signals" "children" "threads" "coroutines" "streams";
}
