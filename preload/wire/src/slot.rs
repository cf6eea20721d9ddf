//! One slot: the operation in progress of one thread.
use crate::{Gate, OpCode};
use core::sync::atomic::{
    AtomicI32, AtomicI64, AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
    compiler_fence,
};

/// How far the operation in a slot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No operation.
    Free,
    /// Between its entry and the start of its execution: no checkpoint now.
    Added,
    /// The call is being made.
    Executing,
}

const FREE: u64 = 0;
const ADDED: u64 = 1;
const EXECUTING: u64 = 2;
const STATE: u64 = 0xff;
const NEXT: u64 = 0x100;

/// A slot in shared memory; the drawing is at the head of the crate.
#[repr(C, align(64))]
pub struct Slot {
    pub(crate) word: AtomicU64,
    pub(crate) thread: AtomicU32,
    pub(crate) code: AtomicU32,
    pub(crate) fd: AtomicI32,
    pub(crate) other: AtomicI32,
    pub(crate) offset: AtomicI64,
    pub(crate) length: AtomicU64,
}

/// What is told of one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The operation's code; [`OpCode::from_code`] may not know it.
    pub code: u32,
    /// The descriptor, or -1.
    pub fd: i32,
    /// A second descriptor (the source of a copy), or -1.
    pub other: i32,
    /// The offset in bytes, or -1 for the descriptor's own position.
    pub offset: i64,
    /// The length in bytes as asked for, or 0.
    pub length: u64,
}

impl Entry {
    /// An operation on a descriptor.
    #[inline(always)]
    pub const fn new(code: OpCode, fd: i32, offset: i64, length: u64) -> Entry {
        Entry { code: code as u32, fd, other: -1, offset, length }
    }
}

/// The contents of a slot, set aside while a signal handler uses it for its own operations.
#[derive(Clone, Copy, Debug)]
pub struct Saved {
    state: u64,
    entry: Entry,
}

impl Slot {
    /// Takes the slot for a thread if nobody has it.
    pub fn take(&self, thread: u32) -> bool {
        self.thread.load(Relaxed) == 0 && self.thread.compare_exchange(0, thread, SeqCst, Relaxed).is_ok()
    }

    /// Takes the slot over from a thread that is no more.
    pub fn take_over(&self, dead: u32, thread: u32) -> bool {
        self.thread.compare_exchange(dead, thread, SeqCst, Relaxed).is_ok()
    }

    /// Gives the slot back, whatever it told.
    pub fn give_back(&self) {
        self.end();
        self.thread.store(0, Release);
    }

    /// The thread that has the slot, 0 if none (its id in the member's PID namespace).
    pub fn thread(&self) -> u32 {
        self.thread.load(Acquire)
    }

    /// Tells which thread uses the slot now (a child of vfork borrows its parent's).
    pub fn lend(&self, thread: u32) {
        self.thread.store(thread, Release);
    }

    /// FREE → ADDED. Only the thread that has the slot may call this.
    #[inline(always)]
    pub fn begin(&self, entry: &Entry) {
        // Release keeps each store behind the FREE of the operation before: a reader that sees one word twice has
        // seen the fields of that word.
        self.code.store(entry.code, Release);
        self.fd.store(entry.fd, Release);
        self.other.store(entry.other, Release);
        self.offset.store(entry.offset, Release);
        self.length.store(entry.length, Release);
        let next = (self.word.load(Relaxed) & !STATE).wrapping_add(NEXT) | ADDED;
        // The first half of the store-load pair of the protocol: a plain store would not do.
        self.word.swap(next, SeqCst);
    }

    /// ADDED → EXECUTING if the gate is open, ADDED → FREE if it is not.
    #[inline(always)]
    pub fn execute_if_open(&self, gate: &Gate) -> bool {
        if gate.is_open() {
            self.execute();
            return true;
        }
        self.end();
        false
    }

    /// ADDED → EXECUTING whatever the gate says: for what is never waited for.
    #[inline(always)]
    pub fn execute(&self) {
        self.set(EXECUTING);
    }

    /// → FREE.
    #[inline(always)]
    pub fn end(&self) {
        self.set(FREE);
    }

    #[inline(always)]
    fn set(&self, state: u64) {
        self.word.store((self.word.load(Relaxed) & !STATE) | state, Release);
    }

    /// The state as its own thread sees it.
    pub fn state(&self) -> State {
        match self.word.load(SeqCst) & STATE {
            ADDED => State::Added,
            EXECUTING => State::Executing,
            // What no library of this version writes is nobody's operation.
            _ => State::Free,
        }
    }

    /// Sets the operation in the slot aside; the slot is FREE afterwards.
    pub fn save(&self) -> Saved {
        let saved = Saved { state: self.word.load(Relaxed) & STATE, entry: self.entry() };
        compiler_fence(SeqCst);
        self.end();
        saved
    }

    /// Puts back what was set aside, under a new sequence number.
    pub fn restore(&self, saved: &Saved) {
        self.begin(&saved.entry);
        self.set(saved.state);
    }

    fn entry(&self) -> Entry {
        Entry {
            code: self.code.load(Acquire),
            fd: self.fd.load(Acquire),
            other: self.other.load(Acquire),
            offset: self.offset.load(Acquire),
            length: self.length.load(Acquire),
        }
    }

    /// From outside: state, sequence and the operation, if they belong together; `None` while they change. What a FREE slot
    /// tells besides means nothing.
    pub fn look(&self) -> Option<(State, u64, Entry)> {
        let before = self.word.load(SeqCst);
        let entry = self.entry();
        if self.word.load(SeqCst) != before {
            return None;
        }
        let state = match before & STATE {
            ADDED => State::Added,
            EXECUTING => State::Executing,
            _ => State::Free,
        };
        Some((state, before >> 8, entry))
    }
}
