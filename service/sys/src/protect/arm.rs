//! Arming: handlers, dispatching, the table, and last the protection itself.

use std::mem::offset_of;

use ckpt_wire::protect::{
    CONTROL_SLOTS, Control as Wire, DISPATCH, Dispatch, INSTALLED, ON, PASS, Protected, RESERVED,
};

use super::control::{Control, Head, STACKS};
use crate::error::{Error, Result};
use crate::inject::Live;
use crate::maps::{MapName, Mapping};
use crate::thread::Deadline;
use crate::{AddrRange, VirtAddr, remote};

const PAGE: u64 = 4096;
const PR_SET_SYSCALL_USER_DISPATCH: u64 = 59;
const PR_SYS_DISPATCH_ON: u64 = 1;
const PR_GET_TID_ADDRESS: u64 = 40;
/// The most of a stack that is left out below and above a stack pointer whose bounds are not known.
const BELOW: u64 = 64 << 20;
const ABOVE: u64 = 8 << 20;
/// A thread's block and what libc keeps before it.
const BEFORE_BLOCK: u64 = 16 << 10;
const BEHIND_BLOCK: u64 = 8 << 10;
/// What is given at once of zeroes.
const CHUNK: usize = 1 << 20;

impl Live {
    /// Protects the writable private memory of these mappings, so that [`Live::lift`] tells what was not written. The last batch of
    /// a window. False where the process cannot be watched: it has no library, more threads than slots, or a seccomp filter or
    /// a use of Syscall User Dispatch of its own that stands against it.
    ///
    /// Errors: those of running batches; the process is right in any case.
    pub fn arm(&mut self, mappings: &[Mapping], deadline: Deadline) -> Result<bool> {
        let pid = self.pid();
        let Some(control) = self.protection.control(pid)?.copied() else { return Ok(false) };
        let head = control.head()?;
        let strange = self.slots_mut().any(|(_, slot)| *slot != 0 && !control.has_slot(*slot));
        if head.state() & INSTALLED != 0 || strange || !self.may_arm(&head) {
            return Ok(false);
        }
        let Some(head) = self.with_stacks(&control, head, deadline)? else { return Ok(false) };
        let Some(slots) = self.assign(&control)? else { return Ok(false) };
        self.keep_rests(&control, &head, &slots)?;
        let mut out = self.left_out(&slots, &head, deadline)?;
        let Some(out) = &mut out else { return Ok(false) };
        let ours = AddrRange::new(control.at, size_of::<Wire>() as u64);
        out.push(ours);
        out.push(AddrRange::new(VirtAddr(head.ranges()), head.extent()));
        out.push(AddrRange::new(VirtAddr(head.stacks()), STACKS));
        out.extend(self.area());
        out.extend(pins(&control)?);
        let Some(ranges) = ranges(mappings, ours, out) else { return Ok(false) };
        let Some(at) = self.room(&control, &head, &ranges, deadline)? else { return Ok(false) };
        self.install(&control, &head, &slots, mappings, deadline)?;
        write_table(&control, at, &ranges)?;
        control.set_u32(offset_of!(Wire, state), INSTALLED | ON)?;
        self.switch_on(&control, &slots)?;
        let close = |range: &Protected| {
            let prot = range.prot & !(libc::PROT_WRITE as u64);
            (libc::SYS_mprotect, [range.start, range.end - range.start, prot, 0, 0, 0])
        };
        let calls: Vec<_> = ranges.iter().map(close).collect();
        self.run_all(&calls, deadline)?;
        Ok(true)
    }

    /// Whether the process has the library that the tracker needs.
    pub fn has_library(&mut self) -> Result<bool> {
        let pid = self.pid();
        Ok(self.protection.control(pid)?.is_some())
    }

    /// Whether the process's filters allow what arming and the library need.
    fn may_arm(&self, head: &Head) -> bool {
        let dispatch = [PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON, head.text(), head.text_len(), 0, 0];
        let zero = [0; 6];
        self.allows(libc::SYS_prctl, &dispatch)
            && self.allows(libc::SYS_mprotect, &[PAGE, PAGE, 1, 0, 0, 0])
            && [
                libc::SYS_rt_sigaction,
                libc::SYS_rt_sigprocmask,
                libc::SYS_rt_sigreturn,
                libc::SYS_sigaltstack,
                libc::SYS_gettid,
                libc::SYS_nanosleep,
                libc::SYS_mmap,
            ]
            .iter()
            .all(|nr| self.allows(*nr, &zero))
    }

    /// A slot for each thread, and those of threads that are no more given back. `None`: there are not enough.
    fn assign(&mut self, control: &Control) -> Result<Option<Vec<u64>>> {
        let slots = control.slots()?;
        let size = size_of::<Dispatch>();
        let owner = |index: usize| {
            let at = index * size + offset_of!(Dispatch, thread);
            slots[at..at + 4].try_into().map_or(0, u32::from_le_bytes)
        };
        let mut ids = Vec::new();
        for thread in self.threads().map(|view| view.tid).collect::<Vec<_>>() {
            ids.push(inner_id(thread)?);
        }
        let known: Vec<u64> = self.slots_mut().map(|(_, slot)| *slot).collect();
        let mut taken: Vec<bool> = vec![false; CONTROL_SLOTS];
        let index_of = |slot: u64| ((slot - control.slot(0).0) / size as u64) as usize;
        known.iter().filter(|slot| **slot != 0).for_each(|slot| taken[index_of(*slot)] = true);
        let mut all = Vec::with_capacity(ids.len());
        for (slot, id) in known.iter().zip(&ids) {
            let index = match *slot {
                0 => (0..CONTROL_SLOTS)
                    .find(|n| !taken[*n] && owner(*n) == *id)
                    .or_else(|| (0..CONTROL_SLOTS).find(|n| !taken[*n] && owner(*n) != RESERVED)),
                slot => Some(index_of(slot)),
            };
            let Some(index) = index else { return Ok(None) };
            taken[index] = true;
            let at = control.slot(index as u64);
            if *slot == 0 {
                remote::write(control.pid, at, &[PASS])?;
            }
            remote::write(
                control.pid,
                at.add(offset_of!(Dispatch, index) as u64),
                &(index as u32).to_le_bytes(),
            )?;
            remote::write(control.pid, at.add(offset_of!(Dispatch, thread) as u64), &id.to_le_bytes())?;
            all.push(at.0);
        }
        for index in (0..CONTROL_SLOTS).filter(|n| !taken[*n] && !matches!(owner(*n), 0 | RESERVED)) {
            let at = control.slot(index as u64).add(offset_of!(Dispatch, thread) as u64);
            remote::write(control.pid, at, &[0; 4])?;
        }
        Ok(Some(all))
    }

    /// Memory that the kernel writes to when it likes: stacks, alternate stacks, threads' blocks and what is registered with it.
    /// Switches dispatching on in threads in which it is not, with a selector that lets all pass. `None`: the kernel has none.
    fn left_out(&mut self, slots: &[u64], head: &Head, deadline: Deadline) -> Result<Option<Vec<AddrRange>>> {
        let known: Vec<u64> = self.slots_mut().map(|(_, slot)| *slot).collect();
        let mut batches = Vec::new();
        let mut places = Vec::new();
        for (thread, slot) in slots.iter().enumerate() {
            let mut batch = self.batch(thread)?;
            let (stack, robust, id) = (batch.space(24), batch.space(16), batch.space(8));
            let stack_call = batch.push(libc::SYS_sigaltstack, [0, stack.0, 0, 0, 0, 0]);
            if self.allows(libc::SYS_get_robust_list, &[0; 6]) {
                batch.push(libc::SYS_get_robust_list, [0, robust.0, robust.0 + 8, 0, 0, 0]);
            }
            batch.push(libc::SYS_prctl, [PR_GET_TID_ADDRESS, id.0, 0, 0, 0, 0]);
            let on = (known[thread] == 0).then(|| {
                let (text, len) = (head.text(), head.text_len());
                let args = [PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON, text, len, *slot, 0];
                batch.push(libc::SYS_prctl, args)
            });
            places.push((stack, robust, id, stack_call, on));
            batches.push((thread, batch));
        }
        let refs: Vec<_> = batches.iter().map(|(thread, batch)| (*thread, batch)).collect();
        let outcomes = self.run(&refs, deadline)?;
        let mut out = Vec::new();
        let mut without = Vec::new();
        for (thread, (outcome, (stack, robust, id, stack_call, on))) in
            outcomes.iter().zip(places).enumerate()
        {
            if outcome.result(stack_call).is_err() || on.is_some_and(|call| outcome.result(call).is_err()) {
                return Ok(None);
            }
            if outcome.u32_at(stack.add(8)) & libc::SS_DISABLE as u32 != 0 {
                without.push(thread);
            }
            out.push(AddrRange::new(VirtAddr(outcome.u64_at(stack)), outcome.u64_at(stack.add(16))));
            out.push(AddrRange::new(VirtAddr(outcome.u64_at(robust)), 64));
            out.push(AddrRange::new(VirtAddr(outcome.u64_at(id)), 8));
        }
        for ((_, known), slot) in self.slots_mut().zip(slots) {
            *known = *slot;
        }
        self.give_stacks(&without, slots, head, deadline)?;
        out.extend(self.stacks()?);
        Ok(Some(out))
    }

    /// Interrupted calls are dispatched when they are made again. What is left of their time lies at the far end of the slot's alternate stack.
    fn keep_rests(&mut self, control: &Control, head: &Head, slots: &[u64]) -> Result<()> {
        self.before_dispatch(slots.iter().map(|slot| control.stack(head, *slot).start))
    }

    /// Threads without an alternate signal stack get one of ours.
    fn give_stacks(
        &mut self,
        threads: &[usize],
        slots: &[u64],
        head: &Head,
        deadline: Deadline,
    ) -> Result<()> {
        let Some(control) = self.protection.control else { return Ok(()) };
        let mut batches = Vec::new();
        for thread in threads {
            let mut batch = self.batch(*thread)?;
            let stack = control.stack(head, slots[*thread]);
            let words = [stack.start.0, 0, stack.len()];
            let at = batch.data(&words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>());
            batch.push(libc::SYS_sigaltstack, [at.0, 0, 0, 0, 0, 0]);
            batches.push((*thread, batch));
        }
        let refs: Vec<_> = batches.iter().map(|(thread, batch)| (*thread, batch)).collect();
        self.run(&refs, deadline).map(drop)
    }

    /// Memory for the alternate stacks, once. `None`: the process may not map it.
    fn with_stacks(&mut self, control: &Control, head: Head, deadline: Deadline) -> Result<Option<Head>> {
        if head.stacks() != 0 {
            return Ok(Some(head));
        }
        let mut batch = self.batch(0)?;
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE) as u64;
        let args = [0, STACKS, (libc::PROT_READ | libc::PROT_WRITE) as u64, flags, u64::MAX, 0];
        let call = batch.push(libc::SYS_mmap, args);
        let outcomes = self.run(&[(0, &batch)], deadline)?;
        let Some(at) = outcomes.first().and_then(|outcome| outcome.result(call).ok()) else {
            return Ok(None);
        };
        control.set_u64(offset_of!(Wire, stacks), at)?;
        control.head().map(Some)
    }

    /// What lies around the stack pointer and the thread pointer of each thread, and its area of rseq(2).
    fn stacks(&self) -> Result<Vec<AddrRange>> {
        let maps = crate::maps::read_maps(self.pid())?;
        let mut out = Vec::new();
        for (place, view) in self.threads().enumerate() {
            let (stack, block) = (view.at_stop.rsp, view.at_stop.fs_base);
            if block != 0 {
                let start = block.saturating_sub(BEFORE_BLOCK);
                out.push(AddrRange::new(VirtAddr(start), block - start + BEHIND_BLOCK));
            }
            // A call that goes on by restart_syscall(2) writes where its arguments pointed when it began.
            if let Some(call) = self.interrupted(place) {
                let polls = [libc::SYS_poll as u64, libc::SYS_restart_syscall as u64].contains(&call.nr);
                let poll = if polls { call.args[1].min(1 << 20) * 8 } else { 0 };
                out.extend(call.args.map(|at| AddrRange::new(VirtAddr(at), poll.max(64))));
            }
            if let Some(rseq) = self.stopped(place)?.rseq()? {
                out.push(AddrRange::new(VirtAddr(rseq.address), u64::from(rseq.size)));
            }
            let Some(mapping) = maps.iter().find(|m| m.range.contains(VirtAddr(stack))) else { continue };
            let AddrRange { start, end } = mapping.range;
            let top = match block {
                block if (stack..end.0).contains(&block) => block + BEHIND_BLOCK,
                _ => stack.saturating_add(ABOVE),
            };
            let low = start.0.max(stack.saturating_sub(BELOW));
            out.push(AddrRange { start: VirtAddr(low), end: VirtAddr(top.min(end.0)) });
        }
        Ok(out)
    }

    /// Memory for the table: that of last time, or a new one where it is too small. The old one stays, emptied: a thread that was stopped
    /// in the midst of a look goes on in it. `None`: the process may not map any.
    fn room(
        &mut self,
        control: &Control,
        head: &Head,
        ranges: &[Protected],
        deadline: Deadline,
    ) -> Result<Option<VirtAddr>> {
        let need = ranges.last().map_or(0, |last| last.states + (last.end - last.start) / PAGE);
        if head.ranges() != 0 && head.extent() >= need {
            return Ok(Some(VirtAddr(head.ranges())));
        }
        let len = (need + need / 2).next_multiple_of(64 << 10);
        let mut batch = self.batch(0)?;
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE) as u64;
        let args = [0, len, (libc::PROT_READ | libc::PROT_WRITE) as u64, flags, u64::MAX, 0];
        let call = batch.push(libc::SYS_mmap, args);
        if head.ranges() != 0 {
            batch
                .push(libc::SYS_madvise, [head.ranges(), head.extent(), libc::MADV_DONTNEED as u64, 0, 0, 0]);
        }
        let outcomes = self.run(&[(0, &batch)], deadline)?;
        let at = outcomes.first().and_then(|outcome| outcome.result(call).ok());
        control.set_u64(offset_of!(Wire, ranges), at.unwrap_or(0))?;
        control.set_u64(offset_of!(Wire, extent), at.map_or(0, |_| len))?;
        Ok(at.map(VirtAddr))
    }

    /// From here on calls are dispatched.
    fn switch_on(&mut self, control: &Control, slots: &[u64]) -> Result<()> {
        for ((selector, _), slot) in self.slots_mut().zip(slots) {
            remote::write(control.pid, VirtAddr(*slot), &[DISPATCH])?;
            *selector = *slot;
        }
        Ok(())
    }
}

/// The ranges to be protected, with room for the states of their pages. `None`: more than a table may hold.
fn ranges(mappings: &[Mapping], ours: AddrRange, out: &mut [AddrRange]) -> Option<Vec<Protected>> {
    out.sort_by_key(|range| range.start);
    let mut ranges = Vec::new();
    for mapping in mappings.iter().filter(|mapping| is_watched(mapping, ours)) {
        let mut start = mapping.range.start.0;
        let mut add = |start: u64, end: u64| {
            if start < end {
                ranges.push(Protected { start, end, prot: u64::from(mapping.prot), states: 0 });
            }
        };
        for hole in out.iter().filter(|hole| hole.start < hole.end) {
            let (low, high) = (hole.start.0 & !(PAGE - 1), hole.end.0.saturating_add(PAGE - 1) & !(PAGE - 1));
            if high <= start || low >= mapping.range.end.0 {
                continue;
            }
            add(start, low);
            start = start.max(high);
        }
        add(start, mapping.range.end.0);
    }
    let mut at = (ranges.len() * size_of::<Protected>()) as u64;
    for range in &mut ranges {
        range.states = at;
        at += (range.end - range.start) / PAGE;
    }
    (ranges.len() < 1 << 16 && at < 1 << 30).then_some(ranges)
}

/// Whether a mapping's writes are to be seen: private, writable, ordinary, and not the library's own data.
fn is_watched(mapping: &Mapping, ours: AddrRange) -> bool {
    const WRITE: u32 = libc::PROT_WRITE as u32;
    const EXEC: u32 = libc::PROT_EXEC as u32;
    let flags = mapping.details.map(|details| details.flags).unwrap_or_default();
    let special = [b"ht", b"gd", b"sl", b"dp", b"io", b"pf", b"mm", b"ss", b"um", b"uw"];
    let key = mapping.details.is_some_and(|details| details.protection_key != 0);
    let own = mapping.range.contains(ours.start)
        || matches!(&mapping.name, MapName::File { path, .. } if path.ends_with("libckpt_preload.so"));
    let ordinary = match &mapping.name {
        MapName::None | MapName::Anon(_) | MapName::File { .. } => true,
        MapName::Special(name) => name == "heap",
    };
    !mapping.shared
        && mapping.prot & (WRITE | EXEC) == WRITE
        && mapping.prot & libc::PROT_READ as u32 != 0
        && ordinary
        && !own
        && !key
        && !special.iter().any(|code| flags.has(code))
}

/// Writes ranges, and states that say that all is closed.
fn write_table(control: &Control, at: VirtAddr, ranges: &[Protected]) -> Result<()> {
    let mut bytes = Vec::with_capacity(size_of_val(ranges));
    for range in ranges {
        for word in [range.start, range.end, range.prot, range.states] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
    }
    remote::write(control.pid, at, &bytes)?;
    let end = ranges.last().map_or(0, |last| last.states + (last.end - last.start) / PAGE);
    let zeroes = vec![ckpt_wire::protect::CLOSED; CHUNK];
    let mut from = bytes.len() as u64;
    while from < end {
        let len = (end - from).min(CHUNK as u64);
        remote::write(control.pid, at.add(from), &zeroes[..len as usize])?;
        from += len;
    }
    control.set_u64(offset_of!(Wire, splits), 0)?;
    control.set_u64(offset_of!(Wire, made), control.head()?.made() + 1)?;
    control.set_u64(offset_of!(Wire, count), ranges.len() as u64)
}

/// What calls in progress write to.
fn pins(control: &Control) -> Result<Vec<AddrRange>> {
    let slots = control.slots()?;
    let mut pins = Vec::new();
    for slot in slots.chunks_exact(size_of::<Dispatch>()) {
        let word = |at: usize| slot[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
        let owner = offset_of!(Dispatch, thread);
        if slot[owner..owner + 4] == [0; 4] || word(offset_of!(Dispatch, frame)) == 0 {
            continue;
        }
        if slot[offset_of!(Dispatch, all)] != 0 {
            pins.push(AddrRange { start: VirtAddr(0), end: VirtAddr(!(PAGE - 1)) });
        }
        for pin in 0..4 {
            let at = offset_of!(Dispatch, pins) + pin * 16;
            pins.push(AddrRange { start: VirtAddr(word(at)), end: VirtAddr(word(at + 8)) });
        }
    }
    Ok(pins)
}

/// A thread's id in its own PID namespace.
fn inner_id(tid: nix::unistd::Pid) -> Result<u32> {
    let path = format!("/proc/{tid}/status");
    let text = crate::proc_file::read_text(&path).map_err(|e| Error::io("read", &path, &e))?;
    let ids = text.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let id = ids.and_then(|ids| ids.split_whitespace().last()?.parse().ok());
    id.ok_or_else(|| Error::Parse { path: path.into(), what: "NSpid is missing".into() })
}
