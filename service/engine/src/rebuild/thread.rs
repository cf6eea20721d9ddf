//! What each thread has of its own: name, scheduling, credentials, seccomp filters, what the C library registered.
//!
//! The order matters: what needs privileges comes first, then filters (which act only when all tracing ends), then credentials.

use ckpt_image::records::{GroupImage, ThreadRecord};
use ckpt_sys::attributes;
use ckpt_sys::batch::Batch;
use ckpt_sys::clone::{CloneArgs, THREAD};
use nix::libc;

use super::credentials::{self, Now};
use super::grow::push_clone;
use super::waves::Batches;
use super::{Failure, Member};
use crate::kinds::settings as kept;

/// sched_setattr(2).
const SCHED_DEADLINE: u32 = 6;
/// sigaltstack(2).
const SS_DISABLE: i32 = 2;
const SS_AUTODISARM: i32 = 1 << 31;
/// ioprio_set(2), IOPRIO_WHO_PROCESS: this thread.
const IOPRIO_WHO_PROCESS: u64 = 1;
/// seccomp(2).
const SECCOMP_SET_MODE_FILTER: u64 = 1;
/// prctl(2).
const PR_SET_SECCOMP: u64 = 22;

/// Makes threads of a process besides its leader; they stay stopped. In the order of the records.
pub fn make_threads(leader: &mut Member, threads: &[ThreadRecord]) -> Result<Vec<Member>, Failure> {
    let mut made = Vec::new();
    for some in threads.chunks(500) {
        let mut batch = leader.batch();
        for thread in some {
            let args = CloneArgs { flags: THREAD, pid: Some(thread.tid.0), ..Default::default() };
            push_clone(&mut batch, &args);
        }
        let (_, children) = leader.run_with_children("make threads", &batch)?;
        if children.len() != some.len() {
            return Err(Failure::not_restorable("not all threads were made").of_pid(leader.pid.0));
        }
        for (record, stopped) in some.iter().zip(children) {
            made.push(Member::new(record.tid, stopped, leader.runner()));
        }
    }
    Ok(made)
}

/// What a thread's set-up is told besides its record.
#[derive(Debug, Clone, Copy)]
pub struct Setting<'a> {
    pub image: &'a GroupImage,
    /// Its process has no parent of the group.
    pub is_root: bool,
    /// Where it runs if its record names no CPU that is here (a mask, as sched_setaffinity(2) takes it).
    pub cpus: &'a [u64],
    /// What it has now of its credentials.
    pub credentials: Now<'a>,
    /// It is in a user namespace, from where it cannot be preferred to others: [`scheduling_from_outside`] has done that.
    pub is_private: bool,
}

/// Sets all of a thread but registers, mask and pending signals.
pub fn set_up(batches: &mut Batches, record: &ThreadRecord, setting: Setting<'_>) -> Result<(), Failure> {
    let batch = batches.room(32, 1024 + record.comm.len());
    settings(batch, record);
    kept::set_thread(batch, &record.settings);
    if !setting.is_private {
        scheduling(batch, record, setting.cpus);
    }
    library(batch, record);
    filters(batches, record, setting.image)?;
    let credentials = &record.credentials;
    let batch = batches.room(credentials::CALLS, credentials::bytes(credentials));
    credentials::set(batch, credentials, setting.credentials);
    let batch = batches.room(8, 8 * (setting.cpus.len() + record.affinity.len()));
    if record.no_new_privs {
        batch.must(libc::SYS_prctl, [libc::PR_SET_NO_NEW_PRIVS as u64, 1, 0, 0, 0, 0]);
    }
    // A root's parent is ckpt-restore, whose end would send the signal; the parent it had, PID 1, never ends.
    let signal = if setting.is_root { 0 } else { record.pdeathsig as u64 };
    batch.must(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as u64, signal, 0, 0, 0, 0]);
    // At last: up to here it runs where its tracer runs, which is far quicker than waking each other across CPUs.
    affinity(batch, setting.cpus);
    affinity(batch, &record.affinity);
    Ok(())
}

/// The CPUs it may run on. EINVAL where none of them exists here: then those before stay.
fn affinity(batch: &mut Batch, cpus: &[u64]) {
    if !cpus.is_empty() {
        let mask: Vec<u8> = cpus.iter().flat_map(|w| w.to_le_bytes()).collect();
        let at = batch.data(&mask);
        batch.push(libc::SYS_sched_setaffinity, [0, mask.len() as u64, at.get(), 0, 0, 0]);
    }
}

/// Name, timer slack, what prctl(2) has besides.
fn settings(batch: &mut Batch, record: &ThreadRecord) {
    let name = batch.c_str(&record.comm);
    batch.must(libc::SYS_prctl, [libc::PR_SET_NAME as u64, name.get(), 0, 0, 0, 0]);
    if record.timer_slack != 0 {
        batch.push(libc::SYS_prctl, [libc::PR_SET_TIMERSLACK as u64, record.timer_slack, 0, 0, 0, 0]);
    }
    // Settings that a kernel may not have; what differs from what every thread has is put back.
    let mce = [libc::PR_MCE_KILL as u64, libc::PR_MCE_KILL_SET as u64, u64::from(record.mce_kill), 0, 0, 0];
    batch.push(libc::SYS_prctl, mce);
    if record.tsc == libc::PR_TSC_SIGSEGV as u32 {
        batch.push(libc::SYS_prctl, [libc::PR_SET_TSC as u64, u64::from(record.tsc), 0, 0, 0, 0]);
    }
}

/// The same as [`scheduling`], where the thread itself may not.
pub fn scheduling_from_outside(tid: nix::unistd::Pid, record: &ThreadRecord) -> Result<(), Failure> {
    let sched = &record.sched;
    let deadline = sched.policy == SCHED_DEADLINE;
    let wanted = attributes::Scheduling {
        policy: sched.policy,
        flags: sched.flags,
        nice: sched.nice,
        priority: sched.priority,
        runtime: sched.runtime,
        deadline: if deadline { sched.deadline } else { 0 },
        period: if deadline { sched.period } else { 0 },
        ..attributes::Scheduling::default()
    };
    attributes::set_scheduling(tid, wanted)?;
    match record.io_priority {
        0 => Ok(()),
        priority => Ok(attributes::set_io_priority(tid, priority)?),
    }
}

/// Policy, nice, i/o priority.
fn scheduling(batch: &mut Batch, record: &ThreadRecord, cpus: &[u64]) {
    let sched = &record.sched;
    if sched.policy == SCHED_DEADLINE {
        // The kernel admits only who may run on all CPUs.
        affinity(batch, cpus);
    }
    let mut raw = Vec::with_capacity(48);
    raw.extend(48u32.to_le_bytes());
    raw.extend(sched.policy.to_le_bytes());
    raw.extend(sched.flags.to_le_bytes());
    raw.extend(sched.nice.to_le_bytes());
    raw.extend(sched.priority.to_le_bytes());
    // Of a fair policy the run time is the length of its slice, where that was set (Linux 6.12).
    let deadline = sched.policy == SCHED_DEADLINE;
    let times = if deadline { [sched.runtime, sched.deadline, sched.period] } else { [sched.runtime, 0, 0] };
    for word in times {
        raw.extend(word.to_le_bytes());
    }
    let at = batch.data(&raw);
    batch.must(libc::SYS_sched_setattr, [0, at.get(), 0, 0, 0, 0]);
    if record.io_priority != 0 {
        batch.push(libc::SYS_ioprio_set, [IOPRIO_WHO_PROCESS, 0, record.io_priority as u64, 0, 0, 0]);
    }
}

/// Alternate stack, the address cleared at the end, robust list, rseq(2).
fn library(batch: &mut Batch, record: &ThreadRecord) {
    let stack = &record.altstack;
    let disabled = stack.size == 0 || stack.flags & SS_DISABLE != 0;
    let flags = if disabled { SS_DISABLE } else { stack.flags & SS_AUTODISARM };
    let mut raw = stack.sp.to_le_bytes().to_vec();
    raw.extend(flags.to_le_bytes());
    raw.extend([0; 4]);
    raw.extend(stack.size.to_le_bytes());
    let at = batch.data(&raw);
    batch.must(libc::SYS_sigaltstack, [at.get(), 0, 0, 0, 0, 0]);
    batch.must(libc::SYS_set_tid_address, [record.tid_address, 0, 0, 0, 0, 0]);
    if record.robust_list.0 != 0 {
        let (head, len) = record.robust_list;
        batch.must(libc::SYS_set_robust_list, [head, len, 0, 0, 0, 0]);
    }
    let rseq = &record.rseq;
    if rseq.address != 0 {
        let args =
            [rseq.address, u64::from(rseq.length), u64::from(rseq.flags), u64::from(rseq.signature), 0, 0];
        batch.must(libc::SYS_rseq, args);
    }
}

/// Installs the thread's seccomp filters, oldest first, while it still may without no_new_privs.
fn filters(batches: &mut Batches, record: &ThreadRecord, image: &GroupImage) -> Result<(), Failure> {
    for id in &record.seccomp_filters {
        let program = image
            .seccomp_filters
            .get(id.index())
            .filter(|p| p.len().is_multiple_of(8) && p.len() / 8 <= 4096)
            .ok_or_else(|| {
                Failure::corrupt(format!("there is no seccomp filter {id}")).of_pid(record.tid.0)
            })?;
        let batch = batches.room(1, program.len() + 64);
        let code = batch.data(program);
        let mut fprog = (program.len() as u64 / 8).to_le_bytes().to_vec();
        fprog.extend(code.get().to_le_bytes());
        let at = batch.data(&fprog);
        batch.must(libc::SYS_seccomp, [SECCOMP_SET_MODE_FILTER, 0, at.get(), 0, 0, 0]);
    }
    if record.seccomp_mode == 1 {
        batches.room(1, 0).must(libc::SYS_prctl, [PR_SET_SECCOMP, 1, 0, 0, 0, 0]);
    }
    Ok(())
}
