//! One member: a stopped process, what it told, its record.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use ckpt_image::records::{
    FdTableId, FileId, FsId, FsRecord, Pid, ProcessBody, ProcessRecord, ProcessSettings, ProcessState,
    QueuedSignal, SighandId, SpaceId, ThreadRecord, UnitIndex,
};
use ckpt_sys::Error as SysError;
use ckpt_sys::inject::{Facts, Live};
use ckpt_sys::seize::Process;
use ckpt_sys::thread::Deadline;
use nix::sys::stat::stat;

use super::files::{Files as FileRegistry, Seen};
use super::filters::Filters;
use super::identities::Identities;
use super::members::Shares;
use super::process::{self, Asked};
use super::questions::Conversation;
use super::shown::ProcessShown;
use super::thread;
use crate::api::{Problem, Severity};

/// A process of the group, held.
#[derive(Debug)]
pub struct Member {
    /// Its threads, stopped.
    pub live: Live,
    /// Its unit.
    pub unit: UnitIndex,
    /// Its cgroup below the unit's.
    pub(super) cgroup: String,
    /// Signal by which job control stopped it.
    stopped_by: Option<i32>,
    pub(super) shown: ProcessShown,
}

/// A problem that refuses the checkpoint.
pub(super) fn refusal(
    code: &str,
    unit: &str,
    pid: i32,
    object: impl Into<String>,
    text: &str,
    remedy: &str,
) -> Problem {
    Problem {
        code: code.into(),
        severity: Severity::Error,
        unit: unit.into(),
        pid,
        object: object.into(),
        text: text.into(),
        remedy: remedy.into(),
    }
}

/// What a member is being asked.
pub(super) struct Inquiry {
    asked: Asked,
    /// Questions to the leader that are about itself and not about the process.
    own: usize,
    pub(super) conversation: Conversation,
}

/// What a member told.
pub(super) struct Answers {
    pub(super) process: process::Told,
    pub(super) threads: Vec<thread::Told>,
}

impl Member {
    /// Takes a stopped process over, with what is shown of it.
    pub(super) fn hold(
        process: Process,
        shown: ProcessShown,
        unit: UnitIndex,
        cgroup: String,
        deadline: Deadline,
    ) -> Result<Self, SysError> {
        let stopped_by = process.stopped_by();
        let status = shown.status();
        let facts = Facts { ignored: status.ignored, caught: status.caught, seccomp: status.seccomp };
        let live = Live::hold_shown(process, facts, &shown.files.auxv, deadline)?;
        Ok(Self { live, unit, cgroup, stopped_by, shown })
    }

    /// The name of its unit.
    pub(super) fn unit_name<'u>(&self, units: &'u [ckpt_image::records::UnitRecord]) -> &'u str {
        units.get(self.unit.index()).map_or("", |unit| unit.name.as_str())
    }

    /// Makes it able to be asked; the first half, which waits for nothing. False: a problem says why not.
    pub(super) fn begin_prepare(
        &mut self,
        unit: &str,
        problems: &mut Vec<Problem>,
    ) -> Result<bool, SysError> {
        let begun = self.live.begin_prepare();
        self.prepared(begun, unit, problems)
    }

    /// The second half.
    pub(super) fn end_prepare(
        &mut self,
        unit: &str,
        deadline: Deadline,
        problems: &mut Vec<Problem>,
    ) -> Result<bool, SysError> {
        let ended = self.live.end_prepare(deadline).and_then(|()| self.live.lift(deadline));
        self.prepared(ended, unit, problems)
    }

    /// Whether a half of the preparing succeeded; a process that cannot run calls is a problem.
    fn prepared(
        &self,
        result: Result<(), SysError>,
        unit: &str,
        problems: &mut Vec<Problem>,
    ) -> Result<bool, SysError> {
        match result {
            Ok(()) => Ok(true),
            Err(SysError::NoRunner { why, .. }) => {
                let remedy = "it cannot be checkpointed as it is; see ckpt-support(7)";
                problems.push(refusal("no-runner", unit, self.live.process().as_raw(), "", why, remedy));
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }

    /// What the process and its threads are to be asked. `None`: a problem says why not.
    pub(super) fn inquiry(&self, unit: &str, problems: &mut Vec<Problem>) -> Option<Inquiry> {
        let Some(timers) = self.shown.files.timers.clone() else {
            let text = "its POSIX timers cannot be read";
            let pid = self.live.process().as_raw();
            problems.push(refusal("timers", unit, pid, "timers", text, "report this with /proc/PID/timers"));
            return None;
        };
        let asked = Asked::new(self.shown.status().caught, timers);
        let mut lists: Vec<_> = self.live.threads().map(|_| thread::questions()).collect();
        let own = lists[0].len();
        lists[0].extend(asked.questions());
        Some(Inquiry { asked, own, conversation: Conversation::new(lists) })
    }

    /// Reads the answers. `None`: a problem says what is missing.
    pub(super) fn answers(
        &self,
        inquiry: Inquiry,
        unit: &str,
        problems: &mut Vec<Problem>,
    ) -> Option<Answers> {
        let Inquiry { asked, own, conversation } = inquiry;
        let mut answers = conversation.answers();
        let of_process = answers[0].split_off(own);
        let threads: Option<Vec<_>> = answers.iter().map(|a| thread::Told::read(a)).collect();
        match (asked.read(&of_process, self.shown.status().ignored), threads) {
            (Some(process), Some(threads)) => {
                let refused =
                    process.refused.iter().chain(threads.iter().filter_map(|t| t.refused.as_ref()).take(1));
                for (code, object, text) in refused {
                    let pid = self.live.process().as_raw();
                    problems.push(refusal(
                        code,
                        unit,
                        pid,
                        *object,
                        text,
                        "it cannot be checkpointed with it",
                    ));
                }
                Some(Answers { process, threads })
            }
            _ => {
                let text =
                    "its seccomp filter does not allow the calls that tell its timers, handlers and settings";
                let remedy = "allow @signal, @timer, prctl and brk in its SystemCallFilter=";
                let pid = self.live.process().as_raw();
                problems.push(refusal("seccomp", unit, pid, "seccomp filter", text, remedy));
                None
            }
        }
    }

    /// The records of its threads, the leader first.
    pub(super) fn threads(
        &self,
        told: &Answers,
        unit: &str,
        filters: &mut Filters,
        problems: &mut Vec<Problem>,
    ) -> Result<Vec<ThreadRecord>, SysError> {
        let mut records = Vec::with_capacity(self.shown.threads.len());
        for (place, shown) in self.shown.threads.iter().enumerate() {
            if !shown.plain {
                let text = "a thread of it has descriptors or directories of its own (unshare(2))";
                let remedy = "it cannot be checkpointed in this state";
                problems.push(refusal(
                    "thread-unshared",
                    unit,
                    self.live.process().as_raw(),
                    format!("thread {}", shown.status.outer.tid),
                    text,
                    remedy,
                ));
            }
            let mut record = thread::record(&self.live, place, shown, &told.threads[place])?;
            record.seccomp_filters = filters.of_thread(&self.live, place, &shown.status)?;
            records.push(record);
        }
        Ok(records)
    }

    /// The body of the record.
    pub(super) fn body(
        &self,
        place: usize,
        shares: &Shares,
        told: Answers,
        threads: Vec<ThreadRecord>,
    ) -> Result<ProcessBody, SysError> {
        let pending = self.live.stopped(0)?.pending_signals(true)?;
        let files = &self.shown.files;
        Ok(ProcessBody {
            space: SpaceId(shares.spaces.of[place]),
            fd_table: FdTableId(shares.tables.of[place]),
            fs: FsId(shares.fs.of[place]),
            sighand: SighandId(shares.sighands.of[place]),
            threads,
            ended_leader: self.shown.ended_leader.clone(),
            pending: pending.into_iter().map(|info| QueuedSignal { siginfo: info.to_vec() }).collect(),
            itimers: told.process.itimers,
            posix_timers: self.timers_in_namespace(told.process.timers),
            limits: files.limits.clone().ok_or_else(|| SysError::Parse {
                path: format!("/proc/{}/limits", self.live.pid()).into(),
                what: "a limit is missing".into(),
            })?,
            personality: files.personality,
            dumpable: told.process.dumpable,
            child_subreaper: told.process.child_subreaper,
            oom_score_adj: files.oom_score_adj,
            coredump_filter: files.coredump_filter,
            tty: self.shown.stat.tty,
            settings: ProcessSettings { autogroup_nice: files.autogroup_nice, ..told.process.settings },
        })
    }

    /// The threads of timers with the ids that the members see.
    fn timers_in_namespace(
        &self,
        mut timers: Vec<ckpt_image::records::PosixTimerRecord>,
    ) -> Vec<ckpt_image::records::PosixTimerRecord> {
        let ids: HashMap<i32, i32> = self
            .live
            .threads()
            .zip(self.shown.statuses())
            .map(|(t, s)| (t.tid.as_raw(), s.inner.tid))
            .collect();
        for timer in &mut timers {
            timer.tid = ids.get(&timer.tid).copied().unwrap_or(timer.tid);
        }
        timers
    }

    /// The record of the process.
    pub(super) fn record(&self, ids: &Identities, body: Option<ProcessBody>) -> ProcessRecord {
        let inner = self.shown.status().inner;
        ProcessRecord {
            unit: self.unit,
            cgroup: self.cgroup.clone(),
            namespaces: self.shown.namespaces,
            pid: Pid(inner.pid),
            ppid: ids.parent(self.shown.stat.ppid),
            pgid: Pid(inner.pgid),
            sid: Pid(inner.sid),
            exit_signal: self.shown.stat.exit_signal,
            state: match self.stopped_by {
                Some(signal) => ProcessState::Stopped { signal },
                None => ProcessState::Running,
            },
            body,
        }
    }

    /// Working directory, root and umask.
    pub(super) fn fs(&self, files: &mut FileRegistry) -> Result<FsRecord, SysError> {
        let root = self.link("root")?;
        let own_root = root.0 != Path::new("/");
        Ok(FsRecord {
            cwd: self.file("cwd", files)?,
            root: if own_root { Some(self.file("root", files)?) } else { None },
            umask: self.shown.status().umask,
        })
    }

    /// A link of /proc/PID: the path, and whether what it names is deleted.
    fn link(&self, name: &str) -> Result<(PathBuf, bool), SysError> {
        let link = format!("/proc/{}/{name}", self.live.pid());
        let path = std::fs::read_link(&link).map_err(|e| SysError::io("readlink", link, &e))?;
        Ok(without_deleted(path))
    }

    /// The file a link of /proc/PID leads to.
    fn file(&self, name: &str, files: &mut FileRegistry) -> Result<FileId, SysError> {
        let link = format!("/proc/{}/{name}", self.live.pid());
        let (path, deleted) = self.link(name)?;
        let stat = stat(link.as_str()).map_err(|e| SysError::path("stat", link, e))?;
        Ok(files.record(&Seen { unit: self.unit, path: &path, stat: &stat, deleted, immutable: false }))
    }
}

/// Takes the kernel's mark off a path.
fn without_deleted(path: PathBuf) -> (PathBuf, bool) {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    match path.as_os_str().as_bytes().strip_suffix(b" (deleted)") {
        Some(bytes) => (std::ffi::OsString::from_vec(bytes.to_vec()).into(), true),
        None => (path, false),
    }
}
