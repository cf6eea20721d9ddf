//! Leaders of processes that ended before other threads (pthread_exit(3) in main): they make all that a leader has to make, then end alone.
//!
//! ```text
//!  grown, filled ─► makes its threads ─► name, credentials ─┬► exit(2) at once; the first thread stands in for it from here on
//!                                                           └► of a main process: pause(2) ─► systemd is told ─► exit(2)
//! ```
//! systemd takes no process for a main process whose first thread has ended. A child that asked for a signal at its parent's end gets one
//! when the thread that made it ends, which is the leader here; so leaders end before children ask, where they can.

use std::time::Duration;

use ckpt_image::records::{EndedLeader, GroupImage, Pid, ProcessBody, ThreadRecord};
use ckpt_sys::VirtAddr;
use ckpt_sys::ptrace::Options;
use ckpt_sys::task;
use ckpt_sys::thread::{Deadline, Running, Stopped};
use nix::libc;
use serde::{Deserialize, Serialize};

use super::credentials::{self, Now};
use super::process::living;
use super::{Failure, Member};

const PATIENCE: Duration = Duration::from_secs(10);

/// A leader that waits for its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// Its id, here.
    pub pid: i32,
    /// A `syscall` instruction in it.
    pub instruction: u64,
    /// The status for wait(2).
    pub status: i32,
}

/// The records of the threads that a process's leader has to make.
pub fn others(body: &ProcessBody) -> &[ThreadRecord] {
    let leaders = usize::from(body.ended_leader.is_none());
    body.threads.get(leaders..).unwrap_or_default()
}

/// Whether a child of the process asked to be sent a signal at its end (PR_SET_PDEATHSIG).
pub fn is_mourned(image: &GroupImage, pid: Pid) -> bool {
    let mourns = |body: &ProcessBody| body.threads.iter().any(|thread| thread.pdeathsig != 0);
    living(image).any(|(child, body)| child.ppid == pid && child.pid != pid && mourns(body))
}

/// Gives a leader what is seen of it when it has ended.
pub fn prepare(member: &mut Member, ended: &EndedLeader, now: Now<'_>) -> Result<(), Failure> {
    let mut batch = member.batch();
    credentials::set(&mut batch, &ended.credentials, now);
    let name = batch.c_str(&ended.comm);
    batch.must(libc::SYS_prctl, [libc::PR_SET_NAME as u64, name.get(), 0, 0, 0, 0]);
    // Its end must not be told to anybody in the memory, which has seen it.
    batch.must(libc::SYS_set_tid_address, [0; 6]);
    batch.must(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as u64, 0, 0, 0, 0, 0]);
    member.run("prepare the end of its first thread", &batch).map(drop)
}

/// Ends a leader that was prepared, and waits until it has ended. The other threads are still held.
pub fn end(member: Member, instruction: VirtAddr, ended: &EndedLeader) -> Result<(), Failure> {
    let pid = member.pid;
    let thread = member.into_thread()?;
    let tid = thread.tid();
    exit(thread, instruction, ended.status).map_err(|e| e.of_pid(pid.0))?;
    let deadline = Deadline::after(PATIENCE);
    while task::status(tid)?.state != 'Z' {
        if deadline.passed() {
            return Err(Failure::not_restorable("its first thread does not end").of_pid(pid.0));
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    Ok(())
}

/// Lets a leader go on that was prepared, to wait for [`end_late`]. Every signal must be blocked in it.
pub fn wait(
    member: Member,
    instruction: VirtAddr,
    ended: &EndedLeader,
) -> Result<(Stopped, Ending), Failure> {
    let thread = member.into_thread()?;
    call(&thread, instruction, libc::SYS_pause, 0)?;
    let ending = Ending { pid: thread.tid().as_raw(), instruction: instruction.get(), status: ended.status };
    Ok((thread, ending))
}

/// Ends leaders that wait. One whose process has ended meanwhile has had its end.
pub fn end_late(endings: &[Ending]) -> Result<(), Failure> {
    for ending in endings {
        let tid = nix::unistd::Pid::from_raw(ending.pid);
        let gone = |e: ckpt_sys::Error| match e {
            ckpt_sys::Error::Gone(_) => Ok(()),
            e if e.errno() == Some(nix::errno::Errno::ESRCH) => Ok(()),
            e => Err(Failure::from(e).of_pid(ending.pid)),
        };
        let running = match Running::seize(tid, Options::NONE) {
            Ok(running) => running,
            Err(e) => {
                gone(e)?;
                continue;
            }
        };
        match running.stop(Deadline::after(PATIENCE)).map_err(|(_, e)| e).and_then(|s| s.stopped(tid)) {
            Ok(thread) => exit(thread, VirtAddr(ending.instruction), ending.status)?,
            Err(e) => gone(e)?,
        }
    }
    Ok(())
}

/// Lets a thread go on into its end, with all signals blocked. `instruction`: a `syscall`.
pub fn exit(thread: Stopped, instruction: VirtAddr, status: i32) -> Result<(), Failure> {
    call(&thread, instruction, libc::SYS_exit, (status as u32 >> 8 & 0xff).into())?;
    match thread.detach_with(0) {
        Ok(()) | Err(ckpt_sys::Error::Gone(_)) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// The next thing that the thread does is this call.
fn call(thread: &Stopped, instruction: VirtAddr, nr: i64, arg: u64) -> Result<(), Failure> {
    let mut registers = thread.registers()?;
    registers.orig_rax = u64::MAX;
    (registers.rip, registers.rax, registers.rdi) = (instruction.get(), nr as u64, arg);
    Ok(thread.set_registers(&registers)?)
}
