//! The whole rebuild, stage by stage, over all members of the group.

mod filling;
mod letting_go;
mod setup;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use ckpt_image::PageReader;
use ckpt_image::records::{
    Credentials, GroupImage, MappingKind, Pid, ProcessBody, ProcessRecord, ThreadRecord, UnitIndex,
    UnitRecord,
};
use ckpt_sys::batch::{Batch, Outcome, Slot};
use ckpt_sys::missing::Missing;
use ckpt_sys::nursery::{self, area};
use ckpt_sys::task;
use ckpt_sys::thread::Stopped;
use ckpt_sys::{AddrRange, VirtAddr};
use serde::{Deserialize, Serialize};

use super::checksums::Comparison;
use super::content::Contents;
use super::cpus::{spread, stay_here};
use super::grow::{Gardener, Members};
use super::host::{Blockade, Host};
use super::lazy::{self, Absent, Lazily, Mark};
use super::leader::{self, Ending};
use super::memory::{Ground, Heritage, Script};
use super::opened::Opened;
use super::pidspace::PidSpace;
use super::places::{Place, Places, UnitPlace};
use super::prepared::Prepared;
use super::process::{living, lookup};
use super::tree::Plan;
use super::users::Users;
use super::waves::side_by_side;
use super::{Failure, Member, clocks, credentials, ephemeral, holes, ids, notify, sysv, tables};
use crate::api::UnitMain;
use crate::kinds::outside::Held;
use crate::kinds::rebuild::Descriptions;
use crate::kinds::{late, mounts};
use crate::timeline::{Laps, Timeline};

/// What ckptd asks of ckpt-restore, as JSON on its standard input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The checkpoint's directory, then those of the chain that it rests on, the full last.
    pub chain: Vec<PathBuf>,
    /// The units, prepared.
    pub units: Vec<UnitPlace>,
    /// The members get a PID namespace of their own, whether their process ids are free or not.
    #[serde(default)]
    pub own_pids: bool,
    /// Memory may come after the members run.
    #[serde(default)]
    pub lazily: Option<Lazily>,
    /// Connections to outside that ckptd holds for the members.
    #[serde(default)]
    pub held: Vec<Held>,
}

impl Request {
    /// The checkpoint's directory.
    pub fn image(&self) -> &Path {
        self.chain.first().map_or(Path::new(""), PathBuf::as_path)
    }
}

/// What ckpt-restore answers, as JSON on its standard output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Number of processes that live again.
    pub processes: u32,
    /// Number of their threads.
    pub threads: u32,
    /// The units with their main processes, as /proc of ckptd shows them.
    pub units: Vec<UnitMain>,
    /// Leaders that are to end when systemd knows the main processes.
    #[serde(default)]
    pub endings: Vec<Ending>,
    /// PID 1 of the members' own PID namespace, where they have one: it must outlive every unit.
    #[serde(default)]
    pub init: Option<i32>,
    /// Bytes of memory that come while the members run.
    #[serde(default)]
    pub late: u64,
    /// Time of each stage, microseconds.
    pub stages: Laps,
    /// What is not quite as it was, one sentence each.
    pub warnings: Vec<String>,
}

/// What ckpt-restore says, as one line of JSON on its standard output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Reply {
    /// The members run.
    Restored(Report),
    /// None of them lives.
    Failed(Failure),
}

/// Rebuilds a group as children of this process, which must have one thread only. On success the members run; on failure none lives.
pub(super) fn rebuild(prepared: &Prepared, request: &Request) -> Result<Report, Failure> {
    let mut clock = Timeline::start();
    let image = &prepared.image;
    let blockade = Blockade::below(tables::floor(image))?;
    let mut places = Places::open(image, &request.units)?;
    let unlike = mounts::missing(image, places.iter().map(|place| Some(place.stub.as_ref()?.0)));
    let plan = Plan::of(image, spare_ids())?;
    nursery::block_signals()?;
    let jumps = clocks::go_on(&mut places, image)?;
    let space = match request.own_pids || ids::wait_until_free(image).is_err() {
        true => Some(PidSpace::make(&mut places, image, &ids::needed(image)?, mains(image))?),
        false => None,
    };
    let places = places;
    let cpus = stay_here()?;
    let runner = nursery::map_runner(free_area(image)?)?;
    let (_, gadget) = nursery::vdso()?;
    clock.lap("plan");
    let mut rebuild = Rebuild::prepare(prepared, &plan, &places, request, (area(&runner), blockade))?;
    rebuild.gadget = gadget;
    rebuild.cpus = cpus;
    let comparison = match prepared.compared {
        true => Comparison::done(),
        false => Comparison::begin(rebuild.pages, &rebuild.all_scripts(), &rebuild.cpus)?,
    };
    clock.lap("open");
    rebuild.members = {
        let terminals = rebuild.descriptions.controlling(image);
        let staged = (&rebuild.heritage, &rebuild.opened);
        let known_by = (terminals, std::mem::take(&mut rebuild.descriptions.outer));
        Gardener::new(image, &places, runner, (space.as_ref(), staged), known_by).grow(&plan)?
    };
    clock.lap("grow");
    spread(rebuild.members.values().map(Member::tid), &rebuild.cpus);
    rebuild.fill()?;
    clock.lap("memory");
    comparison.end(rebuild.pages, &rebuild.all_scripts())?;
    clock.lap("checksums");
    let late = rebuild.serve_late(request)?;
    clock.lap("late");
    rebuild.furnish(&Users::open(&places, space.as_ref())?)?;
    clock.lap("processes");
    rebuild.set_up_threads()?;
    if let Some(space) = &space {
        space.fit_proc(&places)?;
    }
    rebuild.late_calls()?;
    clock.lap("threads");
    let mut warnings = std::mem::take(&mut rebuild.warnings);
    warnings.extend(jumps);
    warnings.extend(unlike);
    let units = main_processes(image, &rebuild.members)?;
    let endings = rebuild.waiting.iter().map(|(_, ending)| ending.clone()).collect();
    let init = space.as_ref().map(|space| space.init().as_raw());
    space.map_or(Ok(()), PidSpace::go)?;
    let (processes, threads) = rebuild.release()?;
    clock.lap("release");
    Ok(Report { processes, threads, units, endings, init, late, stages: clock.laps(), warnings })
}

/// Ids for temporary processes: from the top of what the kernel gives, those that nobody has now.
fn spare_ids() -> impl Iterator<Item = Pid> {
    let most = std::fs::read_to_string("/proc/sys/kernel/pid_max").ok().and_then(|t| t.trim().parse().ok());
    let most: i32 = most.unwrap_or(32_768);
    (301..most).rev().filter(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists()).map(Pid)
}

/// An address where the runner area fits between all mappings of all members and of our own.
fn free_area(image: &GroupImage) -> Result<VirtAddr, Failure> {
    let mut used: Vec<(u64, u64)> =
        image.spaces.iter().flat_map(|s| &s.mappings).map(|m| (m.start, m.end)).collect();
    // Where heaps may grow to, and where the kernel puts nothing of its own accord.
    used.extend(image.spaces.iter().map(|s| (s.layout.start_brk, s.layout.brk)));
    let own = ckpt_sys::maps::read_maps(nix::unistd::Pid::this())?;
    used.extend(own.iter().map(|m| (m.range.start.get(), m.range.end.get())));
    holes::find(used, 1 << 32, nursery::AREA)
        .ok_or_else(|| Failure::not_restorable("there is no free address range for the runner"))
}

/// The main process of a unit, by its id in the image. A unit whose main process systemd did not know gets the first of its processes
/// that is no child of a member.
fn main_process(image: &GroupImage, index: usize, unit: &UnitRecord) -> Option<Pid> {
    let alive = |pid: Pid| living(image).any(|(process, _)| process.pid == pid);
    let roots = living(image).filter(|(p, _)| p.unit.index() == index && !alive(p.ppid));
    unit.main_pid.filter(|pid| alive(*pid)).or_else(|| roots.map(|(process, _)| process.pid).next())
}

/// The main processes of the units, by their pids in our PID namespace.
fn main_processes(image: &GroupImage, members: &Members) -> Result<Vec<UnitMain>, Failure> {
    let main = |(index, unit): (usize, &UnitRecord)| {
        let pid = main_process(image, index, unit);
        let main_pid = match pid.and_then(|pid| members.get(&pid)) {
            Some(member) => task::status(member.tid())?.process,
            None => 0,
        };
        Ok(UnitMain { unit: unit.name.clone(), main_pid })
    };
    image.units.iter().enumerate().map(main).collect()
}

/// The main processes of all units, by their ids in the image.
fn mains(image: &GroupImage) -> BTreeSet<Pid> {
    image.units.iter().enumerate().filter_map(|(index, unit)| main_process(image, index, unit)).collect()
}

/// Tells systemd of the main processes, then ends what was there until it knew: leaders that had ended, and the stubs.
pub(super) fn tell_systemd(
    places: &Places,
    units: &[UnitMain],
    mains: &[Option<OwnedFd>],
    endings: &[Ending],
) -> Result<(), Failure> {
    for (index, unit) in units.iter().enumerate().filter(|(_, u)| u.main_pid != 0) {
        notify::tell_main_pid(places, UnitIndex(index as u32), unit.main_pid)?;
    }
    leader::end_late(endings)?;
    let main = |index: usize| mains.get(index).and_then(Option::as_ref).map(AsFd::as_fd);
    places.iter().enumerate().try_for_each(|(index, place)| notify::end_stub(place, main(index)))
}

/// What a process is the first to have of what several may share.
#[derive(Debug, Clone, Copy)]
struct First {
    table: bool,
    space: bool,
    fs: bool,
    sighand: bool,
}

/// A rebuild under way.
struct Rebuild<'a> {
    image: &'a GroupImage,
    places: &'a Places,
    descriptions: Descriptions,
    opened: Opened,
    contents: Contents,
    pages: &'a PageReader,
    heritage: Heritage,
    /// By space.
    scripts: Vec<Script>,
    /// Spaces whose memory comes late, and a process of each.
    watched: Vec<(Missing, Absent, i32)>,
    floor: RawFd,
    /// Distance of a `syscall` instruction from the start of the vDSO.
    gadget: u64,
    /// Where threads may run whose records name no CPU that is here.
    cpus: Vec<u64>,
    /// What every member is made with.
    ours: Option<Credentials>,
    members: Members,
    /// Threads besides the leaders, by process.
    threads: BTreeMap<Pid, Vec<Member>>,
    /// Processes that have entered the user namespaces of their units.
    private: BTreeSet<Pid>,
    /// Leaders that are to end when systemd knows the main processes.
    waiting: Vec<(Stopped, Ending)>,
    warnings: Vec<String>,
}

impl<'a> Rebuild<'a> {
    /// Opens all that members inherit.
    fn prepare(
        prepared: &'a Prepared,
        plan: &Plan,
        places: &'a Places,
        request: &Request,
        (runner, blockade): (AddrRange, Blockade),
    ) -> Result<Self, Failure> {
        let Prepared { image, pages, .. } = prepared;
        ephemeral::put_back(image, request.image(), places)?;
        let floor = tables::floor(image);
        let contents = Contents::make(image, pages, &mut |unit, deed| places.within(unit, deed)?)?;
        let ground = Ground::of_ourselves(runner)?;
        let heritage = Heritage::of(image, plan, pages, &ground)?;
        let mut scripts = lazy::scripts(image, pages, (&ground, &heritage), request.lazily.as_ref())?;
        for set in &image.sysv.semaphores {
            let user = living(image).find(|(process, _)| process.unit == set.unit);
            if let Some(script) = user.and_then(|(_, body)| scripts.get_mut(body.space.index())) {
                script.set_semaphores(set);
            }
        }
        // From here on epoll instances need the numbers that members use.
        drop(blockade);
        let mut host = Host::new(image, places, pages, &contents, request);
        let mut descriptions = Descriptions::rebuild(image, &mut host, floor)?;
        let files = &mut descriptions.files;
        let mut opened = Opened::directories_of(image, files, &mut host, floor)?;
        let all = scripts.iter().chain(heritage.stages());
        opened.add_memory(image, all, &contents, pages, &mut descriptions, &mut host)?;
        host.home()?;
        let warnings = descriptions.warnings.iter().map(ToString::to_string).collect();
        Ok(Self {
            image,
            places,
            descriptions,
            opened,
            contents,
            pages,
            heritage,
            scripts,
            watched: Vec::new(),
            floor,
            gadget: 0,
            cpus: Vec::new(),
            ours: credentials::ours(),
            warnings,
            members: Members::new(),
            threads: BTreeMap::new(),
            private: BTreeSet::new(),
            waiting: Vec::new(),
        })
    }

    fn all_scripts(&self) -> Vec<&Script> {
        self.scripts.iter().chain(self.heritage.stages()).collect()
    }

    /// Does something in the leader of every living process; errors name process and unit.
    fn each(
        &mut self,
        mut deed: impl FnMut(&mut Self, &mut Member, &'a ProcessRecord, &'a ProcessBody) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        for (record, body) in living(self.image) {
            let Some(mut member) = self.members.remove(&record.pid) else {
                return Err(Failure::not_restorable("it was not made").of_pid(record.pid.0));
            };
            let done = deed(self, &mut member, record, body);
            self.members.insert(record.pid, member);
            done.map_err(|e| self.blame(e, record))?;
        }
        Ok(())
    }

    /// Runs batches in the leaders of all living processes at once; errors name process and unit. See [`side_by_side`].
    fn all(
        &mut self,
        mut next: impl FnMut(
            &Self,
            usize,
            Slot,
            Option<Outcome>,
        ) -> Result<Option<(&'static str, Batch)>, Failure>,
    ) -> Result<(), Failure> {
        let mut members = std::mem::take(&mut self.members);
        let mut leaders: BTreeMap<Pid, &mut Member> = members.iter_mut().map(|(pid, m)| (*pid, m)).collect();
        let mut ordered = Vec::with_capacity(leaders.len());
        for (record, _) in living(self.image) {
            let leader = leaders.remove(&record.pid);
            let none = || Failure::not_restorable("it was not made").of_pid(record.pid.0);
            ordered.push(leader.ok_or_else(none)?);
        }
        let done = side_by_side(&mut ordered, |place, slot, before| next(self, place, slot, before));
        self.members = members;
        done.map_err(|(place, e)| match living(self.image).nth(place) {
            Some((record, _)) => self.blame(e, record),
            None => e,
        })
    }

    /// Names a process and its unit as where something failed.
    fn blame(&self, failure: Failure, record: &ProcessRecord) -> Failure {
        let unit = self.places.get(record.unit).map_or("", |p| p.name.as_str());
        failure.of_pid(record.pid.0).of_unit(unit)
    }

    /// The bodies of all living processes, in order, each with what of it no process before has: descriptor table, address space, directories,
    /// signal handlers.
    fn firsts(&self) -> Vec<(&'a ProcessRecord, &'a ProcessBody, First)> {
        let mut seen = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let first = |(record, body): (&'a ProcessRecord, &'a ProcessBody)| {
            let first = First {
                table: seen.0.insert(body.fd_table),
                space: seen.1.insert(body.space),
                fs: seen.2.insert(body.fs),
                sighand: seen.3.insert(body.sighand),
            };
            (record, body, first)
        };
        living(self.image).map(first).collect()
    }

    /// Hands over the missing pages to who puts them there; gives their bytes.
    fn serve_late(&mut self, request: &Request) -> Result<u64, Failure> {
        let Some(lazily) = request.lazily.as_ref().filter(|_| !self.watched.is_empty()) else { return Ok(0) };
        let pids: Vec<i32> = self.watched.iter().map(|(_, _, pid)| *pid).collect();
        let cgroups = self.places.iter().map(Place::cgroup_dir).collect();
        let mark = Mark::set(lazily, &pids, cgroups)?;
        let spaces = self.watched.drain(..).map(|(missing, absent, _)| (missing, absent)).collect();
        lazy::keeper::hand_over(lazily, mark, self.pages.files()?, spaces, self.cpus.clone())?;
        Ok(lazy::absent_bytes(&self.scripts))
    }

    /// What descriptors need once all members exist and have their ids.
    fn late_calls(&mut self) -> Result<(), Failure> {
        for call in late::calls(self.image).into_iter().chain(sysv::calls(self.image)) {
            let Some(member) = self.members.get_mut(&call.pid) else {
                return Err(Failure::corrupt("it has descriptors and does not live").of_pid(call.pid.0));
            };
            match tables::late(member, &call) {
                Err(failure) if call.must => return Err(failure),
                Err(failure) => self.warnings.push(failure.to_string()),
                Ok(()) => {}
            }
        }
        let places = self.places;
        sysv::finish(self.image, &mut |unit, deed| places.within(unit, deed)?)
    }

    /// Where the vDSO of a process lies.
    fn vdso_of(&self, body: &ProcessBody) -> Result<VirtAddr, Failure> {
        let space = lookup(&self.image.spaces, body.space.index(), "address space")?;
        space
            .mappings
            .iter()
            .find(|m| matches!(m.kind, MappingKind::Vdso))
            .map(|m| VirtAddr(m.start))
            .ok_or_else(|| Failure::unsupported("the process has no vDSO mapped"))
    }
}

/// The record of the leader, or of the thread in its place.
fn first_thread<'r>(record: &ProcessRecord, body: &'r ProcessBody) -> Result<&'r ThreadRecord, Failure> {
    body.threads
        .first()
        .filter(|t| t.tid == record.pid || body.ended_leader.is_some())
        .ok_or_else(|| Failure::corrupt("its first thread is another process's").of_pid(record.pid.0))
}
