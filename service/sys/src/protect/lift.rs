//! Lifting: what is still closed was not written; then everything is as the application made it.

use std::mem::offset_of;

use ckpt_wire::protect::{CLOSED, Control as Wire, Dispatch, GONE, INSTALLED, OURS, PASS, Protected};

use super::control::{Control, Head};
use crate::error::Result;
use crate::inject::Live;
use crate::maps::{Mapping, read_maps};
use crate::thread::Deadline;
use crate::{AddrRange, VirtAddr, remote};

const PAGE: u64 = 4096;
const PROT_WRITE: u32 = libc::PROT_WRITE as u32;

impl Live {
    /// Puts a prepared process that the `write-protect` tracker watches back to what its application made: protection, signal
    /// handlers and masks. Afterwards [`super::Protection::clean`] tells what was not written. Nothing happens to others.
    ///
    /// Errors: those of running batches; the process is right in any case.
    pub fn lift(&mut self, deadline: Deadline) -> Result<()> {
        let pid = self.pid();
        let Some(control) = self.protection.expected(pid)? else { return Ok(()) };
        let head = control.head()?;
        if head.state() & INSTALLED == 0 {
            return Ok(());
        }
        self.protection.lifted = true;
        let table = control.table(&head)?;
        self.protection.clean = clean(&table, &read_maps(self.pid())?);
        let calls: Vec<_> = table.iter().flat_map(|(range, states)| spans(range, states)).collect();
        self.run_all(&calls, deadline)?;
        for (selector, slot) in self.slots_mut() {
            if control.has_slot(*slot) {
                remote::write(control.pid, VirtAddr(*slot), &[PASS])?;
                *selector = 0;
            }
        }
        control.set_u64(offset_of!(Wire, count), 0)?;
        control.set_u32(offset_of!(Wire, state), INSTALLED)?;
        self.believed_actions(&control, &head, deadline)?;
        self.believed_masks(&control, deadline)?;
        control.set_u32(offset_of!(Wire, state), 0)
    }

    /// Runs calls whose results do not matter, in the first thread, in as many batches as it takes.
    pub(super) fn run_all(&mut self, calls: &[(libc::c_long, [u64; 6])], deadline: Deadline) -> Result<()> {
        let mut rest = calls;
        while !rest.is_empty() {
            let mut batch = self.batch(0)?;
            let mut some = 0;
            while let Some((nr, args)) = rest.get(some)
                && batch.has_room(1, 0)
            {
                batch.push(*nr, *args);
                some += 1;
            }
            self.run(&[(0, &batch)], deadline)?;
            rest = &rest[some..];
        }
        Ok(())
    }

    /// The kernel's actions of these signals.
    pub(super) fn actions(&mut self, signals: &[i32], deadline: Deadline) -> Result<Vec<[u64; 4]>> {
        let mut all = Vec::new();
        for some in signals.chunks(16) {
            let mut batch = self.batch(0)?;
            let places: Vec<_> = some
                .iter()
                .map(|signal| {
                    let at = batch.space(32);
                    batch.push(libc::SYS_rt_sigaction, [*signal as u64, 0, at.0, 8, 0, 0]);
                    at
                })
                .collect();
            let outcomes = self.run(&[(0, &batch)], deadline)?;
            for at in places {
                all.push([0, 8, 16, 24].map(|n| outcomes.first().map_or(0, |o| o.u64_at(at.add(n)))));
            }
        }
        Ok(all)
    }

    /// Sets actions.
    pub(super) fn set_actions(&mut self, actions: &[(i32, [u64; 4])], deadline: Deadline) -> Result<()> {
        for some in actions.chunks(16) {
            let mut batch = self.batch(0)?;
            for (signal, action) in some {
                let bytes: Vec<u8> = action.iter().flat_map(|word| word.to_le_bytes()).collect();
                let at = batch.data(&bytes);
                batch.push(libc::SYS_rt_sigaction, [*signal as u64, at.0, 0, 8, 0, 0]);
            }
            self.run(&[(0, &batch)], deadline)?;
        }
        Ok(())
    }

    fn believed_actions(&mut self, control: &Control, head: &Head, deadline: Deadline) -> Result<()> {
        let head_now = control.head()?;
        let masked = [head.masked(0), head.masked(1)];
        let signals: Vec<i32> =
            (1..=64).filter(|s| (masked[0] | masked[1] | OURS) & 1 << (s - 1) != 0).collect();
        let found = self.actions(&signals, deadline)?;
        let believed: Vec<_> = signals
            .iter()
            .zip(found)
            .filter_map(|(signal, found)| {
                let bit = 1u64 << (signal - 1);
                let ours = [head.on_fault(), head.on_call()].contains(&found[0]);
                if bit & OURS != 0 {
                    let which = usize::from(*signal == libc::SIGSYS);
                    return ours.then(|| (*signal, head_now.action(which)));
                }
                let mut action = found;
                for (which, own) in [libc::SIGSEGV, libc::SIGSYS].into_iter().enumerate() {
                    if masked[which] & bit != 0 {
                        action[3] |= 1 << (own - 1);
                    }
                }
                (action != found).then_some((*signal, action))
            })
            .collect();
        self.set_actions(&believed, deadline)
    }

    /// Threads that believe to block SIGSEGV or SIGSYS do so.
    fn believed_masks(&mut self, control: &Control, deadline: Deadline) -> Result<()> {
        let mut changed = Vec::new();
        let slots: Vec<u64> = self.slots_mut().map(|(_, slot)| *slot).collect();
        for (thread, slot) in slots.into_iter().enumerate().filter(|(_, slot)| control.has_slot(*slot)) {
            let mut wish = [0];
            remote::read(control.pid, VirtAddr(slot).add(offset_of!(Dispatch, wish) as u64), &mut wish)?;
            let mask = u64::from(wish[0] & 1) << (libc::SIGSEGV - 1)
                | u64::from(wish[0] >> 1 & 1) << (libc::SIGSYS - 1);
            if self.mask(thread) | mask != self.mask(thread) {
                self.set_mask(thread, self.mask(thread) | mask);
                changed.push(thread);
            }
        }
        self.put_masks(&changed, deadline)
    }

    /// Puts the masks of threads in place: the runner's way back does.
    pub(super) fn put_masks(&mut self, threads: &[usize], deadline: Deadline) -> Result<()> {
        let batches = threads.iter().map(|n| Ok((*n, self.batch(*n)?))).collect::<Result<Vec<_>>>()?;
        let batches: Vec<_> = batches.iter().map(|(n, batch)| (*n, batch)).collect();
        self.run(&batches, deadline).map(drop)
    }
}

/// The pages that are closed, in the table and in what the kernel says: those were not written.
fn clean(table: &[(Protected, Vec<u8>)], maps: &[Mapping]) -> Vec<AddrRange> {
    let mut clean = Vec::new();
    let mut maps = maps.iter().peekable();
    for (range, states) in table {
        let mut page = 0;
        while page < states.len() {
            let start = range.start + page as u64 * PAGE;
            while maps.next_if(|mapping| mapping.range.end.0 <= start).is_some() {}
            let Some(mapping) = maps.peek() else { return clean };
            if mapping.range.start.0 > start {
                page += ((mapping.range.start.0 - start) / PAGE) as usize;
                continue;
            }
            let here = ((mapping.range.end.0 - range.start) / PAGE).min(states.len() as u64) as usize;
            if !mapping.shared && mapping.prot & PROT_WRITE == 0 {
                add_closed(range, states, page..here, &mut clean);
            }
            page = here;
        }
    }
    clean
}

fn add_closed(range: &Protected, states: &[u8], pages: std::ops::Range<usize>, clean: &mut Vec<AddrRange>) {
    for page in pages.filter(|page| states[*page] == CLOSED) {
        let start = VirtAddr(range.start + page as u64 * PAGE);
        AddrRange::new(start, PAGE).append_to(clean);
    }
}

/// The calls that open a range: one for all that lies between pages that are the application's own matter.
fn spans(range: &Protected, states: &[u8]) -> Vec<(libc::c_long, [u64; 6])> {
    let mut calls = Vec::new();
    let mut from = 0;
    for part in states.split(|state| *state == GONE) {
        let (start, len) = (range.start + from as u64 * PAGE, part.len() as u64 * PAGE);
        if part.contains(&CLOSED) {
            calls.push((libc::SYS_mprotect, [start, len, range.prot & 7, 0, 0, 0]));
        }
        from += part.len() + 1;
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, pages: u64) -> Protected {
        Protected { start, end: start + pages * PAGE, prot: 3, states: 0 }
    }

    #[test]
    fn clean_is_what_is_closed_in_table_and_kernel() {
        let text = b"10000-14000 r--p 00000000 00:00 0 \n14000-18000 rw-p 00000000 00:00 0 \n20000-24000 r--p 00000000 00:00 0 \n";
        let maps = crate::maps::parse(text).unwrap();
        let table = [
            (range(0x10000, 8), vec![CLOSED, CLOSED, GONE, CLOSED, CLOSED, CLOSED, CLOSED, CLOSED]),
            (range(0x1e000, 4), vec![CLOSED; 4]),
        ];
        let found: Vec<_> = clean(&table, &maps).iter().map(|r| (r.start.0, r.end.0)).collect();
        assert_eq!(found, [(0x10000, 0x12000), (0x13000, 0x14000), (0x20000, 0x22000)]);
    }

    #[test]
    fn one_call_opens_what_no_foreign_page_divides() {
        let states = [CLOSED, 1, CLOSED, GONE, 1, GONE, GONE, CLOSED];
        let calls: Vec<_> =
            spans(&range(0x10000, 8), &states).iter().map(|(_, a)| (a[0], a[1], a[2])).collect();
        assert_eq!(calls, [(0x10000, 0x3000, 3), (0x17000, 0x1000, 3)]);
    }
}
