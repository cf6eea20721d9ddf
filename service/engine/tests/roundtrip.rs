//! Every victim comes back from its image as it was: started, changed, captured, killed, rebuilt, asked to check itself.
//!
//! Runs without systemd, in a cgroup of its own; as root only. A program without the test harness, because the rebuild needs a
//! process of one thread: the test starts itself again as `rebuild` for that, in the place of ckpt-restore.
//!
//! `roundtrip [NAME]…` runs the cases named; `CKPT_KEEP=1` keeps the images.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use ckpt_engine::capture::memory::{self, Everything, Plan};
use ckpt_engine::capture::{Files, Members, Objects, family};
use ckpt_engine::rebuild::{Reply, Request, UnitPlace, run};
use ckpt_image::records::{FdTableId, FdTableRecord, GroupImage, Pid, SpaceId, UnitIndex, UnitRecord};
use ckpt_image::{PagesWriter, write_state};
use ckpt_sys::cgroup::{self, Cgroup};
use ckpt_sys::seize;
use ckpt_sys::thread::Deadline;

type Outcome = Result<(), String>;

/// The victims of tests/victims that need no more than a process tree, memory, threads and descriptors.
const VICTIMS: [&str; 4] = ["registers", "memory", "identity", "signals"];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    if arguments.first().is_some_and(|a| a == "rebuild") {
        return rebuild();
    }
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root may trace, freeze and choose process ids");
        return ExitCode::SUCCESS;
    }
    let mut failed = 0;
    for name in VICTIMS.iter().filter(|n| arguments.is_empty() || arguments.iter().any(|a| a == *n)) {
        let begin = Instant::now();
        match victim_comes_back(name) {
            Ok(()) => println!("test {name} ... ok ({:?})", begin.elapsed()),
            Err(e) => {
                failed += 1;
                println!("test {name} ... FAILED\n    {e}");
            }
        }
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// In the place of ckpt-restore.
fn rebuild() -> ExitCode {
    let request: Request = serde_json::from_reader(std::io::stdin()).unwrap();
    let reply = match run(&request) {
        Ok(report) => Reply::Restored(report),
        Err(failure) => Reply::Failed(failure),
    };
    println!("{}", serde_json::to_string(&reply).unwrap());
    ExitCode::SUCCESS
}

/// A cgroup and a directory of the case's own.
struct Scratch {
    cgroup: Cgroup,
    dir: PathBuf,
    child: Option<Child>,
}

impl Scratch {
    fn new(name: &str) -> Self {
        let unique = format!("ckpt-roundtrip-{}-{name}", std::process::id());
        fs::create_dir(cgroup::mount_point().unwrap().join(&unique)).unwrap();
        let dir = std::env::temp_dir().join(&unique);
        fs::create_dir_all(dir.join("image")).unwrap();
        Self { cgroup: Cgroup::open(&unique).unwrap(), dir, child: None }
    }

    /// Starts a program in the cgroup, in a session of its own, without descriptors.
    fn start(&mut self, program: &Path, arguments: &[&str]) -> i32 {
        let script = format!(
            "echo $$ > {}/cgroup.procs; exec setsid -f sh -c 'echo $$ > \"$0\"; exec \"$@\" <&- >&- 2>&-' {} \"$@\"",
            self.cgroup.dir().display(),
            self.dir.join("pid").display()
        );
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh"]).arg(program).args(arguments).stdin(Stdio::null());
        self.child = Some(command.spawn().unwrap());
        let _ = self.child.as_mut().unwrap().wait();
        let pid = self.dir.join("pid");
        until("the program starts", || fs::read_to_string(&pid).is_ok_and(|t| t.ends_with('\n')));
        fs::read_to_string(pid).unwrap().trim().parse().unwrap()
    }

    fn unit(&self, main: i32) -> UnitRecord {
        UnitRecord {
            name: "test.service".into(),
            cgroup: self.cgroup.name().into(),
            main_pid: Some(Pid(main)),
            namespaces: family::namespaces(main),
            ephemeral: vec![],
        }
    }

    /// Captures everything in the cgroup into the image and kills it at that instant.
    fn checkpoint(&self, main: i32) -> Outcome {
        let deadline = Deadline::after(Duration::from_secs(10));
        let units = [self.unit(main)];
        let text = |e: &dyn std::error::Error| ckpt_engine::error::with_sources(e);
        let (mut files, mut objects) = (Files::new(vec![], vec![]), Objects::new());
        let member =
            |pid: i32| memory::Member { pid, tid: pid, unit: UnitIndex(0), unit_name: "test.service" };
        let all = self.cgroup.members().map_err(|e| text(&e))?;
        let all: Vec<_> = all.iter().map(|m| member(m.pid.as_raw())).collect();
        let plan = Plan::prepare(&all).map_err(|e| text(&e))?;
        let seized = seize::seize_all(std::slice::from_ref(&self.cgroup), deadline).map_err(|e| text(&e))?;
        let mut members = Members::hold(seized, &units, deadline).map_err(|e| text(&e))?;
        let people = members.capture(&units, &mut files, deadline).map_err(|e| text(&e))?;
        let mut capture = plan.begin(Box::new(Everything));
        let mut spaces = Vec::new();
        for (index, facts) in people.spaces.iter().enumerate() {
            let id = SpaceId(index as u32);
            let pid = facts.pid.as_raw();
            let ours = facts.runner.first().copied();
            let space = capture.space(&member(pid), id, facts.layout.brk, ours, &mut files, &mut objects);
            spaces.push(space.map_err(|e| text(&e))?);
        }
        capture.contents(&files, &objects).map_err(|e| text(&e))?;
        let problems = [people.problems.as_slice(), capture.problems()].concat();
        let copied = capture.copy(None).map_err(|e| text(&e))?;
        self.cgroup.kill().map_err(|e| text(&e))?;
        drop(members);
        reap();
        if !problems.is_empty() {
            return Err(ckpt_engine::Problem::summary(&problems));
        }
        let table =
            |id: usize| FdTableRecord { id: FdTableId(id as u32), descriptors: vec![], posix_locks: vec![] };
        let image = GroupImage {
            units: units.to_vec(),
            spaces,
            fd_tables: (0..people.fd_tables.len()).map(table).collect(),
            processes: people.processes,
            fs: people.fs,
            sighands: people.sighands,
            seccomp_filters: people.seccomp_filters,
            files: files.into_records(),
            objects: objects.into_records(),
            ..GroupImage::default()
        };
        let directory = self.dir.join("image");
        let mut pages = PagesWriter::create(&directory).map_err(|e| text(&e))?;
        copied.write(&mut pages, |_| true).map_err(|e| text(&e))?;
        pages.finish().map_err(|e| text(&e))?;
        write_state(&directory, &image).map_err(|e| text(&e))?;
        let pids: Vec<_> = image.processes.iter().map(|p| format!("/proc/{}", p.pid)).collect();
        until("all are gone", || !pids.iter().any(|p| Path::new(p).exists()));
        Ok(())
    }

    /// Runs the rebuild in a process of its own.
    fn restore(&self) -> Outcome {
        let units =
            vec![UnitPlace { name: "test.service".into(), cgroup: self.cgroup.name().into(), stub: None }];
        let request = Request { image: self.dir.join("image"), units };
        let mut command = Command::new(std::env::current_exe().unwrap());
        let mut child = command
            .arg("rebuild")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| e.to_string())?;
        let text = serde_json::to_vec(&request).unwrap();
        child.stdin.take().unwrap().write_all(&text).map_err(|e| e.to_string())?;
        let output = child.wait_with_output().map_err(|e| e.to_string())?;
        match serde_json::from_slice::<Reply>(&output.stdout) {
            Ok(Reply::Restored(report)) => {
                println!(
                    "    {} processes, {} threads, {:?}",
                    report.processes, report.threads, report.stages
                );
                report.warnings.iter().for_each(|w| println!("    warning: {w}"));
                Ok(())
            }
            Ok(Reply::Failed(failure)) => Err(failure.to_string()),
            Err(e) => Err(format!("{e}: {} {:?}", output.status, String::from_utf8_lossy(&output.stdout))),
        }
    }

    /// Asks a victim to check itself.
    fn ask(&self, pid: i32) -> Result<String, String> {
        let report = self.dir.join("report");
        let _ = fs::remove_file(&report);
        signal(pid, nix::sys::signal::Signal::SIGUSR1)?;
        let end = Instant::now() + Duration::from_secs(10);
        while !report.exists() {
            if Instant::now() > end || !Path::new(&format!("/proc/{pid}")).exists() {
                return Err("no report".into());
            }
            std::thread::yield_now();
        }
        fs::read_to_string(report).map_err(|e| e.to_string())
    }

    fn generation(&self) -> i32 {
        fs::read_to_string(self.dir.join("generation")).ok().and_then(|t| t.trim().parse().ok()).unwrap_or(-1)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = self.cgroup.set_freeze(false);
        let _ = self.cgroup.kill();
        let end = Instant::now() + Duration::from_secs(2);
        while fs::remove_dir(self.cgroup.dir()).is_err() && Instant::now() < end {
            std::thread::yield_now();
        }
        if std::env::var_os("CKPT_KEEP").is_none() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

fn signal(pid: i32, signal: nix::sys::signal::Signal) -> Outcome {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).map_err(|e| e.to_string())
}

/// Waits for what this process traced and is dead: only then its id is free.
fn reap() {
    use nix::sys::wait::{WaitPidFlag, waitpid};
    while waitpid(None, Some(WaitPidFlag::__WALL)).is_ok() {}
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        std::thread::yield_now();
    }
}

/// Compiles a victim; gives the program.
fn compile(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let directory = root.join("target/victims");
    fs::create_dir_all(&directory).unwrap();
    let (source, program) = (root.join(format!("tests/victims/{name}.c")), directory.join(name));
    let status = Command::new("cc")
        .args(["-std=gnu11", "-O1", "-g", "-Wall", "-pthread", "-o"])
        .args([&program, &source])
        .arg("-lm")
        .status();
    assert!(status.unwrap().success(), "{} does not compile", source.display());
    program.canonicalize().unwrap()
}

fn victim_comes_back(name: &str) -> Outcome {
    use nix::sys::signal::Signal::SIGUSR2;
    let program = compile(name);
    let mut scratch = Scratch::new(name);
    let dir = scratch.dir.to_str().unwrap().to_owned();
    let pid = scratch.start(&program, &[&dir]);
    until("the victim is ready", || scratch.generation() == 0);
    for generation in 1..=2 {
        signal(pid, SIGUSR2)?;
        until("the victim changes", || scratch.generation() == generation);
    }
    let before = scratch.ask(pid)?;
    if before != "ok 2 2\n" {
        return Err(format!("before the checkpoint: {before}"));
    }
    scratch.checkpoint(pid)?;
    for round in 1..=3 {
        scratch.restore().map_err(|e| format!("restore {round}: {e}"))?;
        let after = scratch.ask(pid).map_err(|e| format!("after restore {round}: {e}"))?;
        if after != "ok 2 2\n" {
            return Err(format!("after restore {round}: {after}"));
        }
        signal(pid, SIGUSR2)?;
        until("the restored victim changes", || scratch.generation() == 3);
        fs::write(scratch.dir.join("generation"), "2\n").unwrap();
        scratch.cgroup.kill().map_err(|e| e.to_string())?;
        until("all are gone", || scratch.cgroup.members().is_ok_and(|m| m.is_empty()));
        until("the pid is free", || !Path::new(&format!("/proc/{pid}")).exists());
    }
    Ok(())
}
