//! The records of real processes say what the processes are, and the processes go on unharmed.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ckpt_engine::capture::{Files, Members};
use ckpt_engine::timeline::Timeline;
use ckpt_image::records::{NamespaceRecord, ProcessRecord, ProcessState, UnitRecord};
use ckpt_sys::cgroup::{self, Cgroup};
use ckpt_sys::thread::Deadline;
use ckpt_sys::{seize, task};

/// A cgroup of the test's own with what was started in it.
struct Group {
    dir: PathBuf,
    cgroup: Cgroup,
    children: Vec<Child>,
}

impl Group {
    fn new(name: &str) -> Self {
        let name = format!("ckpt-test-{}-{name}", std::process::id());
        let dir = cgroup::mount_point().unwrap().join(&name);
        std::fs::create_dir(&dir).unwrap();
        Self { dir, cgroup: Cgroup::open(&name).unwrap(), children: Vec::new() }
    }

    /// Starts a shell script in the group and waits until its output says READY.
    fn sh(&mut self, script: &str) -> i32 {
        let enter = format!("echo $$ > {}/cgroup.procs; {script}", self.dir.display());
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &enter]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut out = child.stdout.take().unwrap();
        let mut text = Vec::new();
        while !String::from_utf8_lossy(&text).contains("READY") {
            let mut byte = [0];
            assert_eq!(std::io::Read::read(&mut out, &mut byte).unwrap(), 1, "script ended early");
            text.push(byte[0]);
        }
        // Kept open: the script may go on writing.
        std::mem::forget(out);
        let pid = child.id() as i32;
        self.children.push(child);
        pid
    }

    fn unit(&self) -> UnitRecord {
        UnitRecord {
            name: "test.service".into(),
            cgroup: self.cgroup.name().into(),
            main_pid: None,
            namespaces: NamespaceRecord::default(),
            clocks: Default::default(),
            ephemeral: vec![],
            private_users: false,
            mounts: Vec::new(),
        }
    }

    fn capture(&self) -> (ckpt_engine::capture::members::Captured, Files) {
        let deadline = Deadline::after(Duration::from_secs(5));
        let processes = seize::seize_all(std::slice::from_ref(&self.cgroup), deadline).unwrap();
        let units = [self.unit()];
        let mut members = Members::hold(processes, &units, deadline).unwrap();
        let mut files = Files::new(vec![], vec![]);
        let captured = members.capture(&units, &mut files, deadline, &mut Timeline::start()).unwrap();
        members.release().unwrap();
        (captured, files)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = self.cgroup.set_freeze(false);
        let _ = self.cgroup.kill();
        self.children.iter_mut().for_each(|child| drop(child.wait()));
        let end = Instant::now() + Duration::from_secs(2);
        while std::fs::remove_dir(&self.dir).is_err() && Instant::now() < end {
            std::thread::yield_now();
        }
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(5);
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        std::thread::yield_now();
    }
}

fn state(pid: i32) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(") ").next().unwrap().chars().next().unwrap()
}

fn by_pid(processes: &[ProcessRecord], pid: i32) -> &ProcessRecord {
    processes.iter().find(|p| p.pid.0 == pid).unwrap()
}

#[test]
fn a_shell_and_its_children_are_recorded_as_they_are() {
    let mut group = Group::new("shell");
    let script = "trap '' HUP; trap 'echo x' USR1; umask 027; cd /usr; ulimit -n 321; \
                  sleep 1000 & sleep 1000 & echo READY; wait";
    let pid = group.sh(script);
    until("all sleep", || {
        let pids = std::fs::read_to_string(group.dir.join("cgroup.procs")).unwrap();
        let asleep = |pid: &str| {
            let call = task::blocked_in(nix::unistd::Pid::from_raw(pid.parse().unwrap()));
            call.is_some_and(|call| [61, 130, 230].contains(&call.nr))
        };
        pids.lines().count() == 3 && pids.lines().all(asleep)
    });
    let (captured, files) = group.capture();
    assert_eq!(captured.problems, []);
    assert_eq!(captured.processes.len(), 3);
    let shell = &captured.processes[0];
    assert_eq!((shell.pid.0, shell.ppid.0), (pid, std::process::id() as i32));
    assert!(captured.processes[1..].iter().all(|p| p.ppid.0 == pid && p.pgid == shell.pgid));
    assert_eq!(shell.state, ProcessState::Running);

    let body = shell.body.as_ref().unwrap();
    let fs = &captured.fs[body.fs.index()];
    assert_eq!((fs.umask, files.get(fs.cwd).path.as_path(), fs.root), (0o27, Path::new("/usr"), None));
    assert_eq!(body.limits[7], (321, 321));
    let actions = &captured.sighands[body.sighand.index()].actions;
    assert!(actions.iter().any(|a| a.signal == 1 && a.handler == 1), "SIGHUP is ignored");
    assert!(actions.iter().any(|a| a.signal == 10 && a.handler > 1 && a.restorer != 0), "SIGUSR1 is caught");

    let thread = &body.threads[0];
    assert_eq!((thread.tid.0, thread.comm.as_slice()), (pid, &b"sh"[..]));
    assert_eq!(thread.registers.len(), 27);
    assert!(thread.xstate.len() >= 576 && thread.rseq.address != 0 && thread.tid_address != 0);
    let call = thread.interrupted.as_ref().unwrap().nr;
    assert!([61, 130].contains(&call), "wait4 or rt_sigsuspend, not {call}");
    assert_eq!(thread.registers[10], call, "is made again");

    let space = &captured.spaces[body.space.index()];
    assert!(space.layout.brk >= space.layout.start_brk && space.layout.arg_start < space.layout.env_start);
    assert!(space.runner.len() == 1 && !space.auxv.is_empty());

    let sleep = captured.processes[1].body.as_ref().unwrap();
    let call = sleep.threads[0].interrupted.as_ref().unwrap();
    assert_eq!((call.nr, call.result), (230, -516), "clock_nanosleep");
    // Nothing happened to them.
    until("all sleep on", || captured.processes.iter().all(|p| state(p.pid.0) == 'S'));
    let again = group.capture().0;
    let sleep = by_pid(&again.processes, captured.processes[1].pid.0).body.as_ref().unwrap();
    assert_eq!(sleep.threads[0].registers[10], 230, "known by its code after a restart");
}

#[test]
fn zombies_and_stopped_processes_stay_what_they_are() {
    let mut group = Group::new("zombie");
    let script = "(sleep 0.2; exit 7) & sh -c 'kill -STOP $$; sleep 1' & echo READY; exec sleep 1000";
    let pid = group.sh(script);
    let children = || {
        let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        text.split_whitespace().map(|w| w.parse::<i32>().unwrap()).collect::<Vec<_>>()
    };
    until("a zombie and a stopped process", || {
        let mut states: Vec<_> = children().into_iter().map(state).collect();
        states.sort_unstable();
        states == ['T', 'Z'] && std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap() == "sleep\n"
    });
    let (captured, _) = group.capture();
    assert_eq!(captured.problems, []);
    assert_eq!(captured.processes.len(), 3);
    for child in children() {
        let record = by_pid(&captured.processes, child);
        assert_eq!(record.ppid.0, pid);
        match &record.state {
            ProcessState::Zombie { status, .. } => {
                assert_eq!((*status, record.body.is_none()), (7 << 8, true))
            }
            ProcessState::Stopped { signal } => assert_eq!(*signal, 19),
            ProcessState::Running => panic!("{child} is said to run"),
        }
    }
    until("still stopped", || {
        let mut states: Vec<_> = children().into_iter().map(state).collect();
        states.sort_unstable();
        states == ['T', 'Z']
    });
}

#[test]
fn a_script_that_forks_all_the_time_goes_on() {
    let mut group = Group::new("forks");
    let count = std::env::temp_dir().join(format!("ckpt-forks-{}", std::process::id()));
    let script =
        format!("echo READY; i=0; while :; do i=$((i+1)); /bin/true; echo $i > {}; done", count.display());
    group.sh(&script);
    let number =
        || std::fs::read_to_string(&count).ok().and_then(|t| t.trim().parse::<u64>().ok()).unwrap_or(0);
    until("it counts", || number() > 0);
    for _ in 0..100 {
        let before = number();
        let (captured, _) = group.capture();
        assert_eq!(captured.problems, []);
        assert!(!captured.processes.is_empty());
        until("it counts on", || number() > before);
    }
    let _ = std::fs::remove_file(&count);
}
