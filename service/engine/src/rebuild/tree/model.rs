//! A model of the kernel's process tree, as far as the plan depends on it: fork(2), CLONE_PARENT, setsid(2), setpgid(2), exit(2),
//! reparenting. It makes histories for the tests and runs plans.

use std::collections::BTreeMap;

use ckpt_image::records::Pid;

use super::Step;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    pub ppid: i32,
    pub pgid: i32,
    pub sid: i32,
    pub subreaper: bool,
    pub zombie: bool,
}

/// Process 1 is init; process 2 stands for what makes roots (systemd at a start, ckpt-restore at a restore).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kernel {
    pub processes: BTreeMap<i32, Process>,
}

pub(super) const RESTORE: i32 = 2;

impl Kernel {
    pub(super) fn new() -> Self {
        let one = |ppid, pid| Process { ppid, pgid: pid, sid: pid, subreaper: false, zombie: false };
        Self { processes: [(1, one(0, 1)), (RESTORE, one(1, RESTORE))].into() }
    }

    fn alive(&self, pid: i32) -> Result<Process, String> {
        match self.processes.get(&pid) {
            Some(p) if !p.zombie => Ok(*p),
            _ => Err(format!("{pid} does not live")),
        }
    }

    pub(super) fn fork(&mut self, maker: i32, pid: i32, sibling: bool) -> Result<(), String> {
        let by = self.alive(maker)?;
        if self.processes.contains_key(&pid) {
            return Err(format!("{pid} is taken"));
        }
        let ppid = if sibling { by.ppid } else { maker };
        self.processes.insert(pid, Process { ppid, subreaper: false, ..by });
        Ok(())
    }

    pub(super) fn setsid(&mut self, pid: i32) -> Result<(), String> {
        self.alive(pid)?;
        if self.processes.values().any(|p| p.pgid == pid) {
            return Err(format!("setsid of {pid}: it leads a group"));
        }
        let process = self.processes.get_mut(&pid).unwrap();
        (process.sid, process.pgid) = (pid, pid);
        Ok(())
    }

    pub(super) fn setpgid(&mut self, pid: i32, pgid: i32) -> Result<(), String> {
        let process = self.alive(pid)?;
        let exists = self.processes.values().any(|p| p.pgid == pgid && p.sid == process.sid);
        if process.sid == pid || (pgid != pid && !exists) {
            return Err(format!("setpgid of {pid} to {pgid}"));
        }
        self.processes.get_mut(&pid).unwrap().pgid = pgid;
        Ok(())
    }

    /// Ends a process; its children fall to the nearest subreaper above it, or to init.
    pub(super) fn exit(&mut self, pid: i32) -> Result<(), String> {
        let mut heir = self.alive(pid)?.ppid;
        while heir != 1 && !self.processes.get(&heir).is_some_and(|p| p.subreaper && !p.zombie) {
            heir = self.processes.get(&heir).map_or(1, |p| p.ppid);
        }
        for process in self.processes.values_mut().filter(|p| p.ppid == pid) {
            process.ppid = heir;
        }
        self.processes.get_mut(&pid).unwrap().zombie = true;
        Ok(())
    }

    /// The parent waits for an ended process.
    pub(super) fn reap(&mut self, pid: i32) {
        self.processes.remove(&pid);
    }

    /// Runs a plan, then ends ckpt-restore; zombies stay.
    pub(super) fn run(&mut self, steps: &[Step]) -> Result<(), String> {
        for step in steps {
            self.step(step).map_err(|e| format!("{step:?}: {e}"))?;
        }
        self.exit(RESTORE)?;
        self.reap(RESTORE);
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        match *step {
            Step::Create { pid, maker, sibling, .. } => {
                self.fork(maker.map_or(RESTORE, |p| p.0), pid.0, sibling)
            }
            Step::Session { pid } => self.setsid(pid.0),
            Step::Group { pid, pgid } => self.setpgid(pid.0, pgid.0),
            Step::Subreaper { pid, on } => {
                self.alive(pid.0)?;
                self.processes.get_mut(&pid.0).unwrap().subreaper = on;
                Ok(())
            }
            Step::End { pid, waiter } => {
                let parent = self.alive(pid.0)?.ppid;
                if parent != waiter.map_or(RESTORE, |p| p.0) {
                    return Err(format!("{waiter:?} cannot wait for it, its parent is {parent}"));
                }
                self.exit(pid.0)?;
                self.reap(pid.0);
                Ok(())
            }
            Step::Die { pid: Pid(pid) } => self.exit(pid),
        }
    }
}
