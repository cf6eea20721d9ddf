//! A call that a stop interrupted goes on with what is left of its time.

mod detour;

use std::time::Duration;

use super::Live;
use super::held::Held;
use crate::error::Result;
use crate::ptrace::Registers;
use crate::restart::{self, ERESTARTNOHAND, Interrupted, RESTART_SYSCALL, RESTARTBLOCK};
use crate::time_limit::{Limit, Sleepers};
use crate::{VirtAddr, remote};

/// Below the stack pointer, what belongs to the function that made the call (System V ABI, 3.2.2).
const RED_ZONE: u64 = 128;

/// The argument with the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rest {
    place: usize,
    value: u64,
    /// What lies at `value`, where that is the address of a struct timespec.
    time: Option<[u8; 16]>,
}

impl Rest {
    /// Whether it is in place already.
    fn is_set(self, regs: &Registers) -> bool {
        let mut set = *regs;
        self.set(&mut set);
        set == *regs
    }

    /// Puts the rest in place of the whole time.
    pub(super) fn set(self, regs: &mut Registers) {
        let arguments =
            [&mut regs.rdi, &mut regs.rsi, &mut regs.rdx, &mut regs.r10, &mut regs.r8, &mut regs.r9];
        if let Some(argument) = arguments.into_iter().nth(self.place) {
            *argument = self.value;
        }
    }
}

impl Live {
    /// Makes interrupted calls right for threads whose calls are dispatched from now on, each with 16 bytes for what is left of its time.
    pub(crate) fn before_dispatch(&mut self, places: impl Iterator<Item = VirtAddr>) -> Result<()> {
        self.threads.iter_mut().zip(places).try_for_each(|(held, place)| held.before_dispatch(place))
    }
}

impl Held {
    /// The bytes before the instruction at which it stands; none where they cannot be read.
    pub(super) fn code_before(&self) -> Vec<u8> {
        let mut before = vec![0; 48];
        let from = VirtAddr(self.at_stop.rip).sub(before.len() as u64);
        match remote::read(self.tid, from, &mut before) {
            Ok(()) => before,
            Err(_) => Vec::new(),
        }
    }

    /// Lets the call that the stop interrupted go on with what is left of its time, if that is known: here, and where it is restored.
    ///
    /// What the kernel goes on with by itself as long as the thread lives (restart_syscall(2)) is left to it where the code tells its
    /// number, but for poll(2): made again, the call tells the next stop the truth.
    pub(super) fn keep_time_limit(&mut self, sleepers: &Sleepers) -> Result<()> {
        self.take_back_error();
        if let Some(detour) = self.detour(sleepers) {
            // Here, and where it is restored: it has not been stopped in a call any more.
            self.stopped()?.set_registers(&detour)?;
            (self.at_stop, self.registers) = (detour, detour);
            return Ok(());
        }
        let Some((nr, call, rest)) = self.rest_of_call(sleepers) else { return self.make_again() };
        self.rest = Some(rest);
        let by_kernel = call.result == RESTARTBLOCK;
        let answers_eintr = call.result == -i64::from(libc::EINTR);
        let left_to_kernel = by_kernel && nr != libc::SYS_poll as u64 && self.is_told_by_code(nr);
        if left_to_kernel || (answers_eintr && self.signal_pending) {
            return Ok(());
        }
        let mut registers = self.registers;
        rest.set(&mut registers);
        if by_kernel {
            (registers.orig_rax, registers.rax) = (nr, ERESTARTNOHAND as u64);
        }
        self.go_on_with(registers)
    }

    /// The same for a call that the kernel would go on with by itself, and that needs no rest of ours: without a limit, with an absolute
    /// one, or told the rest. The next stop would find restart_syscall(2) there, and no number in the code: `syscall(2)` takes it as an argument.
    fn make_again(&mut self) -> Result<()> {
        let by_kernel = |call: &Interrupted| call.result == RESTARTBLOCK && call.nr != RESTART_SYSCALL;
        let Some(call) = restart::interrupted(&self.at_stop).filter(by_kernel) else { return Ok(()) };
        if Limit::of(call.nr, &call.args).is_some() || self.is_told_by_code(call.nr) {
            return Ok(());
        }
        let mut registers = self.registers;
        restart::ask_for_the_rest(call.nr, &mut registers);
        registers.rax = ERESTARTNOHAND as u64;
        self.go_on_with(registers)
    }

    /// Whether the bytes before the instruction at which it stands tell the number of its call.
    fn is_told_by_code(&self, nr: u64) -> bool {
        restart::original(&self.code_before()) == Some(nr)
    }

    /// For the live thread alone, whose calls are dispatched from now on: the call is made again, not gone on with by the kernel, so that the next
    /// stop knows it, and a rest in memory goes to where 16 bytes are free. Below the red zone comes the frame of the signal by which the
    /// call is dispatched.
    fn before_dispatch(&mut self, to: VirtAddr) -> Result<()> {
        let mut registers = self.registers;
        if registers.rax as i64 == RESTARTBLOCK && registers.orig_rax != RESTART_SYSCALL {
            let arguments = restart::interrupted(&registers).map(|call| call.args).unwrap_or_default();
            match self.rest {
                Some(rest) => rest.set(&mut registers),
                None if Limit::of(registers.orig_rax, &arguments).is_some() => return Ok(()),
                None => restart::ask_for_the_rest(registers.orig_rax, &mut registers),
            }
            registers.rax = ERESTARTNOHAND as u64;
        }
        if let Some((rest, time)) = self.rest.and_then(|rest| Some((rest, rest.time?)))
            && rest.is_set(&registers)
        {
            remote::write(self.tid, to, &time)?;
            Rest { value: to.0, ..rest }.set(&mut registers);
        }
        if registers == self.registers { Ok(()) } else { self.go_on_with(registers) }
    }

    fn go_on_with(&mut self, registers: Registers) -> Result<()> {
        self.stopped()?.set_registers(&registers)?;
        self.registers = registers;
        Ok(())
    }

    /// The number of the call as it was made first, the call, and the rest. A rest in memory is written below the red zone of the
    /// thread's stack, where the kernel would put the frame of a signal.
    fn rest_of_call(&self, sleepers: &Sleepers) -> Option<(u64, Interrupted, Rest)> {
        let call = restart::interrupted(&self.at_stop)?;
        let nr = match call.nr {
            RESTART_SYSCALL => restart::original(&self.code_before())?,
            nr => nr,
        };
        let limit = Limit::of(nr, &call.args)?;
        let elapsed = sleepers.elapsed(self.tid, nr, &call.args, &self.at_stop)?;
        let rest = match limit {
            Limit::Millis(place) => {
                let whole = Duration::from_millis(call.args[place] & 0x7fff_ffff);
                // Rounded up: no call may end before its time.
                let millis = whole.saturating_sub(elapsed).as_nanos().div_ceil(1_000_000);
                Rest { place, value: u64::try_from(millis).ok()?, time: None }
            }
            Limit::Socket { .. } => return None,
            Limit::Timespec(place) => {
                let mut words = [0; 16];
                remote::read(self.tid, VirtAddr(call.args[place]), &mut words).ok()?;
                let word = |at: usize| u64::from_le_bytes(words[at..at + 8].try_into().unwrap_or_default());
                let nanos = u32::try_from(word(8)).ok().filter(|nanos| *nanos < 1_000_000_000)?;
                let rest = Duration::new(word(0), nanos).saturating_sub(elapsed);
                let value = self.at_stop.rsp.wrapping_sub(RED_ZONE + 2 * words.len() as u64) & !15;
                words[..8].copy_from_slice(&rest.as_secs().to_le_bytes());
                words[8..].copy_from_slice(&u64::from(rest.subsec_nanos()).to_le_bytes());
                remote::write(self.tid, VirtAddr(value), &words).ok()?;
                Rest { place, value, time: Some(words) }
            }
        };
        Some((nr, call, rest))
    }
}
