//! The members of a stopped group: processes and threads become records.
//!
//! ```text
//! seized processes ─► hold (registers, masks) ─► ask (one batch a thread) ─► records
//!                                                   what cannot be told or kept ─► problems
//! ```

use std::collections::{HashMap, HashSet};

use ckpt_image::records::{
    FsRecord, NamespaceRecord, Pid, ProcessRecord, ProcessState, SighandRecord, UnitIndex, UnitRecord,
};
use ckpt_sys::inject::Live;
use ckpt_sys::seize::Process;
use ckpt_sys::task::Shared;
use ckpt_sys::thread::Deadline;
use ckpt_sys::time_limit::Sleepers;
use ckpt_sys::{AddrRange, Error as SysError, cgroup};
use nix::unistd::Pid as TaskId;

use super::family::{away, parents_first, pid_namespaces, unit_of, user_namespace};
use super::files::Files as FileRegistry;
use super::filters::Filters;
use super::identities::{Identities, collisions};
use super::member::{Answers, Member, refusal};
use super::sharing::{self, Partition};
use super::shown;
use super::text;
use crate::api::Problem;
use crate::parallel;
use crate::timeline::Timeline;
use crate::track::{Chain, NewWatch};

/// What is told of an address space besides its mappings.
#[derive(Debug, Clone, PartialEq)]
pub struct SpaceFacts {
    /// A process that has it, in our PID namespace.
    pub pid: TaskId,
    /// Its unit.
    pub unit: UnitIndex,
    /// Addresses.
    pub layout: ckpt_image::records::LayoutRecord,
    /// Auxiliary vector.
    pub auxv: Vec<u8>,
    /// When the process began, clock ticks since boot.
    pub start_time: u64,
    /// PR_SET_THP_DISABLE.
    pub thp_disabled: bool,
    /// Pages of ours in it that are no part of the application and must not be captured.
    pub runner: Vec<AddrRange>,
}

/// A descriptor table of the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableFacts {
    /// A process that has it, in our PID namespace.
    pub pid: TaskId,
    /// Its unit.
    pub unit: UnitIndex,
}

/// The records of the members, with the numbers that they use.
#[derive(Debug, Default)]
pub struct Captured {
    /// Parents before their children, zombies too.
    pub processes: Vec<ProcessRecord>,
    /// By [`SpaceId`].
    pub spaces: Vec<SpaceFacts>,
    /// By [`FdTableId`].
    pub fd_tables: Vec<TableFacts>,
    /// By [`FsId`].
    pub fs: Vec<FsRecord>,
    /// By [`SighandId`].
    pub sighands: Vec<SighandRecord>,
    /// By FilterId.
    pub seccomp_filters: Vec<Vec<u8>>,
    /// What the members know each other by.
    pub identities: Identities,
    /// The living members, by our ids.
    pub living: Vec<(UnitIndex, i32)>,
    /// What cannot be kept.
    pub problems: Vec<Problem>,
}

/// The members of the group, all stopped. They go on when this is released or dropped.
#[derive(Debug)]
pub struct Members {
    /// In the order in which they were seized.
    pub members: Vec<Member>,
    /// What stands against a checkpoint already.
    pub problems: Vec<Problem>,
}

impl Members {
    /// Takes seized processes over. A process outside every unit is a problem; it is held all the same.
    pub fn hold(processes: Vec<Process>, units: &[UnitRecord], deadline: Deadline) -> Result<Self, SysError> {
        let (mut members, mut problems) = (Vec::with_capacity(processes.len()), Vec::new());
        let shown = shown::look(&processes)?;
        for (process, shown) in processes.into_iter().zip(shown) {
            let pid = process.pid.as_raw();
            let place = unit_of(units, &process.cgroup);
            if place.is_none() {
                let text = "it is in a cgroup of the group that belongs to no unit";
                let remedy = "move it into a service, or end it";
                problems.push(refusal("no-unit", "", pid, process.cgroup.clone(), text, remedy));
            }
            let (unit, below) = place.unwrap_or((UnitIndex(0), ""));
            let cgroup = below.to_owned();
            members.push(Member::hold(process, shown, unit, cgroup, deadline)?);
        }
        Ok(Self { members, problems })
    }

    /// Lets calls that the stop interrupted go on with what is left of their time.
    pub fn keep_time_limits(&mut self, sleepers: &Sleepers) -> Result<(), SysError> {
        self.members.iter_mut().try_for_each(|member| member.live.keep_time_limits(sleepers))
    }

    /// Lets all members go on as they were; tells the first failure after having tried all.
    pub fn release(self) -> Result<(), SysError> {
        Live::release_all(self.members.into_iter().map(|member| member.live))
    }

    /// Holds all members until something kills them, or lets them go on when `give_up` says so.
    pub fn hold_until_end(self, mut give_up: impl FnMut() -> bool) {
        self.members.into_iter().for_each(|member| member.live.hold_until_end(&mut give_up));
    }

    /// The first of so many units that has no member.
    pub fn first_empty(&self, units: usize) -> Option<UnitIndex> {
        (0..units as u32).map(UnitIndex).find(|unit| self.members.iter().all(|m| m.unit != *unit))
    }

    /// A member, to run batches in it.
    pub fn live(&mut self, pid: TaskId) -> Option<&mut Live> {
        self.members.iter_mut().map(|member| &mut member.live).find(|live| live.pid() == pid)
    }

    /// Begins to watch the spaces of some members; the watches by process.
    pub fn watch(
        &mut self,
        pids: HashSet<i32>,
        chain: &Chain,
        deadline: Deadline,
    ) -> Result<HashMap<i32, NewWatch>, SysError> {
        let lives = self.members.iter_mut().map(|member| &mut member.live);
        let mut lives: Vec<&mut Live> = lives.filter(|live| pids.contains(&live.pid().as_raw())).collect();
        let watches = chain.tracker.watch(&mut lives, deadline)?;
        Ok(lives.iter().map(|live| live.pid().as_raw()).zip(watches).collect())
    }

    /// Threads of all members.
    pub fn threads(&self) -> usize {
        self.members.iter().map(|member| member.live.threads().len()).sum()
    }

    /// Makes the records. What the checkpoint cannot keep is in the result's problems, and then the records are incomplete.
    pub fn capture(
        &mut self,
        units: &[UnitRecord],
        files: &mut FileRegistry,
        deadline: Deadline,
        time: &mut Timeline,
    ) -> Result<Captured, SysError> {
        let mut captured = Captured { problems: std::mem::take(&mut self.problems), ..Captured::default() };
        self.check_namespaces(units, &mut captured.problems);
        let shares = Shares::of(&self.members)?;
        self.check_users(&shares, units, &mut captured.problems);
        let mut ids = self.identities();
        captured.living = self.members.iter().map(|m| (m.unit, m.live.pid().as_raw())).collect();
        let mut filters = Filters::default();
        time.lap("relations");
        let mut told = self.ask(units, &shares, deadline, &mut captured.problems)?;
        time.lap("questions");
        for (place, told) in told.iter_mut().enumerate() {
            let Some(told) = told.take() else { continue };
            let member = &self.members[place];
            let unit = member.unit_name(units);
            let threads = member.threads(&told, unit, &mut filters, &mut captured.problems)?;
            shares.fill(place, member, &told, files, &mut captured)?;
            let body = member.body(place, &shares, told, threads)?;
            captured.processes.push(member.record(&ids, Some(body)));
        }
        self.zombies(&mut ids, &mut captured);
        captured.processes = parents_first(captured.processes);
        captured.seccomp_filters = filters.into_programs();
        captured.identities = ids;
        time.lap("members");
        Ok(captured)
    }

    /// Asks all members what only they can tell, side by side: each step is begun in all before it is waited for in any.
    fn ask(
        &mut self,
        units: &[UnitRecord],
        shares: &Shares,
        deadline: Deadline,
        problems: &mut Vec<Problem>,
    ) -> Result<Vec<Option<Answers>>, SysError> {
        // Processes that share their space share the place of the runner: one after another.
        let is_first = |place: usize| shares.spaces.first[shares.spaces.of[place] as usize] == place;
        let mut ready = vec![false; self.members.len()];
        for first in [true, false] {
            for (place, member) in self.members.iter_mut().enumerate().filter(|(p, _)| is_first(*p) == first)
            {
                let unit = member.unit_name(units);
                ready[place] = member.begin_prepare(unit, problems)?;
                if !first && ready[place] {
                    ready[place] = member.end_prepare(unit, deadline, problems)?;
                }
            }
            for (place, member) in self.members.iter_mut().enumerate().filter(|(p, _)| first && is_first(*p))
            {
                let unit = member.unit_name(units);
                ready[place] = ready[place] && member.end_prepare(unit, deadline, problems)?;
            }
        }
        let mut inquiries: Vec<_> = self
            .members
            .iter()
            .zip(ready)
            .map(
                |(member, ready)| {
                    if ready { member.inquiry(member.unit_name(units), problems) } else { None }
                },
            )
            .collect();
        loop {
            let mut begun = Vec::new();
            for (place, inquiry) in inquiries.iter_mut().enumerate() {
                let Some(inquiry) = inquiry else { continue };
                if inquiry.conversation.begin_round(&mut self.members[place].live)? {
                    begun.push(place);
                }
            }
            if begun.is_empty() {
                break;
            }
            for place in begun {
                let Some(inquiry) = &mut inquiries[place] else { continue };
                inquiry.conversation.end_round(&mut self.members[place].live, deadline)?;
            }
        }
        let answers = self.members.iter().zip(inquiries).map(|(member, inquiry)| {
            inquiry.and_then(|inquiry| member.answers(inquiry, member.unit_name(units), problems))
        });
        Ok(answers.collect())
    }

    /// What the members know each other by.
    fn identities(&self) -> Identities {
        let mut identities = Identities::default();
        self.members.iter().flat_map(|m| m.shown.statuses()).for_each(|status| identities.add(status));
        identities
    }

    /// Each unit's members live in the namespaces of its main process, or in such as show the same, which count as those.
    fn check_namespaces(&mut self, units: &[UnitRecord], problems: &mut Vec<Problem>) {
        self.check_pid_namespaces(units, problems);
        for (index, unit) in units.iter().enumerate() {
            let of_unit = || self.members.iter().filter(|m| m.unit.index() == index);
            let is_main = |m: &&Member| unit.main_pid.is_some_and(|pid| pid.0 == m.live.process().as_raw());
            let Some(main) = of_unit().find(is_main).or_else(|| of_unit().next()) else { continue };
            let (home, home_pid) = (main.shown.namespaces, main.live.process().as_raw());
            for member in self.members.iter_mut().filter(|m| m.unit.index() == index) {
                let own = &mut member.shown.namespaces;
                let pid = member.live.pid().as_raw();
                problems.extend(user_namespace(own, pid, &unit.name, unit.private_users));
                let process = member.live.process().as_raw();
                match away((home_pid, &home), (process, own), &unit.name) {
                    Some(problem) => problems.push(problem),
                    None => *own = NamespaceRecord { pid: own.pid, ..home },
                }
            }
        }
    }

    /// Nobody who shares directories can enter a user namespace (setns(2)).
    fn check_users(&self, shares: &Shares, units: &[UnitRecord], problems: &mut Vec<Problem>) {
        for (place, member) in self.members.iter().enumerate().filter(|(_, m)| m.shown.namespaces.user != 0) {
            let mut same = shares.fs.of.iter().filter(|fs| **fs == shares.fs.of[place]);
            if same.nth(1).is_some() {
                let text =
                    "it lives in a user namespace and shares its working directory with another process";
                let remedy = "take PrivateUsers= out of the unit and restart it";
                let (pid, unit) = (member.live.process().as_raw(), member.unit_name(units));
                problems.push(refusal("namespace", unit, pid, "ns/user", text, remedy));
            }
        }
    }

    /// Members live in our PID namespace or in the one that a restore made for the group, and no id means two of them.
    fn check_pid_namespaces(&self, units: &[UnitRecord], problems: &mut Vec<Problem>) {
        let lives = |m: &Member| {
            (
                m.live.process().as_raw(),
                m.unit,
                m.shown.namespaces.pid,
                m.shown.status().pid_namespaces,
                m.shown.status().inner.pid,
            )
        };
        let away = pid_namespaces(&self.members.iter().map(lives).collect::<Vec<_>>());
        let mut refuse = |unit: UnitIndex, pid, text: &str, remedy| {
            let unit = units.get(unit.index()).map_or("", |unit| unit.name.as_str());
            problems.push(refusal("namespace", unit, pid, "ns/pid", text, remedy));
        };
        for (pid, unit) in away {
            let remedy = "restart the unit, so that it runs without a PID namespace of its own";
            refuse(unit, pid, "it lives in a PID namespace of its own", remedy);
        }
        let twice = collisions(self.members.iter().flat_map(|m| m.shown.statuses()));
        for member in self.members.iter().filter(|m| twice.contains(&m.shown.status().inner.pid)) {
            let text = format!(
                "process id {} is that of another member, too, in the PID namespace that a restore made",
                member.shown.status().inner.pid
            );
            refuse(
                member.unit,
                member.live.process().as_raw(),
                &text,
                "restart the units of the group together",
            );
        }
    }

    /// Ended children that nobody waited for, and children that left the group.
    fn zombies(&self, ids: &mut Identities, captured: &mut Captured) {
        let known: HashSet<i32> = self.members.iter().map(|m| m.live.process().as_raw()).collect();
        for member in &self.members {
            let pid = member.live.process().as_raw();
            for child in member.shown.threads.iter().flat_map(|thread| thread.children.iter().copied()) {
                if known.contains(&child) {
                    continue;
                }
                match zombie(child, member, ids) {
                    Some(record) => captured.processes.push(record),
                    None => captured.problems.push(refusal(
                        "child-outside",
                        "",
                        child,
                        cgroup::of_process(TaskId::from_raw(child)).unwrap_or_default(),
                        &format!("it is a child of member {pid} but not in the group's cgroups"),
                        "add its unit to the group, or end it",
                    )),
                }
            }
        }
    }
}

/// The record of a child that has ended; `None` if it lives.
fn zombie(pid: i32, parent: &Member, ids: &mut Identities) -> Option<ProcessRecord> {
    let stat = text::parse_stat(&ckpt_sys::proc_file::read(format!("/proc/{pid}/stat")).ok()?)?;
    let status = text::parse_status(&ckpt_sys::proc_file::read(format!("/proc/{pid}/status")).ok()?);
    if stat.state != 'Z' {
        return None;
    }
    ids.add(&status);
    Some(ProcessRecord {
        unit: parent.unit,
        cgroup: parent.cgroup.clone(),
        namespaces: parent.shown.namespaces,
        pid: Pid(status.inner.pid),
        ppid: ids.parent(stat.ppid),
        pgid: Pid(status.inner.pgid),
        sid: Pid(status.inner.sid),
        exit_signal: stat.exit_signal,
        state: ProcessState::Zombie {
            comm: stat.comm,
            status: stat.exit_code,
            owner: (status.credentials.uids[0], status.credentials.gids[0]),
        },
        body: None,
    })
}

/// Which members share what.
pub(super) struct Shares {
    pub(super) spaces: Partition,
    pub(super) tables: Partition,
    pub(super) fs: Partition,
    pub(super) sighands: Partition,
}

impl Shares {
    fn of(members: &[Member]) -> Result<Self, SysError> {
        let tasks: Vec<TaskId> =
            members.iter().filter_map(|m| m.live.threads().next()).map(|t| t.tid).collect();
        let kinds = [Shared::Space, Shared::Files, Shared::Fs, Shared::Sighand];
        let partitions = parallel::map(&kinds, 32usize.div_ceil(tasks.len().max(1)), |kind| {
            sharing::shared(&tasks, *kind)
        });
        let mut partitions = partitions.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter();
        let mut next = || partitions.next().unwrap_or_default();
        Ok(Self { spaces: next(), tables: next(), fs: next(), sighands: next() })
    }

    /// Fills in what this member is the first to have.
    fn fill(
        &self,
        place: usize,
        member: &Member,
        told: &Answers,
        files: &mut FileRegistry,
        captured: &mut Captured,
    ) -> Result<(), SysError> {
        let is_first = |partition: &Partition| partition.first[partition.of[place] as usize] == place;
        let pid = member.live.pid();
        if is_first(&self.spaces) {
            let mut layout = member.shown.files.layout;
            layout.brk = told.process.brk;
            captured.spaces.push(SpaceFacts {
                pid,
                unit: member.unit,
                layout,
                auxv: member.shown.files.auxv.clone(),
                start_time: member.shown.stat.start_time,
                thp_disabled: member.shown.status().thp_disabled,
                runner: Vec::new(),
            });
        }
        let space = self.spaces.of[place] as usize;
        if let (Some(space), Some(area)) = (captured.spaces.get_mut(space), member.live.area()) {
            space.runner.push(area);
        }
        if is_first(&self.tables) {
            captured.fd_tables.push(TableFacts { pid, unit: member.unit });
        }
        if is_first(&self.fs) {
            let record = member.fs(files)?;
            captured.fs.push(record);
        }
        if is_first(&self.sighands) {
            captured.sighands.push(told.process.sighand.clone());
        }
        Ok(())
    }
}
