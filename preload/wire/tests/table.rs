//! What both sides may rely on, and what a hostile member cannot do.
use ckpt_wire::{Entry, OpCode, SIZE, SLOTS, State, Table, TableError};
use proptest::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;

/// Memory for one table: zeroed, aligned to a page.
struct Memory(Box<[Page]>);

#[derive(Clone)]
#[repr(C, align(4096))]
struct Page([u8; 4096]);

impl Memory {
    fn new() -> Memory {
        Memory(vec![Page([0; 4096]); SIZE / 4096].into())
    }

    fn with_table() -> Memory {
        let memory = Memory::new();
        // SAFETY: SIZE bytes, aligned to a page, that live as long as memory.
        unsafe { Table::trusted(memory.0.as_ptr().cast()) }.initialize(7);
        memory
    }

    fn look(&self) -> Result<Table<'_>, TableError> {
        // SAFETY: as above; only atomics of the table reach the bytes while it is borrowed.
        unsafe { Table::from_raw(self.0.as_ptr().cast(), SIZE) }
    }

    fn fill(&mut self, at: usize, bytes: &[u8]) {
        for (index, byte) in bytes.iter().enumerate() {
            let at = (at + index) % SIZE;
            self.0[at / 4096].0[at % 4096] = *byte;
        }
    }
}

fn entry(fd: i32) -> Entry {
    Entry::new(OpCode::Write, fd, 4096, 512)
}

#[test]
fn an_operation_is_told_from_added_to_free() {
    let memory = Memory::with_table();
    let table = memory.look().unwrap();
    let slot = table.take_slot(42).unwrap();
    slot.begin(&entry(3));
    assert_eq!(slot.state(), State::Added);
    assert!(slot.execute_if_open(table.gate()));
    let (state, sequence, told) = slot.look().unwrap();
    assert_eq!((state, sequence, told, slot.thread()), (State::Executing, 1, entry(3), 42));
    slot.end();
    assert_eq!(slot.state(), State::Free);
}

#[test]
fn a_closed_gate_sends_an_operation_back() {
    let memory = Memory::with_table();
    let table = memory.look().unwrap();
    let slot = table.take_slot(42).unwrap();
    table.gate().close(1, 1, 1);
    slot.begin(&entry(3));
    assert!(!slot.execute_if_open(table.gate()));
    assert_eq!(slot.state(), State::Free);
}

#[test]
fn a_waiter_opens_only_the_closing_it_waited_for() {
    let memory = Memory::with_table();
    let gate = memory.look().unwrap().gate();
    let first = gate.close(1, 1, 1);
    gate.open();
    let second = gate.close(1, 1, 1);
    assert!(first != second && !gate.expire(first) && !gate.is_open());
    assert!(gate.expire(second) && gate.is_open());
    assert!(!gate.expire(gate.word()), "an open gate does not expire");
}

#[test]
fn a_handlers_operation_leaves_the_interrupted_one_as_it_was() {
    let memory = Memory::with_table();
    let slot = memory.look().unwrap().take_slot(42).unwrap();
    slot.begin(&entry(3));
    slot.execute();
    let saved = slot.save();
    slot.begin(&entry(4));
    slot.end();
    slot.restore(&saved);
    let (state, _, told) = slot.look().unwrap();
    assert_eq!((state, told), (State::Executing, entry(3)));
}

#[test]
fn every_thread_finds_a_slot_until_all_are_taken_and_then_is_counted() {
    let memory = Memory::with_table();
    let table = memory.look().unwrap();
    let first = table.take_slot(1).unwrap();
    for thread in 1..SLOTS {
        assert!(table.take_slot(thread as u32 + 1).is_some());
    }
    assert!(table.take_slot(u32::MAX).is_none());
    first.give_back();
    assert!(table.take_slot(u32::MAX).is_some());
    table.overflow().begin();
    assert_eq!(table.overflow().counts(), (1, 0));
    table.overflow().execute();
    assert_eq!(table.overflow().counts(), (0, 1));
    table.overflow().end();
    assert_eq!(table.overflow().counts(), (0, 0));
}

/// The promise of the protocol: once the gate is closed and nothing is added, no operation starts that had not
/// started before.
#[test]
fn nothing_starts_behind_a_closed_gate() {
    let memory = Memory::with_table();
    let table = memory.look().unwrap();
    let (frozen, done, slipped) = (AtomicBool::new(false), AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        for thread in 1..=3 {
            let (frozen, done, slipped) = (&frozen, &done, &slipped);
            scope.spawn(move || {
                let slot = table.take_slot(thread).unwrap();
                while !done.load(SeqCst) {
                    slot.begin(&entry(3));
                    if slot.execute_if_open(table.gate()) {
                        slipped.fetch_or(frozen.load(SeqCst), SeqCst);
                        slot.end();
                    } else {
                        while !table.gate().is_open() {
                            thread::yield_now();
                        }
                    }
                }
            });
        }
        for _ in 0..5_000 {
            table.gate().close(1, 1, 1);
            while table.slots().any(|slot| slot.state() != State::Free) {
                thread::yield_now();
            }
            frozen.store(true, SeqCst);
            (0..200).for_each(|_| std::hint::spin_loop());
            frozen.store(false, SeqCst);
            table.gate().open();
        }
        done.store(true, SeqCst);
    });
    assert!(!slipped.into_inner(), "an operation started behind the barrier");
}

#[test]
fn a_reader_never_mixes_two_operations() {
    let memory = Memory::with_table();
    let table = memory.look().unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let slot = table.take_slot(1).unwrap();
            for fd in 0..200_000 {
                slot.begin(&Entry::new(OpCode::Write, fd, fd.into(), fd as u64));
                slot.execute();
                slot.end();
            }
            done.store(true, SeqCst);
        });
        while !done.load(SeqCst) {
            for (state, _, told) in table.slots().filter_map(|slot| slot.look()) {
                if state == State::Free {
                    continue;
                }
                assert_eq!((told.offset, told.length), (told.fd.into(), told.fd as u64));
            }
        }
    });
}

#[test]
fn what_was_never_used_need_not_be_read() {
    let mut memory = Memory::with_table();
    let head = |memory: &Memory| memory.0[0].0[..ckpt_wire::HEADER].try_into().unwrap();
    assert_eq!(ckpt_wire::used_bytes(&head(&memory)), ckpt_wire::HEADER);
    memory.look().unwrap().take_slot(1).unwrap();
    memory.look().unwrap().take_slot(2).unwrap();
    assert_eq!(ckpt_wire::used_bytes(&head(&memory)), ckpt_wire::HEADER + 2 * 64);
    assert!(ckpt_wire::is_head(&head(&memory)) && !ckpt_wire::is_head(&head(&Memory::new())));
    memory.fill(20, &[0xff; 4]);
    assert!(ckpt_wire::used_bytes(&head(&memory)) <= SIZE);
}

#[test]
fn what_is_no_table_is_refused() {
    let mut memory = Memory::new();
    assert_eq!(memory.look().err(), Some(TableError::Magic));
    memory = Memory::with_table();
    // SAFETY: the memory is longer than told.
    let short = unsafe { Table::from_raw(memory.0.as_ptr().cast(), 4096) };
    assert_eq!(short.err(), Some(TableError::Short { length: 4096 }));
    memory.fill(8, &9u32.to_ne_bytes());
    assert_eq!(memory.look().err(), Some(TableError::Version { found: 9 }));
    memory = Memory::with_table();
    memory.fill(12, &u32::MAX.to_ne_bytes());
    assert_eq!(memory.look().err(), Some(TableError::Size { found: u32::MAX }));
}

#[test]
fn codes_and_operations_are_one_to_one() {
    for (index, &code) in OpCode::ALL.iter().enumerate() {
        assert_eq!(OpCode::from_code(code as u32), Some(code));
        assert!(!OpCode::ALL[..index].iter().any(|other| *other as u32 == code as u32));
    }
    assert_eq!(OpCode::from_code(0), None);
    assert_eq!(OpCode::from_code(u32::MAX), None);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever a member writes into its table: reading stays inside it, ends, and gives at most a slot each.
    #[test]
    fn any_bytes_can_be_read(
        parts in proptest::collection::vec((0..SIZE, proptest::collection::vec(any::<u8>(), 1..600)), 1..20),
        keep_header in any::<bool>(),
        lease in any::<u64>(),
    ) {
        let mut memory = Memory::with_table();
        for (at, bytes) in &parts {
            memory.fill(if keep_header { *at | 64 } else { *at % 512 }, bytes);
        }
        if let Ok(table) = memory.look() {
            prop_assert!(table.slots().count() <= SLOTS);
            let told = table.slots().filter_map(|slot| slot.look()).count();
            prop_assert!(told <= SLOTS);
            let _ = (table.pid(), table.overflow().counts(), table.overflow().history(), table.gate().owner());
            table.gate().close(lease, 1, 1);
            prop_assert!(table.gate().beat().1 <= ckpt_wire::LEASE_MAX_NS);
            prop_assert!(!table.gate().is_open());
            table.gate().open();
            prop_assert!(table.gate().is_open());
        }
    }
}
