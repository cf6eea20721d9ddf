//! The end of a rebuild: pending signals, the runner's own pages, registers, masks; then all threads are let go at once.

use std::time::Duration;

use ckpt_image::records::{QueuedSignal, ThreadRecord};
use ckpt_sys::VirtAddr;
use ckpt_sys::nursery::area;
use ckpt_sys::ptrace::Registers;
use ckpt_sys::runner::step_call;
use ckpt_sys::thread::{Deadline, Stopped};
use nix::libc;

use super::{Failure, Member};

const PATIENCE: Duration = Duration::from_secs(10);
/// Words of struct user_regs_struct.
const WORDS: usize = 27;

/// Signals that came while the tree was grown (SIGCHLD of zombies) are none of the member's: taken out of its queue.
pub fn drain(member: &mut Member) -> Result<(), Failure> {
    let mut batch = member.batch();
    let set = batch.data(&(1u64 << (libc::SIGCHLD - 1)).to_le_bytes());
    let now = batch.data(&[0; 16]);
    batch.push(libc::SYS_rt_sigtimedwait, [set.get(), 0, now.get(), 8, 0, 0]);
    member.run("forget signals of the rebuild", &batch).map(drop)
}

/// Queues the pending signals again, each from within the thread, which alone may say that the kernel sent them. `process`: those
/// of the whole process, by its leader. All signals must be blocked.
pub fn queue(
    member: &mut Member,
    tgid: i32,
    own: &[QueuedSignal],
    process: &[QueuedSignal],
) -> Result<(), Failure> {
    if own.is_empty() && process.is_empty() {
        return Ok(());
    }
    let tid = member.pid.0 as u64;
    for (signals, whole) in [(own, false), (process, true)] {
        for some in signals.chunks(500) {
            let mut batch = member.batch();
            for signal in some {
                let number = signal.siginfo.first().copied().unwrap_or(0);
                if signal.siginfo.len() != 128 || number == 0 || number > 64 {
                    return Err(Failure::corrupt("a pending signal is none").of_pid(member.pid.0));
                }
                let info = batch.data(&signal.siginfo).get();
                let (tgid, number) = (tgid as u64, u64::from(number));
                if whole {
                    batch.must(libc::SYS_rt_sigqueueinfo, [tgid, number, info, 0, 0, 0]);
                } else {
                    batch.must(libc::SYS_rt_tgsigqueueinfo, [tgid, tid, number, info, 0, 0]);
                }
            }
            member.run("queue pending signals", &batch)?;
        }
    }
    Ok(())
}

/// Unmaps the runner area, by the `syscall` instruction of the vDSO; no batch can run in this address space after that.
pub fn unmap_runner(
    member: Member,
    instruction: VirtAddr,
) -> Result<(Stopped, ckpt_image::records::Pid), Failure> {
    let pid = member.pid;
    let range = area(&member.runner());
    let thread = member.into_thread()?;
    let args = [range.start.get(), range.len(), 0, 0, 0, 0];
    let (thread, result) = step_call(thread, instruction, libc::SYS_munmap, args, Deadline::after(PATIENCE))
        .map_err(|(_, e)| Failure::from(e).of_pid(pid.0))?;
    if result != 0 {
        let errno = nix::errno::Errno::from_raw(-result as i32);
        return Err(Failure::not_restorable(format!("unmap the runner: {errno}")).of_pid(pid.0));
    }
    Ok((thread, pid))
}

/// Gives a thread the registers and the mask of its record.
pub fn set_registers(thread: &Stopped, record: &ThreadRecord) -> Result<(), Failure> {
    let registers = registers(&record.registers)
        .ok_or_else(|| Failure::corrupt("its registers are not 27").of_pid(record.tid.0))?;
    let wrap = |e| Failure::from(e).of_pid(record.tid.0);
    if !record.xstate.is_empty() {
        thread.set_extended_state(&record.xstate).map_err(wrap)?;
    }
    thread.set_registers(&registers).map_err(wrap)?;
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
