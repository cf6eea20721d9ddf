//! The end of a rebuild: pending signals, the runner's own pages, registers, masks; then all threads are let go at once.

use std::time::Duration;

use ckpt_image::records::{DispatchRecord, Pid, QueuedSignal, ThreadRecord};
use ckpt_sys::VirtAddr;
use ckpt_sys::batch::Batch;
use ckpt_sys::nursery::area;
use ckpt_sys::ptrace::{DispatchConfiguration, Registers};
use ckpt_sys::runner::{begin_step, end_step};
use ckpt_sys::thread::{Deadline, Running, Stopped};
use nix::libc;

use super::waves::Batches;
use super::{Failure, Member};

const PATIENCE: Duration = Duration::from_secs(10);
/// Words of struct user_regs_struct.
const WORDS: usize = 27;

/// Signals that came while the tree was grown (SIGCHLD of zombies) are none of the member's: taken out of its queue.
pub fn drain(batch: &mut Batch) {
    let set = batch.data(&(1u64 << (libc::SIGCHLD - 1)).to_le_bytes());
    let now = batch.data(&[0; 16]);
    batch.push(libc::SYS_rt_sigtimedwait, [set.get(), 0, now.get(), 8, 0, 0]);
}

/// Queues the pending signals again, each from within the thread, which alone may say that the kernel sent them. `process`: those
/// of the whole process, by its leader. All signals must be blocked.
pub fn queue(
    batches: &mut Batches,
    (tgid, tid): (Pid, Pid),
    own: &[QueuedSignal],
    process: &[QueuedSignal],
) -> Result<(), Failure> {
    let (tgid, tid) = (tgid.0 as u64, tid.0 as u64);
    for (signals, whole) in [(own, false), (process, true)] {
        for signal in signals {
            let number = signal.siginfo.first().copied().unwrap_or(0);
            if signal.siginfo.len() != 128 || number == 0 || number > 64 {
                return Err(Failure::corrupt("a pending signal is none").of_pid(tid as i32));
            }
            let batch = batches.room(1, 128);
            let info = batch.data(&signal.siginfo).get();
            let number = u64::from(number);
            if whole {
                batch.must(libc::SYS_rt_sigqueueinfo, [tgid, number, info, 0, 0, 0]);
            } else {
                batch.must(libc::SYS_rt_tgsigqueueinfo, [tgid, tid, number, info, 0, 0]);
            }
        }
    }
    Ok(())
}

/// Begins to unmap the runner area, by the `syscall` instruction of the vDSO; no batch can run in this address space after that.
pub fn begin_unmap(member: Member, instruction: VirtAddr) -> Result<Running, Failure> {
    let (pid, range) = (member.pid, area(&member.runner()));
    let args = [range.start.get(), range.len(), 0, 0, 0, 0];
    begin_step(member.into_thread()?, instruction, libc::SYS_munmap, args)
        .map_err(|(_, e)| Failure::from(e).of_pid(pid.0))
}

/// Waits until the runner area is unmapped.
pub fn end_unmap(unmapping: Running, instruction: VirtAddr) -> Result<Stopped, Failure> {
    let (thread, result) =
        end_step(unmapping, instruction, Deadline::after(PATIENCE)).map_err(|(_, e)| Failure::from(e))?;
    if result != 0 {
        let errno = nix::errno::Errno::from_raw(-result as i32);
        return Err(Failure::not_restorable(format!("unmap the runner: {errno}")));
    }
    Ok(thread)
}

/// Gives a thread the registers and the mask of its record, and has its calls dispatched: from here on nothing may run in it.
pub fn set_registers(thread: &Stopped, record: &ThreadRecord) -> Result<(), Failure> {
    let registers = registers(&record.registers)
        .ok_or_else(|| Failure::corrupt("its registers are not 27").of_pid(record.tid.0))?;
    let wrap = |e| Failure::from(e).of_pid(record.tid.0);
    if !record.xstate.is_empty() {
        thread.set_extended_state(&record.xstate).map_err(wrap)?;
    }
    thread.set_registers(&registers).map_err(wrap)?;
    if let Some(DispatchRecord { selector, offset, len }) = record.dispatch {
        thread.set_dispatch(DispatchConfiguration { mode: 1, selector, offset, len }).map_err(wrap)?;
    }
    thread.set_signal_mask(record.sigmask).map_err(wrap)
}

/// struct user_regs_struct of its words, in the order of the structure; not in a system call.
fn registers(words: &[u64]) -> Option<Registers> {
    let w: &[u64; WORDS] = words.try_into().ok()?;
    Some(Registers {
        r15: w[0],
        r14: w[1],
        r13: w[2],
        r12: w[3],
        rbp: w[4],
        rbx: w[5],
        r11: w[6],
        r10: w[7],
        r9: w[8],
        r8: w[9],
        rax: w[10],
        rcx: w[11],
        rdx: w[12],
        rsi: w[13],
        rdi: w[14],
        orig_rax: u64::MAX,
        rip: w[16],
        cs: w[17],
        eflags: w[18],
        rsp: w[19],
        ss: w[20],
        fs_base: w[21],
        gs_base: w[22],
        ds: w[23],
        es: w[24],
        fs: w[25],
        gs: w[26],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_have_their_places_and_no_system_call() {
        let words: Vec<u64> = (0..27).collect();
        let regs = registers(&words).unwrap();
        assert_eq!((regs.r15, regs.rax, regs.rip, regs.rsp, regs.gs), (0, 10, 16, 19, 26));
        assert_eq!(regs.orig_rax, u64::MAX);
        assert!(registers(&words[1..]).is_none());
    }
}
