//! Kernel AIO (io_setup(2)): how much was ever submitted to each context. The kernel tells only what it has completed, so what is under
//! way is the difference.
//!
//! ```text
//!  submitted − completions posted (the ring's tail) = under way, modulo the ring's size: no more can be under way than it has room for
//! ```
//! In the library's memory, at the address that [`Table::contexts`](crate::Table::contexts) tells.
use core::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

/// How many contexts are known; a further one is not told.
pub const CONTEXTS: usize = 64;
/// The size of [`Contexts`] in bytes.
pub const CONTEXTS_SIZE: usize = size_of::<Contexts>();

/// A record that is being written.
const TAKEN: u64 = 1;

/// The contexts of a process.
#[repr(C)]
pub struct Contexts {
    /// Calls of io_setup, io_submit and io_destroy that began.
    pub begun: AtomicU64,
    /// And that ended: while one is under way, nothing here can be relied on.
    pub ended: AtomicU64,
    /// Each context.
    pub each: [Context; CONTEXTS],
}

/// One context.
#[repr(C)]
pub struct Context {
    /// The address of its ring, which is its id too; 0: none.
    pub ring: AtomicU64,
    /// How many requests were submitted to it, ever.
    pub submitted: AtomicU64,
    /// How many events io_setup(2) was asked for; 0: only the ring's memory is here, inherited by fork.
    pub events: AtomicU32,
    _gap: u32,
}

impl Context {
    const fn none() -> Context {
        let (ring, submitted) = (AtomicU64::new(0), AtomicU64::new(0));
        Context { ring, submitted, events: AtomicU32::new(0), _gap: 0 }
    }
}

impl Contexts {
    /// None.
    pub const fn new() -> Contexts {
        Contexts {
            begun: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            each: [const { Context::none() }; CONTEXTS],
        }
    }

    /// Makes a call that changes contexts.
    #[inline]
    pub fn during<R>(&self, call: impl FnOnce() -> R) -> R {
        self.begun.fetch_add(1, AcqRel);
        let result = call();
        self.ended.fetch_add(1, AcqRel);
        result
    }

    /// Adds a context; where there is no room it stays unknown.
    pub fn add(&self, ring: u64, events: u32) {
        self.remove(ring);
        let free =
            self.each.iter().find(|context| context.ring.compare_exchange(0, TAKEN, AcqRel, Relaxed).is_ok());
        if let Some(context) = free {
            context.submitted.store(0, Relaxed);
            context.events.store(events, Relaxed);
            context.ring.store(ring, Release);
        }
    }

    /// Forgets a context.
    pub fn remove(&self, ring: u64) {
        if let Some(context) = self.find(ring) {
            context.ring.store(0, Release);
        }
    }

    /// Counts requests that the kernel took.
    pub fn count(&self, ring: u64, requests: u64) {
        if let Some(context) = self.find(ring) {
            context.submitted.fetch_add(requests, AcqRel);
        }
    }

    /// A child of fork has the memory of the rings, and no context.
    pub fn inherit(&self) {
        self.each.iter().for_each(|context| context.events.store(0, Relaxed));
        self.begun.store(0, Relaxed);
        self.ended.store(0, Release);
    }

    fn find(&self, ring: u64) -> Option<&Context> {
        self.each.iter().find(|context| context.ring.load(Acquire) == ring)
    }
}

impl Default for Contexts {
    fn default() -> Self {
        Contexts::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_is_counted_until_it_is_removed() {
        let contexts = Contexts::new();
        contexts.during(|| contexts.add(0x7000, 8));
        contexts.count(0x7000, 3);
        contexts.count(0x8000, 5);
        let first = &contexts.each[0];
        assert_eq!((first.ring.load(Relaxed), first.submitted.load(Relaxed)), (0x7000, 3));
        assert_eq!(first.events.load(Relaxed), 8);
        contexts.remove(0x7000);
        contexts.add(0x9000, 1);
        assert_eq!((first.ring.load(Relaxed), first.submitted.load(Relaxed)), (0x9000, 0));
        assert_eq!((contexts.begun.load(Relaxed), contexts.ended.load(Relaxed)), (1, 1));
    }

    #[test]
    fn one_too_many_stays_unknown() {
        let contexts = Contexts::new();
        (1..=CONTEXTS as u64 + 1).for_each(|n| contexts.add(n << 12, 1));
        assert!(contexts.each.iter().all(|context| context.ring.load(Relaxed) <= (CONTEXTS as u64) << 12));
        contexts.inherit();
        assert!(contexts.each.iter().all(|context| context.events.load(Relaxed) == 0));
        contexts.add(1 << 12, 2);
        assert_eq!(contexts.each.iter().filter(|context| context.ring.load(Relaxed) == 1 << 12).count(), 1);
    }
}
