//! The table of protected ranges: which pages are closed, and opening them.
use super::{CONTROL, mine, pass};
use ckpt_wire::protect::{CLOSED, Dispatch, FOR_A_FORK, FREE, GONE, HELD, OPENED, Protected};
use core::sync::atomic::{
    AtomicU8,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
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

fn ranges() -> &'static [Protected] {
    let (at, count) = (CONTROL.ranges.load(Acquire), CONTROL.count.load(Acquire));
    if at == 0 || count == 0 {
        return &[];
    }
    // SAFETY: the daemon stored the address of a table of that many ranges, which stays mapped for ever, and changes it
    // only while this thread is stopped and the lock is free.
    unsafe { core::slice::from_raw_parts(at as *const Protected, count as usize) }
}

/// The states of a range's pages, from its first on.
fn states(range: &Protected) -> &'static [AtomicU8] {
    let pages = (range.end - range.start) / PAGE;
    // SAFETY: the daemon made room for a byte a page there.
    unsafe {
        let at = (CONTROL.ranges.load(Relaxed) + range.states) as *const AtomicU8;
        core::slice::from_raw_parts(at, pages as usize)
    }
}

/// The ranges that overlap [start, end), each with the part of it as page numbers.
fn overlapping(start: u64, end: u64) -> impl Iterator<Item = (&'static Protected, usize, usize)> {
    let all = ranges();
    let first = all.partition_point(|range| range.end <= start);
    all[first..].iter().take_while(move |range| range.start < end).map(move |range| {
        let from = start.max(range.start) - range.start;
        let to = end.min(range.end) - range.start;
        (range, (from / PAGE) as usize, to.div_ceil(PAGE) as usize)
    })
}

/// Whether a page of [start, end) is closed.
pub fn is_any_closed(start: u64, end: u64) -> bool {
    overlapping(start, end)
        .any(|(range, from, to)| states(range)[from..to].iter().any(|state| state.load(Acquire) == CLOSED))
}

/// The state of the page of an address; `None` if it is in no range.
pub fn state(address: u64) -> Option<u8> {
    let (range, page, _) = overlapping(address, address + 1).next()?;
    Some(states(range)[page].load(Acquire))
}

/// Makes pages writable as the application made them. `false` if the kernel does not.
fn unprotect(range: &Protected, from: usize, to: usize) -> bool {
    let start = range.start + from as u64 * PAGE;
    let args = [start as usize, (to - from) * PAGE as usize, range.prot as usize, 0, 0, 0];
    // SAFETY: the pages are the application's, and get the protection that it gave them.
    unsafe { pass::raw(libc::SYS_mprotect, args) == 0 }
}

/// Opens the closed pages among these of a range; the lock is held.
fn open_part(range: &Protected, from: usize, to: usize) {
    let all = states(range);
    let mut at = from;
    while at < to {
        if all[at].load(Relaxed) != CLOSED {
            at += 1;
            continue;
        }
        let run = all[at..to].iter().position(|state| state.load(Relaxed) != CLOSED);
        let mut end = run.map_or(to, |run| at + run);
        if !unprotect(range, at, end) {
            // Too many mappings (vm.max_map_count): all that hangs together in one.
            while at > 0 && all[at - 1].load(Relaxed) != GONE {
                at -= 1;
            }
            while end < all.len() && all[end].load(Relaxed) != GONE {
                end += 1;
            }
            if !unprotect(range, at, end) {
                // Not all of it is there.
                open_each(range, from, to);
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
fn open_each(range: &Protected, from: usize, to: usize) {
    for (page, state) in states(range).iter().enumerate().take(to).skip(from) {
        if state.load(Relaxed) == CLOSED {
            state.store(if unprotect(range, page, page + 1) { OPENED } else { GONE }, Release);
        }
    }
}

/// Opens what is closed in [start, end); the lock is held.
pub fn open(start: u64, end: u64) {
    for (range, from, to) in overlapping(start, end) {
        open_part(range, from, to);
    }
}

/// Opens everything, and counts it as gone from the table if `gone`; the lock is held.
pub fn release(start: u64, end: u64) {
    open(start, end);
    forget(start, end);
}

/// [start, end) is the application's own matter from here on; the lock is held.
pub fn forget(start: u64, end: u64) {
    for (range, from, to) in overlapping(start, end) {
        for state in &states(range)[from..to] {
            state.store(GONE, Release);
        }
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
    let Some((range, page, _)) = overlapping(address, address + 1).next() else { return };
    let all = states(range);
    let is = |page: usize, wanted: u8| all.get(page).is_some_and(|state| state.load(Relaxed) == wanted);
    let splits = CONTROL.splits.load(Relaxed);
    let piece =
        PIECES.iter().find(|(limit, _)| splits < *limit).map_or(LARGEST, |(_, pages)| *pages) as usize;
    let behind = (0..AHEAD as usize).take_while(|back| page > *back && is(page - 1 - back, OPENED)).count();
    let start = page - page % piece;
    let end = (start + piece).max(page + behind.max(1)).min(all.len());
    let first = (start..=page).rev().take_while(|at| is(*at, CLOSED)).last().unwrap_or(page);
    let last = (page..end).take_while(|at| is(*at, CLOSED)).last().unwrap_or(page);
    open_part(range, first, last + 1);
}

/// Makes the page of an address writable without the lock and without a word in the table: where this thread has the lock.
pub fn unprotect_page(address: u64) -> bool {
    match overlapping(address, address + 1).next() {
        Some((range, page, _)) => unprotect(range, page, page + 1),
        None => false,
    }
}
