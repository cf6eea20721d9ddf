//! The way of every intercepted operation: into the thread's slot, through the gate, out again.
use crate::{kernel, thread};
use ckpt_wire::{Entry, OpCode, SIZE, SLOTS, Saved, Slot, Subject, Table};
use core::{
    mem::MaybeUninit,
    sync::atomic::{
        AtomicBool, AtomicPtr, AtomicU32, AtomicUsize,
        Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst},
        compiler_fence,
    },
};

/// What a child of fork must not inherit: a page that the kernel wipes in the child, however it was forked.
#[repr(C, align(4096))]
struct Root {
    /// The table, null if there is none (yet).
    base: AtomicPtr<u8>,
    making: AtomicU32,
    /// The process that the table was made for.
    process: AtomicU32,
    rest: [u8; 4080],
}

const NOT_MADE: u32 = 0;
const BEING_MADE: u32 = 1;
const MADE: u32 = 2;
/// The kernel gives no memory: the library steps aside. A child tries again.
const IMPOSSIBLE: u32 = 3;

static ROOT: Root = Root {
    base: AtomicPtr::new(core::ptr::null_mut()),
    making: AtomicU32::new(NOT_MADE),
    process: AtomicU32::new(0),
    rest: [0; 4080],
};

/// Where the table was mapped last; a child of fork finds its parent's here and replaces it.
static PLACE: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());

/// Whether the program started under a seccomp filter. A child of fork has what its parent had.
static FILTERED: AtomicBool = AtomicBool::new(false);

/// The pthread key whose destructor gives a thread's slot back, plus 1; 0 if there is none.
static KEY: AtomicUsize = AtomicUsize::new(0);

/// How many operations a thread only counts before it looks again through a table whose slots were all taken.
const OPERATIONS_WITHOUT_SLOT: u32 = 1000;

/// How a waiter sleeps between looks at the daemon's beat.
const NAP_NS: u32 = 50_000_000;

/// Performs `call` as an operation of the table.
#[inline(always)]
pub fn gated<R>(code: OpCode, fd: i32, offset: i64, length: u64, call: impl FnOnce() -> R) -> R {
    gated_entry(&Entry::new(code, fd, offset, length), call)
}

/// Performs `call` as an operation between two descriptors: it writes to `fd`.
#[inline(always)]
pub fn gated_two<R>(code: OpCode, fd: i32, other: i32, length: u64, call: impl FnOnce() -> R) -> R {
    gated_entry(&Entry { other, ..Entry::new(code, fd, -1, length) }, call)
}

#[inline(always)]
fn gated_entry<R>(entry: &Entry, call: impl FnOnce() -> R) -> R {
    let thread = thread::this();
    let base = ROOT.base.load(Relaxed);
    let slot = thread.slot.load(Relaxed);
    if !base.is_null() && !slot.is_null() && thread.frame.load(Relaxed) == 0 {
        // SAFETY: base is a table this process made; slot is one of its slots; both stay mapped for ever.
        let (slot, table) = unsafe { (&*slot, Table::trusted(base)) };
        thread.frame.store(&raw const *entry as usize, Relaxed);
        compiler_fence(SeqCst);
        slot.begin(entry);
        if table.gate().is_open() {
            slot.execute();
        } else {
            wait_then_execute(table, slot, entry);
        }
        let result = call();
        slot.end();
        compiler_fence(SeqCst);
        thread.frame.store(0, Relaxed);
        return result;
    }
    let mut aside = MaybeUninit::<Saved>::uninit();
    let way = enter_slowly(entry, &mut aside);
    let result = call();
    leave_slowly(way, &aside);
    result
}

/// How an operation that could not take the short way came in.
enum Way {
    /// Not through the table at all.
    Past,
    /// In its slot, which was free.
    Slot(&'static Slot),
    /// In the slot of the operation that a signal handler interrupted, which is set aside.
    Nested(&'static Slot, usize),
    /// Counted only.
    Overflow(Table<'static>),
}

#[cold]
#[inline(never)]
fn enter_slowly(entry: &Entry, aside: &mut MaybeUninit<Saved>) -> Way {
    let thread = thread::this();
    if thread.busy.load(Relaxed) > 0 {
        return Way::Past;
    }
    thread.busy.store(1, Relaxed);
    compiler_fence(SeqCst);
    let place = place(thread);
    compiler_fence(SeqCst);
    thread.busy.store(0, Relaxed);
    let here = &raw const *entry as usize;
    match place {
        None => Way::Past,
        Some((table, None)) => {
            pass_overflow(table, entry);
            Way::Overflow(table)
        }
        Some((table, Some(slot))) => {
            let outer = thread.frame.load(Relaxed);
            // The stack grows down: a frame below this one was left by a jump, its operation is no more. (On an
            // alternate signal stack this may be wrong; then the outer operation is only told no longer.)
            let way = if outer == 0 || outer < here {
                Way::Slot(slot)
            } else {
                aside.write(slot.save());
                Way::Nested(slot, outer)
            };
            thread.frame.store(here, Relaxed);
            compiler_fence(SeqCst);
            slot.begin(entry);
            if table.gate().is_open() {
                slot.execute();
            } else {
                wait_then_execute(table, slot, entry);
            }
            way
        }
    }
}

#[cold]
#[inline(never)]
fn leave_slowly(way: Way, aside: &MaybeUninit<Saved>) {
    let thread = thread::this();
    match way {
        Way::Past => {}
        Way::Overflow(table) => table.overflow().end(),
        Way::Slot(slot) => {
            slot.end();
            compiler_fence(SeqCst);
            thread.frame.store(0, Relaxed);
        }
        Way::Nested(slot, outer) => {
            // SAFETY: enter_slowly wrote it before it returned Nested.
            slot.restore(unsafe { aside.assume_init_ref() });
            compiler_fence(SeqCst);
            thread.frame.store(outer, Relaxed);
        }
    }
}

/// The table, and the calling thread's slot in it; made or taken now if need be.
fn place(thread: &thread::Thread) -> Option<(Table<'static>, Option<&'static Slot>)> {
    let table = table()?;
    let slot = thread.slot.load(Relaxed);
    if !slot.is_null() {
        // SAFETY: slots stay mapped for ever.
        return Some((table, Some(unsafe { &*slot })));
    }
    let wait = thread.without_slot.load(Relaxed);
    if wait > 0 {
        thread.without_slot.store(wait - 1, Relaxed);
        return Some((table, None));
    }
    let id = kernel::thread();
    let slot = table.take_slot(id).or_else(|| take_from_dead(table, id));
    if let Some(slot) = slot {
        thread.slot.store(core::ptr::from_ref(slot).cast_mut(), Relaxed);
        let key = KEY.load(Relaxed);
        if key > 0 {
            // SAFETY: the key was made in the constructor; its first use in a thread allocates nothing, as it is
            // among the 32 keys that every thread has room for (or else it only fails).
            unsafe { libc::pthread_setspecific(key as u32 - 1, core::ptr::from_ref(slot).cast()) };
        }
    }
    if slot.is_none() {
        thread.without_slot.store(OPERATIONS_WITHOUT_SLOT, Relaxed);
    }
    Some((table, slot))
}

/// Threads that end without pthread's help leave their slots taken: when all are, some are looked at.
fn take_from_dead(table: Table<'static>, id: u32) -> Option<&'static Slot> {
    const LOOKS: usize = 64;
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let process = ROOT.process.load(Relaxed);
    let first = NEXT.fetch_add(LOOKS, Relaxed);
    (first..first + LOOKS).filter_map(|index| table.slot(index % SLOTS)).find(|slot| {
        let owner = slot.thread();
        owner != 0 && !kernel::is_alive(process, owner) && slot.take_over(owner, id)
    })
}

/// This process's table; made now if need be, `None` if it cannot be or another thread just makes it.
fn table() -> Option<Table<'static>> {
    let base = ROOT.base.load(Acquire);
    if !base.is_null() {
        // SAFETY: only make() stores here, a table that stays mapped for ever.
        return Some(unsafe { Table::trusted(base) });
    }
    if ROOT.making.compare_exchange(NOT_MADE, BEING_MADE, AcqRel, Relaxed).is_err() {
        return None;
    }
    let base = make();
    ROOT.making.store(if base.is_some() { MADE } else { IMPOSSIBLE }, Release);
    // SAFETY: make() gave a table.
    base.map(|base| unsafe { Table::trusted(base) })
}

fn make() -> Option<*mut u8> {
    let process = kernel::process();
    // This thread's slot, if any, was in a table of the parent's.
    thread::this().slot.store(core::ptr::null_mut(), Relaxed);
    thread::this().without_slot.store(0, Relaxed);
    ROOT.process.store(process, Relaxed);
    // Nameless memory where a memfd is not to be had: under a seccomp filter that may kill who asks for one
    // (SystemCallFilter=~@ipc does), without a free descriptor, or with a file size limit below the table's.
    let named = if FILTERED.load(Relaxed) {
        None
    } else {
        kernel::wipe_on_fork((&raw const ROOT).cast(), size_of::<Root>());
        kernel::make_memfd()
    };
    // SAFETY: PLACE is null or holds the parent's table, which nothing in this process uses: ROOT.base is null.
    let base = unsafe { kernel::map_table(named.unwrap_or(-1), PLACE.load(Relaxed)) };
    if let Some(fd) = named {
        kernel::close(fd);
    }
    let base = base?;
    // SAFETY: SIZE bytes, page-aligned, sealed in size, mapped for ever.
    let table = unsafe { Table::<'static>::trusted(base) };
    table.set_control(crate::protect::address());
    table.set_resume(crate::resume::address());
    table.set_contexts(crate::aio::address());
    table.initialize(process);
    PLACE.store(base, Relaxed);
    ROOT.base.store(base, Release);
    Some(base)
}

/// Makes the table of a new process image, takes the main thread's slot, and makes the key that gives slots back.
pub fn start() {
    FILTERED.store(kernel::is_filtered(), Relaxed);
    let mut key = 0;
    // SAFETY: key is to be written; give_back has the destructor's signature.
    if unsafe { libc::pthread_key_create(&mut key, Some(give_back)) } == 0 {
        KEY.store(key as usize + 1, Relaxed);
    }
    settle();
}

/// Makes the table and takes a slot now, while nothing waits for it.
fn settle() {
    let thread = thread::this();
    thread.busy.store(1, Relaxed);
    compiler_fence(SeqCst);
    let _ = place(thread);
    compiler_fence(SeqCst);
    thread.busy.store(0, Relaxed);
}

/// In a child of fork: makes its own table, also where the kernel did not wipe the page (the mark is lost by a restore).
pub fn start_in_child() {
    let thread = thread::this();
    if ROOT.process.load(Relaxed) != kernel::process() {
        ROOT.base.store(core::ptr::null_mut(), Relaxed);
        ROOT.making.store(NOT_MADE, Relaxed);
    }
    crate::aio::start_in_child();
    settle();
    thread.frame.store(0, Relaxed);
}

/// A thread ends: its slot is free for others.
unsafe extern "C" fn give_back(_: *mut libc::c_void) {
    let thread = thread::this();
    let slot = thread.slot.swap(core::ptr::null_mut(), Relaxed);
    thread.frame.store(0, Relaxed);
    if !slot.is_null() && !ROOT.base.load(Relaxed).is_null() {
        // SAFETY: slots stay mapped for ever.
        unsafe { (*slot).give_back() };
    }
    crate::scratch::release();
}

/// The thread jumps out of whatever it did: no operation of its is in progress any more.
pub fn forget() {
    let thread = thread::this();
    let slot = thread.slot.load(Relaxed);
    if thread.frame.load(Relaxed) != 0 && !slot.is_null() && !ROOT.base.load(Relaxed).is_null() {
        // SAFETY: slots stay mapped for ever.
        unsafe { (*slot).end() };
        compiler_fence(SeqCst);
        thread.frame.store(0, Relaxed);
    }
}

/// The thread's slot, if it has one.
pub fn slot() -> Option<&'static Slot> {
    let slot = thread::this().slot.load(Relaxed);
    // SAFETY: slots stay mapped for ever.
    (!slot.is_null() && !ROOT.base.load(Relaxed).is_null()).then(|| unsafe { &*slot })
}

/// Waits while the gate is closed, without an operation: before a new process or program.
pub fn pass() {
    if let Some(table) = table() {
        wait(table);
    }
}

/// The gate was closed when the operation began: withdraw it, wait, begin again. What never touches a file goes on.
#[cold]
#[inline(never)]
fn wait_then_execute(table: Table<'static>, slot: &'static Slot, entry: &Entry) {
    let gated = is_gated(entry);
    while gated && !slot.execute_if_open(table.gate()) {
        table.overflow().count_wait();
        wait(table);
        slot.begin(entry);
    }
    slot.execute();
}

fn pass_overflow(table: Table<'static>, entry: &Entry) {
    let overflow = table.overflow();
    overflow.begin();
    while !table.gate().is_open() && is_gated(entry) {
        overflow.withdraw();
        overflow.count_wait();
        wait(table);
        overflow.begin();
    }
    overflow.execute();
}

fn is_gated(entry: &Entry) -> bool {
    match OpCode::from_code(entry.code).map(OpCode::subject) {
        Some(Subject::Descriptor) => kernel::is_file(entry.fd),
        _ => true,
    }
}

/// Waits until the gate opens, or opens it when its daemon gave no sign of life for its lease.
fn wait(table: Table<'static>) {
    let gate = table.gate();
    let (mut beat, _) = gate.beat();
    let mut since = kernel::now();
    gate.wait_begins();
    loop {
        let closing = gate.word();
        if closing == ckpt_wire::OPEN {
            break;
        }
        let (last, lease) = gate.beat();
        let now = kernel::now();
        if last != beat {
            (beat, since) = (last, now);
        }
        let waited = now.wrapping_sub(since);
        if waited >= lease {
            if gate.expire(closing) {
                table.overflow().count_expired();
                kernel::futex_wake(gate.futex());
            }
            continue;
        }
        kernel::futex_wait(gate.futex(), closing, (lease - waited).min(NAP_NS as u64) as u32);
    }
    gate.wait_ends();
}

const _: () = assert!(size_of::<Root>() == 4096 && SIZE.is_multiple_of(4096));
