//! The barrier: all gates of a group closed, and pending operations drained, by a deadline.
//!
//! ```text
//! find the gates ► close all ► none ADDED, none executing on a file (or the deadline) ► freeze ► still quiet? ► …
//!                     │                                                                   no: thaw, drain again
//!                     └── members that begin an operation from here on wait in user space until it is dropped
//! ```
//! A barrier makes the freeze cheap and the snapshot clean; a checkpoint is right without it. So members without a gate
//! are told, not refused, and what has not drained by the deadline is told, not waited for.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant};

use ckpt_sys::gate::{Added, Gate, Operation};
use ckpt_sys::{Error, Result, task};
use nix::unistd::Pid;

/// Gates stay closed this long without a sign of life from us, at least: a freeze window fits in.
const LEASE_MIN: Duration = Duration::from_secs(1);

/// The closed gates of a group. Dropping it opens them.
pub struct Barrier {
    /// By the memfd's number: processes that share a table have one gate.
    gates: BTreeMap<u64, Gate>,
    without: Vec<i32>,
    pending: Vec<Operation>,
    /// Operations that stayed ADDED all the while: of a thread that was stopped there, or that lies. They are not in
    /// their few instructions now, and are not waited for again.
    stuck: BTreeSet<Added>,
    lease: Duration,
    took: Duration,
}

impl Barrier {
    /// Closes the gates of all `pids` and waits until what they had begun is done, for at most `deadline`. Processes
    /// that end meanwhile are passed over.
    ///
    /// # Errors
    /// Where /proc refuses to show a member or its gate ([`ckpt_sys::Error::Kernel`]); all gates are open then.
    pub fn close(pids: &[i32], deadline: Duration) -> Result<Barrier> {
        let mut barrier = Barrier {
            gates: BTreeMap::new(),
            without: Vec::new(),
            pending: Vec::new(),
            stuck: BTreeSet::new(),
            lease: LEASE_MIN.max(deadline * 2),
            took: Duration::ZERO,
        };
        // Finding takes longest, so all are found before the first is closed.
        let found = barrier.find(pids)?;
        barrier.shut(found);
        barrier.drain(deadline);
        Ok(barrier)
    }

    /// Takes in the gates of processes and programs that came since, and closes again what opened because we gave no
    /// sign of life for long. `pids` is the full list as it is now.
    ///
    /// # Errors
    /// As for [`Barrier::close`].
    pub fn extend(&mut self, pids: &[i32]) -> Result<()> {
        let found = self.find(pids)?;
        self.gates.values().filter(|gate| gate.is_open()).for_each(|gate| gate.close(self.lease));
        self.shut(found);
        Ok(())
    }

    fn find(&mut self, pids: &[i32]) -> Result<Vec<Gate>> {
        let mut found = Vec::new();
        self.without.clear();
        for &pid in pids {
            match Gate::find(pid) {
                Ok(Some(gate)) => found.push(gate),
                Ok(None) if has_program(pid) => self.without.push(pid),
                Ok(None) | Err(Error::Gone(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    fn shut(&mut self, found: Vec<Gate>) {
        for gate in found {
            if !self.gates.contains_key(&gate.inode()) {
                gate.close(self.lease);
                self.gates.insert(gate.inode(), gate);
            }
        }
    }

    /// Waits again until nothing is added and nothing on a file executes, for at most `deadline`; whether that came.
    pub fn drain(&mut self, deadline: Duration) -> bool {
        let start = Instant::now();
        let mut nap = Duration::from_micros(20);
        let mut before = BTreeSet::new();
        let quiet = loop {
            self.renew();
            // In this order: what was added may execute when the second is looked at.
            let added = self.added();
            self.pending = self.gates.values().flat_map(Gate::draining).collect();
            if added.is_empty() && self.pending.is_empty() {
                break true;
            }
            if start.elapsed() >= deadline {
                self.stuck.extend(added.intersection(&before));
                break false;
            }
            before = added;
            // Members signal nothing (they only store): looking again is all there is.
            thread::sleep(nap.min(deadline.saturating_sub(start.elapsed())));
            nap = (nap * 2).min(Duration::from_millis(1));
        };
        self.took += start.elapsed();
        quiet
    }

    /// For the look after the freeze: no operation slipped between its entry and its execution. If one did, thaw, let
    /// it pass ([`Barrier::drain`]) and freeze again.
    pub fn still_quiet(&self) -> bool {
        self.added().is_empty()
    }

    fn added(&self) -> BTreeSet<Added> {
        let mut added: BTreeSet<Added> = self.gates.values().flat_map(Gate::added).collect();
        added.retain(|operation| !self.stuck.contains(operation));
        added
    }

    /// Tells the waiters that we live: to be called within a second where the barrier is held long.
    pub fn renew(&self) {
        self.gates.values().for_each(Gate::renew);
    }

    /// What had not drained when [`Barrier::close`] or [`Barrier::drain`] gave up.
    pub fn pending(&self) -> &[Operation] {
        &self.pending
    }

    /// The processes that run a program without a gate: `check` names them.
    pub fn without_gate(&self) -> &[i32] {
        &self.without
    }

    /// How many gates are held.
    pub fn gates(&self) -> usize {
        self.gates.len()
    }

    /// How long draining took, all in all.
    pub fn took(&self) -> Duration {
        self.took
    }
}

/// Whether a process has a program at all: zombies and kernel threads have none.
fn has_program(pid: i32) -> bool {
    task::status(Pid::from_raw(pid)).is_ok_and(|status| !matches!(status.state, 'Z' | 'X'))
}
