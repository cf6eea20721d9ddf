//! Groups of several services, nested slices, lists of units; restores again and again.

use std::fs;

use crate::fixture::Group;
use crate::runner::{Test, test};
use ckpt_tests::system::{ckptctl, must, run, text};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("group-of-five", five_services_go_back_together).limit(120),
        test("group-nested-slice", a_slice_inside_belongs_to_the_group),
        test("group-of-units", a_list_of_units_is_a_group),
        test("group-later-unit", a_unit_that_starts_later_joins),
        test("repeat-restore", ten_restores_of_one_checkpoint).limit(180),
        test("repeat-both", checkpoints_of_restored_groups).limit(180),
        test("repeat-running", a_restore_replaces_a_running_group),
        test("refused-empty", a_group_without_members_is_told),
        test("failed-restore", a_failed_restore_leaves_the_group_stopped),
    ]
}

fn five_services_go_back_together(name: &str) {
    let group = Group::new(name);
    group.enable();
    let victims: Vec<_> = ["memory", "pipes", "files", "signals", "registers"]
        .iter()
        .map(|program| group.victim(program, "", ""))
        .collect();
    let pids: Vec<_> = victims.iter().map(|v| v.pid()).collect();
    let made = group.checkpoint(&[]);
    assert!(made["processes"].as_u64().is_some_and(|n| n >= 5), "{made}");
    for victim in &victims {
        victim.change();
    }
    group.kill();
    group.wreck();
    group.restore();
    for (victim, pid) in victims.iter().zip(pids) {
        assert_eq!((victim.pid(), victim.ask()), (pid, 0), "{}", victim.unit);
    }
}

fn a_slice_inside_belongs_to_the_group(name: &str) {
    let group = Group::new(name);
    group.enable();
    let outer = group.victim("memory", "", "");
    let inner_slice = group.slice.replace(".slice", "-inner.slice");
    let inner = group.victim_as("inner", "signals", "", &format!("Slice={inner_slice}"));
    let pids = (outer.pid(), inner.pid());
    let made = group.checkpoint(&[]);
    assert_eq!(made["processes"], 2, "{made}");
    inner.change();
    group.kill();
    group.restore();
    assert_eq!((outer.pid(), inner.pid()), pids);
    assert_eq!((outer.ask(), inner.ask()), (0, 0));
}

fn a_list_of_units_is_a_group(name: &str) {
    let group = Group::new(name);
    let one = group.victim_as("one", "memory", "", "");
    let other = group.victim_as("other", "memory", "", "");
    let subvolume = crate::fixture::path(&group.subvolume);
    must(&["ckptctl", "enable", &one.unit, "--name", name, "--subvolume", subvolume]);
    let made = group.checkpoint(&[]);
    assert_eq!(made["processes"], 1, "{made}");
    one.change();
    group.restore();
    assert_eq!(one.ask(), 0);
    assert!(other.pid() != 0);
}

/// A unit written and started after its slice was registered is a member at once. The library it has from the start after
/// the daemon has seen it: test group-late-unit.
fn a_unit_that_starts_later_joins(name: &str) {
    let group = Group::new(name);
    group.enable();
    let first = group.victim("memory", "", "");
    assert_eq!(group.checkpoint(&[])["processes"], 1);
    let later = group.victim("signals", "", "");
    assert_eq!(group.checkpoint(&[])["processes"], 2);
    first.change();
    later.change();
    group.restore();
    assert_eq!((first.ask(), later.ask()), (0, 0));
}

fn ten_restores_of_one_checkpoint(name: &str) {
    let group = Group::new(name);
    group.enable();
    let victims = [group.victim("memory", "", ""), group.victim("pipes", "", "")];
    let pids: Vec<_> = victims.iter().map(|v| v.pid()).collect();
    group.checkpoint(&[]);
    for _ in 0..10 {
        for victim in &victims {
            victim.change();
        }
        group.restore();
        for (victim, pid) in victims.iter().zip(&pids) {
            assert_eq!((victim.pid(), victim.ask()), (*pid, 0));
        }
    }
}

fn checkpoints_of_restored_groups(name: &str) {
    let group = Group::new(name);
    group.enable();
    let victims = [group.victim("files", "", ""), group.victim("threads", "", "")];
    for round in 1..=5 {
        for victim in &victims {
            victim.change();
        }
        group.checkpoint(&[]);
        for victim in &victims {
            victim.change();
        }
        group.kill();
        group.restore();
        for victim in &victims {
            assert_eq!(victim.ask(), round);
        }
    }
}

fn a_restore_replaces_a_running_group(name: &str) {
    let group = Group::new(name);
    group.enable();
    let victim = group.victim("memory", "", "Restart=always");
    group.checkpoint(&[]);
    victim.change();
    group.restore();
    assert_eq!(victim.ask(), 0);
}

fn a_group_without_members_is_told(name: &str) {
    let group = Group::new(name);
    group.enable();
    let out = run(&["ckptctl", "checkpoint", name]);
    assert_eq!(out.status.code(), Some(4), "{}", text(&out.stderr));
    assert_eq!(ckptctl(&["list", name]).as_array().map(Vec::len), Some(0));
}

/// A restore that cannot work changes nothing on disk, says why, and no half of the group runs.
fn a_failed_restore_leaves_the_group_stopped(name: &str) {
    let group = Group::new(name);
    group.enable();
    let victims = [group.victim("memory", "", ""), group.victim("signals", "", "")];
    let made = group.checkpoint(&[]);
    let id = made["id"].as_str().expect("an id");
    group.kill();
    let dir = format!("/var/lib/ckpt/{name}/{id}");
    let entries = fs::read_dir(&dir).expect("the store is where the interface says").flatten();
    for entry in entries.filter(|entry| entry.path().is_file()) {
        let file = fs::OpenOptions::new().write(true).open(entry.path()).expect("opened");
        let len = file.metadata().expect("known").len();
        if len > 8192 {
            file.set_len(len / 2).expect("cut");
        }
    }
    fs::write(group.subvolume.join("kept"), "as it was").expect("written");
    let out = run(&["ckptctl", "restore", name]);
    assert!(!out.status.success());
    assert!(!text(&out.stderr).trim().is_empty());
    assert!(group.subvolume.join("kept").exists(), "the subvolume was exchanged");
    for victim in &victims {
        assert_eq!(victim.pid(), 0, "{} runs", victim.unit);
    }
}
