//! All threads of many processes, stopped at one instant: freeze, seize, interrupt, thaw, collect.
//!
//! ```text
//!  cgroup.freeze 1 ─► every thread: SEIZE + INTERRUPT ─► again until none is new ─► cgroup.freeze 0 ─► collect the stops
//!        all stand still                                                           the pending trap stops them first
//! ```
//!
//! Between freeze and the end nothing of the group executes an instruction, with one exception: the child of a vfork(2)
//! whose parent cannot stop before the child executed a program or ended. It runs until then.

use std::collections::HashSet;
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::Pid;

use crate::cgroup::{Cgroup, Frozen, Member};
use crate::error::{Error, Result, Subject};
use crate::ptrace::Options;
use crate::thread::{Care, Deadline, Running, Stop, Stopped, Waited, take_ends};
use crate::{restart, task};

/// A process all of whose threads are stopped.
#[derive(Debug)]
pub struct Process {
    /// Its id.
    pub pid: Pid,
    /// Its cgroup, relative to the cgroup2 mount, with a leading slash.
    pub cgroup: String,
    /// Its threads, the leader first, unless [`Process::leader_ended`].
    pub threads: Vec<Stopped>,
    /// The leader ended before its other threads; only those are in `threads`.
    pub leader_ended: bool,
}

impl Process {
    /// The signal by which job control has stopped the process, if it has.
    #[must_use]
    pub fn stopped_by(&self) -> Option<i32> {
        self.threads
            .iter()
            .find_map(|t| if let Stop::Group(signal) = t.reason() { Some(signal) } else { None })
    }

    /// Lets all threads go on. Threads that died meanwhile are no failure.
    pub fn release(self) -> Result<()> {
        // Who ends meanwhile needs nothing any more.
        for thread in &self.threads {
            let go_on = || restart::go_on(thread, &thread.registers()?, thread.signal_mask()?);
            let _ = go_on();
        }
        let results: Vec<_> = self.threads.into_iter().map(Stopped::detach).collect();
        take_ends_of(&results);
        results.into_iter().filter(|r| !matches!(r, Err(Error::Gone(_)))).collect()
    }
}

/// Takes the news of threads that turned out to be gone.
pub(crate) fn take_ends_of(results: &[Result<()>]) {
    let gone = results.iter().filter_map(|r| if let Err(Error::Gone(tid)) = r { Some(*tid) } else { None });
    take_ends(&gone.collect::<Vec<_>>());
}

/// A process some of whose threads may still run.
struct Half {
    member: Member,
    running: Vec<Running>,
    stopped: Vec<Stopped>,
    leader_ended: bool,
}

/// How a thread's seizing went.
enum Seize {
    Traced(Running),
    Ended,
}

/// Stops every thread in the cgroups. They run on when the result is released or dropped.
///
/// Errors: [`Error::Deadline`] if something could not be stopped in time; [`Error::AlreadyTraced`]; [`Error::Frozen`]. All run on then.
pub fn seize_all(cgroups: &[Cgroup], deadline: Deadline) -> Result<Vec<Process>> {
    seize_frozen(Frozen::freeze(cgroups, deadline)?, deadline)
}

/// Same, of cgroups that are frozen already; they are thawed on the way.
pub fn seize_frozen(frozen: Frozen, deadline: Deadline) -> Result<Vec<Process>> {
    let mut halves = Vec::new();
    let mut known = HashSet::new();
    loop {
        let mut new = 0;
        for cgroup in frozen.cgroups() {
            for member in cgroup.members()? {
                new += seize_process(member, &mut halves, &mut known)?;
            }
        }
        if new == 0 || frozen.cgroups().iter().all(|cgroup| is_known(cgroup, &known)) {
            break;
        }
    }
    frozen.thaw()?;
    collect(halves, deadline)
}

/// Whether every thread in a cgroup is known: one list, where a look at each process again would be as many as there are. False where it
/// cannot be told.
fn is_known(cgroup: &Cgroup, known: &HashSet<Pid>) -> bool {
    cgroup.threads().is_some_and(|threads| threads.iter().all(|tid| known.contains(tid)))
}

/// Stops every thread of some processes while others run on. Those that end meanwhile are left out.
///
/// Errors: as [`seize_all`].
pub fn seize_processes(pids: &[Pid], deadline: Deadline) -> Result<Vec<Process>> {
    let (mut halves, mut known) = (Vec::new(), HashSet::new());
    loop {
        let mut new = 0;
        for &pid in pids {
            new += seize_process(Member { pid, cgroup: String::new() }, &mut halves, &mut known)?;
        }
        if new == 0 {
            return collect(halves, deadline);
        }
        // A thread that has not stopped yet may make another.
        halves.iter_mut().try_for_each(|half| half.collect(deadline))?;
    }
}

/// Seizes the threads of a process that are not known yet; tells how many.
fn seize_process(member: Member, halves: &mut Vec<Half>, known: &mut HashSet<Pid>) -> Result<usize> {
    let tids = match task::threads(member.pid) {
        Err(Error::Gone(_)) => return Ok(0),
        other => other?,
    };
    let place = halves.iter().position(|half| half.member.pid == member.pid);
    let place = place.unwrap_or_else(|| {
        halves.push(Half { member, running: Vec::new(), stopped: Vec::new(), leader_ended: false });
        halves.len() - 1
    });
    let half = &mut halves[place];
    let mut new = 0;
    for tid in tids {
        if !known.insert(tid) {
            continue;
        }
        match seize_thread(half.member.pid, tid)? {
            Seize::Traced(running) => {
                half.running.push(running);
                new += 1;
            }
            Seize::Ended => half.leader_ended |= tid == half.member.pid,
        }
    }
    Ok(new)
}

/// Seizes and interrupts one thread; says who traces it if somebody does.
fn seize_thread(pid: Pid, tid: Pid) -> Result<Seize> {
    let error = match Running::seize(tid, Options::NONE) {
        Ok(running) => match running.interrupt() {
            Ok(()) => return Ok(Seize::Traced(running)),
            Err(e) => e,
        },
        Err(e) => e,
    };
    if error.errno() == Some(Errno::ESRCH) {
        return Ok(Seize::Ended);
    }
    match task::status(tid) {
        Err(Error::Gone(_)) => Ok(Seize::Ended),
        Ok(status) if matches!(status.state, 'Z' | 'X') => Ok(Seize::Ended),
        // A former attempt of ours gave up on it: a thread in vfork(2) could not stop then, nor be detached.
        Ok(status) if status.tracer == nix::unistd::gettid().as_raw() => adopt(tid),
        Ok(status) if status.tracer != 0 => {
            Err(Error::AlreadyTraced { pid, tracer: Pid::from_raw(status.tracer) })
        }
        _ => Err(error),
    }
}

/// Takes over a thread that this thread traces already.
fn adopt(tid: Pid) -> Result<Seize> {
    let running = Running::adopt(tid, Care::Release);
    match running.interrupt() {
        Ok(()) => Ok(Seize::Traced(running)),
        Err(e) if e.errno() == Some(Errno::ESRCH) => {
            std::mem::forget(running);
            Ok(Seize::Ended)
        }
        Err(e) => Err(e),
    }
}

/// Waits until every thread has reported its stop.
fn collect(mut halves: Vec<Half>, deadline: Deadline) -> Result<Vec<Process>> {
    /// A thread that runs stops within microseconds; one that has not after this long waits for its vfork(2) child.
    const PATIENCE: Duration = Duration::from_millis(3);
    loop {
        let round = Deadline::after(PATIENCE.min(deadline.left()));
        for half in &mut halves {
            half.collect(round)?;
        }
        if halves.iter().all(|half| half.running.is_empty()) {
            break;
        }
        if deadline.passed() {
            let tid =
                halves.iter().find_map(|half| half.running.first()).map_or(Pid::from_raw(0), Running::tid);
            return Err(Error::Deadline { op: "stop every thread", subject: Subject::Task(tid) });
        }
        free_vfork_children(&mut halves)?;
    }
    Ok(halves.into_iter().filter_map(Half::whole).collect())
}

/// Lets the children run for which a vfork(2)ing parent waits, and asks them to stop again after that.
fn free_vfork_children(halves: &mut [Half]) -> Result<()> {
    let waiting: Vec<Pid> = halves
        .iter()
        .flat_map(|half| half.running.iter().map(|thread| (half.member.pid, thread.tid())))
        .filter(|(_, tid)| task::waits_in_vfork(*tid))
        .map(|(pid, _)| pid)
        .collect();
    for half in halves {
        let pid = half.member.pid;
        let Ok(status) = task::status(pid) else { continue };
        let parent = Pid::from_raw(status.parent);
        if half.stopped.is_empty() || !waiting.contains(&parent) {
            continue;
        }
        if task::compare(pid, parent, task::Shared::Space)? != std::cmp::Ordering::Equal {
            continue;
        }
        for thread in std::mem::take(&mut half.stopped) {
            let signal = if let Stop::Signal(signal) = thread.reason() { signal } else { 0 };
            half.running.push(thread.resume(signal).map_err(|(_, e)| e)?);
        }
        half.let_run_out()?;
    }
    Ok(())
}

impl Half {
    /// Takes the stops that come before the deadline.
    fn collect(&mut self, deadline: Deadline) -> Result<()> {
        for running in std::mem::take(&mut self.running) {
            let tid = running.tid();
            match settle(running, deadline) {
                // Requests that are under way end only if it runs.
                Ok(Some(worker)) if is_worker(self.member.pid, &worker) => worker.detach()?,
                Ok(Some(stopped)) => self.stopped.push(stopped),
                Ok(None) => self.leader_ended |= tid == self.member.pid,
                Err((running, Error::Deadline { .. })) => self.running.extend(running),
                Err((_, e)) => return Err(e),
            }
        }
        Ok(())
    }

    /// A vfork(2) child runs until it executed a program or ended, that is until it has a space of its own; then it is to stop.
    fn let_run_out(&mut self) -> Result<()> {
        let parent = Pid::from_raw(task::status(self.member.pid).map_or(0, |s| s.parent));
        let enough = Deadline::after(Duration::from_millis(20));
        while !enough.passed() {
            match task::compare(self.member.pid, parent, task::Shared::Space) {
                Ok(std::cmp::Ordering::Equal) => self.pass_signals()?,
                _ => break,
            }
        }
        for running in &self.running {
            let _ = running.interrupt();
        }
        Ok(())
    }

    /// Gives threads that run the signals that they stop for: each system call of theirs may come with one (Syscall User Dispatch).
    fn pass_signals(&mut self) -> Result<()> {
        for running in std::mem::take(&mut self.running) {
            match running.wait(Deadline::after(Duration::ZERO)) {
                Ok(Waited::Stopped(stopped)) => match stopped.reason() {
                    Stop::Signal(signal) => {
                        self.running.push(stopped.resume(signal).map_err(|(_, e)| e)?);
                    }
                    _ => self.stopped.push(stopped),
                },
                Ok(Waited::Ended(_)) => {}
                Err((running, Error::Deadline { .. })) => self.running.push(running),
                Err((_, e)) => return Err(e),
            }
        }
        Ok(())
    }

    /// The process, if any of it is left.
    fn whole(self) -> Option<Process> {
        let Half { member, mut stopped, leader_ended, .. } = self;
        stopped.sort_by_key(|t| (t.tid() != member.pid, t.tid().as_raw()));
        (!stopped.is_empty()).then_some(Process {
            pid: member.pid,
            cgroup: member.cgroup,
            threads: stopped,
            leader_ended,
        })
    }
}

/// Whether a thread is one that the kernel has made to work for io_uring(7): it never runs the program, and shows no registers.
fn is_worker(pid: Pid, thread: &Stopped) -> bool {
    let nowhere = thread.registers().is_ok_and(|regs| regs.rip == 0);
    nowhere && task::is_io_worker(pid, thread.tid())
}

/// Waits for the stop that the interrupt made; signals that come first are delivered. `None`: the thread ended.
pub(crate) fn settle(
    running: Running,
    deadline: Deadline,
) -> std::result::Result<Option<Stopped>, (Option<Running>, Error)> {
    let mut running = running;
    loop {
        let stopped = match running.wait(deadline).map_err(|(r, e)| (Some(r), e))? {
            Waited::Ended(_) => return Ok(None),
            Waited::Stopped(stopped) => stopped,
        };
        let signal = match stopped.reason() {
            Stop::Interrupted | Stop::Group(_) => return Ok(Some(stopped)),
            Stop::Signal(signal) => signal,
            Stop::Child | Stop::Exec | Stop::Event(_) => 0,
        };
        running = stopped.resume(signal).map_err(|(_, e)| (None, e))?;
        if let Err(e) = running.interrupt() {
            if e.errno() == Some(Errno::ESRCH) {
                continue; // it is ending: the next wait tells
            }
            return Err((Some(running), e));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// The process under test: this program again.
    #[test]
    #[ignore = "runs in a process of its own"]
    fn waiter() {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: plain system calls; `event` has room for the one event that is asked for.
        let got = unsafe { libc::epoll_wait(libc::epoll_create1(0), &raw mut event, 1, 500) };
        assert_eq!(got, 0, "{}", std::io::Error::last_os_error());
    }

    #[test]
    fn a_call_that_a_stop_interrupts_goes_on() {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let mut child = command.args(["--exact", "seize::tests::waiter", "--ignored"]).spawn().unwrap();
        let pid = Pid::from_raw(child.id() as i32);
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(60));
            let held = seize_processes(&[pid], Deadline::after(Duration::from_secs(5))).unwrap();
            assert_eq!(held.len(), 1);
            held.into_iter().for_each(|process| process.release().unwrap());
        }
        assert!(child.wait().unwrap().success());
    }
}
