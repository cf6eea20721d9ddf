//! The way of a checkpoint.
//!
//! ```text
//! check ► prepare (store, snapshots, memory) ► window: capture ‖ snapshots ► write ► commit
//!                                                │                                    └ manifest renamed: it exists
//!                                                └ the group runs from here on, or, with `stop`, ends after the commit
//! ```

use std::path::{Path, PathBuf};
use std::time::Duration;

use ckpt_image::{CheckpointState, Kind, MANIFEST_VERSION, Manifest, SnapshotEntry, UnitEntry};
use ckpt_sys::cgroup::Cgroup;
use ulid::Ulid;

use super::waiting::{self, Clients, Listeners};
use super::window::{Still, Window, paired};
use super::{LocalEngine, arrival, chain, describe};
use crate::api::{CheckpointInfo, CheckpointRequest, Event, Group, Job, Problem, Severity, Stage, Unit};
use crate::capture::{Capture, Captured, Freezer, Precopy, Written};
use crate::check;
use crate::error::{Error, with_sources};
use crate::members;
use crate::storage::{Prepared, Taken};
use crate::track::Chain;

/// How often a checkpoint is begun anew because a unit has ended meanwhile, and how long systemd gets to notice.
const ATTEMPTS: u32 = 5;
const NOTICED: Duration = Duration::from_millis(50);
/// How often the window is opened where requests of io_uring(7) are under way, and how long they get between.
const WINDOWS: u32 = 5;
const UNDER_WAY: Duration = Duration::from_millis(50);
/// How long clients are held for servers to accept what waits, at most.
const HELD: Duration = Duration::from_millis(500);

/// Takes a checkpoint of a group: of the units that run at its instant.
pub fn run(
    engine: &LocalEngine,
    group: &Group,
    request: &CheckpointRequest,
    job: &dyn Job,
) -> Result<CheckpointInfo, Error> {
    let of_unit =
        |p: &Problem| p.code == "not-running" && p.severity == Severity::Error && !p.unit.is_empty();
    for _ in 1..ATTEMPTS {
        match attempt(engine, group, request, job) {
            Err(Error::NotCheckpointable { problems, .. }) if problems.iter().all(of_unit) => {
                std::thread::sleep(NOTICED);
            }
            done => return done,
        }
    }
    attempt(engine, group, request, job)
}

fn attempt(
    engine: &LocalEngine,
    group: &Group,
    request: &CheckpointRequest,
    job: &dyn Job,
) -> Result<CheckpointInfo, Error> {
    job.stage(Stage::Checking);
    arrival::wait(&engine.settings.run, &group.name, job)?;
    let units = engine.units.units(group)?;
    let (subvolumes, mut problems) = check::group(&engine.place()?, group, &units)?;
    // What waits now is not what waits in the window, which looks for it.
    problems.retain(|problem| !waiting::is_why(problem));
    if problems.iter().any(|p| p.severity == Severity::Error) {
        return Err(Error::NotCheckpointable { group: group.name.clone(), problems });
    }
    problems.into_iter().for_each(|p| job.event(Event::Warning(p)));
    let units: Vec<_> = units.into_iter().filter(|u| !u.cgroup.is_empty()).collect();
    let id = match request.id.as_str() {
        "" => Ulid::new(),
        id => id.parse().map_err(|_| Error::InvalidArgs(format!("{id} is no ULID")))?,
    };
    let staging = Staging::begin(engine, &group.name, id)?;
    let prepared = Prepared::new(&engine.place()?, &subvolumes, &group.name, &id.to_string())?;
    let mut capture = Capture::prepare(group, &units, &subvolumes)?;
    let mut chain = chain::begin(engine, group, request.mode)?;
    let parent = chain.parent;
    let records = capture.units().to_vec();
    canceled(job)?;

    let cgroups = cgroups(group, &units)?;
    let window = Window {
        group: &group.name,
        run: &engine.settings.run,
        cgroups: &cgroups,
        units: &records,
        subvolumes: &subvolumes,
        max_freeze: group.config.capture.max_freeze,
        listeners: Listeners::look(&members::list(&units)?),
    };
    let pause = chain::watch(&window, &capture, &mut chain)?;
    let mut precopy = Precopy::begin(&staging.path)?;
    precopy.pages.compress(group.config.capture.compress.codec());
    precopy.run(&mut chain, job)?;
    capture.make_room(&chain, &precopy)?;
    job.stage(Stage::Barrier);
    for subvolume in &subvolumes {
        subvolume.flush()?;
    }
    let mut still = quiet(&window, &mut capture, || precopy.last_round(&mut chain, job))?;
    if let Some(unit) = still.members.first_empty(units.len()) {
        let problems = vec![check::has_ended(&units[unit.index()].name)];
        return Err(Error::NotCheckpointable { group: group.name.clone(), problems });
    }
    job.stage(Stage::Frozen);
    let freezer =
        Freezer { group: &group.name, run: window.run, cgroups: window.cgroups, deadline: still.deadline };
    let taken = capture_paired(capture, (chain, precopy), &mut still, prepared, &staging.path, &freezer);
    let draft = Draft { id, group, request, units: &units, instant: still.instant, parent };
    if request.stop {
        let freeze_usec = micros(pause + still.since.elapsed());
        let (mut captured, taken) = taken?;
        let outside = captured.take_outside();
        let (manifest, _) = commit(engine, draft, staging, captured, taken, freeze_usec, job)?;
        end(engine, &units, still)?;
        engine.hold(&group.name, outside);
        return Ok(describe::info(&manifest));
    }
    let (window, mut stages) = still.end()?;
    if !pause.is_zero() {
        stages.insert(0, ("pause".into(), micros(pause)));
    }
    let freeze_usec = micros(pause + window);
    let (captured, taken) = taken?;
    engine.hold(&group.name, Vec::new()); // what an earlier end of the group left
    job.captured(&id.to_string());
    let (manifest, mut chain) = commit(engine, draft, staging, captured, taken, freeze_usec, job)?;
    chain.parent = Some(manifest.id);
    engine.keep_chain(&group.name, chain);
    Ok(CheckpointInfo { stages, ..describe::info(&manifest) })
}

/// Opens the window; where requests of io_uring(7) are under way that do not end soon, or connections wait to be accepted, again.
///
/// Errors: NotCheckpointable where they never end or never are; as [`Window::begin`].
fn quiet(
    window: &Window<'_>,
    capture: &mut Capture,
    mut last: impl FnMut() -> Result<(), Error>,
) -> Result<Still, Error> {
    let mut problems = Vec::new();
    let mut clients = Clients::default();
    let mut windows = 0;
    while windows < WINDOWS {
        let (held, since) = clients.take();
        let mut still = match window.begin(&mut last, held) {
            Err(Error::NotCheckpointable { problems, .. })
                if problems.iter().all(waiting::is_why) && clients.note(&problems) =>
            {
                clients.wait(&window.listeners, HELD.min(window.max_freeze / 2));
                continue;
            }
            begun => begun?,
        };
        windows += 1;
        problems = capture.quiet(&mut still.members, still.deadline)?;
        if problems.is_empty() {
            still.since = since.unwrap_or(still.since);
            return Ok(still);
        }
        still.end()?;
        std::thread::sleep(UNDER_WAY);
    }
    Err(Error::NotCheckpointable { group: window.group.into(), problems })
}

/// Captures in the window, with the snapshots beside it. On failure the snapshots are gone; the caller ends the window.
fn capture_paired<'s>(
    capture: Capture,
    (chain, precopy): (Chain, Precopy),
    still: &mut Still,
    prepared: Prepared<'s>,
    directory: &Path,
    freezer: &Freezer<'_>,
) -> Result<(Captured, Taken<'s>), Error> {
    let (members, time) = (&mut still.members, &mut still.time);
    let done = paired(prepared, || capture.take(members, chain, precopy, directory, freezer, time));
    time.lap("snapshots");
    done
}

/// What the manifest says besides what is measured and written.
struct Draft<'a> {
    id: Ulid,
    group: &'a Group,
    request: &'a CheckpointRequest,
    units: &'a [Unit],
    instant: jiff::Timestamp,
    parent: Option<Ulid>,
}

/// Writes the image and makes it a checkpoint.
fn commit(
    engine: &LocalEngine,
    draft: Draft<'_>,
    staging: Staging,
    captured: Captured,
    taken: Taken<'_>,
    freeze_usec: u64,
    job: &dyn Job,
) -> Result<(Manifest, Chain), Error> {
    job.stage(Stage::Writing);
    let written = captured.write(&staging.path, job)?;
    let snapshots = taken.make_durable()?;
    let (manifest, chain) = manifest(draft, written, snapshots, freeze_usec);
    manifest.commit(&staging.path)?;
    crate::store::sync_directory(&engine.settings.store.join(&manifest.group))?;
    taken.keep();
    staging.keep();
    Ok((manifest, chain))
}

fn manifest(
    draft: Draft<'_>,
    written: Written,
    snapshots: Vec<SnapshotEntry>,
    freeze_usec: u64,
) -> (Manifest, Chain) {
    let manifest = Manifest {
        version: MANIFEST_VERSION,
        id: draft.id,
        group: draft.group.name.clone(),
        kind: if draft.parent.is_some() { Kind::Incremental } else { Kind::Full },
        parent: draft.parent,
        created: draft.instant,
        freeze_usec,
        processes: written.processes,
        threads: written.threads,
        pages_written: written.pages,
        image_bytes: crate::pinned::image_bytes(&written.files),
        snapshots,
        state: CheckpointState::Durable,
        tracker: written.chain.tracker.kind(),
        description: draft.request.description.clone(),
        tags: draft.request.tags.clone(),
        units: draft
            .units
            .iter()
            .map(|u| UnitEntry { name: u.name.clone(), main_pid: (u.main_pid != 0).then_some(u.main_pid) })
            .collect(),
        files: written.files,
        kernel: written.kernel,
    };
    (manifest, written.chain)
}

/// Ends the group where it stands: systemd is told first, so that nothing restarts it, then its processes are killed.
fn end(engine: &LocalEngine, units: &[Unit], still: Still) -> Result<(), Error> {
    let names: Vec<_> = units.iter().map(|u| u.name.clone()).collect();
    std::thread::scope(|scope| {
        // Under the same name: by it `Units` knows which job it works for.
        let thread = std::thread::Builder::new().name(current_name());
        let stop = thread
            .spawn_scoped(scope, || engine.units.stop(&names, true))
            .map_err(|e| Error::io("start a thread that stops the units", e))?;
        // They die without having run since the instant of the checkpoint.
        still.members.hold_until_end(|| stop.is_finished());
        stop.join().map_err(|_| Error::Failed("the thread that stops the units ended".into()))?
    })
}

fn current_name() -> String {
    std::thread::current().name().unwrap_or_default().to_owned()
}

/// The directory of a checkpoint that is being made; removed unless it is kept.
struct Staging {
    path: PathBuf,
    kept: bool,
}

impl Staging {
    fn begin(engine: &LocalEngine, group: &str, id: Ulid) -> Result<Self, Error> {
        Ok(Self { path: engine.store.begin(group, id)?, kept: false })
    }

    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.kept {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// The cgroups that hold the group: that of the slice stops all of it at once, units one by one otherwise.
fn cgroups(group: &Group, units: &[Unit]) -> Result<Vec<Cgroup>, Error> {
    let open = |name: &str| {
        Cgroup::open(name).map_err(|e| Error::Failed(format!("cannot open the cgroup: {}", with_sources(&e))))
    };
    let Some(slice) = &group.config.slice else { return units.iter().map(|u| open(&u.cgroup)).collect() };
    let of_slice =
        |u: &Unit| u.cgroup.find(&format!("/{slice}/")).map(|at| u.cgroup[..at + slice.len() + 1].to_owned());
    match units.first().and_then(of_slice) {
        Some(name) => Ok(vec![open(&name)?]),
        None => units.iter().map(|u| open(&u.cgroup)).collect(),
    }
}

fn canceled(job: &dyn Job) -> Result<(), Error> {
    if job.canceled() { Err(Error::Canceled) } else { Ok(()) }
}

fn micros(time: std::time::Duration) -> u64 {
    time.as_micros().try_into().unwrap_or(u64::MAX)
}
