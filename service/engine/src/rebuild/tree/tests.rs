use ckpt_image::records::*;
use proptest::prelude::*;

use super::model::{Kernel, RESTORE};
use super::*;

/// Records of what the model holds, all of one unit.
fn image_of(kernel: &Kernel) -> GroupImage {
    let mut image = GroupImage { units: vec![unit()], ..Default::default() };
    for (pid, p) in &kernel.processes {
        if *pid == 1 || *pid == RESTORE {
            continue;
        }
        let n = image.processes.len() as u32;
        let state = match p.zombie {
            true => ProcessState::Zombie { comm: vec![], status: 0, owner: (0, 0) },
            false => ProcessState::Running,
        };
        image.processes.push(ProcessRecord {
            pgid: Pid(p.pgid),
            sid: Pid(p.sid),
            body: (!p.zombie).then(|| body(n, p.subreaper)),
            ..process(Pid(*pid), Pid(p.ppid), state)
        });
    }
    image
}

/// A process without a body, which leads its session.
pub(in crate::rebuild) fn process(pid: Pid, ppid: Pid, state: ProcessState) -> ProcessRecord {
    ProcessRecord {
        unit: UnitIndex(0),
        cgroup: String::new(),
        namespaces: NamespaceRecord::default(),
        pid,
        ppid,
        pgid: pid,
        sid: pid,
        exit_signal: 17,
        state,
        body: None,
    }
}

fn unit() -> UnitRecord {
    UnitRecord {
        name: "a.service".into(),
        cgroup: "/a.service".into(),
        main_pid: None,
        namespaces: NamespaceRecord::default(),
        clocks: Default::default(),
        ephemeral: vec![],
        private_users: false,
        mounts: Vec::new(),
    }
}

pub(in crate::rebuild) fn body(n: u32, child_subreaper: bool) -> ProcessBody {
    ProcessBody {
        space: SpaceId(n),
        fd_table: FdTableId(n),
        fs: FsId(n),
        sighand: SighandId(n),
        threads: vec![],
        ended_leader: None,
        pending: vec![],
        itimers: Default::default(),
        posix_timers: vec![],
        limits: vec![],
        personality: 0,
        dumpable: 1,
        child_subreaper,
        oom_score_adj: 0,
        coredump_filter: 0,
        tty: 0,
        settings: Default::default(),
    }
}

fn spare() -> impl Iterator<Item = Pid> {
    (30_000..30_100).map(Pid)
}

/// Runs the plan of a kernel's processes on an empty one and compares; subreaper flags are set after the plan.
fn round_trip(kernel: &Kernel) -> Result<(), TreeError> {
    let plan = Plan::of(&image_of(kernel), spare())?;
    let mut again = Kernel::new();
    again.run(&plan.steps).unwrap_or_else(|e| panic!("{e}\n{kernel:#?}\n{plan:#?}"));
    for (pid, process) in &mut again.processes {
        process.subreaper = kernel.processes.get(pid).is_some_and(|p| p.subreaper);
    }
    let mut wanted = kernel.clone();
    wanted.processes.remove(&RESTORE);
    assert_eq!(again, wanted, "{plan:#?}");
    Ok(())
}

/// A service's main process, as systemd starts it.
fn service(kernel: &mut Kernel, pid: i32) {
    kernel.fork(1, pid, false).unwrap();
    kernel.setsid(pid).unwrap();
}

#[test]
fn a_main_process_with_workers() {
    let mut kernel = Kernel::new();
    service(&mut kernel, 100);
    for pid in 101..110 {
        kernel.fork(100, pid, false).unwrap();
    }
    round_trip(&kernel).unwrap();
}

#[test]
fn postgres_backends_lead_their_own_sessions() {
    let mut kernel = Kernel::new();
    service(&mut kernel, 100);
    for pid in 101..105 {
        kernel.fork(100, pid, false).unwrap();
        kernel.setsid(pid).unwrap();
    }
    round_trip(&kernel).unwrap();
}

#[test]
fn a_pipeline_whose_group_leader_is_gone() {
    let mut kernel = Kernel::new();
    service(&mut kernel, 100);
    kernel.fork(100, 101, false).unwrap();
    kernel.fork(100, 102, false).unwrap();
    kernel.setpgid(101, 101).unwrap();
    kernel.setpgid(102, 101).unwrap();
    kernel.exit(101).unwrap();
    kernel.reap(101);
    round_trip(&kernel).unwrap();
}

#[test]
fn a_daemon_of_a_session_whose_leader_is_gone() {
    let mut kernel = Kernel::new();
    service(&mut kernel, 100);
    kernel.fork(100, 101, false).unwrap();
    kernel.setsid(101).unwrap();
    kernel.fork(101, 102, false).unwrap();
    kernel.exit(101).unwrap();
    kernel.reap(101);
    kernel.exit(100).unwrap();
    kernel.reap(100);
    assert_eq!(kernel.processes[&102].ppid, 1);
    round_trip(&kernel).unwrap();
}

#[test]
fn children_made_before_setsid_and_orphans_of_a_grandchild() {
    let mut kernel = Kernel::new();
    service(&mut kernel, 100);
    kernel.fork(100, 101, false).unwrap();
    kernel.fork(101, 102, false).unwrap();
    kernel.setsid(101).unwrap();
    kernel.fork(101, 103, false).unwrap();
    kernel.fork(103, 104, false).unwrap();
    kernel.fork(104, 105, false).unwrap();
    kernel.exit(104).unwrap();
    kernel.reap(104);
    round_trip(&kernel).unwrap();
}

#[test]
fn an_orphan_that_fell_to_a_subreaper() {
    let mut kernel = Kernel::new();
    service(&mut kernel, 100);
    kernel.processes.get_mut(&100).unwrap().subreaper = true;
    kernel.fork(100, 101, false).unwrap();
    kernel.setsid(101).unwrap();
    kernel.fork(101, 102, false).unwrap();
    kernel.fork(102, 103, false).unwrap();
    kernel.exit(102).unwrap();
    kernel.reap(102);
    assert_eq!(kernel.processes[&103].ppid, 100);
    round_trip(&kernel).unwrap();
}

/// A daemon that forks twice below a subreaper.
#[test]
fn an_orphan_of_a_lost_session_that_fell_to_a_subreaper() {
    let mut kernel = Kernel::new();
    service(&mut kernel, 100);
    kernel.fork(100, 101, false).unwrap();
    kernel.processes.get_mut(&101).unwrap().subreaper = true;
    for leader in [110, 120] {
        kernel.fork(101, leader, false).unwrap();
        kernel.setsid(leader).unwrap();
        kernel.fork(leader, leader + 1, false).unwrap();
        kernel.fork(leader, leader + 2, false).unwrap();
        kernel.fork(leader + 2, leader + 3, false).unwrap();
        kernel.exit(leader).unwrap();
        kernel.reap(leader);
    }
    assert_eq!(kernel.processes[&121].ppid, 101);
    round_trip(&kernel).unwrap();
}

/// The leader made it as its sibling (CLONE_PARENT).
#[test]
fn a_sibling_of_a_lost_leader() {
    let mut kernel = Kernel::new();
    service(&mut kernel, 100);
    kernel.fork(100, 101, false).unwrap();
    kernel.setsid(101).unwrap();
    kernel.fork(101, 102, true).unwrap();
    kernel.exit(101).unwrap();
    kernel.reap(101);
    round_trip(&kernel).unwrap();
}

#[test]
fn zombies_stay_zombies_and_may_lead_groups() {
    let mut kernel = Kernel::new();
    service(&mut kernel, 100);
    kernel.fork(100, 101, false).unwrap();
    kernel.setpgid(101, 101).unwrap();
    kernel.fork(100, 102, false).unwrap();
    kernel.setpgid(102, 101).unwrap();
    kernel.exit(101).unwrap();
    round_trip(&kernel).unwrap();
}

#[test]
fn a_session_outside_the_group_is_refused() {
    let mut kernel = Kernel::new();
    service(&mut kernel, 100);
    let mut image = image_of(&kernel);
    image.processes[0].sid = Pid(0);
    assert!(matches!(Plan::of(&image, spare()), Err(TreeError::Outside { what: "session", .. })));
}

#[test]
fn memory_shared_with_a_stranger_is_refused() {
    let mut kernel = Kernel::new();
    service(&mut kernel, 100);
    service(&mut kernel, 200);
    let mut image = image_of(&kernel);
    image.processes[1].body.as_mut().unwrap().space = SpaceId(0);
    assert!(matches!(Plan::of(&image, spare()), Err(TreeError::Sharing { what: "memory", .. })));
}

/// One event in the life of a group; the numbers choose among the processes that live.
#[derive(Debug, Clone)]
enum Deed {
    Service,
    Fork(usize),
    Session(usize),
    Lead(usize),
    Join(usize, usize),
    Exit(usize, bool),
    Subreaper(usize),
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let n = 0..64usize;
    let deed = prop_oneof![
        1 => Just(Deed::Service),
        8 => n.clone().prop_map(Deed::Fork),
        2 => n.clone().prop_map(Deed::Session),
        2 => n.clone().prop_map(Deed::Lead),
        2 => (n.clone(), n.clone()).prop_map(|(a, b)| Deed::Join(a, b)),
        3 => (n.clone(), any::<bool>()).prop_map(|(a, b)| Deed::Exit(a, b)),
        1 => n.prop_map(Deed::Subreaper),
    ];
    proptest::collection::vec(deed, 1..60)
}

fn live(deeds: &[Deed]) -> Kernel {
    let mut kernel = Kernel::new();
    let mut next = 100;
    for deed in deeds {
        let living: Vec<i32> =
            kernel.processes.iter().filter(|(p, s)| **p > RESTORE && !s.zombie).map(|(p, _)| *p).collect();
        let pick = |i: usize| living.get(i % living.len().max(1)).copied();
        match *deed {
            Deed::Service => {
                service(&mut kernel, next);
                next += 1;
            }
            Deed::Fork(i) => {
                if let Some(by) = pick(i) {
                    kernel.fork(by, next, false).unwrap();
                    next += 1;
                }
            }
            Deed::Session(i) => drop(pick(i).map(|p| kernel.setsid(p))),
            Deed::Lead(i) => drop(pick(i).map(|p| kernel.setpgid(p, p))),
            Deed::Join(i, j) => {
                if let (Some(p), Some(q)) = (pick(i), pick(j)) {
                    let pgid = kernel.processes[&q].pgid;
                    let _ = kernel.setpgid(p, pgid);
                }
            }
            Deed::Exit(i, reap) => {
                if let Some(p) = pick(i) {
                    kernel.exit(p).unwrap();
                    let ppid = kernel.processes[&p].ppid;
                    if reap || ppid == 1 {
                        kernel.reap(p);
                    }
                }
            }
            Deed::Subreaper(i) => {
                if let Some(p) = pick(i) {
                    kernel.processes.get_mut(&p).unwrap().subreaper = true;
                }
            }
        }
        // Init reaps what falls to it.
        kernel.processes.retain(|_, p| !(p.zombie && p.ppid == 1));
    }
    kernel
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Whatever a group did, its tree is grown again exactly, or refused; never grown otherwise.
    #[test]
    fn any_history_is_grown_again_or_refused(deeds in deeds()) {
        let kernel = live(&deeds);
        let _ = round_trip(&kernel);
    }

    /// Without subreapers and with each session led by a living process, nothing is refused.
    #[test]
    fn ordinary_histories_are_never_refused(deeds in deeds()) {
        let plain: Vec<Deed> = deeds.into_iter().filter(|d| !matches!(d, Deed::Subreaper(_))).collect();
        let kernel = live(&plain);
        prop_assert_eq!(round_trip(&kernel), Ok(()));
    }
}
