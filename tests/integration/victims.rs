//! Each victim's property holds after a checkpoint, and again after a restore to it.

use crate::fixture::{Group, path};
use crate::runner::{Test, test};
use ckpt_tests::system::must;

/// Programs of tests/victims that answer generations: name and arguments.
const VICTIMS: [(&str, &str); 22] = [
    ("memory", ""),
    ("registers", ""),
    ("signals", ""),
    ("pipes", ""),
    ("files", ""),
    ("sockets", ""),
    ("shared", ""),
    ("identity", ""),
    ("tcp", "7701"),
    ("threads", ""),
    ("processes", ""),
    ("replaced", ""),
    ("mappings", ""),
    ("clocks", ""),
    ("jobcontrol", ""),
    ("sharing", ""),
    ("attributes", ""),
    ("blocked", ""),
    ("timers", ""),
    ("robust", ""),
    ("ends", ""),
    ("leader", ""),
];

pub(crate) fn tests() -> Vec<Test> {
    let mut tests: Vec<Test> = VICTIMS
        .iter()
        .map(|&(program, arguments)| {
            test(&format!("victim-{program}"), move |name| goes_back(name, program, arguments, ""))
        })
        .collect();
    tests.push(test("victim-identity-dropped", |name| goes_back(name, "identity", "drop", "")));
    tests.push(test("victim-without-preload", without_the_library));
    tests.push(test("victim-stopped", stopped_at_the_instant));
    tests.push(test("victim-new-address", an_address_that_is_new_is_waited_for));
    tests.push(test("victim-forker", a_forking_script_goes_on));
    tests.push(test("victim-writers", writers_agree_with_their_files));
    tests
}

/// Checkpoint at generation 1, go on to 2, lose everything, restore: generation 1, all as it was, and it goes on.
pub(crate) fn goes_back(name: &str, program: &str, arguments: &str, settings: &str) {
    let group = Group::new(name);
    group.enable();
    let victim = group.victim(program, arguments, settings);
    victim.change();
    assert_eq!(victim.ask(), 1);
    let pid = victim.pid();
    let made = group.checkpoint(&[]);
    assert!(made["processes"].as_u64().is_some_and(|n| n >= 1), "{made}");
    assert_eq!(made["snapshots"][0]["subvolume"], path(&group.subvolume), "{made}");
    assert_eq!(victim.ask(), 1, "the group is as it was after the checkpoint");
    victim.change();
    assert_eq!(victim.ask(), 2);
    group.kill();
    group.wreck();
    let restored = group.restore();
    assert_eq!(restored["units"][0]["main_pid"], pid, "{restored}");
    assert_eq!(victim.pid(), pid);
    assert_eq!(victim.ask(), 1);
    victim.change();
    assert_eq!(victim.ask(), 2);
}

/// A unit that runs when its group is registered is not restarted, and can be checkpointed.
fn without_the_library(name: &str) {
    let group = Group::new(name);
    let victim = group.victim("memory", "", "");
    let pid = victim.pid();
    group.enable();
    assert_eq!(victim.pid(), pid, "enable does not restart a unit");
    victim.change();
    group.checkpoint(&[]);
    victim.change();
    group.kill();
    group.restore();
    assert_eq!((victim.pid(), victim.ask()), (pid, 1));
}

/// A restore comes when the machine has just got the address that a server listens at: duplicate address detection is under way.
fn an_address_that_is_new_is_waited_for(name: &str) {
    const LINK: &str = "ckpt-new";
    const ADDRESS: &str = "fd00:c::7";
    let ip = |arguments: &str| must(&["sh", "-c", &format!("ip {arguments}")]);
    ip(&format!("link add {LINK} type veth peer name {LINK}-end"));
    ip(&format!("link set {LINK} up && ip link set {LINK}-end up"));
    ip(&format!("-6 address add {ADDRESS}/64 dev {LINK} nodad"));
    let group = Group::new(name);
    group.enable();
    let victim = group.victim("tcp", &format!("7703 {ADDRESS}"), "");
    victim.change();
    group.checkpoint(&[]);
    victim.change();
    group.kill();
    ip(&format!("-6 address del {ADDRESS}/64 dev {LINK}"));
    ip(&format!("-6 address add {ADDRESS}/64 dev {LINK}"));
    let shown = ip(&format!("-6 address show dev {LINK} tentative"));
    assert!(shown.contains(ADDRESS), "{shown}");
    group.restore();
    assert_eq!(victim.ask(), 1);
    ip(&format!("link del {LINK}"));
}

/// After `--stop` nothing runs, and the restore goes on from that instant.
fn stopped_at_the_instant(name: &str) {
    let group = Group::new(name);
    group.enable();
    let counter = group.victim("counter", "2", "");
    let memory = group.victim("memory", "", "");
    memory.change();
    let pids = (counter.pid(), memory.pid());
    group.checkpoint(&["--stop"]);
    assert_eq!((counter.pid(), memory.pid()), (0, 0), "the units have stopped");
    group.restore();
    assert_eq!((counter.pid(), memory.pid()), pids);
    assert_eq!(counter.ask(), 0);
    assert_eq!(memory.ask(), 1);
}

/// A script that forks and execs all the time is caught at any point of it, five times.
fn a_forking_script_goes_on(name: &str) {
    let group = Group::new(name);
    group.enable();
    let script = group.victim("forker", "", "");
    for _ in 0..5 {
        let before = script.ask();
        group.checkpoint(&[]);
        assert!(script.ask() > before);
        group.kill();
        group.restore();
        assert!(script.ask() > before);
    }
}

/// Four processes count in memory and append to files: snapshot and memory agree to the last record, three times.
fn writers_agree_with_their_files(name: &str) {
    let group = Group::new(name);
    group.enable();
    let writers = group.victim("counter", "4", "");
    for _ in 0..3 {
        writers.ask();
        group.checkpoint(&[]);
        writers.ask();
        group.kill();
        group.wreck();
        group.restore();
        writers.ask();
    }
}
