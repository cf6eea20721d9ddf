//! User namespaces as systemd builds them for a unit (PrivateUsers=): members go into that of the stub.
//!
//! ```text
//!  one thread yet: limits, ids ─► setns(2) ─► all capabilities there, none here ─► threads ─► capabilities and secure bits of each
//! ```
//! A process can enter a user namespace only while it has one thread, and from then on it may not choose the ids of those that it makes: the
//! kernel is told from outside which id comes next, and a thread that got another, because somebody else was quicker, ends again. What
//! takes privileges besides is done before, or from outside.

use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use ckpt_image::records::{Credentials, Pid, ProcessBody, ProcessRecord, ThreadRecord, UnitIndex};
use ckpt_sys::VirtAddr;
use ckpt_sys::clone::{CLONE_ARGS_SIZE, CloneArgs, THREAD};
use ckpt_sys::sysctl::LastPid;
use ckpt_sys::task;
use ckpt_sys::thread::{Deadline, Stopped};
use nix::libc;

use super::pidspace::PidSpace;
use super::places::Places;
use super::{Failure, Member, credentials, leader, process};

/// How often a thread is made anew that got a wrong id.
const ATTEMPTS: usize = 2000;
/// How long the end of such a thread may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The user namespaces of a group's units.
#[derive(Debug)]
pub struct Users<'a> {
    places: &'a Places,
    space: Option<&'a PidSpace>,
    last: Option<LastPid>,
    ours: u64,
}

impl<'a> Users<'a> {
    /// Those of the stubs. `space`: the PID namespace that the members live in, where it is another than ours.
    pub fn open(places: &'a Places, space: Option<&'a PidSpace>) -> Result<Self, Failure> {
        let last = match places.iter().any(|place| place.users().is_some()) {
            true => Some(LastPid::open()?),
            false => None,
        };
        let ours = std::fs::metadata("/proc/self/ns/user").map_or(0, |own| own.ino());
        Ok(Self { places, space, last, ours })
    }

    /// Moves a process into its user namespace, if it lived in one; then what it could not set there is set already, and what could not be
    /// set at all is given.
    pub fn enter(
        &self,
        member: &mut Member,
        record: &ProcessRecord,
        body: &ProcessBody,
    ) -> Result<Option<Vec<String>>, Failure> {
        let Some(namespace) = self.of(record)? else { return Ok(None) };
        let problems = process::set_attributes(member, body)?;
        let mut batch = member.batch();
        credentials::set_ids(&mut batch, first(body)?);
        batch.must(libc::SYS_setns, [namespace as u64, libc::CLONE_NEWUSER as u64, 0, 0, 0, 0]);
        member.run("enter the user namespace", &batch)?;
        Ok(Some(problems))
    }

    /// The user namespace of a process, as a descriptor that it has inherited.
    fn of(&self, record: &ProcessRecord) -> Result<Option<RawFd>, Failure> {
        if [0, self.ours].contains(&record.namespaces.user) {
            return Ok(None);
        }
        let users = self.places.get(record.unit)?.users().ok_or_else(|| {
            let why = "it lived in a user namespace, and systemd has made none for the unit (PrivateUsers=)";
            Failure::not_restorable(why).of_pid(record.pid.0)
        });
        Ok(Some(users?.as_raw_fd()))
    }

    /// Makes threads of a process that is in its user namespace. `instruction`: a `syscall` in it.
    pub fn make_threads(
        &self,
        member: &mut Member,
        unit: UnitIndex,
        threads: &[ThreadRecord],
        instruction: VirtAddr,
    ) -> Result<Vec<Member>, Failure> {
        let mut made = Vec::with_capacity(threads.len());
        for thread in threads {
            let stopped = self.make_thread(member, unit, thread.tid, instruction)?;
            made.push(Member::new(thread.tid, stopped, member.runner()));
        }
        Ok(made)
    }

    fn make_thread(
        &self,
        member: &mut Member,
        unit: UnitIndex,
        tid: Pid,
        instruction: VirtAddr,
    ) -> Result<Stopped, Failure> {
        for _ in 0..ATTEMPTS {
            self.tell_next(unit, tid)?;
            let mut batch = member.batch();
            let args = CloneArgs { flags: THREAD, ..CloneArgs::default() };
            let raw = batch.data(&args.encode(0));
            let clone = batch.must(libc::SYS_clone3, [raw.get(), CLONE_ARGS_SIZE as u64, 0, 0, 0, 0]);
            let (outcome, mut children) = member.run_with_children("make a thread", &batch)?;
            let (Some(thread), true) = (children.pop(), children.is_empty()) else {
                return Err(Failure::not_restorable("clone3 made no thread").of_pid(member.pid.0));
            };
            if outcome.result(clone) == Ok(tid.0 as u64) {
                return Ok(thread);
            }
            end(thread, instruction)?;
        }
        let why = "the id of a thread of it could not be had";
        Err(Failure::not_restorable(why).of_pid(tid.0))
    }

    /// Makes this id the next that the kernel gives.
    fn tell_next(&self, unit: UnitIndex, tid: Pid) -> Result<(), Failure> {
        let Some(last) = &self.last else { return Ok(()) };
        match self.space {
            None => last.set(tid.0 - 1).map_err(Failure::from),
            Some(space) => space.inside(self.places, unit, || {
                last.set(tid.0 - 1).map_err(|e| e.errno().unwrap_or(nix::errno::Errno::EIO))
            }),
        }
    }
}

/// The credentials whose ids a process has when it enters its user namespace.
pub fn first(body: &ProcessBody) -> Result<&Credentials, Failure> {
    let leader = body.ended_leader.as_ref().map(|ended| &ended.credentials);
    let first = leader.or_else(|| body.threads.first().map(|thread| &thread.credentials));
    first.ok_or_else(|| Failure::corrupt("a process has no thread"))
}

/// Ends a thread that got a wrong id; its id is free then.
fn end(thread: Stopped, instruction: VirtAddr) -> Result<(), Failure> {
    let tid = thread.tid();
    leader::exit(thread, instruction, 0)?;
    let deadline = Deadline::after(PATIENCE);
    while task::status(tid).is_ok_and(|status| status.state != 'X') {
        if deadline.passed() {
            return Err(Failure::not_restorable("a thread with a wrong id does not end").of_pid(tid.as_raw()));
        }
        std::thread::yield_now();
    }
    Ok(())
}
