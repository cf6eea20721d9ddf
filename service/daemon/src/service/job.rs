//! A job: one run of the engine for one group. The worker thread tells where it is; the bus shows it.

use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use ckpt_dbus::names::actions;
use ckpt_engine::{
    CheckpointInfo, CheckpointRequest, Decision, Event, Incoming, RestoreInfo, RestoreRequest, Stage,
};
use tokio::sync::{mpsc, watch};

use crate::bus::error::BusError;

/// What a job does.
#[derive(Debug, Clone)]
pub enum Work {
    /// Take a checkpoint.
    Checkpoint(CheckpointRequest),
    /// Put the group back.
    Restore(RestoreRequest),
    /// Remove checkpoints.
    Delete(Vec<String>),
    /// Read a checkpoint whole.
    Verify(String),
    /// Make a checkpoint stand alone; empty: the newest.
    Merge(String),
    /// The same for the newest if its chain is too long, beside other jobs; nobody asked for it.
    Shorten,
    /// Remove what retention does not keep.
    Prune,
    /// Write a checkpoint to a caller's file.
    Export(String, Arc<File>),
    /// Take in a checkpoint that was exported.
    Import(Arc<Incoming>),
}

impl Work {
    /// Job1.Type.
    pub fn kind(&self) -> &'static str {
        match self {
            Work::Checkpoint(_) => "checkpoint",
            Work::Restore(_) => "restore",
            Work::Delete(_) => "delete",
            Work::Verify(_) => "verify",
            Work::Merge(_) | Work::Shorten => "merge",
            Work::Prune => "prune",
            Work::Export(..) => "export",
            Work::Import(_) => "import",
        }
    }

    /// Group1.State while it runs.
    pub fn group_state(&self) -> &'static str {
        match self {
            Work::Checkpoint(_) => "checkpointing",
            Work::Restore(_) => "restoring",
            Work::Delete(_) => "deleting",
            Work::Verify(_) => "verifying",
            Work::Merge(_) | Work::Shorten => "merging",
            Work::Prune => "pruning",
            Work::Export(..) => "exporting",
            Work::Import(_) => "importing",
        }
    }

    /// The polkit action that starts it, and cancels it.
    pub fn action(&self) -> &'static str {
        match self {
            Work::Checkpoint(_) | Work::Verify(_) | Work::Merge(_) | Work::Shorten => actions::CHECKPOINT,
            Work::Restore(_) => actions::RESTORE,
            Work::Delete(_) | Work::Prune => actions::DELETE,
            Work::Export(..) | Work::Import(_) => actions::EXPORT,
        }
    }

    /// Whether it changes what rests on what, as [`Work::Shorten`] does: that one then makes room for it.
    pub fn changes_chains(&self) -> bool {
        matches!(self, Work::Delete(_) | Work::Merge(_) | Work::Prune)
    }
}

/// What came of a job that succeeded.
#[derive(Debug, Clone, PartialEq)]
pub enum Done {
    /// The checkpoint.
    Checkpoint(Box<CheckpointInfo>),
    /// The restore.
    Restore(RestoreInfo),
    /// The checkpoint that stands alone now.
    Merged(Box<CheckpointInfo>),
    /// The checkpoint that is there now.
    Imported(Box<CheckpointInfo>),
    /// What was kept and removed, and why.
    Pruned(Vec<Decision>),
    /// Nothing to tell.
    Plain,
}

/// What came of a job.
pub type Outcome = Result<Arc<Done>, BusError>;

/// What the worker thread tells the bus, in order.
#[derive(Debug)]
pub enum Report {
    /// The view changed: stage or progress.
    Changed,
    /// The group runs again.
    Captured,
    /// Something for the journal.
    Event(Event),
    /// The engine returned.
    Done(Result<Done, ckpt_engine::Error>),
}

/// Where a job is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct View {
    /// `running`, `canceling`, `done`, `failed`.
    pub state: &'static str,
    /// What the engine is doing.
    pub stage: Stage,
    /// Bytes done.
    pub done: u64,
    /// Bytes in total, 0 where it is not known.
    pub total: u64,
}

impl View {
    /// From 0 to 1.
    pub fn progress(&self) -> f64 {
        match self.total {
            0 => 0.0,
            total => (self.done as f64 / total as f64).clamp(0.0, 1.0),
        }
    }
}

/// Progress is passed on at most this often.
const PROGRESS_MS: u64 = 50;

/// A running job.
#[derive(Debug)]
pub struct Job {
    /// Number, unique for the life of the daemon.
    pub number: u32,
    /// Group.
    pub group: String,
    /// What it does.
    pub work: Work,
    /// The units that it concerns: no other job touches them meanwhile.
    pub units: Vec<String>,
    canceled: AtomicBool,
    view: Mutex<View>,
    reports: mpsc::UnboundedSender<Report>,
    captured: watch::Sender<bool>,
    outcome: watch::Sender<Option<Outcome>>,
    started: Instant,
    last_progress_ms: AtomicU64,
}

impl Job {
    /// A job that is about to run, and the end at which its reports come out.
    pub fn new(
        number: u32,
        group: String,
        work: Work,
        units: Vec<String>,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<Report>) {
        let (reports, receiver) = mpsc::unbounded_channel();
        let view = View { state: "running", stage: Stage::Queued, done: 0, total: 0 };
        let job = Self {
            number,
            group,
            work,
            units,
            canceled: AtomicBool::new(false),
            view: Mutex::new(view),
            reports,
            captured: watch::Sender::new(false),
            outcome: watch::Sender::new(None),
            started: Instant::now(),
            last_progress_ms: AtomicU64::new(0),
        };
        (Arc::new(job), receiver)
    }

    fn lock(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it is.
    pub fn view(&self) -> View {
        *self.lock()
    }

    /// Asks it to end where ending loses nothing.
    pub fn cancel(&self) {
        self.canceled.store(true, Ordering::Relaxed);
        self.lock().state = "canceling";
        let _ = self.reports.send(Report::Changed);
    }

    /// The worker thread's last word.
    pub fn finished(&self, result: Result<Done, ckpt_engine::Error>) {
        let _ = self.reports.send(Report::Done(result));
    }

    /// Marks that the members run again.
    pub fn set_captured(&self) {
        self.captured.send_replace(true);
    }

    /// Whether [`Job::set_captured`] was called.
    pub fn is_captured(&self) -> bool {
        *self.captured.borrow()
    }

    /// Publishes the outcome to those who wait.
    pub fn complete(&self, outcome: Outcome) {
        self.outcome.send_replace(Some(outcome));
    }

    /// Sets the last state.
    pub fn end(&self, state: &'static str) {
        self.lock().state = state;
    }

    /// Waits for the outcome.
    pub async fn outcome(&self) -> Outcome {
        let mut receiver = self.outcome.subscribe();
        match receiver.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or_else(|| Ok(Arc::new(Done::Plain))),
            // Not reached: the sender lives in self.
            Err(_) => Err(BusError::from(ckpt_engine::Error::Canceled)),
        }
    }

    /// Waits until the group runs again, or the job ended without that.
    pub async fn until_captured(&self) -> Result<(), BusError> {
        let mut receiver = self.captured.subscribe();
        tokio::select! {
            _ = receiver.wait_for(|captured| *captured) => Ok(()),
            outcome = self.outcome() => outcome.map(|_| ()),
        }
    }
}

impl ckpt_engine::Job for Job {
    fn stage(&self, stage: Stage) {
        {
            let mut view = self.lock();
            if view.stage == stage {
                return;
            }
            view.stage = stage;
        }
        let _ = self.reports.send(Report::Changed);
    }

    fn progress(&self, done: u64, total: u64) {
        {
            let mut view = self.lock();
            (view.done, view.total) = (done, total);
        }
        let now = self.started.elapsed().as_millis() as u64;
        if done >= total || now >= self.last_progress_ms.load(Ordering::Relaxed) + PROGRESS_MS {
            self.last_progress_ms.store(now, Ordering::Relaxed);
            let _ = self.reports.send(Report::Changed);
        }
    }

    fn canceled(&self) -> bool {
        self.canceled.load(Ordering::Relaxed)
    }

    fn captured(&self, _id: &str) {
        let _ = self.reports.send(Report::Captured);
    }

    fn event(&self, event: Event) {
        let _ = self.reports.send(Report::Event(event));
    }
}
