//! Making a stopped process able to run batches: the runner behind its vDSO, and pages for the slots of its threads.
//!
//! ```text
//!  filters read ─ place ─ the runner is there and free ─────────────────────────────────► header busy
//!                   └ installed ─► boot: the first thread maps the pages ─► head of them ─┘
//! ```

use super::area::{self, is_area};
use super::{Live, Runner};
use crate::batch::{Slot, words};
use crate::error::{Error, Result};
use crate::runner;
use crate::thread::Deadline;
use crate::vdso::{Header, Place};
use crate::{AddrRange, VirtAddr, remote, restart, seccomp};

/// The first thread maps the pages for the slots.
#[derive(Debug)]
pub(super) struct Boot {
    place: Place,
    threads: u64,
    signal: i32,
}

impl Live {
    /// Makes the process able to run batches, in every thread. Errors: [`Error::NoRunner`].
    pub fn prepare(&mut self, deadline: Deadline) -> Result<()> {
        self.begin_prepare()?;
        self.end_prepare(deadline)
    }

    /// The first half of [`Live::prepare`], which waits for nothing: many processes begin, then each ends.
    pub fn begin_prepare(&mut self) -> Result<()> {
        if self.runner.is_some() {
            return Ok(());
        }
        let no = |why| Error::NoRunner { pid: self.pid, why };
        if self.threads.iter().any(|held| held.at_stop.cs != 0x33) {
            return Err(no("it runs 32-bit code"));
        }
        if self.facts.seccomp != 0 {
            self.filters = self.stopped(0)?.seccomp_filters()?;
        }
        if self.facts.seccomp == 1 {
            return Err(no("it is in strict seccomp mode"));
        }
        if !self.allowed() {
            return Err(no("its seccomp filter does not allow what the runner itself needs"));
        }
        let place = self.place.take().ok_or(no("it was let go"))??;
        let wanted = self.threads.len() as u64;
        // A process that shares the memory may have installed it meanwhile.
        match place.installed()? {
            Some(header) if !header.busy && header.threads >= wanted && self.is_area(&header) => {
                return self.take_area(place, header);
            }
            Some(_) => {}
            None => place.install()?,
        }
        self.boot(place, wanted)
    }

    /// The second half of [`Live::prepare`].
    pub fn end_prepare(&mut self, deadline: Deadline) -> Result<()> {
        let Some(Boot { place, threads, signal }) = self.booting.take() else { return Ok(()) };
        let held = self.threads.first_mut().ok_or(Error::Gone(self.pid))?;
        let sign_at = place.code().start.add(runner::offsets().boot_sign);
        let area = held.collect(signal, sign_at, deadline)?.rbp;
        if (-4095..0).contains(&(area as i64)) {
            return Err(Error::NoRunner { pid: self.pid, why: "mmap fails in it" });
        }
        let len = area::len(threads);
        remote::write(self.pid, VirtAddr(area), &area::head(len))?;
        self.unmarked = true;
        self.take_area(place, Header { area: (area, len), threads, busy: false })
    }

    /// From here on the slots are ours.
    fn take_area(&mut self, place: Place, header: Header) -> Result<()> {
        let header = Header { busy: true, ..header };
        place.set(header)?;
        self.runner = Some(Runner { place, header });
        Ok(())
    }

    /// Whether the filters let pass what the runner does besides the batch.
    fn allowed(&self) -> bool {
        let none = [0; 6];
        [libc::SYS_getpid, libc::SYS_gettid, libc::SYS_tgkill, libc::SYS_rt_sigprocmask]
            .iter()
            .all(|nr| self.allows(*nr, &none))
    }

    /// Whether the process's seccomp filters allow a call. True for all before [`Live::prepare`].
    #[must_use]
    pub fn allows(&self, nr: libc::c_long, args: &[u64; 6]) -> bool {
        let ip = self.threads.first().map_or(0, |held| held.at_stop.rip);
        self.filters.is_empty() || seccomp::allows(&self.filters, nr, args, ip)
    }

    /// Whether the area that the header tells of is there and ours.
    fn is_area(&self, header: &Header) -> bool {
        let len = area::len(header.threads);
        header.area.1 == len && is_area(self.pid, AddrRange::new(VirtAddr(header.area.0), len))
    }

    /// Sends the first thread to map pages for the slots, by one call.
    fn boot(&mut self, place: Place, threads: u64) -> Result<()> {
        let threads = threads.next_power_of_two();
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE) as u64;
        let args = [0, area::len(threads), (libc::PROT_READ | libc::PROT_WRITE) as u64, flags, u64::MAX, 0];
        if !self.allows(libc::SYS_mmap, &args) {
            return Err(Error::NoRunner { pid: self.pid, why: "its seccomp filter does not allow mmap" });
        }
        let code = place.code().start;
        let held = self.threads.first_mut().ok_or(Error::Gone(self.pid))?;
        let signal = held.sign(&self.facts)?;
        held.leave_critical_section();
        let mut back: Vec<u8> = Vec::with_capacity(29 * 8);
        for word in words(&restart::without_kernel(&held.registers)).iter().chain(&[held.mask, held.selector])
        {
            back.extend_from_slice(&word.to_le_bytes());
        }
        place.mem().write(code.add(runner::offsets().words), &back)?;
        let mut regs = held.registers;
        runner::set_entry(&mut regs, code.add(runner::offsets().boot), Slot { base: VirtAddr(0), len: 0 });
        (regs.rax, regs.r12) = (libc::SYS_mmap as u64, signal as u64);
        (regs.rdi, regs.rsi, regs.rdx) = (args[0], args[1], args[2]);
        (regs.r10, regs.r8, regs.r9) = (args[3], args[4], args[5]);
        held.launch(&regs, signal)?;
        self.booting = Some(Boot { place, threads, signal });
        Ok(())
    }
}
