//! Groups whose process ids others have: they come back in a PID namespace of their own, as units like any other.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::fixture::{Group, Victim, victim_program};
use crate::runner::{Test, test};
use ckpt_tests::system::{ckptctl, eventually, main_pid, must, property};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("pids-taken", generations_in_and_out_of_a_namespace).limit(150),
        test("pids-taken-sandbox", a_sandboxed_unit_keeps_its_proc),
        test("pids-taken-users", a_user_namespace_there),
        test("pids-taken-writers", a_writer_is_forked_there).limit(150),
        test("pids-taken-credentials", peers_are_who_they_were_there).limit(120),
        test("pids-taken-systemd", systemd_supervises_as_before).limit(120),
        test("pids-taken-redis", redis_goes_on).limit(120),
    ]
}

/// A process outside of the group that has a process id.
struct Stranger(Child);

impl Stranger {
    /// Makes processes until one has the id: the kernel gives the one after ns_last_pid.
    fn take(pid: u32) -> Self {
        for _ in 0..200 {
            fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).expect("ns_last_pid");
            let mut child = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().expect("sleep");
            if child.id() == pid {
                return Self(child);
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        panic!("pid {pid} cannot be taken");
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The id a process has in the innermost PID namespace.
fn inner(pid: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let ids = status.lines().find_map(|l| l.strip_prefix("NSpid:")).unwrap_or_default();
    ids.split_whitespace().last().and_then(|id| id.parse().ok()).unwrap_or(0)
}

fn scopes() -> String {
    must(&["systemctl", "list-units", "--no-legend", "--plain", "ckpt-pids-*.scope"])
}

/// A unit with a user namespace has its threads with their ids in the PID namespace, too.
fn a_user_namespace_there(name: &str) {
    let group = Group::new(name);
    group.enable();
    let victim =
        group.victim("users", "", "PrivateUsers=yes\nUser=nobody\nPrivateTmp=yes\nProtectKernelTunables=yes");
    let pid = victim.pid();
    group.checkpoint(&[]);
    let _stranger = lose(&group, pid);
    restore(&group, &[&victim]);
    assert_eq!((victim.ask(), inner(victim.pid())), (0, pid));
}

/// What writes too fast is forked in the namespace; its init takes the end of the frozen copy.
fn a_writer_is_forked_there(name: &str) {
    let group = Group::new(name);
    group.enable();
    let victim = group.victim("rewriter", "48 1", "");
    let pid = victim.pid();
    group.checkpoint(&[]);
    let _stranger = lose(&group, pid);
    restore(&group, &[&victim]);
    assert_eq!((victim.ask(), inner(victim.pid())), (0, pid));
    for kind in ["full", "incremental"] {
        assert_eq!(group.checkpoint(&[])["kind"], kind);
        victim.ask();
        eventually("copies are gone", 20, || {
            let named = must(&["pgrep", "--count", "--exact", "rewriter"]);
            (named.trim() == "2").then_some(())
        });
    }
    restore(&group, &[&victim]);
    victim.ask();
}

/// What unix sockets tell of who connected, made a pair or sent is what it was: in the namespace, and in the next one.
fn peers_are_who_they_were_there(name: &str) {
    let group = Group::new(name);
    group.enable();
    let cases = [
        "unix_accepted",
        "unix_credentials_of_accepted",
        "unix_credentials_of_other_user",
        "unix_credentials_of_pair",
        "unix_pass_credentials",
        "unix_pass_credentials_of_child",
    ];
    let program = victim_program("case-sockets");
    let victims = |generation: &str| {
        let victim = |case| group.victim_at(&format!("{case}_{generation}"), &program, case, "");
        cases.map(victim)
    };
    let (first, second) = (victims("first"), victims("second"));
    let pid = first[0].pid();
    group.checkpoint(&["--stop"]);
    let _stranger = Stranger::take(pid);
    group.restore();
    assert_ne!(first[0].pid(), pid);
    first.iter().for_each(|victim| assert_eq!(victim.ask(), 0));
    group.checkpoint(&["--stop"]);
    group.restore();
    second.iter().for_each(|victim| assert_eq!(victim.ask(), 0));
}

/// The group is stopped, the main process's old id is somebody else's.
fn lose(group: &Group, pid: u32) -> Stranger {
    group.kill();
    group.wreck();
    Stranger::take(pid)
}

/// Restores; gives what ckptctl tells, which is what systemd tells.
fn restore(group: &Group, victims: &[&Victim]) {
    let restored = group.restore();
    for victim in victims {
        let units = restored["units"].as_array().expect("units");
        let told = units.iter().find(|u| u["unit"] == victim.unit.as_str()).expect("the unit");
        assert_eq!(told["main_pid"], victim.pid(), "{restored}");
        assert_eq!(property(&victim.unit, "ActiveState"), "active");
    }
}

/// Taken, taken again, free, and checkpoints in between: the members never notice.
fn generations_in_and_out_of_a_namespace(name: &str) {
    let group = Group::new(name);
    group.enable();
    let (tree, plain) = (group.victim("processes", "", ""), group.victim("signals", "", ""));
    let first = (tree.pid(), plain.pid());
    group.checkpoint(&[]);
    let mut stranger = Some(lose(&group, first.0));
    for generation in 0..5u64 {
        restore(&group, &[&tree, &plain]);
        assert_eq!((inner(tree.pid()), inner(plain.pid())), first, "generation {generation}");
        assert_eq!((tree.pid() == first.0, scopes().is_empty()), (stranger.is_none(), stranger.is_none()));
        assert_eq!((tree.ask(), plain.ask()), (generation, generation));
        tree.change();
        plain.change();
        let made = group.checkpoint(&[]);
        let listed = ckptctl(&["list", name]);
        assert_eq!(listed[0]["id"], made["id"], "{listed}");
        group.kill();
        if generation == 2 {
            stranger = None;
        }
    }
    eventually("the namespaces' scopes end", 10, || scopes().is_empty().then_some(()));
}

/// The sandbox's mounts below /proc are there again, over the /proc of the namespace.
fn a_sandboxed_unit_keeps_its_proc(name: &str) {
    let group = Group::new(name);
    group.enable();
    let sandbox = "User=nobody\nPrivateTmp=yes\nProtectKernelTunables=yes\nProtectKernelLogs=yes\nProtectProc=invisible\n\
                   ProtectSystem=strict\nReadWritePaths=/srv";
    let victim = group.victim("identity", "", sandbox);
    let pid = victim.pid();
    let proc_mounts = |pid: u32| {
        let table = fs::read_to_string(format!("/proc/{pid}/mountinfo")).expect("mountinfo");
        let point = |line: &str| {
            let words: Vec<_> = line.split(' ').collect();
            let kind = line.split(" - ").nth(1).unwrap_or_default().split(' ').next().unwrap_or_default();
            let options: Vec<_> = words[5].split(',').filter(|o| !o.ends_with("atime")).collect();
            (words[4].starts_with("/proc") && kind != "autofs")
                .then(|| format!("{} {}", words[4], options.join(",")))
        };
        let mut mounts: Vec<_> = table.lines().filter_map(point).collect();
        mounts.sort();
        mounts.dedup();
        mounts
    };
    let before = proc_mounts(pid);
    assert!(before.iter().any(|m| m.starts_with("/proc/sys ro")), "{before:?}");
    group.checkpoint(&[]);
    let _stranger = lose(&group, pid);
    restore(&group, &[&victim]);
    assert_eq!(proc_mounts(victim.pid()), before);
    assert_eq!((victim.ask(), inner(victim.pid())), (0, pid));
    // As the members see it, /proc is of their namespace.
    let seen = format!("/proc/{}/root/proc/{pid}/status", victim.pid());
    assert!(Path::new(&seen).exists(), "{seen}");
    group.checkpoint(&[]);
    group.kill();
    restore(&group, &[&victim]);
    assert_eq!(victim.ask(), 0);
}

/// Reload, watchdog, exit status, Restart= and stop work on the main process.
fn systemd_supervises_as_before(name: &str) {
    let group = Group::new(name);
    group.enable();
    let log = group.subvolume.join("log");
    let script = format!(
        "trap 'echo hup >>{0}' HUP; trap 'echo term >>{0}; exit 7' TERM; echo start $$ >>{0}; \
         (while :; do sleep 1; done) & systemd-notify --ready; while :; do systemd-notify WATCHDOG=1; sleep 0.2; done",
        log.display()
    );
    let unit = group.write_unit(
        "main",
        &format!("/bin/bash -c \"{}\"", script.replace('$', "$$")),
        &format!(
            "ExecStopPost=/bin/sh -c 'echo status $$EXIT_STATUS >>{}'\n\
         Type=notify\nNotifyAccess=all\nWatchdogSec=3s\nExecReload=kill -HUP $MAINPID\nSuccessExitStatus=7\n\
         Restart=on-failure\nRestartSec=100ms\nTimeoutStopSec=20s",
            log.display()
        ),
    );
    must(&["systemctl", "start", &unit]);
    let pid = main_pid(&unit);
    group.checkpoint(&[]);
    group.kill();
    let _stranger = Stranger::take(pid);
    group.restore();
    let now = main_pid(&unit);
    assert_eq!((inner(now), now == pid), (pid, false));
    let lines = |word: &str| fs::read_to_string(&log).unwrap_or_default().matches(word).count();
    must(&["systemctl", "reload", &unit]);
    eventually("the main process is told to reload", 10, || (lines("hup") == 1).then_some(()));
    std::thread::sleep(std::time::Duration::from_secs(4));
    assert_eq!((main_pid(&unit), property(&unit, "NRestarts")), (now, "0".into()), "the watchdog is fed");
    // Its status is the one that SuccessExitStatus= knows: no restart.
    must(&["systemctl", "stop", &unit]);
    assert_eq!((lines("term"), lines("status 7")), (1, 1));
    assert_eq!(property(&unit, "Result"), "success");
    group.restore();
    let now = main_pid(&unit);
    must(&["systemctl", "kill", "--kill-who=main", "--signal=KILL", &unit]);
    eventually("a new main process", 20, || {
        let new = main_pid(&unit);
        (new != 0 && new != now && property(&unit, "ActiveState") == "active").then_some(())
    });
    // One of our namespace now.
    assert_eq!(inner(main_pid(&unit)), main_pid(&unit));
    assert_eq!(lines("start"), 2);
    group.checkpoint(&[]);
}

/// Debian's own Redis, with its data, in a namespace of its own and out of it again.
fn redis_goes_on(name: &str) {
    let group = Group::new(name);
    let dir = group.subvolume.join("redis");
    fs::create_dir(&dir).expect("created");
    let socket = dir.join("socket").display().to_string();
    let command = format!(
        "/usr/bin/redis-server --port 0 --unixsocket {socket} --dir {} --appendonly yes --supervised systemd --daemonize no",
        dir.display()
    );
    group.enable();
    let unit = group.write_unit("redis", &command, "Type=notify\nTimeoutStopSec=20s");
    must(&["systemctl", "start", &unit]);
    let redis = |words: &[&str]| must(&[&["redis-cli", "-s", &socket], words].concat()).trim().to_owned();
    redis(&["set", "key", "one"]);
    let pid = main_pid(&unit);
    group.checkpoint(&[]);
    let _stranger = lose(&group, pid);
    for _ in 0..3 {
        group.restore();
        assert_eq!((redis(&["get", "key"]), inner(main_pid(&unit))), ("one".into(), pid));
        assert!(redis(&["info", "server"]).contains(&format!("process_id:{pid}")));
        // It forks a child, which signals its end.
        redis(&["bgsave"]);
        eventually("the child's work is done", 20, || {
            redis(&["info", "persistence"]).contains("rdb_bgsave_in_progress:0").then_some(())
        });
        assert!(redis(&["info", "persistence"]).contains("rdb_last_bgsave_status:ok"));
        group.checkpoint(&[]);
        redis(&["set", "key", "two"]);
        group.kill();
    }
    group.restore();
    must(&["systemctl", "stop", &unit]);
    assert_eq!(property(&unit, "Result"), "success");
}
