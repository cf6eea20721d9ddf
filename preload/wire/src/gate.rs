//! The gate: the word that every intercepted file operation passes.
use core::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
};

/// The gate's word while it is open. Any other value is the number of the closing.
pub const OPEN: u32 = 0;

/// Where the gate's word is in a table, in bytes.
pub const GATE_WORD: usize = 64;

/// A waiter takes no longer lease than this, whatever the table says: 10 s.
pub const LEASE_MAX_NS: u64 = 10_000_000_000;

/// The gate of one member; the drawing is at the head of the crate.
#[repr(C, align(64))]
pub struct Gate {
    pub(crate) word: AtomicU32,
    pub(crate) waiting: AtomicU32,
    pub(crate) beat: AtomicU64,
    pub(crate) lease: AtomicU64,
    pub(crate) owner: AtomicU32,
    pub(crate) owner_start: AtomicU64,
    pub(crate) closings: AtomicU64,
}

impl Gate {
    /// Whether an operation may execute. The second half of the store-load pair of the protocol.
    #[inline(always)]
    pub fn is_open(&self) -> bool {
        self.word.load(SeqCst) == OPEN
    }

    /// [`OPEN`], or the number of the closing.
    pub fn word(&self) -> u32 {
        self.word.load(SeqCst)
    }

    /// Where futex(2) waits (without FUTEX_PRIVATE_FLAG: the waker has another mapping).
    pub fn futex(&self) -> *const u32 {
        self.word.as_ptr()
    }

    /// Closes the gate: member operations that begin from now on wait, until it opens or no beat comes for `lease`
    /// nanoseconds. `owner` and `owner_start` (field 22 of proc_pid_stat(5)) only tell people who closed it.
    /// A gate that is closed already gets the new lease and stays closed under a new number.
    pub fn close(&self, lease: u64, owner: u32, owner_start: u64) -> u32 {
        self.lease.store(lease.min(LEASE_MAX_NS), Relaxed);
        self.owner.store(owner, Relaxed);
        self.owner_start.store(owner_start, Relaxed);
        self.beat.fetch_add(1, Relaxed);
        let count = self.closings.fetch_add(1, Relaxed).wrapping_add(1);
        let closing = ((count as u32) << 1) | 1; // never OPEN
        self.word.swap(closing, SeqCst);
        closing
    }

    /// Tells the waiters that the daemon lives.
    pub fn renew(&self) {
        self.beat.fetch_add(1, Release);
    }

    /// Opens the gate. The caller then wakes the waiters by futex(2).
    pub fn open(&self) {
        self.word.store(OPEN, SeqCst);
    }

    /// Opens the gate if it is still closed by `closing`: for a waiter whose daemon is gone.
    pub fn expire(&self, closing: u32) -> bool {
        closing != OPEN && self.word.compare_exchange(closing, OPEN, SeqCst, Relaxed).is_ok()
    }

    /// The daemon's beat and the lease in nanoseconds, bounded by [`LEASE_MAX_NS`].
    pub fn beat(&self) -> (u64, u64) {
        (self.beat.load(Acquire), self.lease.load(Relaxed).min(LEASE_MAX_NS))
    }

    /// Who closed the gate last: pid and start time as given to [`Gate::close`].
    pub fn owner(&self) -> (u32, u64) {
        (self.owner.load(Relaxed), self.owner_start.load(Relaxed))
    }

    /// One waiter more.
    pub fn wait_begins(&self) {
        self.waiting.fetch_add(1, Relaxed);
    }

    /// One waiter less.
    pub fn wait_ends(&self) {
        self.waiting.fetch_sub(1, Relaxed);
    }

    /// How many threads wait at the gate (a thread that was cancelled there stays counted).
    pub fn waiting(&self) -> u32 {
        self.waiting.load(Relaxed)
    }
}
