//! The shipped units, and restored units as systemd sees them.

use crate::fixture::Group;
use crate::runner::{Test, test};
use ckpt_tests::system::{ckptctl, eventually, main_pid, must, property, run};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("units-checkpoint-service", checkpoint_service),
        test("units-timer", timer),
        test("units-restore-service", restore_service),
        test("units-status", a_restored_unit_is_like_any_other),
        test("units-restart", a_restored_unit_restarts),
        test("units-journal", a_restored_unit_logs),
        test("units-enable-disable", enable_and_disable_leave_no_trace),
        test("units-private-tmp-content", ephemeral_files_come_back),
    ]
}

fn checkpoints(group: &str) -> usize {
    ckptctl(&["list", group]).as_array().map_or(0, Vec::len)
}

fn checkpoint_service(name: &str) {
    let group = Group::new(name);
    group.enable();
    let victim = group.victim("memory", "", "");
    must(&["systemctl", "start", &format!("ckpt@{name}.service")]);
    assert_eq!(checkpoints(name), 1, "it returns when the checkpoint is durable");
    victim.ask();
}

/// With an interval of two seconds, checkpoints come one after another.
fn timer(name: &str) {
    let group = Group::new(name);
    group.enable();
    let victim = group.victim("memory", "", "");
    let dir = format!("/run/systemd/system/ckpt@{name}.timer.d");
    std::fs::create_dir_all(&dir).expect("created");
    let text = "[Timer]\nOnCalendar=\nOnBootSec=\nOnActiveSec=\nOnUnitActiveSec=\n\
                OnActiveSec=1s\nOnUnitActiveSec=2s\nAccuracySec=100ms\nRandomizedDelaySec=0\n";
    std::fs::write(format!("{dir}/interval.conf"), text).expect("written");
    must(&["systemctl", "daemon-reload"]);
    must(&["systemctl", "start", &format!("ckpt@{name}.timer")]);
    eventually("two checkpoints by the timer", 20, || (checkpoints(name) >= 2).then_some(()));
    must(&["systemctl", "stop", &format!("ckpt@{name}.timer")]);
    victim.ask();
    std::fs::remove_dir_all(&dir).expect("removed");
}

fn restore_service(name: &str) {
    let group = Group::new(name);
    group.enable();
    let victim = group.victim("memory", "", "");
    let pid = victim.pid();
    group.checkpoint(&[]);
    victim.change();
    group.kill();
    must(&["systemctl", "start", &format!("ckpt-restore@{name}.service")]);
    assert_eq!((victim.pid(), victim.ask()), (pid, 0));
}

/// Active, with its own command and type, and `systemctl stop` stops it.
fn a_restored_unit_is_like_any_other(name: &str) {
    let group = Group::new(name);
    group.enable();
    let victim = group.victim("processes", "", "TimeoutStopSec=2s");
    let before = (property(&victim.unit, "ExecStart"), property(&victim.unit, "Type"));
    group.checkpoint(&[]);
    group.kill();
    group.restore();
    assert_eq!(property(&victim.unit, "ActiveState"), "active");
    assert_eq!(property(&victim.unit, "SubState"), "running");
    assert_eq!(property(&victim.unit, "NRestarts"), "0");
    let path = |text: &str| text.split(';').next().map(str::to_string);
    let after = (property(&victim.unit, "ExecStart"), property(&victim.unit, "Type"));
    assert_eq!((path(&after.0), after.1), (path(&before.0), before.1), "no drop-in of the restore is left");
    let pid = victim.pid();
    // Its children leave SIGTERM blocked, so that systemd ends them after the time-out.
    must(&["systemctl", "stop", &victim.unit]);
    assert!(["inactive", "failed"].contains(&property(&victim.unit, "ActiveState").as_str()));
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    let dir = property(&victim.unit, "ControlGroup");
    assert!(dir.is_empty() || !std::path::Path::new(&format!("/sys/fs/cgroup{dir}")).exists());
}

/// `Restart=` brings a restored service back when it dies.
fn a_restored_unit_restarts(name: &str) {
    let group = Group::new(name);
    group.enable();
    let victim = group.victim("signals", "", "Restart=always\nRestartSec=100ms");
    group.checkpoint(&[]);
    group.restore();
    let pid = victim.pid();
    must(&["systemctl", "kill", "--signal=KILL", &victim.unit]);
    eventually("a new main process", 20, || {
        let now = main_pid(&victim.unit);
        (now != 0 && now != pid && property(&victim.unit, "ActiveState") == "active").then_some(())
    });
    assert_eq!(victim.ask(), 0);
}

/// What a restored service prints goes to the journal, under its unit.
fn a_restored_unit_logs(name: &str) {
    let group = Group::new(name);
    group.enable();
    let script = "n=0; while :; do n=$((n+1)); echo \"line $n\"; sleep 0.05; done";
    let unit = group.write_unit("talker", &format!("/bin/sh -c '{}'", script.replace('$', "$$")), "");
    must(&["systemctl", "start", &unit]);
    let lines =
        || must(&["journalctl", "-q", "--no-pager", "-o", "cat", "-u", &unit]).matches("line ").count();
    eventually("lines in the journal", 10, || (lines() > 2).then_some(()));
    group.checkpoint(&[]);
    group.kill();
    group.restore();
    let before = lines();
    eventually("lines after the restore", 10, || (lines() > before + 2).then_some(()));
}

fn enable_and_disable_leave_no_trace(name: &str) {
    let group = Group::new(name);
    let victim = group.victim("memory", "", "Environment=LD_PRELOAD=libm.so.6");
    let before = property(&victim.unit, "DropInPaths");
    group.enable();
    let drop_ins = property(&victim.unit, "DropInPaths");
    assert!(drop_ins.contains("50-ckpt.conf"), "{drop_ins}");
    must(&["systemctl", "restart", &victim.unit]);
    let environ = std::fs::read(format!("/proc/{}/environ", victim.pid())).expect("readable");
    let environ = String::from_utf8_lossy(&environ).into_owned();
    let preload = environ.split('\0').find(|v| v.starts_with("LD_PRELOAD=")).unwrap_or("").to_string();
    assert!(preload.contains("libm.so.6") && preload.contains("libckpt_preload.so"), "{preload}");
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", victim.pid())).expect("readable");
    assert!(maps.contains("libckpt_preload.so"), "the library is not loaded");
    must(&["ckptctl", "disable", name]);
    assert_eq!(property(&victim.unit, "DropInPaths"), before);
    assert_eq!(run(&["ckptctl", "status", name]).status.code(), Some(3));
}

/// Files in PrivateTmp= and RuntimeDirectory=, which systemd removes with the unit, are there again.
fn ephemeral_files_come_back(name: &str) {
    let group = Group::new(name);
    group.enable();
    let out = group.subvolume.join("said");
    let script = format!(
        "echo one >/tmp/file; echo two >/run/victim-eph/file; exec 5<>/tmp/open; echo ready >{0}; \
         while sleep 0.05; do cat /tmp/file /run/victim-eph/file >{0}.new 2>&1; mv {0}.new {0}; done",
        out.display()
    );
    let unit = group.write_unit(
        "tmp",
        &format!("/bin/sh -c '{script}'"),
        "PrivateTmp=yes\nRuntimeDirectory=victim-eph",
    );
    must(&["systemctl", "start", &unit]);
    let said = || std::fs::read_to_string(&out).unwrap_or_default();
    eventually("both files are read", 10, || (said() == "one\ntwo\n").then_some(()));
    group.checkpoint(&[]);
    group.kill();
    std::fs::write(&out, "").expect("written");
    group.restore();
    std::fs::write(&out, "").expect("written");
    eventually("both files are read after the restore", 10, || (said() == "one\ntwo\n").then_some(()));
}
