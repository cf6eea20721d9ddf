//! What stands against a checkpoint, told without stopping anything.

use std::time::Duration;

use ckpt_sys::cgroup::Cgroup;
use ckpt_sys::gate::Gate;

use crate::api::{Group, Problem, Severity, Unit};
use crate::capture::files::UnitPlaces;
use crate::capture::memory::{self, survey};
use crate::capture::{Files, Identities, Objects, ephemeral, foresee};
use crate::error::Error;
use crate::kinds::{Depth, DescriptorCapture};
use crate::members::{self, Member};
use crate::storage::{self, Place, Subvolume};

/// A watchdog that is nearer to the window than this many times its length may fire because of it.
const WATCHDOG_MARGIN: u32 = 4;

/// How often a group is looked at whose first look finds errors, and the time between the looks.
const LOOKS: usize = 4;
const BETWEEN: Duration = Duration::from_millis(5);

/// The group's subvolumes, and all problems of the group as it is now. Since the group runs on, a process may be looked at while it
/// begins or ends, and a server while it accepts and closes; so an error counts only if every one of a few looks finds it.
pub fn group(place: &Place, group: &Group, units: &[Unit]) -> Result<(Vec<Subvolume>, Vec<Problem>), Error> {
    let (mut subvolumes, mut problems) = look(place, group, units)?;
    for _ in 1..LOOKS {
        if problems.iter().all(|p| p.severity == Severity::Warning) {
            break;
        }
        std::thread::sleep(BETWEEN);
        let before = std::mem::take(&mut problems);
        (subvolumes, problems) = look(place, group, units)?;
        let same = |a: &Problem, b: &Problem| (&a.code, a.pid, &a.object) == (&b.code, b.pid, &b.object);
        problems.retain(|p| p.severity == Severity::Warning || before.iter().any(|b| same(b, p)));
    }
    Ok((subvolumes, problems))
}

/// One look.
fn look(place: &Place, group: &Group, units: &[Unit]) -> Result<(Vec<Subvolume>, Vec<Problem>), Error> {
    let (subvolumes, mut problems) = storage::check(place, &group.config.subvolumes)?;
    problems.extend(units.iter().filter_map(|unit| watchdog(unit, group.config.capture.max_freeze)));
    problems.extend(units.iter().filter_map(bus_name));
    problems.extend(units.iter().filter_map(stored));
    let running: Vec<_> = units.iter().filter(|u| !u.cgroup.is_empty()).cloned().collect();
    let members = members::list(&running)?;
    if members.is_empty() {
        problems.push(nothing_runs(group));
        return Ok((subvolumes, problems));
    }
    problems.extend(not_running(units));
    problems.extend(members.iter().filter_map(|m| without_gate(m, &running)));
    problems.extend(traced(&members, &running));
    problems.extend(running.iter().flat_map(threaded));
    problems.extend(people(&members, &running));
    problems.extend(memory(group, &members, &running)?);
    problems.extend(descriptors(&members, &running, &subvolumes));
    problems.sort_by_key(|p| p.severity == Severity::Warning);
    Ok((subvolumes, problems))
}

/// The registry of files for these units.
pub fn files(units: &[Unit], subvolumes: &[Subvolume]) -> Files {
    let places = units.iter().map(|unit| UnitPlaces { ephemeral: ephemeral::directories(unit) }).collect();
    Files::new(subvolumes.iter().map(Subvolume::device).collect(), places)
}

fn nothing_runs(group: &Group) -> Problem {
    Problem {
        code: "not-running".into(),
        severity: Severity::Error,
        unit: String::new(),
        pid: 0,
        object: group.config.slice.clone().unwrap_or_else(|| group.config.units.join(" ")),
        text: "no process of the group runs".into(),
        remedy: "start its services first".into(),
    }
}

/// A unit whose last process ended while the checkpoint began.
pub fn has_ended(unit: &str) -> Problem {
    Problem {
        code: "not-running".into(),
        severity: Severity::Error,
        unit: unit.into(),
        pid: 0,
        object: unit.into(),
        text: "its last process ended while the checkpoint began".into(),
        remedy: "try again when systemd knows".into(),
    }
}

fn not_running(units: &[Unit]) -> Vec<Problem> {
    let problem = |unit: &Unit| Problem {
        code: "not-running".into(),
        severity: Severity::Warning,
        unit: unit.name.clone(),
        pid: 0,
        object: unit.name.clone(),
        text: format!("the unit is {}, so it will not be in the checkpoint", unit.active_state),
        remedy: "start it, if it belongs to the checkpoint".into(),
    };
    units.iter().filter(|u| u.cgroup.is_empty()).map(problem).collect()
}

fn watchdog(unit: &Unit, max_freeze: Duration) -> Option<Problem> {
    let watchdog = Duration::from_micros(unit.watchdog_usec);
    if watchdog.is_zero() || watchdog > max_freeze * WATCHDOG_MARGIN {
        return None;
    }
    Some(Problem {
        code: "short-watchdog".into(),
        severity: Severity::Warning,
        unit: unit.name.clone(),
        pid: 0,
        object: format!("WatchdogSec={}ms", watchdog.as_millis()),
        text: format!("it may fire in a freeze window of up to {}ms", max_freeze.as_millis()),
        remedy: "make WatchdogSec= longer, or capture.max_freeze shorter".into(),
    })
}

/// The bus closes the connection with the processes' end, and systemd stops a unit of Type=dbus that has lost its name.
fn bus_name(unit: &Unit) -> Option<Problem> {
    (!unit.bus_name.is_empty()).then(|| Problem {
        code: "bus-name".into(),
        severity: Severity::Error,
        unit: unit.name.clone(),
        pid: 0,
        object: format!("BusName={}", unit.bus_name),
        text: "it would lose its name on the bus at a restore, and systemd would stop it".into(),
        remedy: "give it Type=notify or Type=exec if it connects to the bus again by itself; else leave it out of the group".into(),
    })
}

/// systemd closes what it keeps for a unit when it stops it, and tells nobody what it is.
fn stored(unit: &Unit) -> Option<Problem> {
    (unit.stored_descriptors > 0).then(|| Problem {
        code: "descriptor-store".into(),
        severity: Severity::Warning,
        unit: unit.name.clone(),
        pid: 0,
        object: format!("{} descriptors", unit.stored_descriptors),
        text: "systemd keeps them for it (sd_pid_notify_with_fds(3)), and does no more after a restore"
            .into(),
        remedy: "nothing, if the program stores them again before it is started anew".into(),
    })
}

fn without_gate(member: &Member, units: &[Unit]) -> Option<Problem> {
    if !matches!(Gate::find(member.task), Ok(None)) || is_young(member.task) {
        return None;
    }
    let unit = &units[member.unit.index()];
    let restart = "restart the unit, so that it starts with the preload library";
    let (text, remedy) = match unit.preloaded {
        true => (
            "it runs without the preload library; it is static, setuid, or dropped it",
            "nothing: it is captured all the same, its file operations are not held back",
        ),
        false => ("the unit runs without the preload library until its next start", restart),
    };
    Some(Problem {
        code: "no-preload".into(),
        severity: Severity::Warning,
        unit: unit.name.clone(),
        pid: member.pid,
        object: program(member.task),
        text: text.into(),
        remedy: remedy.into(),
    })
}

/// Whether a process executed its program so lately that the library may not have come up in it yet.
fn is_young(pid: i32) -> bool {
    const COMING_UP: Duration = Duration::from_secs(1);
    let changed =
        std::fs::metadata(format!("/proc/{pid}/exe")).and_then(|_| std::fs::metadata(format!("/proc/{pid}")));
    changed.and_then(|m| m.modified()).is_ok_and(|at| at.elapsed().is_ok_and(|age| age < COMING_UP))
}

/// The program a process runs, for people.
fn program(pid: i32) -> String {
    std::fs::read_link(format!("/proc/{pid}/exe"))
        .map_or_else(|_| format!("pid {pid}"), |p| p.display().to_string())
}

fn traced(members: &[Member], units: &[Unit]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for member in members {
        let Ok(status) = ckpt_sys::task::status(nix::unistd::Pid::from_raw(member.task)) else { continue };
        if status.tracer != 0 {
            problems.push(Problem {
                code: "traced".into(),
                severity: Severity::Error,
                unit: units[member.unit.index()].name.clone(),
                pid: member.pid,
                object: program(member.pid),
                text: format!("process {} traces it, so that nobody else can", status.tracer),
                remedy: "end the debugger or tracer, then try again".into(),
            });
        }
    }
    problems
}

/// Cgroups of a unit with single threads in them (cgroups(7), "Thread mode"): a member has one cgroup for all its threads.
fn threaded(unit: &Unit) -> Option<Problem> {
    fn find(cgroup: &Cgroup) -> Option<String> {
        let kind = std::fs::read_to_string(cgroup.dir().join("cgroup.type")).unwrap_or_default();
        if kind.trim() == "threaded" {
            return Some(cgroup.name().to_owned());
        }
        cgroup.children().unwrap_or_default().iter().find_map(find)
    }
    let object = find(&Cgroup::open(&unit.cgroup).ok()?)?;
    Some(Problem {
        code: "cgroup-threaded".into(),
        severity: Severity::Error,
        unit: unit.name.clone(),
        pid: 0,
        object,
        text: "the service has made a cgroup for single threads, which cannot be rebuilt".into(),
        remedy: "let it use cgroups for whole processes".into(),
    })
}

fn people(members: &[Member], units: &[Unit]) -> Vec<Problem> {
    let candidates: Vec<_> = members
        .iter()
        .map(|m| {
            let unit = &units[m.unit.index()];
            let main = unit.main_pid == m.pid;
            foresee::Candidate {
                pid: m.pid,
                task: m.task,
                unit: m.unit,
                unit_name: &unit.name,
                private_users: unit.private_users,
                main,
            }
        })
        .collect();
    foresee::problems(&candidates)
}

fn memory(group: &Group, members: &[Member], units: &[Unit]) -> Result<Vec<Problem>, Error> {
    let members: Vec<_> = members.iter().map(|m| memory_member(m, units)).collect();
    Ok(survey(&members).map_err(|e| e.for_group(&group.name))?.problems)
}

/// A member in the words of the memory's capture.
pub fn memory_member<'u>(member: &Member, units: &'u [Unit]) -> memory::Member<'u> {
    memory::Member {
        pid: member.pid,
        tid: member.task,
        unit: member.unit,
        unit_name: &units[member.unit.index()].name,
    }
}

fn descriptors(members: &[Member], units: &[Unit], subvolumes: &[Subvolume]) -> Vec<Problem> {
    let names: Vec<_> = units.iter().map(|u| u.name.clone()).collect();
    let (mut files, mut objects) = (files(units, subvolumes), Objects::new());
    let ids = Identities::look(members.iter().map(|m| m.task));
    let mut capture =
        DescriptorCapture::new(Depth::Surface, &names, [], &mut files, &mut objects).known_as(ids);
    for member in members {
        // A process that ends meanwhile has no descriptors to speak of.
        let _ = capture.add_process(member.task, member.unit);
    }
    capture.finish().problems
}
