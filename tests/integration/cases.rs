//! Cases (tests/victims/case.h): many small properties, each stopped at a checkpoint, restored, and asked once.

use crate::fixture::{self, Group};
use crate::runner::{Test, skip, test};
use ckpt_tests::system::{must, run, text};

/// Programs of tests/victims with cases, and what their units have besides, as lines for [Service].
const PROGRAMS: [(&str, &str); 10] = [
    ("case-files", ""),
    ("case-sockets", ""),
    ("case-network", ""),
    ("case-memory", ""),
    ("case-ipc", ""),
    ("case-terminal", ""),
    ("case-processes", "Delegate=yes"),
    ("case-time", ""),
    ("case-rings", ""),
    ("case-aio", ""),
];

pub(crate) fn tests() -> Vec<Test> {
    let mut tests: Vec<_> =
        PROGRAMS.iter().flat_map(|&(program, settings)| of_program(program, settings)).collect();
    tests.push(test("case-ipc-generations", ownerless_objects_are_the_groups_for_generations));
    tests.push(test("case-generations", restored_ones_are_as_the_first));
    tests.push(test("case-chain", a_checkpoint_before_the_last_is_not_noticed));
    tests.push(test("limits-under-checkpoints", checkpoints_do_not_make_limits_longer));
    tests.push(test("upgrade", an_upgrade_does_not_end_a_checkpoint));
    tests
}

/// Program and library are replaced as a package manager does it; the restore runs the old ones, and so does the restore of a
/// checkpoint of that.
fn an_upgrade_does_not_end_a_checkpoint(name: &str) {
    use std::fs;
    let place = std::path::Path::new("/var/lib/packages").join(name);
    fs::create_dir_all(&place).expect("a directory for the package");
    let (program, library) = (place.join("program"), place.join("libc.so.6"));
    fs::copy(fixture::victim_program("case-files"), &program).expect("the program is installed");
    let maps = fs::read_to_string("/proc/self/maps").expect("readable");
    let libc =
        maps.lines().find_map(|line| line.split_whitespace().nth(5).filter(|p| p.ends_with("/libc.so.6")));
    fs::copy(libc.expect("this program uses it"), &library).expect("the library is installed");
    let group = Group::new(name);
    group.enable();
    let settings = format!("Environment=LD_LIBRARY_PATH={}", place.display());
    let victim = group.victim_at("program", &program, "unlinked", &settings);
    let maps = fs::read_to_string(format!("/proc/{}/maps", victim.pid())).expect("readable");
    assert!(maps.contains(fixture::path(&library)), "it does not use its library: {maps}");
    group.checkpoint(&["--stop"]);
    for file in [&program, &library] {
        let new = file.with_extension("dpkg-new");
        fs::write(&new, "another version").expect("written");
        fs::rename(&new, file).expect("replaced");
    }
    group.restore();
    let maps = fs::read_to_string(format!("/proc/{}/maps", victim.pid())).expect("readable");
    assert!(!maps.contains(fixture::path(&library)), "it uses the new library: {maps}");
    group.checkpoint(&["--stop"]);
    group.restore();
    assert_eq!(victim.ask(), 0);
    fs::remove_dir_all(&place).expect("removed");
}

fn of_program(program: &'static str, settings: &'static str) -> Vec<Test> {
    let binary = fixture::victim_program(program);
    // Without the victims (the list of all tests on a machine that has not built them) there are no cases.
    let Ok(out) = std::process::Command::new(binary).arg("--list").output() else { return Vec::new() };
    let list = String::from_utf8_lossy(&out.stdout).into_owned();
    let cases = list.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        Some((words.next()?.to_owned(), words.next().map(str::to_owned)))
    });
    cases
        .map(|(case, refused)| {
            let name = format!("{program}-{}", case.replace('_', "-"));
            test(&name, move |name| match &refused {
                None => comes_back(name, program, &case, settings),
                Some(code) => is_refused(name, program, &case, settings, code),
            })
        })
        .collect()
}

fn comes_back(name: &str, program: &str, case: &str, settings: &str) {
    let group = Group::new(name);
    group.enable();
    let victim = group.victim(program, case, settings);
    skip_if_it_cannot(&victim);
    group.checkpoint(&["--stop"]);
    lose_what_outlives_processes();
    group.restore();
    assert_eq!(victim.ask(), 0);
}

/// System V objects and POSIX queues are there without the processes that made them; a reboot ends them.
fn lose_what_outlives_processes() {
    run(&["ipcrm", "--all"]);
    let place = "/run/queues";
    std::fs::create_dir_all(place).expect("a directory");
    must(&["mount", "-t", "mqueue", "mqueue", place]);
    for queue in std::fs::read_dir(place).expect("readable").flatten() {
        std::fs::remove_file(queue.path()).expect("removed");
    }
    must(&["umount", place]);
}

/// One unit for each of these cases, by program and case.
fn started(group: &Group, cases: &[(&str, &str)]) -> Vec<fixture::Victim> {
    let start =
        |(program, case): &(&str, &str)| group.victim_at(case, &fixture::victim_program(program), case, "");
    cases.iter().map(start).collect()
}

/// What belongs to no process is known as the group's again at each checkpoint.
fn ownerless_objects_are_the_groups_for_generations(name: &str) {
    let group = Group::new(name);
    group.enable();
    let cases =
        ["sysv_messages_empty_but_used", "sysv_messages", "sysv_segment_unattached_whole", "posix_queue"];
    let victims = started(&group, &cases.map(|case| ("case-ipc", case)));
    for _ in 0..3 {
        group.checkpoint(&["--stop"]);
        lose_what_outlives_processes();
        group.restore();
    }
    victims.iter().for_each(|victim| assert_eq!(victim.ask(), 0));
}

/// What a restore makes is like what was there to the next checkpoint too, again and again.
fn restored_ones_are_as_the_first(name: &str) {
    let group = Group::new(name);
    group.enable();
    let cases = [
        ("case-files", "fifo_before_its_first_writer"),
        ("case-files", "status_flags"),
        ("case-sockets", "tcp_inside_segments"),
        ("case-terminal", "pty_closed_on_exec"),
    ];
    let victims = started(&group, &cases);
    for _ in 0..3 {
        group.checkpoint(&["--stop"]);
        group.restore();
    }
    victims.iter().for_each(|victim| assert_eq!(victim.ask(), 0));
}

/// What waits at a checkpoint that it goes on from waits on, and is in the incremental that ends it as in a full.
fn a_checkpoint_before_the_last_is_not_noticed(name: &str) {
    let group = Group::new(name);
    group.enable();
    let cases = [
        ("case-processes", "leader_ended_main"),
        ("case-processes", "leader_ended_children"),
        ("case-time", "messages_of_which_one_has_come"),
        ("case-time", "recv_of_all_unix"),
        ("case-time", "limits_keep_their_rest"),
    ];
    let victims = started(&group, &cases);
    assert_eq!(group.checkpoint(&[])["kind"], "full");
    assert_eq!(group.checkpoint(&["--stop"])["kind"], "incremental");
    lose_what_outlives_processes();
    group.restore();
    victims.iter().for_each(|victim| assert_eq!(victim.ask(), 0));
}

/// A call with a time limit that many checkpoints interrupt ends in time.
fn checkpoints_do_not_make_limits_longer(name: &str) {
    let group = Group::new(name);
    group.enable();
    let victim = group.victim("case-time", "limits_under_checkpoints", "");
    let begun = std::time::Instant::now();
    let mut made = 0;
    while begun.elapsed().as_secs() < 4 {
        group.checkpoint(&[]);
        made += 1;
    }
    assert!(made > 3, "{made} checkpoints in 4 s");
    assert_eq!(victim.ask(), 0);
}

/// `check` names the code, and so does the refused checkpoint; nothing happens to the victim.
fn is_refused(name: &str, program: &str, case: &str, settings: &str, code: &str) {
    let group = Group::new(name);
    group.enable();
    let victim = group.victim(program, case, settings);
    skip_if_it_cannot(&victim);
    let told = group.check();
    let problems = told["problems"].as_array().cloned().unwrap_or_default();
    let named = problems.iter().any(|p| p["code"] == code && p["severity"] == "error");
    let word = code.strip_prefix('!');
    assert!(named || word.is_some(), "check does not tell {code}: {told}");
    let out = run(&["ckptctl", "checkpoint", name, "--stop"]);
    assert_eq!(out.status.code(), Some(4), "{out:?}");
    let said = text(&out.stderr);
    assert!(said.contains(word.unwrap_or("")), "the checkpoint does not tell {code}: {said}");
    victim.ask();
}

fn skip_if_it_cannot(victim: &fixture::Victim) {
    if let Some(why) = victim.said().and_then(|said| said.strip_prefix("skipped ").map(str::to_owned)) {
        skip(why.trim());
    }
}
