//! A copy of a live member's memory as it is at this instant (fork(2)), which never executes anything of the application's.
//!
//! ```text
//!  member    clone(CLONE_VM | CLONE_VFORK | CLONE_FILES) ──────────── waits ───────────── wait4(helper) ─ sign
//!  helper         └─ stopped ─ clone(CLONE_FILES) ── the memory is copied ── stopped ─ exit_group
//!  copy                                                  └─ stopped ─ close_range ─ stopped at exit_group ──── read, killed
//! ```
//! The member never has the copy as a child: the helper makes it and ends, so it falls to the init of its PID namespace, which takes
//! its end. The caller sees to it that nobody of the application would get it instead (PR_SET_CHILD_SUBREAPER). The helper is
//! taken by the member's own batch, before any other thread of it runs; neither has an exit signal.
//!
//! The copy has a table of descriptors of its own, an empty one, so that nothing stays open because of it, and directories of its own,
//! so that the member still counts as alone with its (setns(2), execve(2) of a set-user-ID program). It holds no locks, no semaphore
//! adjustments, no robust futexes. If the tracer dies at any instant helper and copy go on to their exit_group(2); PTRACE_O_EXITKILL
//! ends the copy before that. It can be killed at any time.
//!
//! Not in the copy: mappings with MADV_DONTFORK; those with MADV_WIPEONFORK are empty in it.

use std::time::Duration;

use nix::unistd::Pid;

use super::Live;
use super::held::Met;
use crate::batch::{Batch, Call};
use crate::error::{Error, Result};
use crate::ptrace::Options;
use crate::runner::{self, read_outcome};
use crate::thread::{Care, Deadline, Running, Stop, Stopped, Waited};
use crate::{VirtAddr, task};

/// What the helper shares with the member.
const HELPER: u64 = (libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FILES) as u64;
/// What the copy shares with the helper until its close_range(2).
const TWIN: u64 = libc::CLONE_FILES as u64;
/// How long a member that was to be copied gets to come back when its copy has failed.
const BACK: Duration = Duration::from_millis(200);

/// A copy of a member's memory: a process that is stopped for ever, and killed when this is dropped.
#[derive(Debug)]
pub struct FrozenCopy {
    pid: Pid,
    thread: Option<Stopped>,
}

impl FrozenCopy {
    /// Its id: for those that read memory.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }
}

impl Drop for FrozenCopy {
    fn drop(&mut self) {
        let Some(mut thread) = self.thread.take() else { return };
        thread.set_care(Care::Kill);
        drop(thread);
        take_end(self.pid, Duration::from_secs(5)); // its memory goes first
    }
}

/// Takes the news that a killed process has ended: its parent gets them after us (ptrace(2)), at the latest when this thread ends.
fn take_end(pid: Pid, time: Duration) {
    let enough = Deadline::after(time);
    let mut running = Running::adopt(pid, Care::Release);
    while let Ok(Waited::Stopped(stopped)) = running.wait(enough) {
        match stopped.resume(0) {
            Ok(again) => running = again,
            Err(_) => return,
        }
    }
}

/// A copy that is being made.
#[derive(Debug)]
pub struct Copying {
    batch: Batch,
    made: Call,
    signal: i32,
    sign_at: VirtAddr,
    helper: Option<Running>,
}

impl Live {
    /// Begins to copy a prepared member; waits for nothing. `None` where its seccomp filter does not allow what that takes.
    ///
    /// Errors: those of running a batch; the member is as it was.
    pub fn begin_copy(&mut self) -> Result<Option<Copying>> {
        let calls = [
            (libc::SYS_clone, [HELPER, 0, 0, 0, 0, 0]),
            (libc::SYS_clone, [TWIN, 0, 0, 0, 0, 0]),
            (libc::SYS_close_range, [0, u64::from(u32::MAX), 2, 0, 0, 0]),
            (libc::SYS_wait4, [1, 0, libc::__WALL as u64, 0, 0, 0]),
            (libc::SYS_exit_group, [0; 6]),
        ];
        if !calls.iter().all(|(nr, args)| self.allows(*nr, args)) {
            return Ok(None);
        }
        let sign_at = match &self.runner {
            Some(runner) => runner.place.code().start.add(runner::offsets().sign),
            None => return Err(Error::NoRunner { pid: self.pid, why: "it is not prepared" }),
        };
        let mut batch = self.batch(0)?;
        let made = batch.copy(HELPER);
        self.stopped(0)?.set_options(Options::TRACE_CHILDREN)?;
        self.begin_run(&[(0, &batch)])?;
        let signal = self.batches.pop().map_or(0, |(_, signal)| signal);
        Ok(Some(Copying { batch, made, signal, sign_at, helper: None }))
    }

    /// Sets the helper going: from here on the memory is copied, while this thread can begin others.
    ///
    /// Errors: Deadline; the member may be in its batch still.
    pub fn launch_copy(&mut self, copying: &mut Copying, deadline: Deadline) -> Result<()> {
        let held = self.threads.first_mut().ok_or(Error::Gone(self.pid))?;
        let Met::Child(helper) = held.meet(copying.signal, copying.sign_at, deadline)? else {
            return Ok(()); // the kernel refused; the batch is over
        };
        // A handle first, so that it ends whatever happens.
        let newborn = Running::adopt(helper, Care::Kill);
        held.resume(0)?;
        let launched = born(newborn, deadline).and_then(|born| born.resume(0).map_err(|(_, e)| e));
        copying.helper = Some(launched.inspect_err(|_| take_end(helper, BACK))?);
        Ok(())
    }

    /// Waits for the copy, and for the member to be back where it was. `None`: the kernel refused, or it was not ready in time.
    ///
    /// Errors: those of running a batch.
    pub fn end_copy(&mut self, copying: Copying, deadline: Deadline) -> Result<Option<FrozenCopy>> {
        let Copying { batch, made, signal, sign_at, helper } = copying;
        let Some(helper) = helper else { return self.copied(&batch, made).map(|_| None) };
        let pid = helper.tid();
        let copy = twin(helper, deadline);
        if copy.is_err() {
            take_end(pid, BACK); // killed, perhaps in the middle of a large copy: the member waits for it
        }
        let back = if copy.is_ok() { deadline } else { Deadline::after(BACK) };
        let held = self.threads.first_mut().ok_or(Error::Gone(self.pid))?;
        held.collect(signal, sign_at, back)?;
        self.copied(&batch, made)?;
        Ok(copy.ok().flatten())
    }

    /// The batch is over: the member is traced as before.
    fn copied(&mut self, batch: &Batch, made: Call) -> Result<bool> {
        self.stopped(0)?.set_options(Options::NONE)?;
        Ok(read_outcome(self.pid, batch)?.result(made).is_ok())
    }
}

/// Waits for the first stop of a child that is traced because its maker was.
fn born(newborn: Running, deadline: Deadline) -> Result<Stopped> {
    let tid = newborn.tid();
    let stopped = newborn.wait(deadline).map_err(|(_, e)| e)?.stopped(tid)?;
    match stopped.reason() {
        Stop::Interrupted => Ok(stopped),
        stop => Err(Error::UnexpectedStop { tid, stop: format!("{stop} at its beginning") }),
    }
}

/// The helper makes the copy, and ends. `None`: the kernel refused.
fn twin(helper: Running, deadline: Deadline) -> Result<Option<FrozenCopy>> {
    let helper_id = helper.tid();
    let stopped = match helper.wait(deadline).map_err(|(_, e)| e)? {
        Waited::Ended(_) => return Ok(None),
        Waited::Stopped(stopped) => stopped,
    };
    if stopped.reason() != Stop::Child {
        let stop = format!("{} where it makes a copy", stopped.reason());
        return Err(Error::UnexpectedStop { tid: helper_id, stop });
    }
    let child = stopped.child()?;
    let copy = settle(Running::adopt(child, Care::Kill), deadline).inspect_err(|_| take_end(child, BACK));
    let mut helper = stopped.resume(0).map_err(|(_, e)| e)?;
    loop {
        match helper.wait(deadline).map_err(|(_, e)| e)? {
            Waited::Ended(_) => return copy.map(Some),
            Waited::Stopped(stopped) => helper = stopped.resume(0).map_err(|(_, e)| e)?,
        }
    }
}

/// The newborn copy closes what it has of the member's descriptors and goes to where it is to end; there it stays stopped.
fn settle(newborn: Running, deadline: Deadline) -> Result<FrozenCopy> {
    let pid = newborn.tid();
    let thread = born(newborn, deadline)?;
    thread.set_options(Options::EXITKILL)?;
    let mut thread = thread;
    // To the entry of close_range, to its end, to the entry of exit_group.
    for call in [libc::SYS_close_range, libc::SYS_close_range, libc::SYS_exit_group] {
        let running = thread.step_to_call().map_err(|(_, e)| e)?;
        thread = running.wait(deadline).map_err(|(_, e)| e)?.stopped(pid)?;
        let at = thread.registers()?;
        if thread.reason() != Stop::Signal(libc::SIGTRAP) || at.orig_rax != call as u64 {
            let stop = format!("{} in call {} on its way to its end", thread.reason(), at.orig_rax as i64);
            return Err(Error::UnexpectedStop { tid: pid, stop });
        }
    }
    Ok(FrozenCopy { pid, thread: Some(thread) })
}

/// Whether an orphan of this process falls to the init of a PID namespace, and to nobody of the application or above it.
///
/// `knows`: of a process of the application, whether it is a subreaper (prctl(2)); `None` of others.
#[must_use]
pub fn orphans_fall_to_init(pid: Pid, knows: impl Fn(Pid) -> Option<bool>) -> bool {
    let mut at = pid;
    loop {
        match knows(at) {
            Some(true) => return false,
            None if at.as_raw() == 1 || is_init(at) => return true,
            None => return false,
            Some(false) => {}
        }
        let parent = task::status(at).map_or(0, |status| status.parent);
        if parent <= 0 {
            return false;
        }
        at = Pid::from_raw(parent);
    }
}

/// Whether it is process 1 of a PID namespace below ours.
fn is_init(pid: Pid) -> bool {
    let status = crate::proc_file::read_text(format!("/proc/{pid}/status")).unwrap_or_default();
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    ids.split_ascii_whitespace().skip(1).last() == Some("1")
}
