//! What the kernel shows of stopped members to anybody: files of /proc, attributes, comparisons. Only the thread that traces a member may
//! ask it for registers; all of this is read by several threads side by side.

use ckpt_image::records::{EndedLeader, NamespaceRecord};
use ckpt_sys::attributes::{self, Scheduling};
use ckpt_sys::seize::Process;
use ckpt_sys::{Error as SysError, proc_file};
use nix::unistd::Pid as TaskId;

use super::family::{children, namespaces};
use super::text::{self, Stat, Status};
use super::{process, sharing};
use crate::parallel;

/// What is shown of a process.
#[derive(Debug)]
pub(super) struct ProcessShown {
    /// That of the first living thread, with what only that of the process tells.
    pub stat: Stat,
    pub ended_leader: Option<EndedLeader>,
    pub namespaces: NamespaceRecord,
    pub files: process::Files,
    /// The first is the leader, unless that has ended.
    pub threads: Vec<ThreadShown>,
}

/// What is shown of a thread.
#[derive(Debug)]
pub(super) struct ThreadShown {
    pub status: Status,
    /// Processes that are children of this thread, zombies too.
    pub children: Vec<i32>,
    /// Descriptors and directories are those of the first thread.
    pub plain: bool,
    pub scheduling: Scheduling,
    pub affinity: Vec<u64>,
    pub io_priority: i32,
    /// Address and length.
    pub robust_list: (u64, u64),
}

/// Which threads a process has.
struct Ids {
    pid: i32,
    /// The first that lives: of an ended leader /proc shows no memory.
    task: i32,
    leader_ended: bool,
}

/// Looks at all of them. Errors: something of /proc cannot be read or understood.
pub(super) fn look(processes: &[Process]) -> Result<Vec<ProcessShown>, SysError> {
    let tids = |p: &Process| p.threads.iter().map(|thread| thread.tid().as_raw()).collect::<Vec<_>>();
    let ids = |p: &Process| {
        let pid = p.pid.as_raw();
        Ids { pid, task: tids(p).first().copied().unwrap_or(pid), leader_ended: p.leader_ended }
    };
    let all: Vec<Ids> = processes.iter().map(ids).collect();
    let tasks: Vec<(i32, i32, i32)> = processes
        .iter()
        .zip(&all)
        .flat_map(|(p, ids)| tids(p).into_iter().map(|tid| (ids.pid, ids.task, tid)))
        .collect();
    let mut threads =
        parallel::map(&tasks, 16, |(pid, task, tid)| ThreadShown::look(*pid, *task, *tid)).into_iter();
    let shown = parallel::map(&all, 4, ProcessShown::look);
    let with_threads = |(process, shown): (&Process, Result<ProcessShown, SysError>)| {
        let threads = threads.by_ref().take(process.threads.len()).collect::<Result<_, SysError>>()?;
        Ok(ProcessShown { threads, ..shown? })
    };
    processes.iter().zip(shown).map(with_threads).collect()
}

impl ProcessShown {
    /// All but its threads.
    fn look(ids: &Ids) -> Result<Self, SysError> {
        let Ids { pid, task, leader_ended } = *ids;
        let of_process = stat(pid)?;
        let (stat, ended_leader) = match leader_ended {
            false => (of_process, None),
            true => {
                let stat = Stat { exit_signal: of_process.exit_signal, ..stat(task)? };
                let credentials = status(format!("/proc/{pid}/status"))?.credentials;
                let status = of_process.exit_code;
                (stat, Some(EndedLeader { comm: of_process.comm, status, credentials }))
            }
        };
        let files = process::Files::read(task, &stat);
        Ok(Self { stat, ended_leader, namespaces: namespaces(task), files, threads: Vec::new() })
    }

    /// The first thread.
    pub fn status(&self) -> &Status {
        &self.threads[0].status
    }

    /// Those of all threads.
    pub fn statuses(&self) -> impl Iterator<Item = &Status> {
        self.threads.iter().map(|thread| &thread.status)
    }
}

impl ThreadShown {
    fn look(pid: i32, first: i32, tid: i32) -> Result<Self, SysError> {
        let task = TaskId::from_raw(tid);
        Ok(Self {
            status: status(format!("/proc/{pid}/task/{tid}/status"))?,
            children: children(pid, tid),
            plain: tid == first || sharing::is_plain_thread(TaskId::from_raw(first), task)?,
            scheduling: attributes::scheduling(task)?,
            affinity: attributes::affinity(task)?,
            io_priority: attributes::io_priority(task)?,
            robust_list: attributes::robust_list(task)?,
        })
    }
}

fn read(path: &str) -> Result<Vec<u8>, SysError> {
    proc_file::read(path).map_err(|e| SysError::io("read", path, &e))
}

fn stat(pid: i32) -> Result<Stat, SysError> {
    let path = format!("/proc/{pid}/stat");
    let missing = || SysError::Parse { path: path.clone().into(), what: "fields are missing".into() };
    text::parse_stat(&read(&path)?).ok_or_else(missing)
}

fn status(path: String) -> Result<Status, SysError> {
    Ok(text::parse_status(&read(&path)?))
}
