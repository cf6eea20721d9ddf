//! The image store: chains, merges, retention, export and import, a full disk, and a daemon that dies at any of it.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;

use crate::fixture::Group;
use crate::runner::{Test, skip, test};
use ckpt_tests::system::{ckptctl, eventually, main_pid, must, property, run};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("store-export", an_export_comes_back).limit(120),
        test("store-export-damaged", a_damaged_export_is_refused).limit(90),
        test("store-compress", a_compressed_image_is_smaller_and_restores).limit(120),
        test("store-prune", prune_keeps_what_the_rules_say).limit(120),
        test("store-merge", a_merged_chain_restores_the_same).limit(180),
        test("store-delete-middle", a_checkpoint_in_the_middle_can_be_deleted).limit(180),
        test("store-max-chain", a_long_chain_is_merged_by_itself).limit(180),
        test("store-killed", a_daemon_that_dies_loses_nothing).limit(400),
        test("store-full", a_full_disk_loses_nothing).limit(180),
    ]
}

fn id(checkpoint: &Value) -> String {
    checkpoint["id"].as_str().unwrap_or_else(|| panic!("an id: {checkpoint}")).to_owned()
}

fn list(name: &str) -> Vec<Value> {
    let all = ckptctl(&["list", name]);
    let durable = all.as_array().expect("an array").iter().filter(|c| c["state"] == "durable");
    durable.cloned().collect()
}

/// A checkpoint and the generation that it has.
struct Taken {
    id: String,
    generation: u64,
}

/// Takes a full checkpoint and so many more, the victim changed before each. Skips the test where no incrementals come of it.
fn chain(group: &Group, victim: &crate::fixture::Victim, length: usize) -> Vec<Taken> {
    let mut taken = Vec::new();
    for n in 0..=length {
        if n > 0 {
            victim.change();
        }
        let generation = victim.ask();
        let made = group.checkpoint(if n == 0 { &["--full"] } else { &[] });
        if n == 1 && made["kind"] != "incremental" {
            skip("no incremental checkpoints on this machine, so there is no chain");
        }
        taken.push(Taken { id: id(&made), generation });
    }
    taken
}

/// Every checkpoint that is listed verifies and restores, and shows the generation that it had.
fn all_restore(group: &Group, victim: &crate::fixture::Victim, taken: &[Taken]) {
    let listed = list(&group.name);
    assert!(!listed.is_empty(), "no checkpoint is left");
    for checkpoint in &listed {
        let id = id(checkpoint);
        must(&["ckptctl", "verify", &format!("{}@{id}", group.name)]);
        let Some(known) = taken.iter().find(|t| t.id == id) else { continue };
        group.restore_id(&id);
        assert_eq!(victim.ask(), known.generation, "{checkpoint}");
    }
}

fn an_export_comes_back(name: &str) {
    let group = Group::new(name);
    group.enable();
    let victim = group.victim("memory", "", "");
    let generation = victim.ask();
    let made = id(&group.checkpoint(&[]));
    let (which, file) = (format!("{name}@{made}"), "/var/tmp/exported");
    must(&["ckptctl", "export", &which, file]);
    let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(file).expect("it is there"));
    assert_eq!(mode & 0o777, 0o600, "memory holds secrets");
    assert!(!run(&["ckptctl", "export", &which, file]).status.success(), "it was written over");
    let listing = must(&["tar", "-tf", file]);
    assert!(listing.starts_with("ckpt-export-1/manifest.json\n"), "{listing}");
    assert!(listing.contains("/snapshots/0/00000000\n"), "{listing}");
    // It exists already; then it does not, and comes back through a pipe.
    assert!(!run(&["ckptctl", "import", file]).status.success());
    must(&["ckptctl", "delete", &which]);
    assert!(list(name).is_empty());
    let imported = must(&["sh", "-c", &format!("ckptctl --json import - < {file}")]);
    assert!(imported.contains(&made), "{imported}");
    must(&["ckptctl", "verify", &which]);
    group.kill();
    group.wreck();
    group.restore();
    assert_eq!(victim.ask(), generation);
    // And once more, from standard output.
    must(&["sh", "-c", &format!("ckptctl export {which} - | cat > {file}.2")]);
    must(&["ckptctl", "delete", &which]);
    must(&["ckptctl", "import", &format!("{file}.2")]);
    must(&["ckptctl", "verify", &which]);
}

fn a_damaged_export_is_refused(name: &str) {
    let group = Group::new(name);
    group.enable();
    let _victim = group.victim("memory", "", "");
    let made = id(&group.checkpoint(&[]));
    let which = format!("{name}@{made}");
    let file = "/var/tmp/damaged";
    must(&["ckptctl", "export", &which, file]);
    must(&["ckptctl", "delete", &which]);
    let sound = fs::read(file).expect("readable");
    for part in 1..8 {
        let mut bytes = sound.clone();
        bytes[sound.len() * part / 8] ^= 0x40;
        bytes.truncate(if part % 2 == 0 { sound.len() * part / 8 } else { sound.len() });
        fs::write(file, &bytes).expect("room");
        let out = run(&["ckptctl", "import", file]);
        // A byte of padding has no meaning.
        assert!(!out.status.success() || bytes.len() == sound.len(), "part {part}: {out:?}");
        if out.status.success() {
            must(&["ckptctl", "verify", &which]);
            must(&["ckptctl", "delete", &which]);
        }
        assert!(list(name).is_empty(), "part {part}");
        let left = must(&["btrfs", "subvolume", "list", "/srv"]);
        assert!(!left.contains(&format!(".ckpt/{name}/")), "part {part}: {left}");
    }
    fs::write(file, &sound).expect("room");
    must(&["ckptctl", "import", file]);
    must(&["ckptctl", "verify", &which]);
}

/// Writes `[retention]` into the group's file.
fn configure(name: &str, table: &str, lines: &str) {
    let file = format!("/etc/ckpt/groups.d/{name}.toml");
    let config = fs::read_to_string(&file).expect("enable writes it");
    let (before, after) = config.split_once(&format!("[{table}]\n")).unwrap_or((&config, ""));
    let others = after.find("\n[").map_or("", |at| &after[at..]);
    let kept = if table == "capture" { "max_freeze = \"10s\"\n" } else { "" };
    fs::write(&file, format!("{before}[{table}]\n{lines}\n{kept}{others}")).expect("writable");
    must(&["systemctl", "reload", "ckptd.service"]);
}

fn a_compressed_image_is_smaller_and_restores(name: &str) {
    let group = Group::new(name);
    group.enable();
    let victim = group.victim("memory", "", "");
    let bytes = |checkpoint: &Value| checkpoint["image_bytes"].as_u64().expect("a number");
    let plain = bytes(&group.checkpoint(&["--full"]));
    let mut taken = Vec::new();
    for codec in ["lz4", "zstd"] {
        configure(name, "capture", &format!("compress = \"{codec}\""));
        for flags in [&["--full"][..], &[]] {
            victim.change();
            let generation = victim.ask();
            let made = group.checkpoint(flags);
            assert!(bytes(&made) < plain * 9 / 10, "{codec}: {plain} became {made}");
            taken.push(Taken { id: id(&made), generation });
        }
    }
    all_restore(&group, &victim, &taken);
    ckptctl(&["merge", name]);
    all_restore(&group, &victim, &taken);
}

fn prune_keeps_what_the_rules_say(name: &str) {
    let group = Group::new(name);
    group.enable();
    let victim = group.victim("memory", "", "");
    let taken = chain_or_fulls(&group, &victim, 4);
    let decisions = ckptctl(&["prune", name]);
    let all_kept = |d: &Value| d["action"] == "keep" && d["rule"] == "not-configured";
    assert!(decisions.as_array().is_some_and(|d| d.len() == 5 && d.iter().all(all_kept)), "{decisions}");
    configure(name, "retention", "keep_last = 2");
    let dry = ckptctl(&["prune", name, "--dry-run"]);
    assert_eq!(list(name).len(), 5, "a dry run removed something");
    assert_eq!(ckptctl(&["prune", name]), dry);
    let told: Vec<_> = dry.as_array().expect("an array").iter().map(|d| (&d["action"], &d["rule"])).collect();
    assert_eq!(told[0], (&"keep".into(), &"newest".into()), "{dry}");
    assert_eq!(told[1], (&"keep".into(), &"keep_last".into()), "{dry}");
    assert!(told[2..].iter().all(|(action, _)| **action == "remove"), "{dry}");
    let left: Vec<_> = list(name).iter().map(id).collect();
    assert_eq!(left, [taken[4].id.clone(), taken[3].id.clone()]);
    all_restore(&group, &victim, &taken);
    must(&["systemctl", "start", "ckpt-prune.service"]);
    assert_eq!(list(name).len(), 2);
}

/// As [`chain`], where fulls will do as well.
fn chain_or_fulls(group: &Group, victim: &crate::fixture::Victim, length: usize) -> Vec<Taken> {
    let take = |n: usize| {
        if n > 0 {
            victim.change();
        }
        let generation = victim.ask();
        Taken { id: id(&group.checkpoint(&[])), generation }
    };
    (0..=length).map(take).collect()
}

fn a_merged_chain_restores_the_same(name: &str) {
    let group = Group::new(name);
    group.enable();
    let victim = group.victim("memory", "", "");
    let taken = chain(&group, &victim, 5);
    let merged = ckptctl(&["merge", &format!("{name}@{}", taken[2].id)]);
    assert_eq!((&merged["kind"], &merged["parent"]), (&"full".into(), &Value::Null));
    let left: Vec<_> = list(name).iter().map(id).collect();
    let expected: Vec<_> = taken[2..].iter().rev().map(|t| t.id.clone()).collect();
    assert_eq!(left, expected, "what was folded in is gone, what rests on it is there");
    all_restore(&group, &victim, &taken);
    let merged = ckptctl(&["merge", name]);
    assert_eq!(merged["id"], taken[5].id.as_str());
    assert_eq!(list(name).len(), 1);
    all_restore(&group, &victim, &taken);
    // What was merged is what the next one rests on, or it is a full.
    victim.change();
    let generation = victim.ask();
    let next = Taken { id: id(&group.checkpoint(&[])), generation };
    victim.change();
    all_restore(&group, &victim, &[next]);
}

fn a_checkpoint_in_the_middle_can_be_deleted(name: &str) {
    let group = Group::new(name);
    group.enable();
    let victim = group.victim("memory", "", "");
    let taken = chain(&group, &victim, 5);
    must(&["ckptctl", "delete", &format!("{name}@{}", taken[3].id)]);
    all_restore(&group, &victim, &taken);
    // The full, and an incremental.
    must(&["ckptctl", "delete", &format!("{name}@{}", taken[0].id), &format!("{name}@{}", taken[4].id)]);
    let left: Vec<_> = list(name).iter().map(id).collect();
    assert_eq!(left, [taken[5].id.clone(), taken[2].id.clone(), taken[1].id.clone()]);
    all_restore(&group, &victim, &taken);
}

fn a_long_chain_is_merged_by_itself(name: &str) {
    let group = Group::new(name);
    group.enable();
    configure(name, "capture", "max_chain = 3");
    let victim = group.victim("memory", "", "");
    let taken = chain(&group, &victim, 3);
    eventually("the newest stands alone", 60, || {
        let newest = list(name).into_iter().next()?;
        (newest["id"] == taken[3].id.as_str() && newest["kind"] == "full").then_some(())
    });
    assert_eq!(list(name).len(), 4, "a merge by itself removes nothing");
    all_restore(&group, &victim, &taken);
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

/// Whatever ckptd is doing to the store when it dies: every checkpoint that is listed afterwards verifies and restores, and the group
/// did not notice.
fn a_daemon_that_dies_loses_nothing(name: &str) {
    let group = Group::new(name);
    group.enable();
    configure(name, "retention", "keep_last = 2");
    let victim = group.victim("memory", "", "");
    let mut taken = Vec::new();
    for (round, millis) in [1, 3, 6, 10, 15, 22, 30, 45].into_iter().enumerate() {
        for _ in 0..3 {
            victim.change();
            let generation = victim.ask();
            taken.push(Taken { id: id(&group.checkpoint(&[])), generation });
        }
        let newest = taken.last().expect("just taken").id.clone();
        let middle = taken[taken.len() - 2].id.clone();
        let call = ["busctl", "call", "org.ckpt", "/org/ckpt", "org.ckpt.Manager1"];
        let words: Vec<&str> = match round % 3 {
            0 => vec!["Merge", "ssa{sv}", name, &newest, "1", "wait", "s", "none"],
            1 => vec!["Delete", "sasa{sv}", name, "1", &middle, "1", "wait", "s", "none"],
            _ => vec!["Prune", "sa{sv}", name, "0"],
        };
        let mut job = std::process::Command::new(call[0])
            .args(&call[1..])
            .args(&words)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("busctl");
        if round % 3 == 2 {
            sleep(Duration::from_millis(10 + millis));
        } else {
            job.wait().expect("busctl ends");
            sleep(Duration::from_millis(millis));
        }
        kill_daemon();
        let _ = job.wait();
        assert_eq!(victim.ask(), taken.last().expect("just taken").generation, "the group noticed");
        let listed: Vec<_> = list(name).iter().map(id).collect();
        assert!(listed.contains(&newest), "the newest is gone: {listed:?}");
        for id in &listed {
            must(&["ckptctl", "verify", &format!("{name}@{id}")]);
        }
        let store = format!("/var/lib/ckpt/{name}");
        for entry in fs::read_dir(&store).expect("readable").flatten() {
            let entry = entry.file_name().to_string_lossy().into_owned();
            assert!(listed.contains(&entry), "{entry} was left in the store");
        }
    }
    all_restore(&group, &victim, &taken);
}

fn a_full_disk_loses_nothing(name: &str) {
    let group = Group::new(name);
    group.enable();
    let victim = group.victim("memory", "", "");
    must(&["systemctl", "stop", "ckptd.service"]);
    must(&["mount", "-t", "tmpfs", "-o", "size=512M,mode=700", "small", "/var/lib/ckpt"]);
    must(&["systemctl", "start", "ckptd.service"]);
    let generation = victim.ask();
    let first = group.checkpoint(&[]);
    let bytes = first["image_bytes"].as_u64().expect("a number");
    let taken = Taken { id: id(&first), generation };
    // Room for some of the next one, but not for all of it.
    for room in [0, bytes / 3, bytes - 8192] {
        let filler = Path::new("/var/lib/ckpt/filler");
        let _ = fs::remove_file(filler);
        fill(filler, room);
        victim.change();
        let out = run(&["ckptctl", "--json", "checkpoint", name, "--full"]);
        assert_eq!(out.status.code(), Some(1), "{out:?}");
        let said =
            format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(said.contains("NoSpace") || said.contains("no space"), "{said}");
        victim.ask();
        let listed: Vec<_> = list(name).iter().map(id).collect();
        assert_eq!(listed, std::slice::from_ref(&taken.id), "nothing half-done is listed");
        must(&["ckptctl", "verify", name]);
        let snapshots = must(&["btrfs", "subvolume", "list", "/srv"]);
        assert_eq!(snapshots.matches(&format!(".ckpt/{name}/")).count(), 1, "{snapshots}");
    }
    fs::remove_file("/var/lib/ckpt/filler").expect("it is there");
    let generation = victim.ask();
    let second = Taken { id: id(&group.checkpoint(&[])), generation };
    victim.change();
    all_restore(&group, &victim, &[taken, second]);
    must(&["systemctl", "stop", "ckptd.service"]);
    must(&["umount", "/var/lib/ckpt"]);
    must(&["systemctl", "start", "ckptd.service"]);
}

/// Fills the file system of a path but for so many bytes.
fn fill(path: &Path, room: u64) {
    let free = nix::sys::statvfs::statvfs(path.parent().expect("not the root")).expect("statvfs");
    let bytes = (free.blocks_available() * free.fragment_size()).saturating_sub(room);
    must(&["fallocate", "-l", &bytes.max(1).to_string(), path.to_str().expect("ASCII")]);
}
