//! Groups that write their memory faster than it can be copied: checkpoints of one instant, by frozen copies that nobody notices.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use ckpt_tests::system::{eventually, main_pid, must, run};

use crate::fixture::Group;
use crate::runner::{Test, test};

const VICTIM: &str = "rewriter";

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("writers-come-back", what_is_rewritten_comes_back).limit(240),
        test("writers-of-many", processes_that_share_come_back_together).limit(240),
        test("writers-ckptd-killed", nothing_stays_of_a_copy_whose_daemon_was_killed).limit(240),
        test("writers-no-more-tasks", a_service_that_may_not_fork_is_copied).limit(240),
        test("writers-stop", a_group_is_stopped_where_it_writes).limit(120),
        test("writers-stopped", a_unit_stops_while_its_copy_is_written).limit(240),
    ]
}

/// Processes of the victim's name, zombies too.
fn victims() -> BTreeSet<u32> {
    let named =
        |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == VICTIM);
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(named).collect()
}

/// Looks for processes of the victim's name that are not among those that were there.
struct Watch {
    seen: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    fn begin(known: BTreeSet<u32>) -> Self {
        let (seen, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, end) = (seen.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            while !end.load(Ordering::SeqCst) {
                count.fetch_max(victims().difference(&known).count(), Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Self { seen, stop, thread: Some(thread) }
    }

    /// The most that were there at once.
    fn end(mut self) -> usize {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().map(JoinHandle::join);
        self.seen.load(Ordering::SeqCst)
    }
}

/// Checks that every process of the victim's is one of `known`, as soon as what was killed is gone.
fn nothing_else(known: &BTreeSet<u32>) {
    eventually("copies are gone", 20, || (victims() == *known).then_some(()));
}

/// Checkpoints of a group that rewrites its memory all the time, a full and incrementals; each restores to one instant.
fn come_back(name: &str, arguments: &str) -> usize {
    let group = Group::new(name);
    group.enable();
    let victim = group.victim(VICTIM, arguments, "");
    let mut copies = 0;
    for round in 0..2 {
        let known = victims();
        let watch = Watch::begin(known.clone());
        let ids: Vec<_> = (0..3)
            .map(|link| {
                let made = group.checkpoint(&[]);
                victim.ask();
                assert_eq!(made["kind"], if link == 0 { "full" } else { "incremental" });
                made["id"].as_str().expect("an id").to_owned()
            })
            .collect();
        copies = watch.end().max(copies);
        nothing_else(&known);
        for id in [&ids[2], &ids[round % 3]] {
            group.restore_id(id);
            std::thread::sleep(Duration::from_millis(300)); // it goes over its memory
            victim.ask();
        }
    }
    copies
}

fn what_is_rewritten_comes_back(name: &str) {
    assert!(come_back(name, "48") > 0, "a frozen copy was there");
}

fn processes_that_share_come_back_together(name: &str) {
    assert!(come_back(name, "24 2") > 0, "frozen copies were there");
}

/// `kill -9` of the daemon while a frozen copy is there.
fn nothing_stays_of_a_copy_whose_daemon_was_killed(name: &str) {
    let group = Group::new(name);
    group.enable();
    let victim = group.victim(VICTIM, "48", "Environment=CKPT_VICTIM_MORTAL=1\n");
    let known = victims();
    for round in 0..6 {
        let mut checkpoint = begin_checkpoint(name);
        let copy = eventually("a frozen copy is there", 30, || victims().difference(&known).next().copied());
        std::thread::sleep(Duration::from_millis(round * 7));
        must(&["kill", "-KILL", &main_pid("ckptd.service").to_string()]);
        let _ = checkpoint.wait();
        nothing_else(&known);
        victim.ask();
        println!("copy {copy} is gone");
        eventually("the daemon answers again", 30, || {
            run(&["ckptctl", "list"]).status.success().then_some(())
        });
    }
    group.checkpoint(&[]);
    victim.ask();
    nothing_else(&known);
    group.restore();
    victim.ask();
}

/// With all the tasks that its limits allow: its memory is copied in the window.
fn a_service_that_may_not_fork_is_copied(name: &str) {
    let group = Group::new(name);
    group.enable();
    let victim = group.victim(VICTIM, "48", "User=games\nLimitNPROC=4\n");
    let known = victims();
    let watch = Watch::begin(known.clone());
    group.checkpoint(&[]);
    group.checkpoint(&[]);
    victim.ask();
    nothing_else(&known);
    // The helper that shares its memory is not even made.
    assert_eq!(watch.end(), 0);
    group.restore();
    victim.ask();
}

/// `checkpoint --stop`: what it wrote last is in the image.
fn a_group_is_stopped_where_it_writes(name: &str) {
    let group = Group::new(name);
    group.enable();
    let victim = group.victim(VICTIM, "24 1", "");
    for _ in 0..2 {
        group.checkpoint(&["--stop"]);
        nothing_else(&BTreeSet::new());
        group.restore();
        std::thread::sleep(Duration::from_millis(300)); // it goes over its memory
        victim.ask();
    }
}

/// Stopping the unit does not wait for the checkpoint, nor the checkpoint's copy for the unit.
fn a_unit_stops_while_its_copy_is_written(name: &str) {
    let group = Group::new(name);
    group.enable();
    let victim = group.victim(VICTIM, "48", "TimeoutStopSec=60\n");
    let known = victims();
    let mut checkpoint = begin_checkpoint(name);
    eventually("a frozen copy is there", 30, || victims().difference(&known).next().copied());
    must(&["systemctl", "kill", "--signal=KILL", &victim.unit]);
    must(&["systemctl", "stop", &victim.unit]);
    let _ = checkpoint.wait();
    nothing_else(&BTreeSet::new());
    must(&["systemctl", "reset-failed"]);
    must(&["systemctl", "start", &victim.unit]);
    group.checkpoint(&[]);
    victim.ask();
}

fn begin_checkpoint(name: &str) -> Child {
    let mut command = Command::new("ckptctl");
    command.args(["checkpoint", name]).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("ckptctl")
}
