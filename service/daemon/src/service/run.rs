//! Starting jobs: a group runs one at a time, on a thread of its own (ptrace(2) binds a tracer's work to one thread).

use std::collections::BTreeSet;
use std::fs::File;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ckpt_engine::{
    CheckpointInfo, CheckpointRequest, Decision, Engine, Error, Event, Group, Incoming, Stage, Wait,
};
use tokio::sync::mpsc::UnboundedReceiver;
use ulid::Ulid;

use super::{Done, Job, Outcome, Report, Service, Work};
use crate::bus::error::BusError;
use crate::journal;

impl Service {
    /// Starts a checkpoint and waits as asked. Answers the job and the checkpoint's id.
    pub async fn checkpoint(
        self: &Arc<Self>,
        group: Group,
        mut request: CheckpointRequest,
        wait: Wait,
    ) -> Result<(u32, String), BusError> {
        // Chosen here, so that the caller of `wait=none` knows which checkpoint will come.
        let id = Ulid::new().to_string();
        request.id.clone_from(&id);
        let job = self.start(group, Work::Checkpoint(request)).await?;
        match wait {
            Wait::None => {}
            Wait::Captured => job.until_captured().await?,
            Wait::Durable => {
                if let Done::Checkpoint(info) = &*job.outcome().await? {
                    return Ok((job.number, info.id.clone()));
                }
            }
        }
        Ok((job.number, id))
    }

    /// Starts any other job and waits as asked.
    pub async fn job(self: &Arc<Self>, group: Group, work: Work, wait: Wait) -> Result<u32, BusError> {
        let job = self.start(group, work).await?;
        if wait != Wait::None {
            job.outcome().await?;
        }
        Ok(job.number)
    }

    /// Removes what retention does not keep, or says what it would. All decisions, newest first.
    pub async fn prune(self: &Arc<Self>, group: Group, dry_run: bool) -> Result<Vec<Decision>, BusError> {
        if dry_run {
            return Ok(self.blocking(move |service| service.engine.prune(&group, true, &Unseen)).await??);
        }
        match &*self.start(group, Work::Prune).await?.outcome().await? {
            Done::Pruned(decisions) => Ok(decisions.clone()),
            _ => Ok(Vec::new()),
        }
    }

    /// Takes in a checkpoint that was exported: the file says of which group. Answers the job and the checkpoint's id.
    pub async fn import(self: &Arc<Self>, file: File, wait: Wait) -> Result<(u32, String), BusError> {
        let from = self.blocking(move |_| Incoming::open(file)).await??;
        let (id, name) = (from.id(), from.group().to_owned());
        // The group need not be known here, and its units need not be there.
        let config = self.state().groups.get(&name).map(|k| k.config.clone()).unwrap_or_default();
        let number = self.job(Group { name, config }, Work::Import(Arc::new(from)), wait).await?;
        Ok((number, id))
    }

    async fn start(self: &Arc<Self>, group: Group, work: Work) -> Result<Arc<Job>, BusError> {
        let units = self.units_of(&group, &work).await?;
        let (job, reports) = self.reserve(&group, work, units)?;
        if let Err(error) = self.publish_new(&job).await {
            self.release(&job);
            return Err(error.into());
        }
        let (service, worker) = (Arc::clone(self), Arc::clone(&job));
        let spawned = std::thread::Builder::new().name(format!("ckpt:{}", group.name)).spawn(move || {
            let result = perform(&*service.engine, &group, &worker);
            if let Err(error) = service.host.tidy() {
                journal::problem(&group.name, &error);
            }
            worker.finished(result);
        });
        if let Err(error) = spawned {
            job.finished(Err(Error::io("a worker thread could not start", error)));
        }
        tokio::spawn(Arc::clone(self).drive(Arc::clone(&job), reports));
        Ok(job)
    }

    /// The units that a job freezes or stops: a service taken as a group of one may be in a registered group, too.
    async fn units_of(self: &Arc<Self>, group: &Group, work: &Work) -> Result<Vec<String>, Error> {
        if !matches!(work, Work::Checkpoint(_) | Work::Restore(_)) {
            return Ok(Vec::new());
        }
        let asked = group.clone();
        // What stands against asking systemd, the engine tells in its own words.
        let running = self.blocking(move |service| service.host.units(&asked)).await?.unwrap_or_default();
        Ok(running.into_iter().map(|u| u.name).chain(group.config.units.iter().cloned()).collect())
    }

    /// Takes the group for a job, or says that it is busy.
    fn reserve(
        &self,
        group: &Group,
        work: Work,
        units: Vec<String>,
    ) -> Result<(Arc<Job>, UnboundedReceiver<Report>), Error> {
        let mut state = self.state();
        if state.stopping {
            return Err(Error::Failed("ckptd is stopping; try again when it runs".into()));
        }
        let busy = state.groups.values().filter_map(|known| known.busy.as_ref());
        if let Some(other) = busy.clone().find(|j| j.units.iter().any(|u| units.contains(u)))
            && other.group != group.name
        {
            let doing = format!(
                "job {} is {} {} that has units of it",
                other.number,
                other.work.group_state(),
                other.group
            );
            return Err(Error::GroupBusy { group: group.name.clone(), doing });
        }
        let known = state.groups.entry(group.name.clone()).or_default();
        let lane = if matches!(work, Work::Shorten) { &known.background } else { &known.busy };
        if let Some(other) = lane {
            let doing = format!("job {} is {} it", other.number, other.work.group_state());
            return Err(Error::GroupBusy { group: group.name.clone(), doing });
        }
        if !known.enabled {
            known.config = group.config.clone();
        }
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let (job, reports) = Job::new(number, group.name.clone(), work, units);
        if job.work.changes_chains()
            && let Some(merge) = &known.background
        {
            // The engine lets the new job wait for its end.
            merge.cancel();
        }
        let lane = if matches!(job.work, Work::Shorten) { &mut known.background } else { &mut known.busy };
        *lane = Some(Arc::clone(&job));
        Ok((job, reports))
    }

    /// Gives the group back.
    pub(super) fn release(&self, job: &Job) {
        if let Some(known) = self.state().groups.get_mut(&job.group) {
            for lane in [&mut known.busy, &mut known.background] {
                lane.take_if(|one| one.number == job.number);
            }
        }
    }

    /// Puts the worker's reports on the bus and into the journal, in order, until the last one.
    async fn drive(self: Arc<Self>, job: Arc<Job>, mut reports: UnboundedReceiver<Report>) {
        let mut shown = job.view();
        let mut warned = BTreeSet::new();
        while let Some(report) = reports.recv().await {
            match report {
                Report::Changed => self.publish_view(&job, &mut shown).await,
                Report::Captured => {
                    job.set_captured();
                    self.publish_prepare(&job, false).await;
                }
                Report::Event(event) => {
                    if self.is_news(&job, &event, &mut warned) {
                        journal::event(&job.group, &event);
                    }
                }
                Report::Done(result) => {
                    if let Some(known) = self.state().groups.get_mut(&job.group) {
                        known.warned = warned;
                    }
                    self.finish(&job, result).await;
                    return;
                }
            }
        }
    }

    /// A group that is checkpointed every minute does not say the same every minute: a warning is news if the last job did not give it,
    /// whatever process it concerns now.
    fn is_news(&self, job: &Job, event: &Event, warned: &mut BTreeSet<(String, String, String)>) -> bool {
        let Event::Warning(problem) = event else { return true };
        let key = (problem.code.clone(), problem.unit.clone(), problem.object.clone());
        let known = self.state().groups.get(&job.group).is_some_and(|k| k.warned.contains(&key));
        warned.insert(key) && !known
    }

    /// The order matters: objects first, then the group is free, then the signals, then the reply.
    async fn finish(self: &Arc<Self>, job: &Arc<Job>, result: Result<Done, Error>) {
        journal::outcome(&job.group, &job.work, &result);
        let outcome: Outcome = result.map(Arc::new).map_err(BusError::from);
        job.end(if outcome.is_ok() { "done" } else { "failed" });
        if let Err(error) = self.sync(&job.group).await {
            journal::problem(&job.group, &error);
        }
        if !job.is_captured() {
            self.publish_prepare(job, false).await;
        }
        self.release(job);
        self.publish_end(job, &outcome).await;
        let taken = matches!(outcome.as_deref(), Ok(Done::Checkpoint(_)));
        job.complete(outcome);
        if taken {
            self.shorten(&job.group);
        }
    }

    /// Starts the merge of a chain that has become too long, if it has; beside whatever comes.
    fn shorten(self: &Arc<Self>, group: &str) {
        let group = {
            let state = self.state();
            let Some(known) = state.groups.get(group) else { return };
            if known.background.is_some() || !is_too_long(&known.checkpoints, known.config.capture.max_chain)
            {
                return;
            }
            Group { name: group.to_owned(), config: known.config.clone() }
        };
        let service = Arc::clone(self);
        let started: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(async move {
            let name = group.name.clone();
            if let Err(error) = service.start(group, Work::Shorten).await {
                journal::problem(&name, &Error::Failed(format!("the chain is not merged: {}", error.text)));
            }
        });
        tokio::spawn(started);
    }
}

/// The job of what is only asked.
struct Unseen;

impl ckpt_engine::Job for Unseen {
    fn stage(&self, _: Stage) {}
    fn progress(&self, _: u64, _: u64) {}
    fn canceled(&self) -> bool {
        false
    }
    fn captured(&self, _: &str) {}
    fn event(&self, _: Event) {}
}

/// Whether the newest of these checkpoints rests on so many incrementals.
fn is_too_long(checkpoints: &[CheckpointInfo], max_chain: u32) -> bool {
    let mut length = 0;
    let mut next = checkpoints.iter().find(|c| c.state == "durable");
    while let Some(parent) = next.and_then(|c| c.parent.as_ref()) {
        length += 1;
        next = checkpoints.iter().find(|c| c.id == *parent);
        if length > checkpoints.len() {
            // They rest on each other in a circle: that is for a restore to tell.
            return false;
        }
    }
    length > 0 && length >= max_chain as usize
}

/// Runs the engine; on the worker thread.
fn perform(engine: &dyn Engine, group: &Group, job: &Job) -> Result<Done, Error> {
    match &job.work {
        Work::Checkpoint(request) => {
            engine.checkpoint(group, request, job).map(|i| Done::Checkpoint(Box::new(i)))
        }
        Work::Restore(request) => engine.restore(group, request, job).map(Done::Restore),
        Work::Delete(ids) => engine.delete(group, ids, job).map(|()| Done::Plain),
        Work::Verify(id) => engine.verify(group, id, job).map(|()| Done::Plain),
        Work::Merge(upto) => engine.merge(group, upto, job).map(|i| Done::Merged(Box::new(i))),
        Work::Shorten => {
            let merged = engine.shorten(group, job)?;
            Ok(merged.map_or(Done::Plain, |i| Done::Merged(Box::new(i))))
        }
        Work::Prune => engine.prune(group, false, job).map(Done::Pruned),
        Work::Export(id, to) => engine.export(group, id, to, job).map(|()| Done::Plain),
        Work::Import(from) => engine.import(from, job).map(|i| Done::Imported(Box::new(i))),
    }
}
