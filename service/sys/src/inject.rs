//! System calls inside a live member, so that it can never be hurt: not by a failure here, not by our death at any instant.
//!
//! ```text
//!  stopped ─ slot written ─ SETREGSET (into the runner) ─ SETSIGMASK (all but the sign) ─ CONT ─ … batch … ─ sign
//!     │            │                │                              │                                       │
//!     └────────────┴── as it was    └── from here on the runner's own way back puts everything right ──────┤
//!                                                                                                          │
//!  detach ◄── stopped, as it was ◄── SETREGSET (as at the stop) ◄── SETSIGMASK (as at the stop) ◄──────────┘
//! ```
//!
//! The mask is touched only while the thread is bound for the runner, whose way back sets it from the slot. At the end
//! the thread is where it was, in the kernel's eyes too: the system call that the stop interrupted is restarted, or
//! answered with EINTR for a handler, by the kernel itself.

mod area;
mod copy;
mod held;
mod prepare;
mod rest;

use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::Pid;

pub use self::area::is_area;
pub use self::copy::{Copying, FrozenCopy, orphans_fall_to_init};
use self::held::{At, Held, run_out};
use self::prepare::Boot;
use crate::batch::{Batch, Outcome};
use crate::error::{Error, Result};
use crate::protect::Protection;
use crate::ptrace::{DispatchConfiguration, Registers, RseqConfiguration};
use crate::restart;
use crate::runner::{self, read_outcome};
use crate::seize::{Process, take_ends_of};
use crate::task::{self, Status};
use crate::thread::{Deadline, Stop, Stopped};
use crate::time_limit::Sleepers;
use crate::vdso::{Header, Place};
use crate::{AddrRange, VirtAddr, proc_file, remote};

/// A live process all of whose threads are held, ready to run batches.
#[derive(Debug)]
pub struct Live {
    process: Pid,
    pid: Pid,
    threads: Vec<Held>,
    facts: Facts,
    filters: Vec<Vec<u8>>,
    /// Where the runner is or can be, until it is prepared.
    place: Option<Result<Place>>,
    runner: Option<Runner>,
    booting: Option<Boot>,
    /// Threads in a batch, with the signal that is the sign of each.
    batches: Vec<(usize, i32)>,
    /// The area is new: the first batch marks it.
    unmarked: bool,
    pub(crate) protection: Protection,
}

/// What /proc/PID/status tells of a process that batches depend on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts {
    /// Ignored signals, bit n−1 is signal n.
    pub ignored: u64,
    /// Signals with a handler.
    pub caught: u64,
    /// Seccomp mode of the first thread: 0 none, 1 strict, 2 filter.
    pub seccomp: u32,
}

impl From<Status> for Facts {
    fn from(status: Status) -> Self {
        Self { ignored: status.ignored, caught: status.caught, seccomp: status.seccomp }
    }
}

/// The runner's place in the process.
#[derive(Debug)]
struct Runner {
    place: Place,
    header: Header,
}

/// A thread of a [`Live`] process, as it stands.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Its id.
    pub tid: Pid,
    /// Why it stopped.
    pub stop: Stop,
    /// Its registers as the kernel shows them at the stop.
    pub at_stop: &'a Registers,
    /// An EINTR in the registers may be that of a signal that waits for it.
    pub signal_pending: bool,
    /// Its blocked signals, bit n−1 is signal n.
    pub mask: u64,
}

impl Live {
    /// Reads what is needed to put every thread back as it is. A thread still busy with the batch of a checkpoint that died ends that first.
    pub fn hold(process: Process, deadline: Deadline) -> Result<Self> {
        let first = process.threads.first().map_or(process.pid, Stopped::tid);
        let path = format!("/proc/{first}/auxv");
        let auxv = proc_file::read(&path).map_err(|e| Error::io("read", path, &e))?;
        Self::hold_shown(process, task::status(first)?.into(), &auxv, deadline)
    }

    /// The same where status and auxiliary vector of the first thread have been read since the stop.
    pub fn hold_shown(process: Process, shown: Facts, auxv: &[u8], deadline: Deadline) -> Result<Self> {
        let process_id = process.pid;
        let (protection, all) = Protection::settle(process.threads, deadline)?;
        let pid = all.first().map_or(process_id, Stopped::tid);
        let facts = if protection.has_run() { task::status(pid)?.into() } else { shown };
        let place = Place::find(pid, auxv);
        let code = match place.as_ref().map(|p| (p.installed(), p.code())) {
            Ok((Ok(Some(_)), code)) => Some(code),
            _ => None,
        };
        let mut threads = Vec::with_capacity(all.len());
        for thread in all {
            let thread = match code {
                Some(code) => run_out(thread, code, deadline)?,
                None => thread,
            };
            threads.push(Held::new(thread)?);
        }
        Ok(Self {
            process: process_id,
            pid,
            threads,
            facts,
            filters: Vec::new(),
            place: Some(place),
            runner: None,
            booting: None,
            batches: Vec::new(),
            unmarked: false,
            protection,
        })
    }

    /// The id of the process.
    #[must_use]
    pub fn process(&self) -> Pid {
        self.process
    }

    /// An id that /proc and the calls for other processes' memory and descriptors take: that of the process, or, where its leader has ended
    /// before other threads, of the first that lives. (Of an ended leader they show nothing.)
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Its threads that live, the leader first.
    pub fn threads(&self) -> impl ExactSizeIterator<Item = View<'_>> {
        self.threads.iter().map(|held| View {
            tid: held.tid,
            stop: held.stop,
            at_stop: &held.at_stop,
            signal_pending: held.signal_pending,
            mask: held.mask,
        })
    }

    /// Registers as a restored copy of a thread must have them: an interrupted system call is wound back, a critical section of
    /// rseq(2) aborted. To be asked before a batch runs or after; it does not matter.
    pub fn saved_registers(&self, thread: usize) -> Result<Registers> {
        let held = self.threads.get(thread).ok_or(Error::Gone(self.pid))?;
        let mut saved = restart::saved(&held.at_stop, held.signal_pending, || held.code_before());
        if let Some(rest) = held.rest.filter(|_| saved.rip != held.at_stop.rip) {
            rest.set(&mut saved);
        }
        saved.rip = match held.registers.rip {
            aborted if aborted != held.at_stop.rip => aborted, // before a batch, which hides the section
            _ => held.section_aborted(saved.rip)?,
        };
        Ok(saved)
    }

    /// Lets the calls that the stop interrupted go on with what is left of their time. To be called before a batch runs.
    pub fn keep_time_limits(&mut self, sleepers: &Sleepers) -> Result<()> {
        self.threads.iter_mut().try_for_each(|held| held.keep_time_limit(sleepers))
    }

    /// The system call that the stop interrupted in a thread, if one was.
    #[must_use]
    pub fn interrupted(&self, thread: usize) -> Option<restart::Interrupted> {
        self.threads.get(thread).and_then(|held| restart::interrupted(&held.at_stop))
    }

    /// Blocked signals of a thread, bit n−1 is signal n.
    #[must_use]
    pub fn mask(&self, thread: usize) -> u64 {
        self.threads.get(thread).map_or(0, |held| held.mask)
    }

    /// The seccomp filters of the first thread, oldest first; known after [`Live::prepare`].
    #[must_use]
    pub fn filters(&self) -> &[Vec<u8>] {
        &self.filters
    }

    /// Sets the mask that a thread gets back at the end of its next batch.
    pub(crate) fn set_mask(&mut self, thread: usize, mask: u64) {
        if let Some(held) = self.threads.get_mut(thread) {
            held.mask = mask;
        }
    }

    /// Of each thread, where its selector byte is if its calls are dispatched now, and where it is; 0 if there is none.
    pub(crate) fn slots_mut(&mut self) -> impl Iterator<Item = (&mut u64, &mut u64)> {
        self.threads.iter_mut().map(|held| (&mut held.selector, &mut held.slot))
    }

    /// What the `write-protect` tracker has to do with the process.
    #[must_use]
    pub fn protection(&self) -> &Protection {
        &self.protection
    }

    /// Syscall User Dispatch of a thread as it was at the stop, if it was on.
    #[must_use]
    pub fn dispatch(&self, thread: usize) -> Option<DispatchConfiguration> {
        self.threads.get(thread).and_then(|held| held.dispatch)
    }

    /// The rseq(2) area that a thread has registered; `None` if there is none.
    pub fn rseq(&self, thread: usize) -> Result<Option<RseqConfiguration>> {
        self.threads.get(thread).ok_or(Error::Gone(self.pid))?.rseq()
    }

    /// The handle of a thread, for requests that only read.
    pub fn stopped(&self, thread: usize) -> Result<&Stopped> {
        self.threads.get(thread).ok_or(Error::Gone(self.pid))?.stopped()
    }

    /// The runner's pages of slots in this process: ours, no part of the application.
    #[must_use]
    pub fn area(&self) -> Option<AddrRange> {
        let runner = self.runner.as_ref()?;
        Some(AddrRange::new(VirtAddr(runner.header.area.0), runner.header.area.1))
    }

    /// An empty batch for a thread, by its place. The first thread's is the larger. (The very first one is not quite empty: it keeps the
    /// slots out of core files, forks and their neighbours.)
    pub fn batch(&mut self, thread: usize) -> Result<Batch> {
        let area = self.area().ok_or(Error::NoRunner { pid: self.pid, why: "it is not prepared" })?;
        let mut batch = Batch::new(area::slot(area.start, thread as u64));
        if thread == 0 && std::mem::take(&mut self.unmarked) {
            for advice in [libc::MADV_DONTDUMP, libc::MADV_DONTFORK] {
                let args = [area.start.0, area.len(), advice as u64, 0, 0, 0];
                if self.allows(libc::SYS_madvise, &args) {
                    batch.push(libc::SYS_madvise, args);
                }
            }
        }
        Ok(batch)
    }

    /// Runs batches, each in its thread, side by side; the outcomes come in the same order.
    pub fn run(&mut self, batches: &[(usize, &Batch)], deadline: Deadline) -> Result<Vec<Outcome>> {
        self.begin_run(batches)?;
        self.end_run(batches, deadline)
    }

    /// The first half of [`Live::run`], which waits for nothing.
    pub fn begin_run(&mut self, batches: &[(usize, &Batch)]) -> Result<()> {
        let runner =
            self.runner.as_ref().ok_or(Error::NoRunner { pid: self.pid, why: "it is not prepared" })?;
        let code = runner.place.code().start;
        for (thread, batch) in batches {
            let held = self.threads.get_mut(*thread).ok_or(Error::Gone(self.pid))?;
            let signal = held.sign(&self.facts)?;
            held.leave_critical_section();
            let back = restart::without_kernel(&held.registers);
            remote::write(
                self.pid,
                batch.slot().base,
                &batch.encode_live(signal, held.mask, held.selector, &back)?,
            )?;
            let mut regs = held.registers;
            runner::set_entry(&mut regs, code, batch.slot());
            held.launch(&regs, signal)?;
            self.batches.push((*thread, signal));
        }
        Ok(())
    }

    /// The second half of [`Live::run`], with the same batches.
    pub fn end_run(&mut self, batches: &[(usize, &Batch)], deadline: Deadline) -> Result<Vec<Outcome>> {
        let Some(runner) = &self.runner else { return Ok(Vec::new()) };
        let sign_at = runner.place.code().start.add(runner::offsets().sign);
        let running = std::mem::take(&mut self.batches);
        let mut outcomes = Vec::with_capacity(batches.len());
        for ((thread, signal), (_, batch)) in running.into_iter().zip(batches) {
            self.threads[thread].collect(signal, sign_at, deadline)?;
            outcomes.push(read_outcome(self.pid, batch)?);
        }
        Ok(outcomes)
    }

    /// Lets the process go on. Threads that died meanwhile are no failure.
    pub fn release(mut self) -> Result<()> {
        let settled = self.settle();
        let stopped = self.threads.drain(..).filter_map(|held| match held.at {
            At::Stopped(thread) => Some(thread),
            _ => None,
        });
        let results: Vec<_> = stopped
            .map(|thread| match thread.reason() {
                // The sign, or a stop by the interrupt: there is nothing to deliver.
                Stop::Signal(_) => thread.detach_with(0),
                _ => thread.detach(),
            })
            .collect();
        take_ends_of(&results);
        results.into_iter().filter(|done| !matches!(done, Err(Error::Gone(_)))).fold(settled, Result::and)
    }

    /// Lets many go on; tells the first failure after having tried all.
    pub fn release_all(lives: impl IntoIterator<Item = Self>) -> Result<()> {
        let results: Vec<_> = lives.into_iter().map(Self::release).collect();
        results.into_iter().collect()
    }

    /// Holds all threads until something kills the process, which its parent learns only when the tracer has taken the
    /// news (ptrace(2)). Gives up, and lets it go on, as soon as `give_up` says so.
    pub fn hold_until_end(mut self, mut give_up: impl FnMut() -> bool) {
        loop {
            for held in &mut self.threads {
                held.at = match std::mem::replace(&mut held.at, At::Lost) {
                    At::Stopped(thread) => thread.unless_ended().map_or(At::Lost, At::Stopped),
                    other => other,
                };
            }
            if self.threads.iter().all(|held| matches!(held.at, At::Lost)) {
                return;
            }
            if give_up() {
                let _ = self.release();
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Notes that no thread needs the slots any more.
    fn settle(&mut self) -> Result<()> {
        match self.runner.take() {
            Some(Runner { place, header })
                if self.threads.iter().all(|held| matches!(held.at, At::Stopped(_))) =>
            {
                match place.set(Header { busy: false, ..header }) {
                    // A member that was released before has killed it: there is no memory any more.
                    Err(e) if matches!(e.errno(), Some(Errno::EIO | Errno::ESRCH)) => Ok(()),
                    done => done,
                }
            }
            _ => Ok(()),
        }
    }
}
