//! What becomes of a system call that a stop interrupted: pure arithmetic on registers, x86_64.
//!
//! At a stop inside a system call, orig_rax holds its number and rax one of the kernel's restart codes
//! (include/linux/errno.h), which user mode never sees:
//!
//! | rax  | meaning | the live thread | the saved image |
//! |------|---------|-----------------|-----------------|
//! | −512, −513, −514 | restart with the same arguments | kernel does it at resume | rip − 2, rax = number |
//! | −516 | restart_syscall(2) with the rest of the time | kernel does it at resume; −514 in its place where the next stop could not tell its number | the call with the rest where known, else −EINTR |
//! | −4   | some calls never restart (epoll_wait …) | −514 in its place, if no signal is pending | rip − 2, rax = number |
//!
//! As long as the tracer lives it gives the thread its registers back as they were at the stop, so the kernel itself
//! decides between handler and restart. Only if the tracer dies does the runner go on with [`without_kernel`].

use crate::error::Result;
use crate::ptrace::Registers;
use crate::task;
use crate::thread::Stopped;

/// Number of restart_syscall(2).
pub(crate) const RESTART_SYSCALL: u64 = 219;
/// -ERESTARTNOHAND: restart unless a handler runs.
pub(crate) const ERESTARTNOHAND: i64 = -514;
/// -ERESTART_RESTARTBLOCK.
pub(crate) const RESTARTBLOCK: i64 = -516;

/// Calls that answer EINTR to a mere stop (signal(7), "Interruption of system calls … by stop signals", and
/// those with their own time-out) and can be made again with the same arguments.
const ANSWERS_EINTR: &[i64] = &[
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_io_getevents,
    333,                        // io_pgetevents
    crate::io_uring::SYS_ENTER, // EINTR only if it took no entry
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_msgrcv,
    libc::SYS_msgsnd,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_select,
    libc::SYS_pselect6,
];

/// A system call that a stop interrupted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interrupted {
    /// Its number; that of the original call also when restart_syscall(2) is being executed, if it is known.
    pub nr: u64,
    /// Its arguments.
    pub args: [u64; 6],
    /// What rax held.
    pub result: i64,
}

/// The call that these registers were interrupted in, if they were: the thread is at the return from a system call that has to be made again.
#[must_use]
pub fn interrupted(regs: &Registers) -> Option<Interrupted> {
    let (nr, result) = (regs.orig_rax as i64, regs.rax as i64);
    let again = match result {
        -514..=-512 | RESTARTBLOCK => true,
        -4 => ANSWERS_EINTR.contains(&nr),
        _ => false,
    };
    let args = [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9];
    (nr >= 0 && again).then_some(Interrupted { nr: nr as u64, args, result })
}

/// The registers with which the live thread is to be resumed: a call that answered EINTR to nothing but our stop restarts unless a handler runs.
///
/// `signal_pending`: a signal that the thread does not block waits for it, so the EINTR may be the signal's.
#[must_use]
pub fn live(regs: &Registers, signal_pending: bool) -> Registers {
    let mut live = *regs;
    if regs.rax as i64 == -4 && !signal_pending && interrupted(regs).is_some() {
        live.rax = ERESTARTNOHAND as u64;
    }
    live
}

/// Gives a stopped thread the registers of [`live`]; tells them, and whether a signal that it does not block waits for it, which is looked at
/// only where it matters.
pub(crate) fn go_on(thread: &Stopped, at_stop: &Registers, mask: u64) -> Result<(Registers, bool)> {
    if at_stop.rax as i64 != -4 {
        return Ok((*at_stop, false));
    }
    let signal_pending =
        task::status(thread.tid()).is_ok_and(|s| (s.pending | s.shared_pending) & !mask != 0);
    let registers = live(at_stop, signal_pending);
    thread.set_registers(&registers)?;
    Ok((registers, signal_pending))
}

/// The same for a thread that cannot rely on the kernel's restart, because orig_rax is lost on its way: wound back by hand.
#[must_use]
pub fn without_kernel(regs: &Registers) -> Registers {
    let mut regs = *regs;
    match regs.rax as i64 {
        _ if (regs.orig_rax as i64) < 0 => {}
        -514..=-512 => wind_back(&mut regs),
        RESTARTBLOCK => {
            wind_back(&mut regs);
            regs.rax = RESTART_SYSCALL;
        }
        _ => {}
    }
    regs.orig_rax = u64::MAX;
    regs
}

/// The registers as a restored thread must have them. What is restarted with the rest of its time (−516) is made again
/// with the rest where the program asked to be told it, else with the whole time; `before` are the bytes before rip,
/// from which its number is read when it was restarted before (orig_rax is 219 then). Where that fails it answers EINTR.
#[must_use]
pub fn saved(regs: &Registers, signal_pending: bool, before: impl FnOnce() -> Vec<u8>) -> Registers {
    let mut saved = live(regs, signal_pending);
    let restarting = saved.orig_rax == RESTART_SYSCALL && interrupted(&saved).is_some();
    if saved.orig_rax as i64 >= 0 && (saved.rax as i64 == RESTARTBLOCK || restarting) {
        let nr = if restarting { original(&before()) } else { Some(saved.orig_rax) };
        match nr {
            Some(nr) => {
                wind_back(&mut saved);
                saved.rax = nr;
                ask_for_the_rest(nr, &mut saved);
            }
            None => saved.rax = -i64::from(libc::EINTR) as u64,
        }
        saved.orig_rax = u64::MAX;
        return saved;
    }
    without_kernel(&saved)
}

/// The number of a call that restart_syscall(2) stands for, from the code before rip: `mov eax, number` a few bytes before `syscall`.
/// Only four calls restart that way.
pub(crate) fn original(before: &[u8]) -> Option<u64> {
    const CALLS: [i64; 4] = [libc::SYS_nanosleep, libc::SYS_clock_nanosleep, libc::SYS_poll, libc::SYS_futex];
    let code = before.strip_suffix(&[0x0f, 0x05])?;
    code.windows(5).rev().filter(|w| w[0] == 0xb8).find_map(|w| {
        let number = i64::from(u32::from_le_bytes([w[1], w[2], w[3], w[4]]));
        CALLS.contains(&number).then_some(number as u64)
    })
}

/// nanosleep(2) wrote the rest of the time to its second pointer when it was interrupted, if it was given one: sleep that.
pub(crate) fn ask_for_the_rest(nr: u64, regs: &mut Registers) {
    match nr as i64 {
        libc::SYS_nanosleep if regs.rsi != 0 => regs.rdi = regs.rsi,
        libc::SYS_clock_nanosleep if regs.r10 != 0 && regs.rsi & 1 == 0 => regs.rdx = regs.r10,
        _ => {}
    }
}

/// Back onto the `syscall` instruction (2 bytes), with the number in rax again.
fn wind_back(regs: &mut Registers) {
    regs.rip = regs.rip.wrapping_sub(2);
    regs.rax = regs.orig_rax;
}

/// The critical section of rseq(2) that is being executed: struct rseq_cs, of 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CriticalSection {
    start: u64,
    length: u64,
    abort: u64,
}

impl CriticalSection {
    /// Reads struct rseq_cs (version, flags, start_ip, post_commit_offset, abort_ip).
    #[must_use]
    pub fn parse(bytes: &[u8; 32]) -> Self {
        let word = |i: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[i..i + 8]);
            u64::from_le_bytes(word)
        };
        Self { start: word(8), length: word(16), abort: word(24) }
    }

    /// Where a thread interrupted at `rip` must go on: at the abort handler if it was inside the section.
    #[must_use]
    pub fn resume_at(&self, rip: u64) -> u64 {
        if rip.wrapping_sub(self.start) < self.length { self.abort } else { rip }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regs(orig_rax: i64, rax: i64) -> Registers {
        // SAFETY: a structure of numbers, for which zero is a value.
        let mut regs: Registers = unsafe { std::mem::zeroed() };
        (regs.orig_rax, regs.rax, regs.rip) = (orig_rax as u64, rax as u64, 0x1002);
        regs
    }

    // number, rax at the stop, signal pending → saved (rip, rax); live rax
    #[test]
    #[allow(clippy::type_complexity)]
    fn each_kind_of_interruption() {
        let table: &[(i64, i64, bool, (u64, i64), i64)] = &[
            (202, -512, false, (0x1000, 202), -512), // futex
            (202, -512, true, (0x1000, 202), -512),  // a signal does not matter here: the kernel decides
            (61, -512, false, (0x1000, 61), -512),   // wait4
            (130, -514, false, (0x1000, 130), -514), // rt_sigsuspend
            (34, -514, false, (0x1000, 34), -514),   // pause
            (230, -516, false, (0x1000, 230), -516), // clock_nanosleep
            (219, -516, false, (0x1002, -4), -516),  // restarted before, original unknown
            (232, -4, false, (0x1000, 232), -514),   // epoll_wait
            (232, -4, true, (0x1002, -4), -4),       // a signal may have caused it
            (3, -4, false, (0x1002, -4), -4),        // close never restarts
            (0, 17, false, (0x1002, 17), 17),        // finished
            (0, -11, false, (0x1002, -11), -11),     // finished with EAGAIN
            (-1, -512, false, (0x1002, -512), -512), // not in a call: the number is the program's own
        ];
        for (nr, rax, pending, (rip, after), live_rax) in table {
            let at_stop = regs(*nr, *rax);
            let saved = saved(&at_stop, *pending, Vec::new);
            assert_eq!((saved.rip, saved.rax as i64), (*rip, *after), "saved {nr} {rax} {pending}");
            assert_eq!(saved.orig_rax, u64::MAX);
            let live = live(&at_stop, *pending);
            assert_eq!((live.rip, live.rax as i64), (0x1002, *live_rax), "live {nr} {rax} {pending}");
        }
    }

    #[test]
    fn a_call_restarted_before_is_known_by_its_code() {
        let code = [0xb8, 0xe6, 0, 0, 0, 0x48, 0x89, 0xc7, 0x0f, 0x05];
        let after = saved(&regs(219, -516), false, || code.to_vec());
        assert_eq!((after.rip, after.rax), (0x1000, 230));
        // Another call's number in the code does not mislead.
        let other = [0xb8, 0x01, 0, 0, 0, 0x0f, 0x05];
        assert_eq!(saved(&regs(219, -516), false, || other.to_vec()).rax as i64, -4);
        assert_eq!(saved(&regs(219, -516), false, || code[..9].to_vec()).rax as i64, -4);
    }

    #[test]
    fn the_rest_is_slept_where_the_program_is_told_it() {
        let mut at_stop = regs(230, -516);
        (at_stop.rdi, at_stop.rsi, at_stop.rdx, at_stop.r10) = (1, 0, 0x5000, 0x6000);
        assert_eq!(saved(&at_stop, false, Vec::new).rdx, 0x6000);
        at_stop.r10 = 0;
        assert_eq!(saved(&at_stop, false, Vec::new).rdx, 0x5000);
        let mut at_stop = regs(35, -516);
        (at_stop.rdi, at_stop.rsi) = (0x5000, 0x6000);
        assert_eq!(saved(&at_stop, false, Vec::new).rdi, 0x6000);
    }

    #[test]
    fn the_rest_of_the_time_survives_the_death_of_the_tracer() {
        let alone = without_kernel(&regs(230, -516));
        assert_eq!((alone.rip, alone.rax, alone.orig_rax), (0x1000, 219, u64::MAX));
    }

    #[test]
    fn a_critical_section_is_aborted_only_inside() {
        let mut bytes = [0u8; 32];
        bytes[8..16].copy_from_slice(&0x100u64.to_le_bytes());
        bytes[16..24].copy_from_slice(&0x10u64.to_le_bytes());
        bytes[24..32].copy_from_slice(&0x900u64.to_le_bytes());
        let section = CriticalSection::parse(&bytes);
        assert_eq!(
            [0xff, 0x100, 0x10f, 0x110].map(|rip| section.resume_at(rip)),
            [0xff, 0x900, 0x900, 0x110]
        );
    }
}
