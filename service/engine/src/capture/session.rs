//! One capture of a whole group, from the preparation to the files of the image.
//!
//! ```text
//! before the window   prepare   units, what there will be to copy; Precopy copies while the group runs; memory for the rest
//! in the window       take      members ► descriptors ► address spaces ► ephemeral files ► contents ► frozen copies ► copy
//! after the thaw      write     frozen copies · state · pages · pages.index · ephemeral/N.tar · pinned/…
//! ```

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::Path;

use ckpt_image::records::{
    FdTableId, FileRecord, GroupImage, KernelRecord, Pid, ProcessRecord, QueueRecord, SpaceId, UnitClocks,
    UnitRecord,
};
use ckpt_image::{Digest, INDEX_FILE, PAGES_FILE, PagesWriter, STATE_FILE, write_state};
use ckpt_sys::VirtAddr;
use ckpt_sys::thread::Deadline;

use super::close_on_exec;
use super::ephemeral;
use super::family::namespaces;
use super::frozen_copies;
use super::members::{self, Members, SpaceFacts};
use super::memory::{Copied, Plan};
use super::spaces::{self, Spaces, in_time};
use super::{Files, Freezer, Objects, Precopy};
use super::{sysv, under_way};
use crate::api::{Group, Job, Problem, Severity, Unit};
use crate::config::TcpChoice;
use crate::error::Error;
use crate::kinds::{self, Depth, DescriptorCapture};
use crate::members::living_task;
use crate::storage::Subvolume;
use crate::timeline::Timeline;
use crate::track::{Chain, SpaceKey};
use crate::{check, machine, parallel, pinned};

/// A capture that is prepared.
pub struct Capture {
    group: String,
    units: Vec<UnitRecord>,
    files: Files,
    objects: Objects,
    plan: Plan,
    outside: TcpChoice,
    quiet_rings: HashSet<u64>,
    contexts: HashMap<(i32, VirtAddr), u32>,
}

/// A group's state, in memory of ours.
pub struct Captured {
    image: GroupImage,
    copied: Copied,
    chain: Chain,
    pages: PagesWriter,
    pins: Vec<(FileRecord, OwnedFd)>,
    /// The connections to outside.
    outside: Vec<OwnedFd>,
}

/// What was written.
pub struct Written {
    /// Processes, zombies included.
    pub processes: u64,
    /// Threads.
    pub threads: u64,
    /// Pages whose content was written.
    pub pages: u64,
    /// The files, by name in the checkpoint's directory.
    pub files: BTreeMap<String, Digest>,
    /// uname(2) release.
    pub kernel: String,
    /// The watches, which know from now on what is written after this image.
    pub chain: Chain,
}

impl Capture {
    /// Looks at the running members.
    ///
    /// Errors: NotCheckpointable.
    pub fn prepare(group: &Group, units: &[Unit], subvolumes: &[Subvolume]) -> Result<Self, Error> {
        let found = crate::members::list(units)?;
        let members: Vec<_> = found.iter().map(|m| check::memory_member(m, units)).collect();
        let plan = Plan::prepare(&members).map_err(|e| e.for_group(&group.name))?;
        let host = kinds::mounts::Host::look();
        refuse(&group.name, plan.problems())?;
        Ok(Self {
            group: group.name.clone(),
            units: units.iter().map(|unit| unit_record(unit, &host)).collect(),
            files: check::files(units, subvolumes),
            objects: Objects::new(),
            plan,
            outside: group.config.sockets.tcp,
            quiet_rings: HashSet::new(),
            contexts: HashMap::new(),
        })
    }

    /// Bytes that members have which the chain does not watch, shared memory not counted.
    fn unwatched(&self, chain: &Chain) -> u64 {
        self.own_bytes_besides(
            chain.spaces.iter().filter(|(_, space)| space.watch.is_some()).map(|(key, _)| key),
        )
    }

    /// Bytes of members that nobody has tried to watch yet, shared memory not counted.
    pub fn untried(&self, chain: &Chain) -> u64 {
        self.own_bytes_besides(chain.spaces.keys())
    }

    fn own_bytes_besides<'k>(&self, spaces: impl Iterator<Item = &'k SpaceKey>) -> u64 {
        let known: HashSet<i32> = spaces.map(SpaceKey::pid).collect();
        let own = self.plan.own_bytes().iter();
        own.filter(|(pid, _)| !known.contains(pid)).map(|(_, bytes)| bytes).sum()
    }

    /// Takes the memory that the copy in the window will need, and looks at the mappings once more: the last before the window.
    /// With a `precopy`, only what that has not copied.
    ///
    /// Errors: NoSpace.
    pub fn make_room(&mut self, chain: &Chain, precopy: &Precopy) -> Result<(), Error> {
        let own: u64 = self.plan.own_bytes().values().sum();
        let shared = self.plan.bytes().saturating_sub(own);
        let bytes = match precopy.spaces.is_empty() {
            // Frozen copies hold it; should there be none, room is made in the window.
            _ if precopy.diverges => shared,
            true => own + shared,
            false => (self.unwatched(chain) + 2 * precopy.rest).min(own) + shared,
        };
        self.plan.make_room(bytes).map_err(|e| e.for_group(&self.group))?;
        self.plan.look_again();
        Ok(())
    }

    /// Waits until nothing is under way in the rings of io_uring(7) and the contexts of kernel AIO that members had shortly before the window:
    /// before anything is captured, and before the snapshots. What still is under way is returned.
    ///
    /// Errors: NotCheckpointable; FreezeTimeout past the deadline.
    pub fn quiet(&mut self, members: &mut Members, deadline: Deadline) -> Result<Vec<Problem>, Error> {
        let (with_rings, with_contexts) = (self.plan.with_rings(), self.plan.with_contexts());
        if with_rings.is_empty() && with_contexts.is_empty() {
            return Ok(Vec::new());
        }
        let quiet = under_way::wait(members, &self.units, (&with_rings, &with_contexts), deadline)
            .map_err(|e| spaces::failed(&self.group, e))?;
        refuse(&self.group, &quiet.refused)?;
        (self.quiet_rings, self.contexts) = (quiet.rings, quiet.contexts);
        Ok(quiet.busy)
    }

    /// The units, in the order of `UnitIndex`.
    pub fn units(&self) -> &[UnitRecord] {
        &self.units
    }

    /// Takes everything that is in the window. Archives of ephemeral files go into `directory`, not synced yet. Pages that were not
    /// written since the chain's parent stay there; without a parent all pages are taken.
    ///
    /// Errors: NotCheckpointable with what was met that cannot be captured; FreezeTimeout past the deadline.
    pub fn take(
        mut self,
        members: &mut Members,
        mut chain: Chain,
        precopy: Precopy,
        directory: &Path,
        freezer: &Freezer<'_>,
        time: &mut Timeline,
    ) -> Result<Captured, Error> {
        let deadline = freezer.deadline;
        let Precopy { mut pages, spaces: mut early, speed, .. } = precopy;
        let clocks = machine::clocks()?;
        for (index, unit) in self.units.iter_mut().enumerate() {
            let first = members.members.iter().find(|m| m.unit.index() == index).map(|m| m.live.pid());
            unit.clocks = first.map_or_else(UnitClocks::default, |pid| machine::clocks_of(pid, &clocks));
        }
        let group = self.group.as_str();
        let failed = |e| spaces::failed(group, e);
        let people = members.capture(&self.units, &mut self.files, deadline, time).map_err(failed)?;
        refuse(group, &people.problems)?;
        let homes = homes(&mut self.units, &people);
        let quiet_rings = std::mem::take(&mut self.quiet_rings);
        let (files, objects) = (&mut self.files, &mut self.objects);
        let mut open = descriptors(&self.units, &people, files, objects, (self.outside, quiet_rings))?;
        refuse(group, &open.problems)?;
        close_on_exec::ask(&mut open, &people, members, deadline).map_err(failed)?;
        time.lap("descriptors");
        let unit = |queue: &QueueRecord| self.units[queue.unit.index()].name.clone();
        refuse(group, &freezer.read(&mut open.queues, &open.open_queues, unit)?)?;

        let mut memory = self.plan.begin();
        memory.know_rings(std::mem::take(&mut open.rings));
        let direct = spaces_of(&people, &open.direct);
        let not_protected = not_protected(&people, &open.with_rings, &self.contexts);
        memory.know_contexts(std::mem::take(&mut self.contexts));
        let taking = Spaces { group, units: &self.units, deadline, direct, not_protected };
        let registries = (&mut self.files, &mut self.objects, &mut *time);
        let spaces = taking.take(&people.spaces, members, &mut chain, &mut memory, &mut early, registries)?;
        refuse(group, memory.problems())?;
        time.lap("spaces");
        early.into_values().for_each(|gone| pages.rename(gone.provisional, None));
        let (sysv, problems) = sysv::take(&self.units, &people, members, &mut self.objects, deadline)?;
        refuse(group, &problems)?;
        memory.contents(&self.files, &self.objects, Some(&chain)).map_err(|e| e.for_group(group))?;
        archive_ephemeral(&mut self.units, &homes, directory)?;
        time.lap("contents");
        let people = settle_ids(people, &mut self.units);
        in_time(group, deadline)?;
        frozen_copies::make(&mut memory, members, &people, &self.units, speed, deadline).map_err(failed)?;
        time.lap("copies");
        let until = std::time::Instant::now() + deadline.left();
        let copied = memory.copy(Some(until)).map_err(|e| e.for_group(group))?;
        for (key, space) in &mut chain.spaces {
            if let (Some(watch), Some(live)) =
                (&mut space.watch, members.live(nix::unistd::Pid::from_raw(key.pid())))
            {
                watch.settle(live, deadline).map_err(failed)?;
            }
        }
        time.lap("copy");
        let kernel = kernel_of(&people)?;
        let pins = self.files.take_pins();
        let image = GroupImage {
            units: self.units,
            processes: people.processes,
            spaces,
            fd_tables: open.tables,
            fs: people.fs,
            sighands: people.sighands,
            descriptions: open.descriptions,
            pipes: open.pipes,
            queues: open.queues,
            files: self.files.into_records(),
            objects: self.objects.into_records(),
            seccomp_filters: people.seccomp_filters,
            sysv,
            clocks,
            kernel,
        };
        Ok(Captured { image, copied, chain, pages, pins, outside: open.outside })
    }
}

impl Captured {
    /// The connections to outside, to be held where they are to outlive the members.
    pub fn take_outside(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.outside)
    }

    /// Writes the files of the image and fsyncs them. Errors: NoSpace, Canceled, Io.
    pub fn write(mut self, directory: &Path, job: &dyn Job) -> Result<Written, Error> {
        let total = self.copied.bytes();
        let complete = self.copied.write(&mut self.pages, |done| {
            job.progress(done, total);
            !job.canceled()
        })?;
        if !complete {
            return Err(Error::Canceled);
        }
        let summary = self.pages.finish()?;
        self.chain.contents = self.copied.hashes(&self.chain);
        let mut files = BTreeMap::new();
        files.insert(PAGES_FILE.to_owned(), summary.pages);
        files.insert(INDEX_FILE.to_owned(), summary.index);
        files.insert(STATE_FILE.to_owned(), write_state(directory, &self.image)?);
        files.extend(sync_ephemeral(directory)?);
        let kept = pinned::keep(directory, self.pins);
        files.extend(kept.map_err(|e| Error::io(format!("keep executables in {}", directory.display()), e))?);
        let threads = self.image.processes.iter().filter_map(|p| p.body.as_ref()).map(|b| b.threads.len());
        Ok(Written {
            processes: self.image.processes.len() as u64,
            threads: threads.sum::<usize>() as u64,
            pages: summary.pages_written,
            files,
            kernel: self.image.kernel.release,
            chain: self.chain,
        })
    }
}

/// The kernel, with the processor's extended state as the members have it.
fn kernel_of(people: &members::Captured) -> Result<KernelRecord, Error> {
    let mut kernel = machine::kernel()?;
    let xcr0 = |p: &ProcessRecord| Some(machine::xcr0(&p.body.as_ref()?.threads.first()?.xstate));
    kernel.xcr0 = people.processes.iter().find_map(xcr0).unwrap_or(0);
    Ok(kernel)
}

/// What the image says of a unit.
fn unit_record(unit: &Unit, host: &kinds::mounts::Host) -> UnitRecord {
    let namespaces = namespaces(living_task(nix::unistd::Pid::from_raw(unit.main_pid)));
    UnitRecord {
        name: unit.name.clone(),
        cgroup: unit.cgroup.clone(),
        main_pid: (unit.main_pid != 0).then_some(Pid(unit.main_pid)),
        namespaces,
        clocks: UnitClocks::default(),
        ephemeral: ephemeral::directories(unit),
        private_users: unit.private_users,
        mounts: match unit.main_pid {
            0 => Vec::new(),
            pid => host.capture(pid, namespaces.mnt),
        },
    }
}

/// Names main processes by the ids that the members know, and says of all members that they live in one PID namespace.
fn settle_ids(mut people: members::Captured, units: &mut [UnitRecord]) -> members::Captured {
    for unit in units.iter_mut() {
        unit.main_pid = unit.main_pid.map(|pid| people.identities.known(pid.0));
    }
    for process in &mut people.processes {
        process.namespaces.pid = units.get(process.unit.index()).map_or(0, |unit| unit.namespaces.pid);
    }
    people
}

/// Whose namespaces are those of each unit, by our ids: its main process, or the first living one of a unit that has none, whose record is
/// completed.
fn homes(units: &mut [UnitRecord], people: &members::Captured) -> Vec<Option<Pid>> {
    let home = |(index, unit): (usize, &mut UnitRecord)| {
        if unit.main_pid.is_some() {
            return unit.main_pid;
        }
        unit.namespaces =
            people.processes.iter().find(|p| p.unit.index() == index && p.body.is_some())?.namespaces;
        people.living.iter().find(|(unit, _)| unit.index() == index).map(|(_, pid)| Pid(*pid))
    };
    units.iter_mut().enumerate().map(home).collect()
}

/// Archives what systemd removes with the units; afterwards the records name those directories that were there.
fn archive_ephemeral(units: &mut [UnitRecord], homes: &[Option<Pid>], directory: &Path) -> Result<(), Error> {
    for (index, (unit, home)) in units.iter_mut().zip(homes).enumerate() {
        let directories = std::mem::take(&mut unit.ephemeral);
        if let Some(home) = home.filter(|_| !directories.is_empty()) {
            unit.ephemeral = ephemeral::archive(home.0, &directories, directory, index)?;
        }
    }
    Ok(())
}

/// Syncs the archives and takes their digests.
fn sync_ephemeral(directory: &Path) -> Result<BTreeMap<String, Digest>, Error> {
    let place = directory.join(ephemeral::DIRECTORY);
    let mut digests = BTreeMap::new();
    if !place.is_dir() {
        return Ok(digests);
    }
    let failed = |path: &Path| {
        let what = format!("sync {}", path.display());
        move |e| Error::io(what, e)
    };
    for entry in std::fs::read_dir(&place).map_err(failed(&place))? {
        let path = entry.map_err(failed(&place))?.path();
        let mut file = std::fs::File::open(&path).map_err(failed(&path))?;
        let mut hasher = blake3::Hasher::new();
        let bytes = std::io::copy(&mut file, &mut hasher).map_err(failed(&path))?;
        file.sync_all().map_err(failed(&path))?;
        let name = path.strip_prefix(directory).unwrap_or(&path).to_string_lossy().into_owned();
        digests.insert(name, Digest { bytes, blake3: Some(hasher.finalize().to_hex().to_string()) });
    }
    crate::store::sync_directory(&place)?;
    crate::store::sync_directory(directory)?;
    Ok(digests)
}

/// The descriptors of every table of the group.
fn descriptors(
    units: &[UnitRecord],
    people: &members::Captured,
    files: &mut Files,
    objects: &mut Objects,
    (outside, quiet_rings): (TcpChoice, HashSet<u64>),
) -> Result<kinds::Captured, Error> {
    let names: Vec<_> = units.iter().map(|u| u.name.clone()).collect();
    let mut capture = DescriptorCapture::new(Depth::Contents, &names, [], files, objects)
        .known_as(people.identities.clone())
        .to_outside(outside)
        .with_quiet(quiet_rings);
    let texts = parallel::map(&people.fd_tables, 16, |table| {
        let pid = table.pid.as_raw();
        kinds::texts_of(pid, &kinds::numbers(pid)?)
    });
    for (table, texts) in people.fd_tables.iter().zip(texts) {
        texts
            .and_then(|texts| capture.add_table(table.pid.as_raw(), table.unit, &texts))
            .map_err(|e| Error::io(format!("look at the descriptors of pid {}", table.pid), e))?;
    }
    Ok(capture.finish())
}

/// The address spaces of processes with one of these descriptor tables.
fn spaces_of(people: &members::Captured, tables: &HashSet<FdTableId>) -> HashSet<SpaceId> {
    let bodies = people.processes.iter().filter_map(|process| process.body.as_ref());
    bodies.filter(|body| tables.contains(&body.fd_table)).map(|body| body.space).collect()
}

/// Spaces that user space must not protect: the kernel writes to them for rings of io_uring(7) (`with_rings`) and contexts of kernel AIO, or
/// several processes have them (CLONE_VM), each with signal handlers and dispatching of its own.
fn not_protected(
    people: &members::Captured,
    with_rings: &HashSet<FdTableId>,
    contexts: &HashMap<(i32, VirtAddr), u32>,
) -> HashSet<SpaceId> {
    let mut spaces = spaces_of(people, with_rings);
    let has_context = |space: &SpaceFacts| contexts.keys().any(|(pid, _)| *pid == space.pid.as_raw());
    let with_contexts = people.spaces.iter().enumerate().filter(|(_, space)| has_context(space));
    spaces.extend(with_contexts.map(|(index, _)| SpaceId(index as u32)));
    let mut seen = HashSet::new();
    let bodies = people.processes.iter().filter_map(|process| process.body.as_ref());
    spaces.extend(bodies.map(|body| body.space).filter(|space| !seen.insert(*space)));
    spaces
}

/// NotCheckpointable if there is an error among the problems.
pub fn refuse(group: &str, problems: &[Problem]) -> Result<(), Error> {
    if problems.iter().any(|p| p.severity == Severity::Error) {
        return Err(Error::NotCheckpointable { group: group.into(), problems: problems.to_vec() });
    }
    Ok(())
}
