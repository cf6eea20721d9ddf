//! Grows the process tree by its plan.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::RawFd;
use std::time::Duration;

use ckpt_image::records::{GroupImage, Pid, ProcessRecord, ProcessState, SpaceId, UnitIndex};
use ckpt_sys::batch::Batch;
use ckpt_sys::clone::{CLEAR_SIGHAND, CLONE_ARGS_SIZE, CloneArgs, clone_paused};
use ckpt_sys::maps::{MapName, read_maps};
use ckpt_sys::nursery::area;
use ckpt_sys::ptrace::Options;
use ckpt_sys::runner::RestoreRunner;
use ckpt_sys::thread::{Care, Deadline, Running, Stopped, Waited};
use nix::errno::Errno;
use nix::libc;

use super::memory::{Heritage, Run};
use super::opened::Opened;
use super::pidspace::PidSpace;
use super::places::Places;
use super::tree::{Plan, Share, Step};
use super::{Failure, Member};
use crate::kinds::Controlling;

/// How long a new process may take to stop.
const PATIENCE: Duration = Duration::from_secs(10);
/// The first address past what user space can map (4-level page tables).
const TASK_SIZE: u64 = 0x7fff_ffff_f000;
/// rseq(2), RSEQ_FLAG_UNREGISTER.
const RSEQ_UNREGISTER: u64 = 1;

/// What is said of a process id that another process has.
pub(super) const TAKEN: &str = "its process id is in use";

/// The members that exist by now, by pid; zombies and temporary ones are not among them in the end.
pub type Members = BTreeMap<Pid, Member>;

/// Grows trees.
pub struct Gardener<'a> {
    image: &'a GroupImage,
    places: &'a Places,
    runner: RestoreRunner,
    members: Members,
    units: BTreeMap<Pid, (UnitIndex, String)>,
    space: Option<&'a PidSpace>,
    heritage: &'a Heritage,
    opened: &'a Opened,
    /// Spaces that have what is inherited from them.
    staged: BTreeSet<SpaceId>,
    terminals: Vec<Controlling>,
    /// By id of a member, the id that its stand-ins had in our PID namespace, where that is another.
    outer: BTreeMap<Pid, i32>,
}

impl<'a> Gardener<'a> {
    /// The runner area must be mapped in this process, and every signal be blocked.
    /// `space`: the PID namespace that the members get, where they get one. `terminals`: those that control their sessions. `outer`: by
    /// id of a member in that namespace, the id that is its own here, too: who stood in for it had it.
    pub fn new(
        image: &'a GroupImage,
        places: &'a Places,
        runner: RestoreRunner,
        (space, (heritage, opened)): (Option<&'a PidSpace>, (&'a Heritage, &'a Opened)),
        (terminals, outer): (Vec<Controlling>, BTreeMap<Pid, i32>),
    ) -> Self {
        let (members, units, staged) = (Members::new(), BTreeMap::new(), BTreeSet::new());
        Self { image, places, runner, members, units, space, heritage, opened, staged, terminals, outer }
    }

    /// Carries out the plan. Every member is then stopped, has no memory but the runner area, the vDSO, and what it inherits or passes on,
    /// our descriptors, and its place in the tree. Zombies have ended.
    pub fn grow(mut self, plan: &Plan) -> Result<Members, Failure> {
        for step in &plan.steps {
            self.step(step)?;
        }
        self.foreground()?;
        Ok(self.members)
    }

    fn record(&self, pid: Pid) -> Option<&'a ProcessRecord> {
        self.image.processes.iter().find(|p| p.pid == pid)
    }

    fn member(&mut self, pid: Pid) -> Result<&mut Member, Failure> {
        self.members.get_mut(&pid).ok_or_else(|| Failure::not_restorable("the plan misses it").of_pid(pid.0))
    }

    fn step(&mut self, step: &Step) -> Result<(), Failure> {
        match *step {
            Step::Create { pid, maker, sibling, unit, temporary, share } => {
                let member = match maker {
                    None => self.create_root(pid, unit, temporary)?,
                    Some(maker) => self.create_child(pid, maker, sibling, temporary, share)?,
                };
                self.members.insert(pid, member);
                self.settle_in(pid, maker, unit)
            }
            Step::Session { pid } => {
                self.simple(pid, "setsid", libc::SYS_setsid, [0; 2])?;
                self.take_terminal(pid)
            }
            Step::Group { pid, pgid } => self.simple(pid, "setpgid", libc::SYS_setpgid, [0, pgid.0 as u64]),
            Step::Subreaper { pid, on } => {
                let args = [libc::PR_SET_CHILD_SUBREAPER as u64, u64::from(on)];
                self.simple(pid, "become a subreaper", libc::SYS_prctl, args)
            }
            Step::End { pid, waiter } => self.end(pid, waiter),
            Step::Die { pid } => self.die(pid),
        }
    }

    /// The new session's controlling terminal, which its children inherit.
    fn take_terminal(&mut self, pid: Pid) -> Result<(), Failure> {
        let Some(fd) = self.terminals.iter().find(|t| t.session == pid).map(|t| t.fd) else { return Ok(()) };
        let args = [fd as u64, libc::TIOCSCTTY, 0, 0, 0, 0];
        self.member(pid)?.call("take the controlling terminal", libc::SYS_ioctl, args).map(drop)
    }

    /// Puts process groups in the foreground of their terminals; a group that is gone leaves its session's leader there.
    fn foreground(&mut self) -> Result<(), Failure> {
        for terminal in std::mem::take(&mut self.terminals) {
            let Some(leader) = self.members.get_mut(&terminal.session) else { continue };
            let mut batch = leader.batch();
            let group = batch.data(&terminal.foreground.0.to_ne_bytes());
            batch.push(libc::SYS_ioctl, [terminal.fd as u64, libc::TIOCSPGRP, group.get(), 0, 0, 0]);
            leader.run("set the foreground process group", &batch)?;
        }
        Ok(())
    }

    fn simple(&mut self, pid: Pid, what: &str, nr: i64, args: [u64; 2]) -> Result<(), Failure> {
        self.member(pid)?.call(what, nr, [args[0], args[1], 0, 0, 0, 0]).map(drop)
    }

    /// The ids that a member is to have. The one outside is left to the kernel where somebody has it by now.
    fn ids(&self, pid: Pid) -> CloneArgs {
        let is_free =
            |id: &i32| nix::sys::signal::kill(nix::unistd::Pid::from_raw(*id), None) == Err(Errno::ESRCH);
        CloneArgs {
            pid: Some(pid.0),
            outer: self.outer.get(&pid).copied().filter(is_free),
            ..Default::default()
        }
    }

    /// A copy of ourselves in the unit's namespaces and cgroup.
    fn create_root(&self, pid: Pid, unit: UnitIndex, temporary: bool) -> Result<Member, Failure> {
        let place = self.places.get(unit)?;
        if let Some(space) = self.space.filter(|space| !temporary && space.adopts(pid)) {
            return self.adopt_root(space, pid, unit);
        }
        let thread = match self.clone_root(pid, unit, Some(place.cgroup_fd())) {
            // Linux (6.14 to 6.18 at least) kills what is cloned into a cgroup that cgroup.kill was written to before: it compares the
            // cgroup's count of kills with that of the maker's own.
            Err(failure) if !failure.text.contains(TAKEN) => {
                let thread = self.clone_root(pid, unit, None).map_err(|_| failure)?;
                place.move_in(thread.tid(), "")?;
                thread
            }
            other => other?,
        };
        let mut member = Member::new(pid, thread, self.runner);
        clear(&mut member)?;
        Ok(member)
    }

    /// Same, as a child of the PID namespace's init.
    fn adopt_root(&self, space: &PidSpace, pid: Pid, unit: UnitIndex) -> Result<Member, Failure> {
        let args = CloneArgs { flags: CLEAR_SIGHAND, ..self.ids(pid) };
        let adoption = space.adopt(self.places, unit, &args).map_err(|e| taken(&e, pid))?;
        let thread = seize(adoption.root)?;
        self.places.get(unit)?.move_in(thread.tid(), "")?;
        let mut member = Member::new(pid, thread, self.runner);
        // So far it ends with its maker, which is about to end.
        member.call("stay", libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as u64, 0, 0, 0, 0, 0])?;
        clear(&mut member)?;
        adoption.adopted()?;
        Ok(member)
    }

    fn clone_root(&self, pid: Pid, unit: UnitIndex, cgroup: Option<RawFd>) -> Result<Stopped, Failure> {
        let place = self.places.get(unit)?;
        let exit_signal = self.record(pid).map_or(0, |r| r.exit_signal);
        let args = CloneArgs { flags: CLEAR_SIGHAND, exit_signal, cgroup, ..self.ids(pid) };
        let tid = self
            .places
            .within(unit, || clone_paused(&args))?
            .map_err(|e| taken(&Failure::from(e).of_unit(&place.name), pid))?;
        seize(tid).inspect_err(|_| {
            let _ = nix::sys::signal::kill(tid, nix::sys::signal::Signal::SIGKILL);
            let _ = nix::sys::wait::waitpid(tid, Some(nix::sys::wait::WaitPidFlag::__WALL));
        })
    }

    /// A child, or a sibling, of a member.
    fn create_child(
        &mut self,
        pid: Pid,
        maker: Pid,
        sibling: bool,
        temporary: bool,
        share: Share,
    ) -> Result<Member, Failure> {
        let mut flags = 0;
        for (set, flag) in [
            (sibling, libc::CLONE_PARENT),
            (share.space, libc::CLONE_VM),
            (share.files, libc::CLONE_FILES),
            (share.fs, libc::CLONE_FS),
            (share.sighand, libc::CLONE_SIGHAND),
        ] {
            flags |= if set { flag as u64 } else { 0 };
        }
        let quiet = sibling || temporary;
        let exit_signal = if quiet { 0 } else { self.record(pid).map_or(0, |r| r.exit_signal) };
        let args = CloneArgs { flags, exit_signal, ..self.ids(pid) };
        let runner = self.runner;
        if !share.space {
            self.stage(maker)?;
        }
        let maker = self.member(maker)?;
        let mut batch = maker.batch();
        push_clone(&mut batch, &args);
        let (_, mut children) =
            maker.run_with_children("make a process", &batch).map_err(|e| taken(&e, pid))?;
        match (children.pop(), children.is_empty()) {
            (Some(thread), true) => Ok(Member::new(pid, thread, runner)),
            _ => Err(Failure::not_restorable("clone3 made no process").of_pid(pid.0)),
        }
    }

    /// Before the first process that a maker makes: the memory that both have alike.
    fn stage(&mut self, maker: Pid) -> Result<(), Failure> {
        let body = self.record(maker).and_then(|record| record.body.as_ref());
        let Some(space) = body.map(|body| body.space).filter(|space| self.staged.insert(*space)) else {
            return Ok(());
        };
        let (heritage, opened) = (self.heritage, self.opened);
        let Some(script) = heritage.stage(space) else { return Ok(()) };
        let member = self.member(maker)?;
        let mut run = Run::new(script);
        while let Some(batch) = run.batch(member.slot(), &mut |wanted| opened.memory(wanted))? {
            run.check(&member.run("make the memory that children inherit", &batch)?)?;
        }
        Ok(())
    }

    /// Moves a new process into its cgroup, where that is not its maker's.
    fn settle_in(&mut self, pid: Pid, maker: Option<Pid>, unit: UnitIndex) -> Result<(), Failure> {
        let below = self.record(pid).map_or(String::new(), |r| r.cgroup.clone());
        let now = match maker.and_then(|m| self.units.get(&m)) {
            Some(place) => place.clone(),
            None => (unit, String::new()),
        };
        if !self.places.together(now.0, unit)? {
            let why = "it was made by a process of another unit, with other namespaces";
            return Err(Failure::not_restorable(why).of_pid(pid.0));
        }
        let wanted = (unit, below);
        if now != wanted {
            let tid = self.member(pid)?.tid();
            self.places.get(unit)?.move_in(tid, &wanted.1)?;
        }
        self.units.insert(pid, wanted);
        Ok(())
    }

    /// Ends a temporary process and has it waited for.
    fn end(&mut self, pid: Pid, waiter: Option<Pid>) -> Result<(), Failure> {
        let Some(member) = self.members.remove(&pid) else { return Ok(()) };
        let tid = member.tid();
        drop(member);
        gone(tid, pid)?;
        let Some(waiter) = waiter else { return Ok(()) };
        let args = [pid.0 as u64, 0, (libc::__WALL | libc::WNOHANG) as u64, 0, 0, 0];
        let waited = self.member(waiter)?.call("wait for a temporary process", libc::SYS_wait4, args)?;
        if waited == pid.0 as u64 {
            return Ok(());
        }
        Err(Failure::not_restorable("a temporary process did not end").of_pid(pid.0))
    }

    /// Lets a zombie end as it did: by exit or by a signal.
    fn die(&mut self, pid: Pid) -> Result<(), Failure> {
        let Some(ProcessState::Zombie { comm, status, owner }) = self.record(pid).map(|r| &r.state) else {
            return Err(Failure::corrupt("a process that lives was to end").of_pid(pid.0));
        };
        let Some(mut member) = self.members.remove(&pid) else { return Ok(()) };
        let tid = member.tid();
        prepare_end(&mut member, comm, *owner)?;
        let signal = status & 0x7f;
        if signal == 0 {
            let mut batch = member.batch();
            batch.push(libc::SYS_exit_group, [u64::from((*status as u32 >> 8) & 0xff), 0, 0, 0, 0, 0]);
            // It ends in the middle of the batch.
            let _ = member.run("exit", &batch);
            return gone(tid, pid);
        }
        if signal == libc::SIGKILL {
            drop(member);
            return gone(tid, pid);
        }
        let thread = die_of(member, signal)?;
        match thread.wait(Deadline::after(PATIENCE)) {
            Ok(Waited::Ended(_)) => Ok(()),
            _ => Err(Failure::not_restorable(format!("signal {signal} did not end it")).of_pid(pid.0)),
        }
    }
}

/// A clearer text where a process id is in use.
fn taken(failure: &Failure, pid: Pid) -> Failure {
    let exists = failure.text.contains("EEXIST");
    let text = if exists { TAKEN.to_owned() } else { failure.text.clone() };
    Failure { text, pid: pid.0, ..failure.clone() }
}

/// Puts clone3(2) with its arguments into a batch.
pub(super) fn push_clone(batch: &mut Batch, args: &CloneArgs) {
    let set_tid = batch.data(&args.ids().map(i32::to_le_bytes).concat());
    let raw = batch.data(&args.encode(set_tid.get()));
    batch.must(libc::SYS_clone3, [raw.get(), CLONE_ARGS_SIZE as u64, 0, 0, 0, 0]);
}

/// Traces a process that waits, and stops it.
fn seize(tid: nix::unistd::Pid) -> Result<Stopped, Failure> {
    let options = Options::EXITKILL | Options::TRACE_CHILDREN | Options::SUSPEND_SECCOMP;
    let running = Running::seize(tid, options)?;
    let stopped = running.stop(Deadline::after(PATIENCE)).map_err(|(_, e)| Failure::from(e))?;
    let mut stopped = stopped.stopped(tid)?;
    stopped.set_care(Care::Kill);
    Ok(stopped)
}

/// Waits until a traced process that was killed is gone.
fn gone(tid: nix::unistd::Pid, pid: Pid) -> Result<(), Failure> {
    match Running::adopt(tid, Care::Kill).wait(Deadline::after(PATIENCE)) {
        Ok(Waited::Ended(_)) => Ok(()),
        _ => Err(Failure::not_restorable("it does not end").of_pid(pid.0)),
    }
}

/// Empties a new root: no rseq(2) area of ours, no mapping but the runner area and the vDSO with its data.
fn clear(member: &mut Member) -> Result<(), Failure> {
    let mut batch = member.batch();
    if let Some(rseq) = member.thread()?.rseq()? {
        let args = [rseq.address, u64::from(rseq.size), RSEQ_UNREGISTER, u64::from(rseq.signature), 0, 0];
        batch.must(libc::SYS_rseq, args);
    }
    let runner = area(&member.runner());
    let mut keep = vec![(runner.start.get(), runner.end.get())];
    for mapping in read_maps(member.tid())? {
        if matches!(&mapping.name, MapName::Special(name) if name == "vdso" || name.starts_with("vvar")) {
            keep.push((mapping.range.start.get(), mapping.range.end.get()));
        }
    }
    for (start, end) in holes(keep) {
        batch.must(libc::SYS_munmap, [start, end - start, 0, 0, 0, 0]);
    }
    member.run("unmap everything", &batch).map(drop)
}

/// What lies between the ranges that are kept.
fn holes(mut keep: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    keep.sort_unstable();
    keep.retain(|(start, _)| *start < TASK_SIZE);
    let mut holes = Vec::new();
    let mut at = 0;
    for (start, end) in keep {
        if start > at {
            holes.push((at, start));
        }
        at = at.max(end);
    }
    if at < TASK_SIZE {
        holes.push((at, TASK_SIZE));
    }
    holes
}

/// Gives a process that is about to end the name and owner of its record, and no core dump.
fn prepare_end(member: &mut Member, comm: &[u8], owner: (u32, u32)) -> Result<(), Failure> {
    let mut batch = member.batch();
    let name = batch.c_str(comm);
    let none = batch.data(&[0; 16]);
    batch.push(libc::SYS_prctl, [libc::PR_SET_NAME as u64, name.get(), 0, 0, 0, 0]);
    batch.push(libc::SYS_prlimit64, [0, u64::from(libc::RLIMIT_CORE), none.get(), 0, 0, 0]);
    let (uid, gid) = (u64::from(owner.0), u64::from(owner.1));
    batch.push(libc::SYS_setresgid, [gid, gid, gid, 0, 0, 0]);
    batch.push(libc::SYS_setresuid, [uid, uid, uid, 0, 0, 0]);
    member.run("prepare its end", &batch).map(drop)
}

/// Sends the process a signal that it cannot survive, and passes it on. Handlers are SIG_DFL (CLONE_CLEAR_SIGHAND).
fn die_of(mut member: Member, signal: i32) -> Result<Running, Failure> {
    let pid = member.pid;
    let mut batch = member.batch();
    let none = batch.data(&[0; 8]);
    let itself = batch.push(libc::SYS_getpid, [0; 6]);
    let outcome = member.run("look at itself", &batch)?;
    let me = outcome.result(itself).unwrap_or(0);
    let mut batch = member.batch();
    batch.data(&[0; 8]);
    batch.push(libc::SYS_rt_sigprocmask, [libc::SIG_SETMASK as u64, none.get(), 0, 8, 0, 0]);
    batch.push(libc::SYS_kill, [me, signal as u64, 0, 0, 0, 0]);
    // The batch is cut short by the stop for the signal.
    let _ = member.run("die", &batch);
    let thread = member.into_thread()?;
    thread.resume(signal).map_err(|(_, e)| Failure::from(e).of_pid(pid.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_not_kept_is_a_hole() {
        assert_eq!(
            holes(vec![(0x7000, 0x8000), (0x2000, 0x3000), (0x3000, 0x4000)]),
            [(0, 0x2000), (0x4000, 0x7000), (0x8000, TASK_SIZE)]
        );
        assert_eq!(holes(vec![(0xffff_ffff_ff60_0000, 0xffff_ffff_ff60_1000)]), [(0, TASK_SIZE)]);
    }
}
