//! What members have besides descriptors and memory: directories, handlers, threads, and what each thread has of its own.

use std::collections::{BTreeMap, VecDeque};

use ckpt_image::records::{EndedLeader, Pid, ProcessBody, ProcessRecord};
use ckpt_sys::batch::Batch;

use super::{Rebuild, first_thread, mains};
use crate::rebuild::credentials::Now;
use crate::rebuild::process::{self, living, lookup};
use crate::rebuild::users::{self, Users};
use crate::rebuild::waves::{Batches, side_by_side};
use crate::rebuild::{Failure, Member, leader, release, tables, thread};

/// A process that was made, before its threads are set up.
#[derive(Debug, Clone, Copy, Default)]
struct Made {
    /// It has no parent of the group.
    is_root: bool,
    /// It is in the user namespace of its unit.
    is_private: bool,
}

impl<'a> Rebuild<'a> {
    /// Directories, handlers, threads, timers.
    pub(super) fn furnish(&mut self, users: &Users<'_>) -> Result<(), Failure> {
        let firsts = self.firsts();
        self.all(|this, place, slot, before| {
            let (_, body, first) = firsts[place];
            let mut batch = Batch::new(slot);
            if first.fs {
                let fs = lookup(&this.image.fs, body.fs.index(), "directories")?;
                process::directories(&mut batch, fs, this.opened.directories(fs)?);
            }
            if first.sighand {
                let sighand = lookup(&this.image.sighands, body.sighand.index(), "signal handlers")?;
                process::handlers(&mut batch, sighand);
            }
            let wanted = before.is_none() && !batch.is_empty();
            Ok(wanted.then_some(("set directories and signal handlers", batch)))
        })?;
        self.each(|this, member, record, body| {
            let mut threads = match users.enter(member, record, body)? {
                None => thread::make_threads(member, leader::others(body))?,
                Some(problems) => {
                    this.warn(record, problems);
                    this.private.insert(record.pid);
                    let instruction = this.vdso_of(body)?.add(this.gadget);
                    users.make_threads(member, record.unit, leader::others(body), instruction)?
                }
            };
            process::posix_timers(member, &body.posix_timers)?;
            if let Some(ended) = &body.ended_leader {
                this.replace_leader(member, &mut threads, body, ended)?;
            }
            this.threads.insert(record.pid, threads);
            Ok(())
        })
    }

    /// A leader that has ended does so again, and from here on the first of the other threads is what is asked to do things for the process.
    fn replace_leader(
        &mut self,
        member: &mut Member,
        threads: &mut Vec<Member>,
        body: &'a ProcessBody,
        ended: &EndedLeader,
    ) -> Result<(), Failure> {
        if threads.is_empty() {
            return Err(Failure::corrupt("it has no thread that lives").of_pid(member.pid.0));
        }
        let pid = member.pid;
        leader::prepare(member, ended, self.now(self.private.contains(&pid), body)?)?;
        let old = std::mem::replace(member, threads.remove(0));
        let instruction = self.vdso_of(body)?.add(self.gadget);
        if !mains(self.image).contains(&pid) {
            return leader::end(old, instruction, ended);
        }
        if leader::is_mourned(self.image, pid) {
            let why = "its first thread has ended, and a child wants a signal at its parent's end";
            return Err(Failure::unsupported(why).of_pid(pid.0));
        }
        self.waiting.push(leader::wait(old, instruction, ended)?);
        Ok(())
    }

    /// What the threads of a process that was made have of their credentials.
    fn now<'b>(&'b self, is_private: bool, body: &'b ProcessBody) -> Result<Now<'b>, Failure> {
        Ok(match is_private {
            true => Now::Ids(users::first(body)?),
            false => self.ours.as_ref().map_or(Now::Unknown, Now::All),
        })
    }

    fn warn(&mut self, record: &ProcessRecord, problems: Vec<String>) {
        self.warnings.extend(problems.into_iter().map(|p| format!("pid {}: {p}", record.pid)));
    }

    /// Every thread's own state, and limits; what credentials of any thread would undo comes with the leaders. Of descriptors only the members'
    /// own are left.
    pub(super) fn set_up_threads(&mut self) -> Result<(), Failure> {
        let made = self.made();
        self.set_from_outside(&made)?;
        self.set_up_others(&made)?;
        let firsts = self.firsts();
        let mut turns: Vec<_> = firsts.iter().map(|_| (VecDeque::new(), None)).collect();
        let mut problems = Vec::new();
        self.all(|this, place, slot, before| {
            let (record, body, first) = firsts[place];
            let (batches, limits) = &mut turns[place];
            match before {
                None => {
                    let mut all = Batches::new(slot);
                    let batch = all.room(0, 0);
                    if first.table {
                        tables::close_high(batch, this.floor);
                    }
                    let made = made.get(&record.pid).copied().unwrap_or_default();
                    // One in a user namespace had them set before it entered that.
                    *limits = (!made.is_private).then(|| process::attributes(batch, body));
                    this.leader(&mut all, record, body, made)?;
                    *batches = all.all();
                }
                // What came of the first batch, which has the limits.
                Some(outcome) => {
                    if let Some(limits) = limits.take() {
                        let mut batch = Batch::new(slot);
                        let failed = limits.failed(body, &outcome, &mut batch);
                        problems.extend(failed.into_iter().map(|p| format!("pid {}: {p}", record.pid)));
                        batches.extend((!batch.is_empty()).then_some(batch));
                    }
                }
            }
            Ok(batches.pop_front().map(|batch| ("set up the process", batch)))
        })?;
        self.warnings.extend(problems);
        Ok(())
    }

    /// What is to be known of each process for the set-up of its threads.
    fn made(&self) -> BTreeMap<Pid, Made> {
        let made = |(record, _): (&ProcessRecord, _)| {
            let is_root = !self.members.contains_key(&record.ppid);
            let is_private = self.private.contains(&record.pid);
            (record.pid, Made { is_root, is_private })
        };
        living(self.image).map(made).collect()
    }

    /// What is set from outside for whole processes, and for threads that may not do it themselves.
    fn set_from_outside(&mut self, made: &BTreeMap<Pid, Made>) -> Result<(), Failure> {
        let ours = process::FromOutside::ours();
        for (record, body) in living(self.image) {
            let Some(member) = self.members.get(&record.pid) else { continue };
            let problems = ours.set(member, body);
            if made.get(&record.pid).is_some_and(|made| made.is_private) {
                thread::scheduling_from_outside(member.tid(), first_thread(record, body)?)?;
                let others = self.threads.get(&record.pid).into_iter().flatten();
                for (other, thread) in others.zip(body.threads.iter().skip(1)) {
                    thread::scheduling_from_outside(other.tid(), thread)?;
                }
            }
            self.warn(record, problems);
        }
        Ok(())
    }

    /// What the set-up of the threads of a process is told.
    fn setting<'s>(&'s self, made: Made, body: &'s ProcessBody) -> Result<thread::Setting<'s>, Failure> {
        let Made { is_root, is_private } = made;
        let (image, cpus, credentials) = (self.image, self.cpus.as_slice(), self.now(is_private, body)?);
        Ok(thread::Setting { image, is_root, cpus, credentials, is_private })
    }

    /// The set-up of a process's leader.
    fn leader(
        &self,
        batches: &mut Batches,
        record: &ProcessRecord,
        body: &ProcessBody,
        made: Made,
    ) -> Result<(), Failure> {
        let leader = first_thread(record, body)?;
        thread::set_up(batches, leader, self.setting(made, body)?)?;
        let batch = batches.room(8, 256);
        process::dumpable(batch, body);
        process::itimers(batch, &body.itimers);
        release::drain(batch);
        release::queue(batches, (record.pid, leader.tid), &leader.pending, &body.pending)?;
        process::late_limits(batches.room(1, 16), body);
        Ok(())
    }

    /// The set-up of all threads besides the leaders.
    fn set_up_others(&mut self, made: &BTreeMap<Pid, Made>) -> Result<(), Failure> {
        let mut threads = std::mem::take(&mut self.threads);
        let mut records = Vec::new();
        let mut members = Vec::new();
        for (record, body) in living(self.image) {
            records.extend(body.threads.iter().skip(1).map(|thread| (record, body, thread)));
        }
        let mut by_process: BTreeMap<Pid, &mut Vec<Member>> =
            threads.iter_mut().map(|(pid, threads)| (*pid, threads)).collect();
        for (record, _) in living(self.image) {
            members.extend(by_process.remove(&record.pid).into_iter().flatten());
        }
        let mut turns: Vec<_> = records.iter().map(|_| VecDeque::new()).collect();
        let done = side_by_side(&mut members, |place, slot, before| {
            let Some((record, body, thread)) = records.get(place) else { return Ok(None) };
            let batches = &mut turns[place];
            if before.is_none() {
                let mut all = Batches::new(slot);
                let made = made.get(&record.pid).copied().unwrap_or_default();
                thread::set_up(&mut all, thread, self.setting(made, body)?)?;
                release::queue(&mut all, (record.pid, thread.tid), &thread.pending, &[])?;
                *batches = all.all();
            }
            Ok(batches.pop_front().map(|batch| ("set up the thread", batch)))
        });
        drop(members);
        self.threads = threads;
        done.map_err(|(place, e)| match records.get(place) {
            Some((record, ..)) => self.blame(e, record),
            None => e,
        })
    }
}
