//! A member that is being rebuilt: a traced, stopped copy of ckpt-restore in which batches of system calls run.

use std::time::Duration;

use ckpt_image::records::Pid;
use ckpt_sys::batch::{Batch, Call, Outcome, Slot};
use ckpt_sys::runner::{Begun, Ran, RestoreRunner};
use ckpt_sys::thread::{Care, Deadline, Running, Step, Stopped};

use super::Failure;

/// How long one batch may take: a read of much memory from a slow disk is the longest.
const PATIENCE: Duration = Duration::from_secs(120);

/// One thread of a member, stopped between batches.
#[derive(Debug)]
pub struct Member {
    /// Its id as the image has it (of a thread: its thread id).
    pub pid: Pid,
    runner: RestoreRunner,
    /// `None` only while a batch runs, or after a failure that lost it.
    thread: Option<Stopped>,
    /// The batch that runs.
    begun: Option<(Begun, Batch, String)>,
}

impl Member {
    /// A stopped thread that has the runner area. It is killed if this is dropped.
    pub fn new(pid: Pid, mut thread: Stopped, runner: RestoreRunner) -> Self {
        thread.set_care(Care::Kill);
        Self { pid, runner, thread: Some(thread), begun: None }
    }

    /// Where its batches lie.
    pub fn slot(&self) -> Slot {
        self.runner.slot()
    }

    /// An empty batch for it.
    pub fn batch(&self) -> Batch {
        Batch::new(self.runner.slot())
    }

    /// The runner area, which must stay mapped and untouched until the member is released.
    pub fn runner(&self) -> RestoreRunner {
        self.runner
    }

    /// Its thread id in our PID namespace, for /proc and process_vm_writev(2).
    pub fn tid(&self) -> nix::unistd::Pid {
        self.thread.as_ref().map_or(nix::unistd::Pid::from_raw(0), Stopped::tid)
    }

    /// The stopped thread. Error: a batch before has lost it.
    pub fn thread(&self) -> Result<&Stopped, Failure> {
        self.thread.as_ref().ok_or_else(|| Failure::not_restorable("the member ended").of_pid(self.pid.0))
    }

    /// Gives the stopped thread away.
    pub fn into_thread(mut self) -> Result<Stopped, Failure> {
        self.take()
    }

    fn take(&mut self) -> Result<Stopped, Failure> {
        self.thread.take().ok_or_else(|| Failure::not_restorable("the member ended").of_pid(self.pid.0))
    }

    /// Runs a batch. A call that must not fail and did ends it with an error that says `what` was being done.
    pub fn run(&mut self, what: &str, batch: &Batch) -> Result<Outcome, Failure> {
        let (outcome, children) = self.run_with_children(what, batch)?;
        match children.as_slice() {
            [] => Ok(outcome),
            _ => Err(Failure::not_restorable(format!("{what}: made processes")).of_pid(self.pid.0)),
        }
    }

    /// Same, for batches that make processes or threads: gives them too, in the order they were made, stopped at their beginning.
    pub fn run_with_children(
        &mut self,
        what: &str,
        batch: &Batch,
    ) -> Result<(Outcome, Vec<Stopped>), Failure> {
        let thread = self.take()?;
        let ran = self.runner.run(thread, batch, Deadline::after(PATIENCE));
        self.ended(what, ran)
    }

    /// Sets a batch going, made for a slot that no other member uses now. Until [`Member::end`] the member cannot be asked for anything.
    pub fn begin(&mut self, what: &str, batch: Batch) -> Result<(), Failure> {
        let thread = self.take()?;
        match self.runner.begin(thread, &batch) {
            Ok(begun) => {
                self.begun = Some((begun, batch, what.to_owned()));
                Ok(())
            }
            Err((thread, error)) => {
                self.thread = Some(thread);
                Err(self.failure(what, &error))
            }
        }
    }

    /// Waits for the batch that runs; as [`Member::run`]. `None`: none runs.
    pub fn end(&mut self) -> Result<Option<Outcome>, Failure> {
        let Some((begun, batch, what)) = self.begun.take() else { return Ok(None) };
        let ran = self.runner.end(begun, &batch, Deadline::after(PATIENCE));
        match self.ended(&what, ran)? {
            (outcome, children) if children.is_empty() => Ok(Some(outcome)),
            _ => Err(Failure::not_restorable(format!("{what}: made processes")).of_pid(self.pid.0)),
        }
    }

    fn failure(&self, what: &str, e: &dyn std::error::Error) -> Failure {
        let below = Failure::from_error(e);
        Failure::new(&below.error, format!("{what}: {}", below.text)).of_pid(self.pid.0)
    }

    /// What came of a batch, and its children, once they have stopped.
    fn ended(
        &mut self,
        what: &str,
        ran: Step<Ran, Option<Stopped>>,
    ) -> Result<(Outcome, Vec<Stopped>), Failure> {
        let ran = match ran {
            Ok(ran) => ran,
            Err((thread, error)) => {
                self.thread = thread;
                return Err(self.failure(what, &error));
            }
        };
        self.thread = Some(ran.thread);
        let mut children = Vec::new();
        for tid in ran.children {
            let running = Running::adopt(tid, Care::Kill);
            let stopped = running
                .wait(Deadline::after(PATIENCE))
                .map_err(|(_, e)| self.failure(what, &e))?
                .stopped(tid)
                .map_err(|e| self.failure(what, &e))?;
            children.push(stopped);
        }
        match ran.outcome.failed {
            Some(failed) => Err(self.failure(what, &failed)),
            None => Ok((ran.outcome, children)),
        }
    }

    /// Runs a batch of one call and gives its result.
    pub fn call(&mut self, what: &str, nr: i64, args: [u64; 6]) -> Result<u64, Failure> {
        let mut batch = self.batch();
        let call: Call = batch.must(nr, args);
        let outcome = self.run(what, &batch)?;
        outcome.result(call).map_err(|e| Failure::not_restorable(format!("{what}: {e}")).of_pid(self.pid.0))
    }
}
