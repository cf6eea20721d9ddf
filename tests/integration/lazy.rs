//! Lazy restores: memory arrives while members use it, whatever happens to those who bring it.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ckpt_tests::system::{eventually, must, property, run, text};

use crate::fixture::{Group, Victim};
use crate::runner::{Test, test};

/// MESSAGE_ID of the end of a group whose memory cannot come.
const LOST: &str = "MESSAGE_ID=6f1d0c9be7a24e5d93c4b8a1f27e5d11";

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("lazy-goes-back", goes_back).limit(240),
        test("lazy-helpers-killed", helpers_are_killed).limit(300),
        test("lazy-all-killed", all_are_killed).limit(420),
        test("lazy-in-the-middle", other_work_in_the_middle).limit(300),
        test("lazy-damaged", a_damaged_page_ends_the_group).limit(240),
    ]
}

/// A group with enough memory to be restored lazily, at generation 1, with a checkpoint.
fn arriving(name: &str) -> (Group, Victim) {
    let group = Group::new(name);
    group.enable();
    let victim = group.victim("arriving", "", "");
    victim.change();
    assert_eq!(victim.ask(), 1);
    // What a process has in common with a child comes at once: taken again until there is no child.
    while group.checkpoint(&[])["processes"] != 1 {}
    (group, victim)
}

/// The marks of memory that arrives; one that says that all is there goes at the next checkpoint.
fn marks(group: &Group) -> Vec<PathBuf> {
    let marks = fs::read_dir(Path::new("/run/ckpt/arriving").join(&group.name));
    let marks = marks.into_iter().flatten().flatten().map(|entry| entry.path());
    marks.filter(|mark| fs::read_to_string(mark).is_ok_and(|text| text != "complete\n")).collect()
}

fn all_there(group: &Group) {
    eventually("all memory is there", 60, || marks(group).is_empty().then_some(()));
}

/// The processes that have a mark of the group open, besides ckptd's.
fn helpers(group: &Group) -> Vec<String> {
    let marks = Path::new("/run/ckpt/arriving").join(&group.name);
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = processes.filter_map(|p| p.file_name().into_string().ok());
    pids.filter(|pid| pid.chars().all(|c| c.is_ascii_digit()))
        .filter(|pid| {
            fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.ends_with("ckpt-restore"))
        })
        .filter(|pid| {
            let mut open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            open.any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.starts_with(&marks)))
        })
        .collect()
}

/// By itself, without being asked for: there is enough memory.
fn goes_back(name: &str) {
    let (group, victim) = arriving(name);
    victim.change();
    group.kill();
    group.wreck();
    group.restore();
    assert_eq!(victim.ask(), 1);
    let entry = must(&["journalctl", "-u", "ckptd", "-o", "cat", &format!("CKPT_GROUP={name}")]);
    assert!(entry.contains("of their memory arrive"), "it was not lazy:\n{entry}");
    all_there(&group);
    assert_eq!(victim.ask(), 1);
    victim.change();
    assert_eq!(victim.ask(), 2);
    let units = || must(&["systemctl", "list-units", "--no-legend", "ckpt-pids-*", "ckpt-memory-*"]);
    eventually("what brought it is gone", 20, || units().trim().is_empty().then_some(()));
}

/// One after the other, and ckptd too: members wait a moment longer for memory, and that is all.
fn helpers_are_killed(name: &str) {
    let (group, victim) = arriving(name);
    let mut killed = 0;
    for round in 0..4 {
        group.restore();
        if round == 3 {
            must(&["systemctl", "restart", "ckptd.service"]);
        }
        let end = Instant::now() + Duration::from_secs(60);
        while !marks(&group).is_empty() {
            assert!(Instant::now() < end, "memory does not arrive");
            // Never both: the one that is left makes another first.
            if let [one, other] = &helpers(&group)[..] {
                let which = if killed % 2 == 0 { one } else { other };
                let _ = run(&["kill", "-KILL", which]);
                killed += 1;
                eventually("it has ended", 20, || (!helpers(&group).contains(which)).then_some(()));
            }
        }
        assert_eq!(victim.ask(), 1, "after round {round}");
    }
    println!("{killed} helpers were killed");
    assert!(killed > 0, "memory was there before anybody could be killed");
}

/// All who bring memory at once, and ckptd with them, at any instant: members wait for it, and never see a page that is not the image's.
fn all_are_killed(name: &str) {
    let (group, victim) = arriving(name);
    let (mut killed, mut ended) = (0_u64, 0);
    for round in 0..5 {
        group.restore();
        let end = Instant::now() + Duration::from_secs(60);
        while !marks(&group).is_empty() {
            assert!(Instant::now() < end, "memory does not arrive");
            let mut victims = helpers(&group);
            if victims.is_empty() || killed >= 8 * (round + 1) {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            killed += 1;
            // Some time to begin and to work in, another one each time.
            std::thread::sleep(Duration::from_micros(killed * 79_190 % 300_000));
            if killed.is_multiple_of(4) {
                // Between its end and its start it has none: 0 would be ourselves.
                victims.extend(Some(property("ckptd.service", "MainPID")).filter(|pid| pid != "0"));
            }
            let arguments: Vec<&str> =
                ["kill", "-KILL"].into_iter().chain(victims.iter().map(String::as_str)).collect();
            let _ = run(&arguments);
        }
        if must(&["journalctl", "-o", "cat", LOST]).matches(name).count() > ended {
            // Killed in the instant between a child's birth and systemd's having its pages: the group does not run on.
            ended += 1;
            eventually("the group has ended", 20, || {
                (property(&victim.unit, "MainPID") == "0").then_some(())
            });
            continue;
        }
        assert_eq!(victim.ask(), 1, "after round {round}");
    }
    println!("{killed} times all were killed; the group was ended {ended} times");
    assert!(killed > 5, "memory was there before anybody could be killed");
    assert!(ended < 3, "the group was ended {ended} times");
    let units = || must(&["systemctl", "list-units", "--no-legend", "ckpt-memory-*"]);
    eventually("what brought it is gone", 20, || units().trim().is_empty().then_some(()));
}

/// A checkpoint, another restore, and the unit's end, while memory arrives.
fn other_work_in_the_middle(name: &str) {
    let (group, victim) = arriving(name);
    group.restore();
    let made = group.checkpoint(&[]);
    assert!(marks(&group).is_empty(), "the checkpoint did not wait");
    assert_eq!(victim.ask(), 1);
    group.restore();
    group.restore_id(made["id"].as_str().expect("an id"));
    assert_eq!(victim.ask(), 1);
    victim.change();
    group.restore();
    must(&["systemctl", "stop", &victim.unit]);
    assert_eq!(property(&victim.unit, "ActiveState"), "inactive");
    all_there(&group);
    group.restore();
    assert_eq!(victim.ask(), 1);
    group.restore();
    group.checkpoint(&["--stop"]);
    group.restore();
    assert_eq!(victim.ask(), 1);
}

/// No member ever sees a page that is not the image's: read before, the restore fails; read later, the group is ended.
fn a_damaged_page_ends_the_group(name: &str) {
    let (group, victim) = arriving(name);
    let store = Path::new("/var/lib/ckpt").join(name);
    let image = fs::read_dir(store).expect("the store").flatten().map(|entry| entry.path().join("pages"));
    let pages = image.into_iter().find(|path| path.exists()).expect("an image");
    let file = fs::File::options().read(true).write(true).open(pages).expect("the image");
    // Many blocks, for one that was copied again in a later round is read by nobody; not those at the end, which are read at once.
    let quarter = file.metadata().expect("the image").len() / 4;
    for at in (quarter..3 * quarter).step_by(4096) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("the image");
        file.write_all_at(&[byte[0] ^ 1], at).expect("the image");
    }
    fs::write(group.subvolume.join("later"), "stays").expect("the subvolume");
    let eager = ["busctl", "call", "--timeout=60", "org.ckpt", "/org/ckpt", "org.ckpt.Manager1", "Restore"];
    let out = run(&[&eager[..], &["ssa{sv}", name, "", "1", "lazy", "b", "false"]].concat());
    assert!(!out.status.success() && text(&out.stderr).contains("checksum"), "{out:?}");
    assert_eq!(fs::read_to_string(group.subvolume.join("later")).ok().as_deref(), Some("stays"));
    let lazy = run(&["ckptctl", "restore", name, "--lazy"]);
    if text(&lazy.stderr).contains("checksum") {
        println!("one of those that are read at once was among them");
        return;
    }
    eventually("the journal says so", 60, || {
        must(&["journalctl", "-o", "cat", LOST]).contains(name).then_some(())
    });
    eventually("the group has ended", 20, || (property(&victim.unit, "MainPID") == "0").then_some(()));
    all_there(&group);
}
