//! What members have besides descriptors and memory: directories, handlers, threads, and what each thread has of its own.

use std::collections::{BTreeMap, VecDeque};

use ckpt_image::records::{Credentials, Pid, ProcessBody, ProcessRecord};
use ckpt_sys::batch::Batch;

use super::{Rebuild, leader};
use crate::rebuild::process::{self, living, lookup};
use crate::rebuild::waves::{Batches, side_by_side};
use crate::rebuild::{Failure, Member, release, tables, thread};

/// A process that was made, before its threads are set up.
#[derive(Debug)]
struct Made {
    is_root: bool,
    credentials: Option<Credentials>,
}

impl Rebuild<'_> {
    /// Directories, handlers, threads, timers.
    pub(super) fn furnish(&mut self) -> Result<(), Failure> {
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
            let threads = thread::make_threads(member, &body.threads)?;
            this.threads.insert(record.pid, threads);
            process::posix_timers(member, &body.posix_timers)
        })
    }

    /// Every thread's own state, and limits; what credentials of any thread would undo comes with the leaders. Of descriptors only the members'
    /// own are left.
    pub(super) fn set_up_threads(&mut self) -> Result<(), Failure> {
        self.set_from_outside();
        let made = self.made();
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
                    *limits = Some(process::attributes(batch, body));
                    this.leader(&mut all, record, body, made.get(&record.pid))?;
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

    /// What is to be known of each process for the set-up of its threads: whether it has no parent of the group, and its credentials so far.
    fn made(&self) -> BTreeMap<Pid, Made> {
        let made = |(record, _): (&ProcessRecord, _)| {
            let is_root = !self.members.contains_key(&record.ppid);
            let member = self.members.get(&record.pid);
            let credentials = member.and_then(|member| self.ours.of(member.tid()).cloned());
            (record.pid, Made { is_root, credentials })
        };
        living(self.image).map(made).collect()
    }

    fn set_from_outside(&mut self) {
        let ours = process::FromOutside::ours();
        for (record, body) in living(self.image) {
            let Some(member) = self.members.get(&record.pid) else { continue };
            let problems = ours.set(member, body);
            self.warnings.extend(problems.into_iter().map(|p| format!("pid {}: {p}", record.pid)));
        }
    }

    /// What the set-up of the threads of a process is told.
    fn setting<'s>(&'s self, made: Option<&'s Made>) -> thread::Setting<'s> {
        let (image, cpus) = (self.image, &self.cpus);
        let is_root = made.is_some_and(|made| made.is_root);
        thread::Setting { image, is_root, cpus, credentials: made.and_then(|made| made.credentials.as_ref()) }
    }

    /// The set-up of a process's leader.
    fn leader(
        &self,
        batches: &mut Batches,
        record: &ProcessRecord,
        body: &ProcessBody,
        made: Option<&Made>,
    ) -> Result<(), Failure> {
        let leader = leader(record, body)?;
        thread::set_up(batches, leader, self.setting(made))?;
        let batch = batches.room(8, 256);
        process::dumpable(batch, body);
        process::itimers(batch, &body.itimers);
        release::drain(batch);
        release::queue(batches, (record.pid, leader.tid), &leader.pending, &body.pending)
    }

    /// The set-up of all threads besides the leaders.
    fn set_up_others(&mut self, made: &BTreeMap<Pid, Made>) -> Result<(), Failure> {
        let mut threads = std::mem::take(&mut self.threads);
        let mut records = Vec::new();
        let mut members = Vec::new();
        for (record, body) in living(self.image) {
            records.extend(body.threads.iter().skip(1).map(|thread| (record, thread)));
        }
        let mut by_process: BTreeMap<Pid, &mut Vec<Member>> =
            threads.iter_mut().map(|(pid, threads)| (*pid, threads)).collect();
        for (record, _) in living(self.image) {
            members.extend(by_process.remove(&record.pid).into_iter().flatten());
        }
        let mut turns: Vec<_> = records.iter().map(|_| VecDeque::new()).collect();
        let done = side_by_side(&mut members, |place, slot, before| {
            let Some((record, thread)) = records.get(place) else { return Ok(None) };
            let batches = &mut turns[place];
            if before.is_none() {
                let mut all = Batches::new(slot);
                thread::set_up(&mut all, thread, self.setting(made.get(&record.pid)))?;
                release::queue(&mut all, (record.pid, thread.tid), &thread.pending, &[])?;
                *batches = all.all();
            }
            Ok(batches.pop_front().map(|batch| ("set up the thread", batch)))
        });
        drop(members);
        self.threads = threads;
        done.map_err(|(place, e)| match records.get(place) {
            Some((record, _)) => self.blame(e, record),
            None => e,
        })
    }
}
