//! A full and its incrementals restore to what memory was at each of them, with every tracker that the machine has.

use std::fs;
use std::time::{Duration, Instant};

use ckpt_tests::system::{must, run};

use crate::fixture::{Group, victim_program};
use crate::runner::{Test, skip, test};

const TRACKERS: [&str; 4] = ["wp-async", "soft-dirty", "write-protect", "none"];

pub(crate) fn tests() -> Vec<Test> {
    let mut tests = Vec::new();
    for tracker in TRACKERS {
        let name = format!("incremental-steps-{tracker}");
        tests.push(test(&name, move |name| a_random_walk_comes_back(name, tracker)).limit(240));
        let name = format!("incremental-small-{tracker}");
        tests.push(test(&name, move |name| what_is_idle_is_not_stored(name, tracker)));
        let name = format!("incremental-aio-{tracker}");
        tests.push(test(&name, move |name| requests_are_made_once(name, tracker)));
    }
    tests.push(test("incremental-calls-write-protect", calls_go_on));
    tests.push(test("incremental-asked-for", an_incremental_needs_a_parent));
    tests.push(test("incremental-daemon-restart", an_incremental_follows_the_daemons_restart));
    tests.push(test("incremental-daemon-stop", |name| {
        a_full_follows_the_daemons_end(name, "wp-async", &["stop", "start"]);
    }));
    tests.push(test("incremental-daemon-none", |name| {
        a_full_follows_the_daemons_end(name, "none", &["restart"]);
    }));
    tests
}

/// A registered group with this tracker; skips the test where the machine lacks it.
fn group(name: &str, tracker: &str) -> Group {
    let group = Group::new(name);
    group.enable();
    let file = format!("/etc/ckpt/groups.d/{name}.toml");
    let config = fs::read_to_string(&file).expect("enable writes it");
    let config = config.replace("tracker = \"auto\"", &format!("tracker = \"{tracker}\""));
    assert!(config.contains(&format!("tracker = \"{tracker}\"")), "{config}");
    fs::write(&file, config).expect("/etc is the machine's own");
    must(&["systemctl", "reload", "ckptd.service"]);
    group
}

/// Skips the test if a checkpoint is refused because the machine lacks the tracker.
fn skip_without(group: &Group, tracker: &str) {
    let out = run(&["ckptctl", "checkpoint", &group.name]);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    if !out.status.success() && said.contains(&format!("tracker {tracker} on this machine")) {
        assert!(said.contains("capture.tracker"), "the remedy is told: {said}");
        skip(&said);
    }
    assert!(out.status.success(), "{said}");
}

/// Checkpoints at random moments of a walk over everything that changes memory; each of them restores to what was.
fn a_random_walk_comes_back(name: &str, tracker: &str) {
    let group = group(name, tracker);
    let victim = group.victim("steps", "", "");
    skip_without(&group, tracker);
    let begun = Instant::now();
    let mut restored = 0;
    for round in 0u64..40 {
        let mut ids = Vec::new();
        for link in 0..5 {
            std::thread::sleep(Duration::from_millis((round * 37 + link * 101) % 160)); // the walk goes on
            let made = group.checkpoint(&[]);
            assert_eq!(made["tracker"], tracker, "{made}");
            let kind = if link > 0 || round == 0 { "incremental" } else { "full" };
            assert_eq!(made["kind"], kind, "link {link} of round {round}: {made}");
            ids.push(made["id"].as_str().expect("an id").to_owned());
            victim.ask();
        }
        for id in [&ids[ids.len() - 1], &ids[(round % 4) as usize]] {
            group.restore_id(id);
            victim.ask();
            restored += 1;
        }
        if begun.elapsed() > Duration::from_secs(60) {
            break;
        }
    }
    println!("{restored} restores");
}

/// What a group did not write is in the parent.
fn what_is_idle_is_not_stored(name: &str, tracker: &str) {
    let group = group(name, tracker);
    let victim = group.victim("memory", "", "");
    skip_without(&group, tracker);
    let full = group.checkpoint(&["--full"]);
    let small = group.checkpoint(&[]);
    assert_eq!((&full["kind"], &small["kind"]), (&"full".into(), &"incremental".into()), "{small}");
    assert_eq!(small["parent"], full["id"]);
    let pages = |made: &serde_json::Value| made["pages_written"].as_u64().expect("a number");
    assert!(pages(&full) > 1000 && pages(&small) < 64, "{} then {}", pages(&full), pages(&small));
    victim.change();
    let changed = group.checkpoint(&[]);
    assert!(pages(&changed) > 1000, "{changed}");
    victim.change();
    group.kill();
    group.restore();
    assert_eq!(victim.ask(), 1);
    group.kill();
    group.restore_id(small["id"].as_str().expect("an id"));
    assert_eq!(victim.ask(), 0);
}

/// Calls that were being made when their process began to be dispatched go on, for as long as they were to, here and in a restore; and
/// processes that share their memory (CLONE_VM), which must not be protected, live on.
fn calls_go_on(name: &str) {
    let group = group(name, "write-protect");
    let limits = group.victim_at("limits", &victim_program("case-time"), "limits_keep_their_rest", "");
    let blocked = group.victim_at("blocked", &victim_program("blocked"), "", "");
    let sharing = group.victim_at("sharing", &victim_program("sharing"), "", "");
    skip_without(&group, "write-protect");
    let made = group.checkpoint(&[]);
    assert_eq!(sharing.ask(), 0);
    assert_eq!((&made["kind"], &made["tracker"]), (&"incremental".into(), &"write-protect".into()), "{made}");
    group.checkpoint(&["--stop"]);
    group.restore();
    assert_eq!((limits.ask(), blocked.ask(), sharing.ask()), (0, 0, 0));
}

/// Requests of kernel AIO that are under way at any moment are made once, whatever watches the memory they write to.
fn requests_are_made_once(name: &str, tracker: &str) {
    let group = group(name, tracker);
    let victims = ["written_without_pause", "read_past_the_cache", "contexts"];
    let victims = victims.map(|case| group.victim_at(case, &victim_program("case-aio"), case, ""));
    skip_without(&group, tracker);
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(100));
        let made = group.checkpoint(&[]);
        assert_eq!(made["kind"], "incremental", "{made}");
    }
    group.checkpoint(&["--stop"]);
    group.restore();
    victims.iter().for_each(|victim| assert_eq!(victim.ask(), 0));
}

/// `mode=incremental` without anything to rest on is refused, with what to do; after a restore the next is a full by itself.
fn an_incremental_needs_a_parent(name: &str) {
    let group = group(name, "auto");
    let victim = group.victim("memory", "", "");
    let call = ["busctl", "call", "org.ckpt", "/org/ckpt", "org.ckpt.Manager1", "Checkpoint", "sa{sv}", name];
    let incremental = [&call[..], &["1", "mode", "s", "incremental"]].concat();
    let refused = run(&incremental);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("--full"), "{said}");
    assert_eq!(group.checkpoint(&[])["kind"], "full");
    assert_eq!(group.checkpoint(&[])["kind"], "incremental");
    must(&incremental);
    group.kill();
    group.restore();
    assert_eq!(group.checkpoint(&[])["kind"], "full");
    assert_eq!(group.checkpoint(&["--full"])["kind"], "full");
    assert_eq!(victim.ask(), 0);
}

/// systemd keeps the watches of a ckptd that ends, in whichever way: the next one goes on with them.
fn an_incremental_follows_the_daemons_restart(name: &str) {
    let group = group(name, "wp-async");
    let (victim, quiet) = (group.victim("steps", "", ""), group.victim("memory", "", ""));
    skip_without(&group, "wp-async");
    for round in 0..4 {
        for link in 0..4 {
            if round > 0 || link > 0 {
                // Nobody watches processes that a restore has made.
                let kind = if link == 0 { "full" } else { "incremental" };
                let made = group.checkpoint(&[]);
                assert_eq!(made["kind"], kind, "{made}");
            }
            if link % 2 == 1 {
                quiet.change();
            }
            match link % 2 {
                0 => must(&["systemctl", "restart", "ckptd.service"]),
                _ => must(&["systemctl", "kill", "--kill-who=main", "--signal=KILL", "ckptd.service"]),
            };
            std::thread::sleep(Duration::from_millis(50 * round + 10 * link)); // the walk goes on
        }
        assert_eq!(group.checkpoint(&[])["kind"], "incremental");
        let changed = quiet.ask();
        group.kill();
        group.restore();
        victim.ask();
        assert_eq!(quiet.ask(), changed);
    }
}

/// What systemd cannot keep ends with ckptd, and what it kept with the service: a full follows by itself.
fn a_full_follows_the_daemons_end(name: &str, tracker: &str, verbs: &[&str]) {
    let group = group(name, tracker);
    let victim = group.victim("steps", "", "");
    skip_without(&group, tracker);
    for _ in 0..2 {
        verbs.iter().for_each(|verb| drop(must(&["systemctl", verb, "ckptd.service"])));
        victim.ask();
        assert_eq!(group.checkpoint(&[])["kind"], "full");
        assert_eq!(group.checkpoint(&[])["kind"], "incremental");
        group.kill();
        group.restore();
        victim.ask();
        group.checkpoint(&[]);
    }
}
