//! Every victim comes back from its image as it was: started, changed, captured, killed, rebuilt, asked to check itself.
//!
//! Runs without systemd, in a cgroup of its own; as root only. A program without the test harness, because the rebuild needs a
//! process of one thread: the test starts itself again as `rebuild` for that, in the place of ckpt-restore.
//!
//! `roundtrip [NAME]…` runs the cases named; `CKPT_KEEP=1` keeps the images, `CKPT_TRACKER=none` (or another) chooses the tracker.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use ckpt_engine::capture::precopy::Speed;
use ckpt_engine::capture::session::Capture;
use ckpt_engine::capture::{Freezer, Members, Precopy};
use ckpt_engine::config::{GroupConfig, TrackerChoice};
use ckpt_engine::rebuild::lazy::{Lazily, keeper, mark};
use ckpt_engine::rebuild::{Preparation, Reply, Request, UnitPlace, serve};
use ckpt_engine::timeline::Timeline;
use ckpt_engine::track::{self, Chain};
use ckpt_engine::{Event, Group, Job, Stage, Unit};
use ckpt_sys::cgroup::{self, Cgroup};
use ckpt_sys::seize;
use ckpt_sys::thread::Deadline;

type Outcome = Result<(), String>;

/// Images of a chain: a full and incrementals.
const LINKS: usize = 3;

/// The victims of tests/victims that need no more than a process tree, memory, threads and descriptors.
const VICTIMS: [&str; 22] = [
    "arriving",
    "registers",
    "memory",
    "identity",
    "signals",
    "threads",
    "processes",
    "pipes",
    "shared",
    "files",
    "sockets",
    "counter",
    "replaced",
    "mappings",
    "clocks",
    "jobcontrol",
    "sharing",
    "attributes",
    "blocked",
    "timers",
    "robust",
    "ends",
];

/// Those that come back while somebody else has their process id.
const TAKEN: [&str; 5] =
    ["taken-processes", "taken-identity", "taken-sockets", "taken-files", "taken-threads"];

/// Those that come back before their memory, and those whose helpers are killed meanwhile.
const LATE: [&str; 10] = [
    "late-registers",
    "late-memory",
    "late-identity",
    "late-threads",
    "late-processes",
    "late-shared",
    "late-mappings",
    "late-arriving",
    "killed-memory",
    "killed-arriving",
];

/// Programs that everybody has; each counts and says its count when asked.
const PROGRAMS: [&str; 4] = ["bash", "python3", "redis-server", "postgres"];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    match arguments.first().map(String::as_str) {
        Some("rebuild") => return rebuild(),
        Some("keep") => {
            let kept = keeper::keep(Path::new(&arguments[1]));
            return if kept.unwrap() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
        _ => {}
    }
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root may trace, freeze and choose process ids");
        return ExitCode::SUCCESS;
    }
    let mut failed = 0;
    let victims = VICTIMS.map(|name| (name, victim_comes_back as fn(&str) -> Outcome));
    let programs = PROGRAMS.map(|name| (name, program_comes_back as fn(&str) -> Outcome));
    let taken = TAKEN.map(|name| (name, taken_ids_come_back as fn(&str) -> Outcome));
    let late = LATE.map(|name| (name, victim_comes_back as fn(&str) -> Outcome));
    let wanted = |name: &str| arguments.is_empty() || arguments.iter().any(|a| a == name);
    for (name, case) in
        victims.into_iter().chain(programs).chain(taken).chain(late).filter(|(name, _)| wanted(name))
    {
        let begin = Instant::now();
        match case(name) {
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
    serve(std::io::stdin().lock(), std::io::stdout()).unwrap();
    ExitCode::SUCCESS
}

/// The tracker to use.
fn tracker() -> TrackerChoice {
    let name = std::env::var("CKPT_TRACKER").unwrap_or_else(|_| "auto".into());
    serde_json::from_value(name.into()).expect("CKPT_TRACKER names a tracker")
}

/// Nobody waits for the job.
struct Nobody;

impl Job for Nobody {
    fn stage(&self, _: Stage) {}
    fn progress(&self, _: u64, _: u64) {}
    fn canceled(&self) -> bool {
        false
    }
    fn captured(&self, _: &str) {}
    fn event(&self, _: Event) {}
}

/// A cgroup and a directory of the case's own.
struct Scratch {
    cgroup: Cgroup,
    dir: PathBuf,
    child: Option<Child>,
    late: bool,
    killed: bool,
}

impl Scratch {
    fn new(name: &str) -> Self {
        let unique = format!("ckpt-roundtrip-{}-{name}", std::process::id());
        fs::create_dir(cgroup::mount_point().unwrap().join(&unique)).unwrap();
        let dir = std::env::temp_dir().join(&unique);
        fs::create_dir_all(dir.join("data")).unwrap();
        let (late, killed) = (!name.starts_with("taken-") && name.contains('-'), name.starts_with("killed-"));
        let late = late && !name.starts_with("redis");
        Self { cgroup: Cgroup::open(&unique).unwrap(), dir, child: None, late, killed }
    }

    /// Starts a program in the cgroup, in a session of its own, without descriptors.
    fn start(&mut self, program: &Path, arguments: &[&str]) -> i32 {
        let script = format!(
            "echo $$ > {}/cgroup.procs; exec setsid -f sh -c 'echo $$ > \"$0\"; exec \"$@\" </dev/null >/dev/null 2>{}' {} \"$@\"",
            self.cgroup.dir().display(),
            self.dir.join("stderr").display(),
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

    fn unit(&self, main: i32) -> Unit {
        Unit {
            name: "test.service".into(),
            cgroup: self.cgroup.name().into(),
            active_state: "active".into(),
            main_pid: main,
            ..Unit::default()
        }
    }

    /// Captures everything in the cgroup into a chain, a full and incrementals, and kills it at the instant of the last one.
    fn checkpoint(&self, main: i32) -> Outcome {
        let text = |e: &dyn std::error::Error| ckpt_engine::error::with_sources(e);
        let group = Group { name: "test".into(), config: GroupConfig::default() };
        let mut chain = Chain::new(track::choose(tracker()).map_err(|e| text(&e))?);
        for link in 0..LINKS {
            let directory = self.image(link);
            let _ = fs::remove_dir_all(&directory);
            fs::create_dir(&directory).map_err(|e| e.to_string())?;
            let mut capture = Capture::prepare(&group, &[self.unit(main)], &[]).map_err(|e| text(&e))?;
            let mut precopy = Precopy::begin(&directory).map_err(|e| text(&e))?;
            precopy.run(&mut chain, &Nobody).map_err(|e| text(&e))?;
            if link + 1 < LINKS {
                // So slow that every process is forked, if its tracker can do that.
                precopy.speed = Speed::measured(16 << 20, Duration::from_secs(100_000));
            }
            capture.make_room(&chain, &precopy).map_err(|e| text(&e))?;
            let deadline = Deadline::after(Duration::from_secs(60)); // the machine may be busy
            let seized =
                seize::seize_all(std::slice::from_ref(&self.cgroup), deadline).map_err(|e| text(&e))?;
            let mut members = Members::hold(seized, capture.units(), deadline).map_err(|e| text(&e))?;
            let cgroups = std::slice::from_ref(&self.cgroup);
            let freezer = Freezer { group: "test", run: &directory, cgroups, deadline };
            let mut time = Timeline::start();
            let captured = capture.take(&mut members, chain, precopy, &directory, &freezer, &mut time);
            let before: Vec<_> = self.cgroup.members().map_err(|e| text(&e))?;
            let last = link + 1 == LINKS;
            let mut members = Some(members);
            if !last {
                members.take().map_or(Ok(()), Members::release).map_err(|e| text(&e))?;
            }
            let written = captured.map_err(|e| text(&e))?.write(&directory, &Nobody).map_err(|e| text(&e))?;
            if last {
                // As `checkpoint --stop` ends a group: when everything is written, also what was forked.
                self.cgroup.kill().map_err(|e| text(&e))?;
                drop(members);
                reap();
            }
            println!("    {} pages, {} bytes", written.pages, written.files["pages"].bytes);
            chain = written.chain;
            chain.parent = Some(Default::default()); // the names are not looked at here
            let gone = |pid| !Path::new(&format!("/proc/{pid}")).exists();
            until("all are gone", || {
                reap();
                !last || before.iter().all(|m| gone(m.pid))
            });
        }
        self.copy("data", "snapshot")
    }

    /// The directory of one image of the chain.
    fn image(&self, link: usize) -> PathBuf {
        self.dir.join(format!("image{link}"))
    }

    /// In the place of a snapshot: the files as they were when all stood still.
    fn copy(&self, from: &str, to: &str) -> Outcome {
        let (from, to) = (self.dir.join(from), self.dir.join(to));
        let _ = fs::remove_dir_all(&to);
        let status = Command::new("cp").arg("-a").args([&from, &to]).status().map_err(|e| e.to_string())?;
        if status.success() { Ok(()) } else { Err(format!("cp: {status}")) }
    }

    /// Runs the rebuild in a process of its own. Gives the main process.
    fn restore(&self) -> Result<i32, String> {
        let units =
            vec![UnitPlace { name: "test.service".into(), cgroup: self.cgroup.name().into(), stub: None }];
        let keeper = self.dir.join("keeper");
        let lazily =
            Lazily { group: "test".into(), marks: self.dir.join("marks"), keeper: keeper.clone(), least: 1 };
        if self.late {
            // In the place of systemd, which would keep what it has, too.
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.arg("keep").arg(&keeper).spawn().map_err(|e| e.to_string())?;
        }
        let request = Request {
            chain: (0..LINKS).rev().map(|link| self.image(link)).collect(),
            units,
            own_pids: false,
            lazily: self.late.then_some(lazily),
            held: vec![],
        };
        let mut command = Command::new(std::env::current_exe().unwrap());
        let mut child = command
            .arg("rebuild")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| e.to_string())?;
        let lines = [
            serde_json::to_string(&Preparation { chain: request.chain.clone() }).unwrap(),
            serde_json::to_string(&request).unwrap(),
        ];
        let text = lines.join("\n").into_bytes();
        child.stdin.take().unwrap().write_all(&text).map_err(|e| e.to_string())?;
        let output = child.wait_with_output().map_err(|e| e.to_string())?;
        keeper::dismiss(&keeper);
        match serde_json::from_slice::<Reply>(&output.stdout) {
            Ok(Reply::Restored(report)) => {
                println!(
                    "    {} processes, {} threads, {:?}",
                    report.processes, report.threads, report.stages
                );
                report.warnings.iter().for_each(|w| println!("    warning: {w}"));
                if self.killed {
                    println!("    {} helpers were killed", self.kill_helpers());
                }
                Ok(report.units.first().map_or(0, |u| u.main_pid))
            }
            Ok(Reply::Failed(failure)) => Err(failure.to_string()),
            Err(e) => Err(format!("{e}: {} {:?}", output.status, String::from_utf8_lossy(&output.stdout))),
        }
    }

    /// The processes that have a mark open.
    fn helpers(&self) -> Vec<i32> {
        let marks = self.dir.join("marks");
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let pids = processes.filter_map(|p| p.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| *pid != std::process::id() as i32)
            .filter(|pid| {
                let mut open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
                open.any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.starts_with(&marks)))
            })
            .collect()
    }

    /// Kills one of the helpers, again and again, until all memory is there; how often.
    fn kill_helpers(&self) -> u32 {
        let mut killed = 0;
        while self.arriving() {
            if let [one, other] = self.helpers()[..] {
                let which = if killed % 2 == 0 { one } else { other };
                let _ = signal(which, nix::sys::signal::Signal::SIGKILL);
                killed += 1;
                // Never both at once: what was killed is about to end.
                until("it has ended", || !self.helpers().contains(&which));
            }
        }
        killed
    }

    /// Whether memory is arriving.
    fn arriving(&self) -> bool {
        let marks = fs::read_dir(self.dir.join("marks")).into_iter().flatten().flatten();
        let found: Vec<_> = marks.map(|entry| mark::look(&entry.path())).collect();
        assert!(!found.contains(&mark::Found::Lost), "both helpers are gone");
        found.contains(&mark::Found::Arriving)
    }

    /// Asks a victim to check itself.
    fn ask(&self, pid: i32) -> Result<String, String> {
        let report = self.dir.join("data/report");
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
        fs::read_to_string(self.dir.join("data/generation"))
            .ok()
            .and_then(|t| t.trim().parse().ok())
            .unwrap_or(-1)
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
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    let wait = || waitpid(None, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG));
    while wait().is_ok_and(|status| status != WaitStatus::StillAlive) {}
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
    let program = compile(name.trim_start_matches("late-").trim_start_matches("killed-"));
    let mut scratch = Scratch::new(name);
    let dir = scratch.dir.join("data").to_str().unwrap().to_owned();
    let pid = scratch.start(&program, &[&dir]);
    until("the victim is ready", || scratch.generation() == 0);
    for generation in 1..=2 {
        signal(pid, SIGUSR2)?;
        until("the victim changes", || scratch.generation() == generation);
    }
    // Some need a moment to have anything to compare.
    until("the victim is content before the checkpoint", || scratch.ask(pid).is_ok_and(|a| a == "ok 2 2\n"));
    scratch.checkpoint(pid)?;
    for round in 1..=4 {
        scratch.copy("snapshot", "data")?;
        scratch.restore().map_err(|e| format!("restore {round}: {e}"))?;
        let after = scratch.ask(pid).map_err(|e| format!("after restore {round}: {e}"))?;
        if after != "ok 2 2\n" {
            return Err(format!("after restore {round}: {after}"));
        }
        if round == 2 {
            // A restored member is a member like any other: what is captured of it comes back, too.
            until("all memory has arrived", || !scratch.arriving());
            scratch.checkpoint(pid).map_err(|e| format!("of a restored victim: {e}"))?;
            continue;
        }
        signal(pid, SIGUSR2)?;
        until("the restored victim changes", || scratch.generation() == 3);
        scratch.cgroup.kill().map_err(|e| e.to_string())?;
        until("all are gone", || scratch.cgroup.members().is_ok_and(|m| m.is_empty()));
        until("the pid is free", || !Path::new(&format!("/proc/{pid}")).exists());
    }
    Ok(())
}

/// Where somebody else has the process ids by now, the members keep theirs in a PID namespace of their own, and are captured there for
/// the next restore: in one again, or, when the ids are free, in the host's.
fn taken_ids_come_back(case: &str) -> Outcome {
    use ckpt_sys::clone::{CloneArgs, clone_paused};
    let victim = case.trim_start_matches("taken-");
    let program = compile(victim);
    let mut scratch = Scratch::new(case);
    let dir = scratch.dir.join("data").to_str().unwrap().to_owned();
    let pid = scratch.start(&program, &[&dir]);
    until("the victim is ready", || scratch.generation() == 0);
    until("the victim is content before the checkpoint", || scratch.ask(pid).is_ok_and(|a| a == "ok 0 0\n"));
    scratch.checkpoint(pid)?;
    let args = CloneArgs { exit_signal: 17, pid: Some(pid), ..CloneArgs::default() };
    let mut stranger = Some(clone_paused(&args).map_err(|e| e.to_string())?);
    for round in 1..=5 {
        let failed = |e: String| format!("generation {round}: {e}");
        let main = scratch.restore().map_err(failed)?;
        let asked = scratch.ask(main).map_err(failed)?;
        if (main == pid) != stranger.is_none() || asked != "ok 0 0\n" {
            return Err(failed(format!("main process {main}, {asked:?}")));
        }
        scratch.checkpoint(main).map_err(failed)?;
        if round == 3 {
            let _ = stranger.take().map(|pid| nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL));
            until("the id is free", || {
                reap();
                !Path::new(&format!("/proc/{pid}")).exists()
            });
        }
    }
    until("init has ended with its members", || !living_init());
    Ok(())
}

/// Whether an init of ours is among our children.
fn living_init() -> bool {
    let children = fs::read_to_string(format!("/proc/self/task/{}/children", std::process::id()));
    let comm = |pid: &str| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    children.unwrap_or_default().split_whitespace().any(|pid| comm(pid).trim() == "ckpt-init")
}

/// The command line of a program, in the data directory; what sets a number in it; what asks for it.
fn program(name: &str, data: &str) -> Option<[String; 3]> {
    let socket = format!("{data}/socket");
    Some(match name {
        "bash" => [
            format!(
                "exec bash -c 'n=0; trap \"n=5\" USR2; trap \"echo \\$n > {data}/answer\" USR1; echo r > {data}/ready; \
                 while :; do sleep 0.05 | cat & wait; done'"
            ),
            format!("kill -USR2 $(cat {data}/../pid)"),
            format!(
                "rm -f {data}/answer; kill -USR1 $(cat {data}/../pid); \
                 while ! [ -s {data}/answer ]; do sleep 0.01; done; cat {data}/answer"
            ),
        ],
        "python3" => {
            let (server, client) = (format!("{data}/../server.py"), format!("{data}/../client.py"));
            fs::write(&server, PYTHON_SERVER).unwrap();
            fs::write(&client, PYTHON_CLIENT).unwrap();
            [
                format!("exec python3 {server} {socket} {data}/ready"),
                format!("python3 {client} {socket} 5"),
                format!("python3 {client} {socket} ''"),
            ]
        }
        "redis-server" => [
            format!(
                "exec redis-server --port 0 --unixsocket {socket} --dir {data} --appendonly yes --save '' --logfile {data}/log"
            ),
            format!("redis-cli -s {socket} set n 5"),
            format!("redis-cli -s {socket} get n"),
        ],
        "postgres" => [
            format!(
                "chown -R nobody {data}; chmod 755 {data}/..; cd /; setpriv --reuid nobody --clear-groups initdb -D {data}/db -A trust \
                 >/dev/null && exec setpriv --reuid nobody --clear-groups postgres -D {data}/db -k {data} -h ''"
            ),
            format!(
                "psql -h {data} -U nobody postgres -Atc 'drop table if exists t; create table t as select 5 as n'"
            ),
            format!("psql -h {data} -U nobody postgres -Atc 'select n from t'"),
        ],
        _ => return None,
    })
}

const PYTHON_SERVER: &str = r#"
import socketserver, sys, threading
number = [0]

class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        word = self.rfile.readline().strip()
        if word:
            number[0] = int(word)
        self.wfile.write(b"%d\n" % number[0])

server = socketserver.ThreadingUnixStreamServer(sys.argv[1], Handler)
threading.Thread(target=lambda: threading.Event().wait()).start()
open(sys.argv[2], "w").close()
server.serve_forever()
"#;

const PYTHON_CLIENT: &str = r#"
import socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect(sys.argv[1])
server.sendall(sys.argv[2].encode() + b"\n")
print(server.recv(99).decode().strip())
"#;

fn shell(command: &str) -> Result<String, String> {
    let output = Command::new("sh").args(["-c", command]).output().map_err(|e| e.to_string())?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => Err(format!("{command}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

fn program_comes_back(name: &str) -> Outcome {
    if shell(&format!("command -v {name}")).is_err() {
        println!("    skipped: there is no {name}");
        return Ok(());
    }
    let mut scratch = Scratch::new(name);
    let data = scratch.dir.join("data").to_str().unwrap().to_owned();
    let Some([start, set, ask]) = program(name, &data) else { return Err("unknown program".into()) };
    let pid = scratch.start(Path::new("/bin/sh"), &["-c", &start]);
    let answers = |wanted: &str| shell(&ask).is_ok_and(|n| n == wanted);
    match name {
        "bash" | "python3" => until("it is ready", || scratch.dir.join("data/ready").exists()),
        _ => until("it is ready", || shell(&ask).is_ok() || shell(&set).is_ok()),
    }
    shell(&set)?;
    until("it has the number", || answers("5"));
    scratch.checkpoint(pid)?;
    for round in 1..=3 {
        scratch.copy("snapshot", "data")?;
        scratch.restore().map_err(|e| format!("restore {round}: {e}"))?;
        let answer = shell(&ask);
        if answer.as_deref() != Ok("5") {
            return Err(format!("after restore {round}: {answer:?}"));
        }
        let members = scratch.cgroup.members().map_err(|e| e.to_string())?;
        scratch.cgroup.kill().map_err(|e| e.to_string())?;
        let gone = |pid| !Path::new(&format!("/proc/{pid}")).exists();
        until("all are gone", || members.iter().all(|m| gone(m.pid)));
    }
    Ok(())
}
