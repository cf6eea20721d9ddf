//! The whole table and its header.
use crate::{Gate, Slot};
use core::{
    ffi::CStr,
    marker::PhantomData,
    sync::atomic::{
        AtomicU32, AtomicU64,
        Ordering::{Acquire, Relaxed, Release, SeqCst},
    },
};

/// The memfd's name.
pub const NAME: &CStr = c"ckpt-gate";
/// The memfd's path in proc_pid_maps(5).
pub const MAPS_NAME: &str = "/memfd:ckpt-gate (deleted)";
/// The first eight bytes of a table: `ckptgate`.
pub const MAGIC: u64 = u64::from_le_bytes(*b"ckptgate");
/// The version of the contract.
pub const VERSION: u32 = 1;
/// The size of a table in bytes. Pages are only there once they are used: one for up to 60 threads.
pub const SIZE: usize = 256 * 1024;
/// The size of the header in bytes: where slot 0 is.
pub const HEADER: usize = 256;
/// How many slots a table has.
pub const SLOTS: usize = (SIZE - HEADER) / size_of::<Slot>();
/// The seals that the memfd must have (fcntl(2), F_SEAL_SHRINK | F_SEAL_GROW): a table that could shrink would kill
/// its reader by SIGBUS.
pub const REQUIRED_SEALS: i32 = 0x2 | 0x4;

/// Whether bytes are the head of a table of this version.
pub fn is_head(head: &[u8; HEADER]) -> bool {
    let numbers = [VERSION.to_ne_bytes(), (SIZE as u32).to_ne_bytes()];
    head[..8] == MAGIC.to_ne_bytes() && head[8..16] == *numbers.as_flattened()
}

/// How many bytes of a table were ever used, told by its first [`HEADER`] bytes: at least those and at most [`SIZE`],
/// whatever they hold. Behind it are holes, which reading would fill with pages.
pub fn used_bytes(head: &[u8; HEADER]) -> usize {
    let at = core::mem::offset_of!(Header, used);
    let used = u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    HEADER + (used as usize).min(SLOTS) * size_of::<Slot>()
}

/// The head of a table; the drawing is at the head of the crate.
#[repr(C)]
pub struct Header {
    pub(crate) magic: AtomicU64,
    pub(crate) version: AtomicU32,
    pub(crate) size: AtomicU32,
    pub(crate) pid: AtomicU32,
    pub(crate) used: AtomicU32,
    pub(crate) control: AtomicU64,
    pub(crate) resume: AtomicU64,
    pub(crate) contexts: AtomicU64,
    pub(crate) gate: Gate,
    pub(crate) overflow: Overflow,
}

/// Operations of threads without a slot, and counters.
#[repr(C, align(64))]
pub struct Overflow {
    pub(crate) added: AtomicU32,
    pub(crate) executing: AtomicU32,
    pub(crate) expired: AtomicU64,
    pub(crate) waits: AtomicU64,
}

impl Overflow {
    /// Counts an operation in.
    pub fn begin(&self) {
        self.added.fetch_add(1, SeqCst);
    }

    /// added → executing.
    pub fn execute(&self) {
        self.executing.fetch_add(1, SeqCst);
        self.added.fetch_sub(1, SeqCst);
    }

    /// Withdraws an added operation.
    pub fn withdraw(&self) {
        self.added.fetch_sub(1, SeqCst);
    }

    /// Counts an executing operation out.
    pub fn end(&self) {
        self.executing.fetch_sub(1, SeqCst);
    }

    /// How many operations are added, and executing.
    pub fn counts(&self) -> (u32, u32) {
        (self.added.load(SeqCst), self.executing.load(SeqCst))
    }

    /// Counts a gate that was opened by a waiter because its daemon was gone.
    pub fn count_expired(&self) {
        self.expired.fetch_add(1, Relaxed);
    }

    /// Counts an operation that had to wait.
    pub fn count_wait(&self) {
        self.waits.fetch_add(1, Relaxed);
    }

    /// How often a waiter opened the gate itself, and how many operations had to wait, ever.
    pub fn history(&self) -> (u64, u64) {
        (self.expired.load(Relaxed), self.waits.load(Relaxed))
    }
}

/// Why some bytes are no table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableError {
    /// Fewer bytes than [`SIZE`].
    Short {
        /// How many there are.
        length: usize,
    },
    /// The address is not a multiple of 64.
    Unaligned,
    /// The first bytes are not [`MAGIC`]: not (or not yet) a table.
    Magic,
    /// Another version of the contract.
    Version {
        /// Which.
        found: u32,
    },
    /// The header tells another size than [`SIZE`].
    Size {
        /// Which.
        found: u32,
    },
}

impl core::fmt::Display for TableError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            TableError::Short { length } => write!(f, "{length} bytes are too short for a table of {SIZE}"),
            TableError::Unaligned => f.write_str("the table's address is not aligned"),
            TableError::Magic => f.write_str("no table: the magic number is missing"),
            TableError::Version { found } => write!(f, "version {found} of the table, {VERSION} is known"),
            TableError::Size { found } => write!(f, "the table tells a size of {found} bytes, not {SIZE}"),
        }
    }
}

impl core::error::Error for TableError {}

/// A mapped table. Everything in it may be written by the other side at any time and is only read through atomics;
/// no index, count or length in it is used to reach memory.
#[derive(Clone, Copy)]
pub struct Table<'m> {
    base: *const u8,
    memory: PhantomData<&'m Header>,
}

// SAFETY: a table is only atomics.
unsafe impl Send for Table<'_> {}
// SAFETY: as above.
unsafe impl Sync for Table<'_> {}

impl<'m> Table<'m> {
    /// Looks at mapped memory as a table.
    ///
    /// # Errors
    /// [`TableError`] if the header is not one of this version.
    ///
    /// # Safety
    /// `base` is mapped readable and writable for `length` bytes during `'m`, and cannot shrink.
    pub unsafe fn from_raw(base: *const u8, length: usize) -> Result<Table<'m>, TableError> {
        if length < SIZE {
            return Err(TableError::Short { length });
        }
        if !(base as usize).is_multiple_of(align_of::<Slot>()) {
            return Err(TableError::Unaligned);
        }
        let table = Table { base, memory: PhantomData };
        let header = table.header();
        if header.magic.load(Acquire) != MAGIC {
            return Err(TableError::Magic);
        }
        match (header.version.load(Relaxed), header.size.load(Relaxed)) {
            (VERSION, size) if size as usize == SIZE => Ok(table),
            (VERSION, found) => Err(TableError::Size { found }),
            (found, _) => Err(TableError::Version { found }),
        }
    }

    /// A table whose header has been checked, or that this process made itself.
    ///
    /// # Safety
    /// As for [`Table::from_raw`], with [`SIZE`] bytes and a base that is a multiple of 64.
    #[inline(always)]
    pub const unsafe fn trusted(base: *const u8) -> Table<'m> {
        Table { base, memory: PhantomData }
    }

    /// Makes a table of zeroed memory; the magic number comes last.
    pub fn initialize(&self, pid: u32) {
        let header = self.header();
        header.version.store(VERSION, Relaxed);
        header.size.store(SIZE as u32, Relaxed);
        header.pid.store(pid, Relaxed);
        header.magic.store(MAGIC, Release);
    }

    #[inline(always)]
    fn header(&self) -> &'m Header {
        // SAFETY: the maker of self promised SIZE ≥ HEADER mapped, aligned bytes for 'm; Header is only atomics.
        unsafe { &*self.base.cast::<Header>() }
    }

    /// The gate.
    #[inline(always)]
    pub fn gate(&self) -> &'m Gate {
        &self.header().gate
    }

    /// The counters.
    pub fn overflow(&self) -> &'m Overflow {
        &self.header().overflow
    }

    /// Where the control block of write protection is in the member; 0 if it has none. See [`crate::protect`].
    pub fn control(&self) -> u64 {
        self.header().control.load(Acquire)
    }

    /// Tells it.
    pub fn set_control(&self, address: u64) {
        self.header().control.store(address, Release);
    }

    /// Where [`crate::resume::CODE`] is in the member; 0, as of an older library, if it has none.
    pub fn resume(&self) -> u64 {
        self.header().resume.load(Acquire)
    }

    /// Tells it.
    pub fn set_resume(&self, address: u64) {
        self.header().resume.store(address, Release);
    }

    /// Where the contexts of kernel AIO are in the member; 0, as of an older library, if it does not tell. See [`crate::aio`].
    pub fn contexts(&self) -> u64 {
        self.header().contexts.load(Acquire)
    }

    /// Tells it.
    pub fn set_contexts(&self, address: u64) {
        self.header().contexts.store(address, Release);
    }

    /// The pid of the process as it saw itself when it made the table.
    pub fn pid(&self) -> u32 {
        self.header().pid.load(Relaxed)
    }

    /// Slot `index`; `None` past the last.
    pub fn slot(&self, index: usize) -> Option<&'m Slot> {
        if index >= SLOTS {
            return None;
        }
        // SAFETY: HEADER + SLOTS * 64 = SIZE mapped bytes, aligned to 64; Slot is only atomics.
        Some(unsafe { &*self.base.add(HEADER + index * size_of::<Slot>()).cast::<Slot>() })
    }

    /// The slots that were ever used, in order: at most [`SLOTS`], whatever the header says.
    pub fn slots(&self) -> impl Iterator<Item = &'m Slot> + use<'m> {
        let table = *self;
        let used = (self.header().used.load(SeqCst) as usize).min(SLOTS);
        (0..used).filter_map(move |index| table.slot(index))
    }

    /// Finds a slot for a thread: a free one, or the next that was never used. `None` if all are taken.
    pub fn take_slot(&self, thread: u32) -> Option<&'m Slot> {
        let used = &self.header().used;
        for index in 0..SLOTS {
            let slot = self.slot(index)?;
            // Told before it is taken: the daemon must not miss it.
            used.fetch_max(index as u32 + 1, SeqCst);
            if slot.take(thread) {
                return Some(slot);
            }
        }
        None
    }
}
