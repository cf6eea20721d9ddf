//! The way of a restore.
//!
//! ```text
//! find ► verify, check all that can be checked ► stop the units ► exchange the subvolumes ► stubs ► ckpt-restore ► adopt
//! └───────────── nothing is touched ─────────┘  └─────────── a failure puts the old subvolumes back ──────────┘
//! ```

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use ckpt_image::records::GroupImage;
use ckpt_image::{Manifest, read_state};
use ckpt_sys::cgroup::Cgroup;
use ckpt_sys::task;

use super::rebuilder::{How, Rebuilder};
use super::verify::Extent;
use super::{LocalEngine, precheck, verify};
use crate::api::{Event, Group, Job, Problem, RestoreInfo, RestoreRequest, Severity, Stage, Stub, Unit};
use crate::error::Error;
use crate::kinds::outside::{self, Held};
use crate::rebuild::Report;
use crate::rebuild::lazy::{Lazily, keeper, mark};
use crate::storage::{self, Undo};
use crate::timeline::Timeline;

/// Bytes of memory from which on a restore is lazy by itself.
const WORTH: u64 = 64 << 20;

/// Restores a checkpoint of a group.
pub fn run(
    engine: &LocalEngine,
    group: &Group,
    request: &RestoreRequest,
    job: &dyn Job,
) -> Result<RestoreInfo, Error> {
    let begin = Instant::now();
    let mut time = Timeline::start();
    let manifest = engine.store.find(&group.name, &request.checkpoint)?;
    job.stage(Stage::Checking);
    let (image, bytes) = check(engine, &manifest, job)?;
    let there = engine.units.units(group)?;
    let taken = taken(&there, &manifest, &image)?;
    time.lap("check");
    if job.canceled() {
        return Err(Error::Canceled);
    }

    // It reads the image while systemd stops the old units and starts the new ones.
    let chain = engine.store.chain(&manifest.group, &manifest.id.to_string())?;
    let rebuilder = Rebuilder::start(&engine.settings.libdir, chain)?;
    job.stage(Stage::Stopping);
    let mut outside = Outside::look(engine, group, &there, &image)?;
    let units: Vec<_> = manifest.units.iter().map(|u| u.name.clone()).collect();
    engine.units.stop(&all_units(there, &units), true)?;
    time.lap("stop");
    job.stage(Stage::Exchanging);
    let mut undo = storage::exchange(&manifest.snapshots)?;
    time.lap("exchange");
    let rebuilt = {
        let lazily = lazily(engine, group, request, bytes, &units, job);
        let keeper = lazily.as_ref().map(|lazily| lazily.keeper.clone());
        let how = How { own_pids: taken.is_some(), lazily, held: outside.as_they_were(&image) };
        let rebuilt = rebuild(engine, (rebuilder, &manifest), &units, &mut undo, how, &mut time, job);
        // It waits on where nothing was handed over.
        keeper.iter().for_each(|socket| keeper::dismiss(socket));
        rebuilt
    };
    let restore_usec = begin.elapsed().as_micros().try_into().unwrap_or(u64::MAX);
    // A group that systemd does not take is not restored.
    let adopted = rebuilt.and_then(|rebuilt| adopt(engine, group, &units, rebuilt));
    let rebuilt = match adopted {
        Ok(rebuilt) => rebuilt,
        Err(error) => {
            engine.hold(&group.name, outside.connections);
            return Err(give_up(engine, &units, undo, error));
        }
    };
    time.lap("adopt");
    rebuilt.warnings.iter().for_each(|text| job.event(Event::Warning(not_quite(text))));
    if rebuilt.init.is_some() {
        let taken = taken.unwrap_or((0, "a process that began meanwhile".into()));
        job.event(Event::Warning(own_pids(&taken)));
    }
    Ok(RestoreInfo {
        id: manifest.id.to_string(),
        group: group.name.clone(),
        processes: rebuilt.processes,
        restore_usec,
        units: rebuilt.units,
        late: rebuilt.late,
        stages: time.laps(),
    })
}

/// A process id of the image that a process has which is not of the group, and the name of that process.
fn taken(there: &[Unit], manifest: &Manifest, image: &GroupImage) -> Result<Option<(i32, String)>, Error> {
    let cgroups = there.iter().filter(|u| !u.cgroup.is_empty()).filter_map(|u| Cgroup::open(&u.cgroup).ok());
    let processes = cgroups.flat_map(|cgroup| cgroup.members().unwrap_or_default());
    let threads = processes.flat_map(|member| task::threads(member.pid).unwrap_or_default());
    let leaving = threads.map(nix::unistd::Pid::as_raw).collect();
    let id = manifest.id.to_string();
    crate::rebuild::in_use(image, &leaving).map_err(|failure| failure.into_error(&manifest.group, &id))
}

/// What the journal is told where process ids were taken.
fn own_pids((pid, name): &(i32, String)) -> Problem {
    let text = "a process id of the group is in use: the members live in a PID namespace of their own";
    let warning = warning("pid-taken", text.into(), "nothing: they know each other by their old ids");
    Problem { pid: *pid, object: name.clone(), ..warning }
}

/// Something that a restore could not do as it should, which concerns no unit alone.
fn warning(code: &str, text: String, remedy: &str) -> Problem {
    Problem {
        code: code.into(),
        severity: Severity::Warning,
        unit: String::new(),
        pid: 0,
        object: String::new(),
        text,
        remedy: remedy.into(),
    }
}

/// Hands the units over to systemd.
fn adopt(engine: &LocalEngine, group: &Group, units: &[String], rebuilt: Report) -> Result<Report, Error> {
    if let Some(init) = rebuilt.init {
        engine.units.shelter(&group.name, init, units)?;
    }
    engine.units.adopt(&rebuilt.units)?;
    Ok(rebuilt)
}

/// Something that did not come back as it was, for the journal.
fn not_quite(text: &str) -> Problem {
    warning("not-quite-restored", text.into(), "nothing: the rest is as it was")
}

/// Connections to outside the group that may go on: those of a group that `--stop` ended, and those of the members that run.
struct Outside {
    connections: Vec<OwnedFd>,
}

impl Outside {
    /// Holds them, so that they stay when the members end.
    fn look(engine: &LocalEngine, group: &Group, there: &[Unit], image: &GroupImage) -> Result<Self, Error> {
        let mut connections = engine.take_held(&group.name);
        if outside::wanted(image).next().is_some() {
            let members = crate::members::list(there)?;
            connections.extend(members.iter().flat_map(|m| outside::of_process(m.pid, image)));
        }
        Ok(Self { connections })
    }

    /// Those that the image knows and in which nobody has read or written since; the others end.
    fn as_they_were(&mut self, image: &GroupImage) -> Vec<Held> {
        self.connections.retain(|fd| outside::as_it_was(fd.as_fd(), image).is_some());
        self.connections.iter().filter_map(|fd| outside::as_it_was(fd.as_fd(), image)).collect()
    }
}

/// Everything that can be looked at before anything is stopped. Gives the image and the bytes of its pages.
fn check(engine: &LocalEngine, manifest: &Manifest, job: &dyn Job) -> Result<(GroupImage, u64), Error> {
    let id = manifest.id.to_string();
    // ckpt-restore compares the pages with their checksums, as it reads them; a failure there puts everything back, too.
    let ancestry = engine.store.ancestry(&manifest.group, &id)?;
    let bytes = verify::chain(&engine.store, &ancestry, Extent::AllButPages, job)?;
    storage::verify(&manifest.snapshots)?;
    let directory = engine.store.directory(&manifest.group, &id);
    let image = read_state(&directory)?;
    precheck::image(&image, &directory)?;
    crate::rebuild::check(&image).map_err(|failure| failure.into_error(&manifest.group, &id))?;
    Ok((image, bytes))
}

/// The units of the image and those that have joined the group since: all of them are to stand still while files change.
fn all_units(there: Vec<Unit>, of_image: &[String]) -> Vec<String> {
    let mut names: Vec<_> = there.into_iter().filter(|u| !u.cgroup.is_empty()).map(|u| u.name).collect();
    names.extend(of_image.iter().cloned());
    names.sort();
    names.dedup();
    names
}

/// Whether memory may come while the members run: where it is asked for, else where there is enough of it to be worth it.
/// Then its keeper begins.
fn lazily(
    engine: &LocalEngine,
    group: &Group,
    request: &RestoreRequest,
    bytes: u64,
    units: &[String],
    job: &dyn Job,
) -> Option<Lazily> {
    let least = match request.lazy {
        Some(true) => 1,
        Some(false) => return None,
        None => WORTH,
    };
    if bytes < least {
        return None;
    }
    let marks = mark::directory(&engine.settings.run, &group.name);
    let begun = keeper::socket(&engine.settings.run, &group.name)
        .map_err(|e| Error::io("make a directory for keepers", e))
        .and_then(|socket| engine.units.start_keeper(&group.name, &socket, units).map(|()| socket));
    let keeper = begun.inspect_err(|e| job.event(Event::Warning(not_lazy(e)))).ok()?;
    Some(Lazily { group: group.name.clone(), marks, keeper, least })
}

/// Why a restore was not lazy that could have been.
fn not_lazy(error: &Error) -> Problem {
    let text = format!("all memory is read before the group runs, since what would bring it cannot: {error}");
    warning("not-lazy", text, "nothing: the restore only takes longer")
}

fn rebuild(
    engine: &LocalEngine,
    (rebuilder, manifest): (Rebuilder, &Manifest),
    units: &[String],
    undo: &mut Undo,
    how: How,
    time: &mut Timeline,
    job: &dyn Job,
) -> Result<Report, Error> {
    job.stage(Stage::Starting);
    let stubs: Vec<Stub> = engine.units.start_stubs(units)?;
    time.lap("stubs");
    if job.canceled() {
        return Err(Error::Canceled);
    }
    job.stage(Stage::Rebuilding);
    // The members write to the new subvolumes as soon as they run, so the exchange must stand before that.
    undo.commit()?;
    time.lap("commit");
    let report = rebuilder.run(manifest, &stubs, how)?;
    time.within("rebuild", &report.stages);
    Ok(report)
}

/// Leaves the group stopped with the old subvolumes in place.
fn give_up(engine: &LocalEngine, units: &[String], mut undo: Undo, error: Error) -> Error {
    let mut also = Vec::new();
    if let Err(e) = engine.units.abandon(units) {
        also.push(format!("the units could not be stopped: {e}"));
    }
    if let Err(e) = undo.revert() {
        also.push(format!("the subvolumes could not be put back: {e}; they are kept as {}", undo.id()));
    }
    match also.is_empty() {
        true => error,
        false => Error::Failed(format!("{error}; moreover {}", also.join(", and "))),
    }
}
