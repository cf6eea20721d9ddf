//! The daemon's own life: killed at any moment, told to stop, groups that change under it.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use crate::fixture::{Group, path};
use crate::runner::{Test, test};
use ckpt_tests::system::{ckptctl, eventually, main_pid, must, property, run, text};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("daemon-killed-in-checkpoints", killed_in_checkpoints).limit(180),
        test("daemon-killed-in-restores", killed_in_restores).limit(180),
        test("daemon-stopped-in-a-checkpoint", stopped_in_a_checkpoint),
        test("group-late-unit", a_unit_that_joins_later_gets_the_library).limit(90),
        test("group-first-start", units_have_the_library_from_their_first_start),
        test("group-of-one", a_service_is_a_group_of_one),
        test("group-on-failure", a_failed_unit_is_restored).limit(90),
        test("group-bad-file", a_bad_file_is_told_with_its_place),
    ]
}

/// Starts a job and does not wait for it.
fn start_job(method: &str, arguments: &[&str]) {
    let call = ["busctl", "call", "org.ckpt", "/org/ckpt", "org.ckpt.Manager1", method];
    must(&[&call[..], arguments].concat());
}

/// SIGKILL to ckptd; systemd starts it again.
fn kill_daemon() {
    let pid = main_pid("ckptd.service");
    assert!(pid > 1, "ckptd does not run");
    must(&["kill", "-KILL", &pid.to_string()]);
    eventually("another ckptd", 20, || {
        let now = main_pid("ckptd.service");
        (now > 1 && now != pid && property("ckptd.service", "ActiveState") == "active").then_some(())
    });
}

fn frozen(group: &Group) -> bool {
    let file = format!("/sys/fs/cgroup/{}/cgroup.freeze", group.slice);
    fs::read_to_string(file).is_ok_and(|f| f.trim() == "1")
}

/// Whatever the moment: every member runs, nothing half-done is listed, and the next checkpoint is taken.
fn killed_in_checkpoints(name: &str) {
    let group = Group::new(name);
    group.enable();
    let victim = group.victim("memory", "", "");
    for millis in [2, 10, 25, 45, 70, 100] {
        start_job("Checkpoint", &["sa{sv}", name, "1", "wait", "s", "none"]);
        sleep(Duration::from_millis(millis));
        kill_daemon();
        assert!(!frozen(&group), "the group was left frozen");
        victim.ask();
        victim.change();
        let listed = ckptctl(&["list", name]);
        for checkpoint in listed.as_array().expect("an array") {
            assert_eq!(checkpoint["state"], "durable", "{listed}");
        }
    }
    group.checkpoint(&[]);
    victim.ask();
}

/// Whatever the moment: the group is whole or stopped, no stub waits for nobody, and the next restore succeeds.
fn killed_in_restores(name: &str) {
    let group = Group::new(name);
    group.enable();
    let victim = group.victim("memory", "", "");
    group.checkpoint(&[]);
    let generation = victim.ask();
    for millis in [0, 15, 40, 80, 140, 220] {
        victim.change();
        start_job("Restore", &["ssa{sv}", name, "", "1", "wait", "s", "none"]);
        eventually("the unit is being stopped", 30, || {
            (property(&victim.unit, "ActiveState") != "active").then_some(())
        });
        sleep(Duration::from_millis(millis));
        kill_daemon();
        assert!(!frozen(&group), "the group was left frozen");
        assert!(!Path::new(&format!("/run/systemd/system/{}.d", victim.unit)).exists(), "a drop-in was left");
        let state = property(&victim.unit, "ActiveState");
        assert!(state == "active" || state == "inactive", "{} is {state}", victim.unit);
        group.restore();
        assert_eq!(victim.ask(), generation);
    }
}

fn stopped_in_a_checkpoint(name: &str) {
    let group = Group::new(name);
    group.enable();
    let victim = group.victim("memory", "", "");
    start_job("Checkpoint", &["sa{sv}", name, "1", "wait", "s", "none"]);
    must(&["systemctl", "restart", "ckptd.service"]);
    assert_eq!(property("ckptd.service", "Result"), "success");
    assert!(!frozen(&group), "the group was left frozen");
    victim.ask();
    group.checkpoint(&[]);
}

fn a_unit_that_joins_later_gets_the_library(name: &str) {
    let group = Group::new(name);
    group.enable();
    let unit = group.write_unit("late", "/bin/sleep 1000", "");
    let drop_in = format!("/etc/systemd/system/{unit}.d/50-ckpt.conf");
    eventually("its drop-in", 40, || Path::new(&drop_in).exists().then_some(()));
    eventually("its environment", 20, || {
        property(&unit, "Environment").contains("libckpt_preload.so").then_some(())
    });
    must(&["systemctl", "start", &unit]);
    eventually("the library in the process", 10, || {
        let maps = fs::read_to_string(format!("/proc/{}/maps", main_pid(&unit))).unwrap_or_default();
        maps.contains("libckpt_preload.so").then_some(())
    });
    must(&["ckptctl", "disable", name]);
    assert!(!Path::new(&format!("/etc/systemd/system/{unit}.d")).exists());
}

/// A unit that is added and started at once, and an instance of a template, have the library at their first start, whether ckptd has seen
/// them or not; and nothing is left of that.
fn units_have_the_library_from_their_first_start(name: &str) {
    let group = Group::new(name);
    group.enable();
    // What the daemon would do is not to be what is tested.
    must(&["systemctl", "kill", "--signal=STOP", "ckptd.service"]);
    let plain = group.write_unit("plain", "/bin/sleep 1000", "");
    let template = group.write_unit("many@", "/bin/sleep 1000", "Environment=LD_PRELOAD=libm.so.6");
    let instance = template.replace('@', "@one");
    for unit in [&plain, &instance] {
        must(&["systemctl", "start", unit]);
        let maps = fs::read_to_string(format!("/proc/{}/maps", main_pid(unit))).unwrap_or_default();
        assert!(!maps.is_empty());
        eventually("the library in the process", 5, || {
            let maps = fs::read_to_string(format!("/proc/{}/maps", main_pid(unit))).unwrap_or_default();
            maps.contains("libckpt_preload.so").then_some(())
        });
    }
    assert!(property(&instance, "Environment").contains("libm.so.6:"));
    must(&["systemctl", "kill", "--signal=CONT", "ckptd.service"]);
    assert_eq!(group.checkpoint(&[])["processes"], 2);
    must(&["ckptctl", "disable", name]);
    for unit in [&plain, &instance] {
        assert!(!property(unit, "DropInPaths").contains("50-ckpt.conf"), "{unit}");
    }
    let left = must(&["find", "/run/systemd", "/etc/systemd", "-name", "50-ckpt.conf"]);
    assert_eq!(left.lines().filter(|l| l.contains(name)).collect::<Vec<_>>(), Vec::<&str>::new());
}

fn a_service_is_a_group_of_one(name: &str) {
    let group = Group::new(name);
    let victim = group.victim("memory", "", "");
    let one = victim.unit.trim_end_matches(".service").to_owned();
    must(&["systemctl", "start", &format!("ckpt@{one}.service")]);
    let before = victim.ask();
    let pid = victim.pid();
    must(&["systemctl", "start", &format!("ckpt-restore@{one}.service")]);
    assert_eq!((victim.ask(), victim.pid()), (before, pid));
}

fn a_failed_unit_is_restored(name: &str) {
    let group = Group::new(name);
    let subvolume = path(&group.subvolume);
    start_job(
        "Enable",
        &[
            "sa{sv}",
            name,
            "3",
            "slice",
            "s",
            &group.slice,
            "subvolumes",
            "as",
            "1",
            subvolume,
            "restore",
            "a{sv}",
            "1",
            "on_failure",
            "b",
            "true",
        ],
    );
    let victim = group.victim("memory", "", "");
    eventually("its drop-in", 40, || {
        property(&victim.unit, "OnFailure").contains("ckpt-restore@").then_some(())
    });
    group.checkpoint(&[]);
    let (generation, pid) = (victim.ask(), victim.pid());
    must(&["kill", "-KILL", &pid.to_string()]);
    eventually("the restored main process", 40, || {
        let active = property(&victim.unit, "ActiveState") == "active";
        (active && victim.pid() == pid).then_some(())
    });
    assert_eq!(victim.ask(), generation);
}

fn a_bad_file_is_told_with_its_place(name: &str) {
    let file = format!("/etc/ckpt/groups.d/{name}.toml");
    let place = format!("{name}.toml:3:1: ");
    let reload = ["busctl", "call", "org.ckpt", "/org/ckpt", "org.ckpt.Manager1", "Reload"];
    let failed = |words: &[&str]| {
        let out = run(words);
        assert!(!out.status.success(), "{words:?} succeeded");
        text(&out.stderr)
    };
    fs::create_dir_all("/etc/ckpt/groups.d").expect("created");
    let good = "slice = \"bad.slice\"\n";
    fs::write(&file, format!("{good}[capture]\ncompres = \"lz4\"\n")).expect("written");
    let said = failed(&["ckptctl", "enable", name]);
    assert!(said.contains(&place), "{said}");
    let said = failed(&reload);
    assert!(said.contains(&place) && said.contains("left out"), "{said}");
    fs::write(&file, good).expect("written");
    must(&reload);
    fs::write(&file, format!("{good}[capture]\ncompres = \"lz4\"\n")).expect("written");
    let said = failed(&reload);
    assert!(said.contains(&place) && said.contains("stays as it was"), "{said}");
    must(&["ckptctl", "status", name]);
    must(&["systemctl", "restart", "ckptd.service"]);
    let said = failed(&["ckptctl", "check", name]);
    assert!(said.contains(&place), "{said}");
    let journal =
        must(&["journalctl", "-q", "--no-pager", "-o", "cat", "-u", "ckptd.service", "-p", "warning"]);
    assert!(journal.contains(&place), "{journal}");
    fs::remove_file(&file).expect("removed");
    must(&reload);
}
