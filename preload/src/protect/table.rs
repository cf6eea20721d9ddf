//! The table of protected ranges: which pages are closed, and opening them.
use super::{CONTROL, mine, pass};
use ckpt_wire::protect::{CLOSED, Dispatch, FOR_A_FORK, FREE, GONE, HELD, OPENED, Protected};
use core::sync::atomic::{
    AtomicU8,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
    compiler_fence,
};

pub const PAGE: u64 = 4096;

/// How many splits of mappings make the pieces that are opened at once larger, and how large then (pages).
const PIECES: [(u64, u64); 4] = [(4096, 1), (8192, 8), (12288, 64), (16384, 512)];
/// What is opened at once past the last of them.
const LARGEST: u64 = 1 << 18;
/// The most that is opened ahead of a thread that writes upwards, pages.
const AHEAD: u64 = 64;

/// The lock, held by this thread with all signals blocked.
pub struct Lock {
    mask: Option<u64>,
    held: bool,
}

/// Looks at the lock before a thread naps, and naps before a child of vfork(2) goes on without it.
const LOOKS: u32 = 100;
const NAPS: u32 = 60;

/// Takes the lock. `masked`: all signals are blocked already. A child of vfork(2) goes on without it when it waits in vain: a
/// checkpoint may have stopped the threads of its parent, of which one has it, and waits for the child.
pub fn lock(masked: bool) -> Lock {
    lock_as(masked, 0)
}

/// Takes the lock, all signals being blocked, so that a child gets the table of the memory that it gets. A checkpoint does not wait for
/// it: what is told is right, and a child that came into being after all threads were stopped would run on.
pub fn lock_for_a_fork() -> Lock {
    lock_as(true, FOR_A_FORK)
}

/// Whether the thread of a slot has the lock.
pub fn is_held_by(slot: &Dispatch) -> bool {
    CONTROL.lock.load(Relaxed) & !FOR_A_FORK == slot.index.load(Relaxed) + 1
}

fn lock_as(masked: bool, flag: u32) -> Lock {
    let owner = mine().map_or(HELD, |slot| slot.index.load(Relaxed) + 1) | flag;
    let mask = (!masked).then(super::block);
    let mut turns = 0u32;
    while CONTROL.lock.compare_exchange(FREE, owner, SeqCst, Relaxed).is_err() {
        turns += 1;
        if turns > LOOKS + NAPS && super::clone::is_borrower() {
            return Lock { mask, held: false };
        }
        if turns > LOOKS {
            let nap = [0u64, 50_000];
            // SAFETY: nap is a timespec that outlives the call.
            unsafe { pass::raw(libc::SYS_nanosleep, [&raw const nap as usize, 0, 0, 0, 0, 0]) };
        }
        core::hint::spin_loop();
    }
    Lock { mask, held: true }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if self.held {
            CONTROL.lock.store(FREE, SeqCst);
        }
        if let Some(mask) = self.mask {
            super::set_mask(mask);
        }
    }
}

/// Whether the table is the one of which `made` was read: not written anew since.
fn is_still(made: u64) -> bool {
    // What was read before is read before this: the daemon writes while this thread is stopped, at any instruction.
    compiler_fence(SeqCst);
    CONTROL.made.load(Relaxed) == made
}

/// What `look` sees in one and the same table. Without the lock the daemon may write it anew in the midst of a look, which then sees parts
/// of two tables; that is looked at once more.
fn seen<T>(look: impl Fn() -> T) -> T {
    loop {
        let made = CONTROL.made.load(Acquire);
        let found = look();
        if is_still(made) {
            return found;
        }
    }
}

/// The ranges of the table, as long as it is that one.
fn ranges(made: u64) -> &'static [Protected] {
    let (at, count) = (CONTROL.ranges.load(Acquire), CONTROL.count.load(Acquire));
    if at == 0 || count == 0 || !is_still(made) {
        return &[];
    }
    // SAFETY: the daemon stored the address of a table of that many ranges, whose memory stays mapped for ever. It changes it only
    // while this thread is stopped and the lock is free; who has not the lock believes nothing before `is_still`.
    unsafe { core::slice::from_raw_parts(at as *const Protected, count as usize) }
}

/// A range of the table, as it was when it was looked at, and the part of it that is meant.
struct Part {
    range: Protected,
    /// The states of all pages of the range.
    states: &'static [AtomicU8],
    /// The first page.
    from: usize,
    /// Behind the last.
    to: usize,
}

/// The ranges that overlap [start, end). It ends where the table is written anew.
fn overlapping(start: u64, end: u64) -> impl Iterator<Item = Part> {
    let made = CONTROL.made.load(Acquire);
    let table = CONTROL.ranges.load(Acquire);
    let all = ranges(made);
    let first = all.partition_point(|range| range.end <= start);
    let copies = all[first..].iter().map_while(move |range| {
        // SAFETY: a reference; volatile, because it is not to be read again after the look at `made`.
        let copy = unsafe { core::ptr::from_ref(range).read_volatile() };
        is_still(made).then_some(copy)
    });
    copies.take_while(move |range| range.start < end).map(move |range| {
        let pages = (range.end - range.start) / PAGE;
        // SAFETY: the daemon made room for a byte a page there, which stays mapped as the ranges do.
        let states =
            unsafe { core::slice::from_raw_parts((table + range.states) as *const AtomicU8, pages as usize) };
        let from = start.max(range.start) - range.start;
        let to = end.min(range.end) - range.start;
        Part { range, states, from: (from / PAGE) as usize, to: to.div_ceil(PAGE) as usize }
    })
}

/// Whether a page of [start, end) is closed.
pub fn is_any_closed(start: u64, end: u64) -> bool {
    let is_closed = |state: &AtomicU8| state.load(Acquire) == CLOSED;
    seen(|| overlapping(start, end).any(|part| part.states[part.from..part.to].iter().any(is_closed)))
}

/// The state of the page of an address; `None` if it is in no range.
pub fn state(address: u64) -> Option<u8> {
    seen(|| overlapping(address, address + 1).next().map(|part| part.states[part.from].load(Acquire)))
}

impl Part {
    /// Makes pages of the range writable as the application made them. `false` if the kernel does not.
    fn unprotect(&self, from: usize, to: usize) -> bool {
        let start = self.range.start + from as u64 * PAGE;
        let args = [start as usize, (to - from) * PAGE as usize, self.range.prot as usize, 0, 0, 0];
        // SAFETY: the pages are the application's, and get the protection that it gave them.
        unsafe { pass::raw(libc::SYS_mprotect, args) == 0 }
    }

    /// Opens the closed pages among those meant; the lock is held.
    fn open(&self) {
        let all = self.states;
        let mut at = self.from;
        while at < self.to {
            if all[at].load(Relaxed) != CLOSED {
                at += 1;
                continue;
            }
            let run = all[at..self.to].iter().position(|state| state.load(Relaxed) != CLOSED);
            let mut end = run.map_or(self.to, |run| at + run);
            if !self.unprotect(at, end) {
                // Too many mappings (vm.max_map_count): all that hangs together in one.
                while at > 0 && all[at - 1].load(Relaxed) != GONE {
                    at -= 1;
                }
                while end < all.len() && all[end].load(Relaxed) != GONE {
                    end += 1;
                }
                if !self.unprotect(at, end) {
                    // Not all of it is there.
                    self.open_each();
                    return;
                }
            }
            CONTROL.splits.fetch_add(1, Relaxed);
            for state in &all[at..end] {
                if state.load(Relaxed) == CLOSED {
                    state.store(OPENED, Release);
                }
            }
            at = end;
        }
    }

    /// Opens pages one by one; what is not mapped is gone.
    fn open_each(&self) {
        for (page, state) in self.states.iter().enumerate().take(self.to).skip(self.from) {
            if state.load(Relaxed) == CLOSED {
                state.store(if self.unprotect(page, page + 1) { OPENED } else { GONE }, Release);
            }
        }
    }
}

/// Opens what is closed in [start, end); the lock is held.
pub fn open(start: u64, end: u64) {
    overlapping(start, end).for_each(|part| part.open());
}

/// Opens everything, and counts it as gone from the table if `gone`; the lock is held.
pub fn release(start: u64, end: u64) {
    open(start, end);
    forget(start, end);
}

/// [start, end) is the application's own matter from here on; the lock is held.
pub fn forget(start: u64, end: u64) {
    for part in overlapping(start, end) {
        part.states[part.from..part.to].iter().for_each(|state| state.store(GONE, Release));
    }
}

/// Opens all ranges.
pub fn open_all() {
    if is_any_closed(0, u64::MAX - PAGE) {
        let _lock = lock(false);
        open(0, u64::MAX - PAGE);
    }
}

/// Opens the page of a write that faulted and some around it; the lock is held.
pub fn open_at(address: u64) {
    let Some(part) = overlapping(address, address + 1).next() else { return };
    let (all, page) = (part.states, part.from);
    let is = |page: usize, wanted: u8| all.get(page).is_some_and(|state| state.load(Relaxed) == wanted);
    let splits = CONTROL.splits.load(Relaxed);
    let piece =
        PIECES.iter().find(|(limit, _)| splits < *limit).map_or(LARGEST, |(_, pages)| *pages) as usize;
    let behind = (0..AHEAD as usize).take_while(|back| page > *back && is(page - 1 - back, OPENED)).count();
    let start = page - page % piece;
    let end = (start + piece).max(page + behind.max(1)).min(all.len());
    let first = (start..=page).rev().take_while(|at| is(*at, CLOSED)).last().unwrap_or(page);
    let last = (page..end).take_while(|at| is(*at, CLOSED)).last().unwrap_or(page);
    Part { from: first, to: last + 1, ..part }.open();
}

/// Makes the page of an address writable without the lock and without a word in the table: where this thread has the lock.
pub fn unprotect_page(address: u64) -> bool {
    overlapping(address, address + 1).next().is_some_and(|part| part.unprotect(part.from, part.to))
}
