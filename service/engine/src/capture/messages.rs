//! What is in POSIX message queues. A message can be read only by taking it, so all are taken and given back at once, while the group is frozen:
//!
//! ```text
//! /run/ckpt/queues/GROUP-N            pid, start time, descriptor: where a member has the queue
//! /run/ckpt/queues/GROUP-N.ledger     what is being taken (ckpt_sys::posix_queues)
//!
//! frozen record ► cgroup.freeze 1 ► note, ledger ► taken ► given back ► ledger, note removed ► cgroup.freeze 0 ► record removed
//! ```
//! If ckptd dies between, the group stays frozen until `ckptd --thaw` (ExecStopPost=) or the next start, which give back first.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ckpt_image::records::QueueRecord;
use ckpt_sys::cgroup::{Cgroup, Frozen};
use ckpt_sys::thread::Deadline;
use ckpt_sys::{descriptor, posix_queues, task};
use nix::unistd::Pid;

use super::member::refusal;
use crate::api::{Problem, Severity};
use crate::error::{Error, with_sources};
use crate::frozen::FrozenRecord;
use crate::kinds::OpenQueue;

/// The group's cgroups, to freeze them once more while threads are stopped.
pub struct Freezer<'a> {
    /// Group name.
    pub group: &'a str,
    /// /run/ckpt.
    pub run: &'a Path,
    /// The cgroups that hold the group.
    pub cgroups: &'a [Cgroup],
    /// The end of the window.
    pub deadline: Deadline,
}

/// Frozen; thaws when dropped, and then forgets the record.
struct Standstill {
    _frozen: Frozen,
    _record: FrozenRecord,
}

impl Freezer<'_> {
    fn freeze(&self) -> Result<Standstill, Error> {
        let names: Vec<_> = self.cgroups.iter().map(|c| c.name().to_owned()).collect();
        let record = FrozenRecord::write(self.run, self.group, &names)?;
        let frozen = Frozen::freeze(self.cgroups, self.deadline).map_err(|e| match e {
            ckpt_sys::Error::Deadline { .. } => {
                Error::FreezeTimeout { group: self.group.into(), why: with_sources(&e) }
            }
            e => Error::Failed(with_sources(&e)),
        })?;
        Ok(Standstill { _frozen: frozen, _record: record })
    }

    /// Puts the messages of queues into their records. `unit` names the unit of a record.
    pub fn read(
        &self,
        records: &mut [QueueRecord],
        open: &[OpenQueue],
        unit: impl Fn(&QueueRecord) -> String,
    ) -> Result<Vec<Problem>, Error> {
        let filled =
            |queue: &&OpenQueue| posix_queues::limits(queue.queue.as_fd()).is_ok_and(|limits| limits.now > 0);
        let mut problems = Vec::new();
        if !open.iter().any(|queue| filled(&queue)) {
            return Ok(problems);
        }
        let _standstill = self.freeze()?;
        for (nth, (record, open)) in records.iter_mut().zip(open).enumerate().filter(|(_, (_, o))| filled(o))
        {
            let note = Note { path: self.run.join("queues").join(format!("{}-{nth}", self.group)) };
            match note.read(open) {
                Ok(messages) => record.messages = messages,
                Err(why) => {
                    let text = format!("its messages cannot be read: {why}");
                    let remedy = "try again when the application has received them";
                    let pid = open.place.pid;
                    problems.push(refusal("message-queue", &unit(record), pid, &open.object, &text, remedy));
                }
            }
        }
        Ok(problems)
    }
}

/// Where a queue is whose messages are being read.
struct Note {
    path: PathBuf,
}

impl Note {
    fn ledger(&self) -> PathBuf {
        self.path.with_added_extension("ledger")
    }

    fn read(&self, open: &OpenQueue) -> Result<Vec<(u32, Vec<u8>)>, String> {
        let io = |e: std::io::Error| e.to_string();
        if let Some(directory) = self.path.parent() {
            fs::create_dir_all(directory).map_err(io)?;
        }
        let pid = open.place.pid;
        let start = task::start_time(Pid::from_raw(pid)).map_err(|e| with_sources(&e))?;
        fs::write(&self.path, format!("{pid} {start} {}\n", open.place.fd)).map_err(io)?;
        let mut options = File::options();
        let options = options.read(true).write(true).create(true).truncate(true).mode(0o600);
        let mut ledger = options.open(self.ledger()).map_err(io)?;
        let messages = posix_queues::read(&open.queue, &mut ledger);
        if messages.is_err() {
            // What was taken is given back, if it can be.
            posix_queues::settle(&open.queue, &ledger).map_err(|e| with_sources(&e))?;
        }
        self.forget();
        messages.map_err(|e| with_sources(&e))
    }

    fn forget(&self) {
        // The ledger first: a note without one is of a queue that is whole.
        let _ = fs::remove_file(self.ledger());
        let _ = fs::remove_file(&self.path);
    }

    /// Gives back what a daemon that died had taken. `None` where there is nothing to give back to any more.
    fn settle(&self) -> Option<Result<(), String>> {
        let ledger = File::options().read(true).write(true).open(self.ledger()).ok()?;
        let text = fs::read_to_string(&self.path).ok()?;
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        let [pid, start, fd] = words[..] else { return None };
        let (pid, start, fd): (i32, u64, i32) = (pid.parse().ok()?, start.parse().ok()?, fd.parse().ok()?);
        if task::start_time(Pid::from_raw(pid)).ok() != Some(start) {
            return None;
        }
        let process = descriptor::open_process(pid).ok()?;
        let queue = descriptor::take(process.as_fd(), fd).ok()?;
        let done =
            posix_queues::reopen(queue.as_fd()).and_then(|queue| posix_queues::settle(&queue, &ledger));
        Some(done.map_err(|e| with_sources(&e)))
    }
}

/// Gives back all messages that were being read when a daemon died. The groups must still be frozen. Problems are queues where that failed.
pub fn settle(run: &Path) -> Vec<Problem> {
    let entries = fs::read_dir(run.join("queues")).into_iter().flatten().flatten();
    let notes =
        entries.map(|entry| entry.path()).filter(|path| path.extension().is_none_or(|e| e != "ledger"));
    let settle = |path: PathBuf| {
        let object = path.display().to_string();
        let note = Note { path };
        match note.settle() {
            Some(Err(why)) => {
                let text = format!("messages that were being read could not be given back: {why}");
                let remedy = "they are in the ledger beside it";
                let problem = refusal("message-queue", "", 0, object, &text, remedy);
                return Some(Problem { severity: Severity::Warning, ..problem });
            }
            Some(Ok(())) | None => note.forget(),
        }
        None
    };
    notes.filter_map(settle).collect()
}
