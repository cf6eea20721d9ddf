//! The control block, read and written in the member's memory.

use std::mem::offset_of;

use ckpt_wire::protect::{
    CONTROL_HEAD, CONTROL_MAGIC, CONTROL_SLOTS, CONTROL_VERSION, Control as Wire, Dispatch, FOR_A_FORK, FREE,
    Protected, STACK,
};
use nix::unistd::Pid;

use crate::error::Result;
use crate::thread::Stopped;
use crate::{AddrRange, VirtAddr, remote};

const SLOT: u64 = size_of::<Dispatch>() as u64;
/// More ranges than this no process of ours has; more pages neither (4 TiB).
const RANGES: u64 = 1 << 17;
const PAGES: u64 = 1 << 30;
const PAGE: u64 = 4096;
/// Bytes of all alternate stacks.
pub(super) const STACKS: u64 = (CONTROL_SLOTS * STACK) as u64;

/// Where the control block of a process is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Control {
    pub(crate) pid: Pid,
    pub(crate) at: VirtAddr,
}

/// The head of the control block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head([u8; CONTROL_HEAD]);

macro_rules! words {
    ($($name:ident)*) => { $(
        pub(super) fn $name(&self) -> u64 {
            self.u64_at(offset_of!(Wire, $name))
        }
    )* };
}

impl Head {
    fn u64_at(&self, at: usize) -> u64 {
        self.0.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
    }

    fn u32_at(&self, at: usize) -> u32 {
        self.0.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
    }

    words! { on_fault on_call restorer text text_len ranges count extent made stacks }

    pub(super) fn state(&self) -> u32 {
        self.u32_at(offset_of!(Wire, state))
    }

    /// What the application believes to be the action of SIGSEGV (0) or SIGSYS (1).
    pub(super) fn action(&self, which: usize) -> [u64; 4] {
        let at = offset_of!(Wire, actions) + which * 32;
        [0, 8, 16, 24].map(|word| self.u64_at(at + word))
    }

    /// Signals whose handlers the application gave a mask with SIGSEGV (0) or SIGSYS (1).
    pub(super) fn masked(&self, which: usize) -> u64 {
        self.u64_at(offset_of!(Wire, masked) + which * 8)
    }
}

impl Control {
    /// The control block at an address of a process, if one of this version is there.
    pub(super) fn at(pid: Pid, at: VirtAddr) -> Result<Option<Self>> {
        let control = Self { pid, at };
        let aligned = at.0 != 0 && at.0.is_multiple_of(PAGE);
        Ok((aligned && control.head().is_ok_and(|head| head.is_known())).then_some(control))
    }

    /// The control block whose slots are the selectors of these threads.
    pub(super) fn of_threads(threads: &[Stopped]) -> Result<Option<Self>> {
        for thread in threads {
            if let Some(dispatch) = thread.dispatch()?
                && let Some(control) = Self::of_selector(thread.tid(), dispatch.selector)?
            {
                return Ok(Some(control));
            }
        }
        Ok(None)
    }

    /// The selector is the first byte of a slot, and a slot knows its place.
    fn of_selector(tid: Pid, selector: u64) -> Result<Option<Self>> {
        let mut index = [0; 4];
        let at = VirtAddr(selector).add(offset_of!(Dispatch, index) as u64);
        if selector == 0 || remote::read(tid, at, &mut index).is_err() {
            return Ok(None);
        }
        let slots = u64::from(u32::from_le_bytes(index)).saturating_mul(SLOT) + CONTROL_HEAD as u64;
        Self::at(tid, VirtAddr(selector.wrapping_sub(slots)))
    }

    pub(super) fn head(&self) -> Result<Head> {
        let mut head = [0; CONTROL_HEAD];
        remote::read(self.pid, self.at, &mut head)?;
        Ok(Head(head))
    }

    pub(super) fn set_u32(&self, field: usize, value: u32) -> Result<()> {
        remote::write(self.pid, self.at.add(field as u64), &value.to_le_bytes())
    }

    pub(super) fn set_u64(&self, field: usize, value: u64) -> Result<()> {
        remote::write(self.pid, self.at.add(field as u64), &value.to_le_bytes())
    }

    /// Whose the lock is, if it is anybody's who changes something.
    fn changer(&self) -> Result<Option<u32>> {
        let mut lock = [0; 4];
        remote::read(self.pid, self.at.add(offset_of!(Wire, lock) as u64), &mut lock)?;
        let lock = u32::from_le_bytes(lock);
        Ok((lock != FREE && lock & FOR_A_FORK == 0).then_some(lock))
    }

    /// Whether a thread has the lock and changes something.
    pub(super) fn is_locked(&self) -> Result<bool> {
        Ok(self.changer()?.is_some())
    }

    pub(super) fn unlock(&self) -> Result<()> {
        self.set_u32(offset_of!(Wire, lock), FREE)
    }

    /// Whether this thread has the lock and changes something.
    pub(super) fn holds(&self, thread: &Stopped) -> Result<bool> {
        let (Some(lock), Some(dispatch)) = (self.changer()?, thread.dispatch()?) else { return Ok(false) };
        Ok(self.has_slot(dispatch.selector) && self.slot(u64::from(lock - 1)).0 == dispatch.selector)
    }

    /// The alternate stack of a slot.
    pub(super) fn stack(&self, head: &Head, slot: u64) -> AddrRange {
        let index = (slot - self.at.0 - CONTROL_HEAD as u64) / SLOT;
        AddrRange::new(VirtAddr(head.stacks() + index * STACK as u64), STACK as u64)
    }

    /// Whether an address lies in the alternate stacks of ours.
    pub(super) fn is_own_stack(&self, at: u64) -> bool {
        let stacks = self.head().map_or(0, |head| head.stacks());
        stacks != 0 && at.wrapping_sub(stacks) < STACKS
    }

    /// Whether an address is that of a slot of ours.
    pub(super) fn has_slot(&self, at: u64) -> bool {
        let from = at.wrapping_sub(self.at.0 + CONTROL_HEAD as u64);
        from < CONTROL_SLOTS as u64 * SLOT && from.is_multiple_of(SLOT)
    }

    /// Where a slot is.
    pub(super) fn slot(&self, index: u64) -> VirtAddr {
        self.at.add(CONTROL_HEAD as u64 + index * SLOT)
    }

    /// All slots, raw.
    pub(super) fn slots(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; CONTROL_SLOTS * SLOT as usize];
        remote::read(self.pid, self.slot(0), &mut bytes)?;
        Ok(bytes)
    }

    /// The table of ranges, and the states of their pages; bounded, whatever the head says.
    pub(super) fn table(&self, head: &Head) -> Result<Vec<(Protected, Vec<u8>)>> {
        let count = head.count().min(RANGES) as usize;
        let mut bytes = vec![0; count * size_of::<Protected>()];
        remote::read(self.pid, VirtAddr(head.ranges()), &mut bytes)?;
        let mut pages = 0;
        let mut table = Vec::with_capacity(count);
        for words in bytes.chunks_exact(size_of::<Protected>()) {
            let word = |n: usize| words[n * 8..n * 8 + 8].try_into().map_or(0, u64::from_le_bytes);
            let range = Protected { start: word(0), end: word(1), prot: word(2), states: word(3) };
            let sane = (range.start | range.end).is_multiple_of(PAGE) && range.start < range.end;
            let own = range.end.saturating_sub(range.start) / PAGE;
            pages += own;
            if !sane || pages > PAGES {
                break;
            }
            let mut states = vec![0; own as usize];
            remote::read(self.pid, VirtAddr(head.ranges()).add(range.states), &mut states)?;
            table.push((range, states));
        }
        Ok(table)
    }
}

impl Head {
    fn is_known(&self) -> bool {
        self.u64_at(0) == CONTROL_MAGIC
            && self.u32_at(8) == CONTROL_VERSION
            && self.u32_at(12) == CONTROL_SLOTS as u32
    }
}
