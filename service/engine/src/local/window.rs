//! The freeze window: everything of the group stands still between its two ends.
//!
//! ```text
//!  gates closed, drained, subvolumes flushed      the group computes on
//!  ┌ record ► cgroup.freeze 1 ► gates still quiet? ─no─► thaw, drain, again
//!  │                            connections wait? ─yes─► thaw, gates open: the caller decides
//!  │ seize every thread ► cgroup.freeze 0 (the threads stay stopped)
//!  │ capture ‖ snapshots
//!  └ detach ► gates open                          the group computes on
//! ```

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use ckpt_image::records::UnitRecord;
use ckpt_sys::cgroup::{Cgroup, Frozen};
use ckpt_sys::inject::Live;
use ckpt_sys::priority::Preferred;
use ckpt_sys::seize::{Process, seize_frozen};
use ckpt_sys::task;
use ckpt_sys::thread::Deadline;
use ckpt_sys::time_limit::Sleepers;
use jiff::Timestamp;
use nix::unistd::Pid;

use super::waiting::Listeners;
use crate::barrier::Barrier;
use crate::capture::members::Members;
use crate::error::{Error, with_sources};
use crate::frozen::FrozenRecord;
use crate::members::living_task;
use crate::parallel::Ready;
use crate::storage::{Prepared, Subvolume, Taken};
use crate::timeline::{Laps, Timeline};

/// How often a freeze is tried again because an operation slipped in or a thread could not stop.
const ATTEMPTS: u32 = 8;

/// A group that is about to stand still.
pub struct Window<'a> {
    /// Group name, for the record and for errors.
    pub group: &'a str,
    /// /run/ckpt.
    pub run: &'a Path,
    /// The cgroups to freeze: that of the slice, or those of the units.
    pub cgroups: &'a [Cgroup],
    /// The units that the members belong to.
    pub units: &'a [UnitRecord],
    /// Flushed once more when the gates are closed.
    pub subvolumes: &'a [Subvolume],
    /// The longest it may last.
    pub max_freeze: Duration,
    /// Where connections of the group may wait to be accepted.
    pub listeners: Listeners,
}

/// A group that stands still: every thread stopped, gates closed. Dropped, it runs on.
pub struct Still {
    /// The members, all threads stopped.
    pub members: Members,
    /// When the window has to end.
    pub deadline: Deadline,
    /// When it began.
    pub since: Instant,
    /// The same on the clock of the calendar.
    pub instant: Timestamp,
    /// Where the time since then goes.
    pub time: Timeline,
    // Dropped after the processes: the gates open last.
    barrier: Barrier,
    /// On a busy machine the group would else stand still while other programs have their turn.
    _preferred: Preferred,
    _ready: Ready,
}

impl Still {
    /// Lets everything run on. Returns how long it stood still, and for what.
    pub fn end(self) -> Result<(Duration, Laps), Error> {
        let Still { members, since, barrier, mut time, .. } = self;
        let released = members.release();
        let window = since.elapsed();
        time.lap("release");
        drop(barrier);
        released.map_err(failed("let the members go on"))?;
        Ok((window, time.laps()))
    }
}

impl Window<'_> {
    /// Stops every thread for a moment, gates open, for what only a stopped member lets be done. Bounded like the window.
    ///
    /// Errors: FreezeTimeout, as [`Window::begin`].
    pub fn pause<T>(
        &self,
        work: impl FnOnce(&mut [Live], Deadline) -> Result<T, Error>,
    ) -> Result<(T, Duration), Error> {
        let _preferred = Preferred::begin();
        let mut last = String::new();
        for _ in 0..ATTEMPTS {
            match self.stop(None, Vec::new()) {
                Ok(stopped) => {
                    let since = stopped.since;
                    let deadline = Deadline::after(self.max_freeze.saturating_sub(since.elapsed()));
                    let mut lives = stopped.hold(deadline).map_err(failed("look at the members"))?;
                    let done = work(&mut lives, deadline);
                    Live::release_all(lives).map_err(failed("let the members go on"))?;
                    return Ok((done?, since.elapsed()));
                }
                Err(Attempt::Again(why)) => last = why,
                Err(Attempt::Final(error)) => return Err(error),
            }
        }
        Err(Error::FreezeTimeout { group: self.group.into(), why: last })
    }

    /// Closes the gates, drains, flushes and stops every thread. `last` is done just before, with the gates closed. What is `held` already is
    /// let go when everything else stands still.
    ///
    /// Errors: FreezeTimeout if not everything stopped within `max_freeze`, on any of a few attempts; NotCheckpointable while connections
    /// wait that were written to. The group runs then.
    pub fn begin(
        &self,
        last: impl FnOnce() -> Result<(), Error>,
        mut held: Vec<Process>,
    ) -> Result<Still, Error> {
        let mut barrier =
            Barrier::close(&self.pids()?, self.drain_deadline()).map_err(failed("close the gates"))?;
        for subvolume in self.subvolumes {
            subvolume.flush()?;
        }
        last()?;
        let mut last = String::new();
        let preferred = Preferred::begin();
        let ready = Ready::begin();
        for _ in 0..ATTEMPTS {
            barrier.extend(&self.pids()?).map_err(failed("close the gates"))?;
            barrier.drain(self.drain_deadline());
            match self.stop(Some(&barrier), std::mem::take(&mut held)) {
                Ok(stopped) => {
                    let (since, instant) = (stopped.since, stopped.instant);
                    let deadline = Deadline::after(self.max_freeze.saturating_sub(since.elapsed()));
                    let (members, time) = self.hold(stopped, deadline)?;
                    return Ok(Still {
                        members,
                        deadline,
                        since,
                        instant,
                        time,
                        barrier,
                        _preferred: preferred,
                        _ready: ready,
                    });
                }
                Err(Attempt::Again(why)) => last = why,
                Err(Attempt::Final(error)) => return Err(error),
            }
        }
        Err(Error::FreezeTimeout { group: self.group.into(), why: last })
    }

    /// Takes what was stopped over.
    fn hold(&self, mut stopped: StoppedGroup, deadline: Deadline) -> Result<(Members, Timeline), Error> {
        let members = Members::hold(stopped.processes, self.units, deadline);
        let mut members = members.map_err(failed("look at the members"))?;
        members.keep_time_limits(&stopped.sleepers).map_err(failed("keep the time limits of calls"))?;
        stopped.time.lap("hold");
        Ok((members, stopped.time))
    }

    /// One attempt to stop everything.
    fn stop(&self, barrier: Option<&Barrier>, held: Vec<Process>) -> Result<StoppedGroup, Attempt> {
        let names: Vec<_> = self.cgroups.iter().map(|c| c.name().to_owned()).collect();
        let _record = FrozenRecord::write(self.run, self.group, &names).map_err(Attempt::Final)?;
        let threads = self.threads().map_err(Attempt::Final)?;
        let sleepers = Sleepers::look(threads);
        let (since, mut time) = (Instant::now(), Timeline::start());
        let deadline = Deadline::after(self.max_freeze);
        let frozen = Frozen::freeze(self.cgroups, deadline).map_err(attempt)?;
        let instant = Timestamp::now();
        time.lap("freeze");
        if barrier.is_some_and(|barrier| !barrier.still_quiet()) {
            return Err(Attempt::Again("file operations began faster than they could be held back".into()));
        }
        if barrier.is_some() {
            self.nothing_waits()?;
        }
        held.into_iter().try_for_each(Process::release).map_err(attempt)?;
        let processes = seize_frozen(frozen, deadline).map_err(attempt)?;
        time.lap("seize");
        Ok(StoppedGroup { processes, sleepers, since, instant, time })
    }

    /// Connections that wait and were written to end the attempt.
    fn nothing_waits(&self) -> Result<(), Attempt> {
        let problems = self.listeners.problems(|| self.members()).map_err(Attempt::Final)?;
        match problems.is_empty() {
            true => Ok(()),
            false => Err(Attempt::Final(Error::NotCheckpointable { group: self.group.into(), problems })),
        }
    }

    /// The members, with the names of their units.
    fn members(&self) -> Result<Vec<(i32, String)>, Error> {
        let of = |pid: i32| {
            let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            let is_it = |unit: &&UnitRecord| cgroup.trim_end().contains(&unit.cgroup);
            (pid, self.units.iter().find(is_it).map_or_else(String::new, |unit| unit.name.clone()))
        };
        Ok(self.pids()?.into_iter().map(of).collect())
    }

    /// Every thread; of a process that has ended meanwhile none.
    fn threads(&self) -> Result<Vec<Pid>, Error> {
        let of = |pid: i32| task::threads(Pid::from_raw(pid)).unwrap_or_default();
        Ok(self.pids()?.into_iter().flat_map(of).collect())
    }

    fn pids(&self) -> Result<Vec<i32>, Error> {
        let mut pids = Vec::new();
        for cgroup in self.cgroups {
            let members = cgroup.members().map_err(failed("list the members"))?;
            pids.extend(members.into_iter().map(|m| living_task(m.pid)));
        }
        Ok(pids)
    }

    /// Operations that execute get this long to end; what takes longer is captured in the middle of it, which is right too.
    fn drain_deadline(&self) -> Duration {
        (self.max_freeze / 4).min(Duration::from_millis(100))
    }
}

/// A group all of whose threads have stopped.
struct StoppedGroup {
    processes: Vec<Process>,
    /// Who slept in a call with a time limit just before.
    sleepers: Sleepers,
    since: Instant,
    instant: Timestamp,
    time: Timeline,
}

impl StoppedGroup {
    /// Takes it over for batches only.
    fn hold(self, deadline: Deadline) -> Result<Vec<Live>, ckpt_sys::Error> {
        let hold = |process| {
            let mut live = Live::hold(process, deadline)?;
            live.keep_time_limits(&self.sleepers)?;
            Ok(live)
        };
        self.processes.into_iter().map(hold).collect()
    }
}

/// How an attempt to stop the group failed.
enum Attempt {
    Again(String),
    Final(Error),
}

fn attempt(error: ckpt_sys::Error) -> Attempt {
    let text = with_sources(&error);
    match error {
        ckpt_sys::Error::Deadline { .. } => Attempt::Again(text),
        _ => Attempt::Final(Error::Failed(text)),
    }
}

fn failed(what: &'static str) -> impl Fn(ckpt_sys::Error) -> Error {
    move |e| Error::Failed(format!("cannot {what}: {}", with_sources(&e)))
}

/// Takes the snapshots in a thread of their own while `capture` runs in this one (ptrace(2): the tracer is a thread).
/// If either fails, neither is there.
pub fn paired<'s, T>(
    prepared: Prepared<'s>,
    capture: impl FnOnce() -> Result<T, Error>,
) -> Result<(T, Taken<'s>), Error> {
    std::thread::scope(|scope| {
        let snapshots = scope.spawn(|| prepared.take());
        let captured = capture();
        let taken = snapshots.join().map_err(|_| Error::Failed("the snapshots' thread ended".into()))??;
        Ok((captured?, taken))
    })
}
