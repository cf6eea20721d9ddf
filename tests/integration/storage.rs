//! Checkpoints and snapshots exist together, and go together.

use std::fs;
use std::path::Path;

use crate::fixture::Group;
use crate::runner::{Test, test};
use ckpt_tests::system::{ckptctl, must, run};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("storage-undo", what_was_there_is_kept),
        test("storage-snapshot", the_snapshot_is_read_only_and_deleted_with_its_checkpoint),
        test("storage-unpaired-file", a_file_outside_is_named),
        test("storage-older", any_checkpoint_can_be_restored),
        test("storage-verify", a_changed_image_is_found),
    ]
}

/// A restore keeps what the subvolume had before as an undo snapshot.
fn what_was_there_is_kept(name: &str) {
    let group = Group::new(name);
    group.enable();
    let victim = group.victim("memory", "", "");
    group.checkpoint(&[]);
    group.kill();
    group.wreck();
    group.restore();
    victim.ask();
    assert!(!group.subvolume.join("nonsense").exists(), "the subvolume is that of the checkpoint");
    let kept = must(&["btrfs", "subvolume", "list", "/srv"]);
    let undo = kept
        .lines()
        .filter_map(|l| l.rsplit(' ').next())
        .find(|p| Path::new("/srv").join(p).join("nonsense").exists());
    assert!(undo.is_some(), "no subvolume keeps what was there:\n{kept}");
}

fn the_snapshot_is_read_only_and_deleted_with_its_checkpoint(name: &str) {
    let group = Group::new(name);
    group.enable();
    let _victim = group.victim("memory", "", "");
    let made = group.checkpoint(&[]);
    let snapshot = made["snapshots"][0]["path"].as_str().expect("a path").to_string();
    let readonly = must(&["btrfs", "property", "get", &snapshot, "ro"]);
    assert_eq!(readonly.trim(), "ro=true");
    assert!(fs::exists(Path::new(&snapshot).join("memory/generation")).expect("readable"));
    let id = made["id"].as_str().expect("an id");
    must(&["ckptctl", "delete", &format!("{name}@{id}")]);
    assert!(!Path::new(&snapshot).exists(), "the snapshot outlives its checkpoint");
    assert_eq!(ckptctl(&["list", name]).as_array().map(Vec::len), Some(0));
    assert_eq!(run(&["ckptctl", "restore", name]).status.code(), Some(3));
}

/// A file open for writing that no subvolume of the group covers is named by check, with unit and pid.
fn a_file_outside_is_named(name: &str) {
    let group = Group::new(name);
    group.enable();
    let outside = format!("/srv/{name}-outside");
    let script = format!("exec 5>>{outside}; exec sleep infinity");
    let unit = group.write_unit("outside", &format!("/bin/sh -c '{script}'"), "");
    must(&["systemctl", "start", &unit]);
    let said = group.check();
    let problems = said["problems"].as_array().expect("problems").clone();
    let found =
        problems.iter().find(|p| p["code"] == "unpaired-file").unwrap_or_else(|| panic!("not named: {said}"));
    assert_eq!(found["unit"], unit.as_str(), "{found}");
    assert!(found["object"].as_str().is_some_and(|o| o.contains(&outside)), "{found}");
    assert!(found["remedy"].as_str().is_some_and(|r| !r.is_empty()), "{found}");
}

fn any_checkpoint_can_be_restored(name: &str) {
    let group = Group::new(name);
    group.enable();
    let victim = group.victim("memory", "", "");
    let ids: Vec<String> = (0..3)
        .map(|_| {
            let made = group.checkpoint(&[]);
            victim.change();
            made["id"].as_str().expect("an id").to_string()
        })
        .collect();
    for generation in [1, 0, 2] {
        group.restore_id(&ids[generation]);
        assert_eq!(victim.ask(), generation as u64);
    }
    let list = ckptctl(&["list", name]);
    // Each restore adds an entry for the files that it put aside.
    let listed = list.as_array().expect("an array").iter().filter_map(|c| c["id"].as_str());
    let taken: Vec<_> = listed.filter(|id| !id.starts_with("undo-")).collect();
    assert_eq!(taken.len(), 3, "{list}");
}

fn a_changed_image_is_found(name: &str) {
    let group = Group::new(name);
    group.enable();
    let victim = group.victim("memory", "", "");
    let made = group.checkpoint(&[]);
    let id = made["id"].as_str().expect("an id");
    must(&["ckptctl", "verify", &format!("{name}@{id}")]);
    let dir = Path::new("/var/lib/ckpt").join(name).join(id);
    let largest = fs::read_dir(&dir)
        .expect("the store is where the interface says")
        .flatten()
        .max_by_key(|e| e.metadata().map(|m| m.len()).unwrap_or(0))
        .expect("a file");
    let mut bytes = fs::read(largest.path()).expect("readable");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    fs::write(largest.path(), bytes).expect("writable");
    assert!(
        !run(&["ckptctl", "verify", &format!("{name}@{id}")]).status.success(),
        "a changed byte goes unseen"
    );
    victim.ask();
}
