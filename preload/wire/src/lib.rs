//! The contract in shared memory between the preload library and the daemon: one *table* per member.
//!
//! The library makes a memfd named [`NAME`] of [`SIZE`] bytes, seals its size ([`REQUIRED_SEALS`]) and maps it
//! shared; the daemon finds it in `/proc/PID/maps` as [`MAPS_NAME`] and maps it through `/proc/PID/map_files`.
//!
//! ```text
//! offset   0        8        12       16       20       24       32       40
//!          ┌────────┬────────┬────────┬────────┬────────┬────────┬────────┬────────┬────────┐
//!      0   │ magic  │version │ size   │ pid    │ used   │control │ resume │contexts│ -      │  written by the library
//!          ├────┬───┴────┬───┴────┬───┴────┬───┴───┬────┴────────┼────────┴┬───────┴────────┤
//!     64   │gate│waiting │ beat   │ lease  │ owner │ owner_start │ closings│ -              │  the gate: written by the daemon
//!          │ u32│ u32    │ u64    │ ns u64 │ u32 - │ u64         │ u64     │                │  (waiting: by the library)
//!          ├────┴───┬────┴────────┼────────┴───┬───┴─────────────┴─────────┴────────────────┤
//!    128   │over_   │over_        │ expired    │ waits │ -                                   │  written by the library
//!          │added   │executing    │ u64        │ u64   │                                     │
//!          ├────────┴─────────────┴────────────┴───────┴─────────────────────────────────────┤
//!    192   │ -                                                                               │
//!          ╞════════╤════════╤════════╤════════╤════════╤════════╤════════╤══════════════════╡
//!    256   │ word   │ thread │ code   │ fd     │ other  │ offset │ length │ -                │  slot 0
//!          │ u64    │ u32    │ u32    │ i32    │ i32    │ i64    │ u64    │                  │
//!          ├────────┴────────┴────────┴────────┴────────┴────────┴────────┴──────────────────┤
//!    320   │ slot 1 …                                                                        │
//!          └─────────────────────────────────────────────────────────────────────────────────┘
//! in the header: magic 0 · version 8 · size 12 · pid 16 · used 20 · control 24 · resume 32 · contexts 40 · gate 64 · overflow 128
//! in the gate: word 0 · waiting 4 · beat 8 · lease 16 · owner 24 · owner_start 32 · closings 40
//! in the overflow: added 0 · executing 4 · expired 8 · waits 16
//! in a slot: word 0 · thread 8 · code 12 · fd 16 · other 20 · offset 24 · length 32      word = sequence << 8 | state
//! ```
//!
//! A slot belongs to one thread (`thread` ≠ 0, taken by compare-and-swap) and tells its operation in progress. Its
//! states, and the only ways between them:
//!
//! ```text
//!            begin: sequence + 1                gate open                     the call returned
//!   FREE ─────────────────────────► ADDED ─────────────────► EXECUTING ─────────────────────────► FREE
//!    ▲                                │  (no checkpoint now)     (a checkpoint may come now)
//!    └────────────────────────────────┘
//!          gate closed: withdraw, wait in user space, begin again
//! ```
//!
//! Why no operation slips through — each side stores first and loads second, both sequentially consistent:
//!
//! ```text
//!   member                                     daemon
//!   1  slot.word ← ADDED      (swap)           1  gate ← closing            (swap)
//!   2  load gate                               2  load every slot.word
//!      open?   slot.word ← EXECUTING, call        none ADDED? every operation has seen the closed gate, or executes
//!      closed? slot.word ← FREE, wait             some ADDED? look again
//! ```
//! In any order of the four steps the member sees the closed gate, or the daemon sees ADDED, or both.
//!
//! A gate cannot stay closed: `beat` is raised by the daemon while it lives, and a waiter that has seen no new beat
//! for `lease` nanoseconds of its *own* clock opens the gate itself (compare-and-swap of the closing it waited for,
//! so a later closing is not opened by mistake). No clock and no pid is compared across name spaces.
//!
//! More threads than slots: the operation is only counted (`over_added`, `over_executing`); it never fails or blocks.
//!
//! **When to raise [`VERSION`]:** whenever a field moves, changes its meaning or a state is added. A new operation
//! code does not need it: the daemon shows an unknown code as such.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod aio;
#[cfg(test)]
mod drawing;
mod gate;
mod operation;
pub mod protect;
pub mod resume;
mod slot;
mod table;

pub use gate::{GATE_WORD, Gate, LEASE_MAX_NS, OPEN};
pub use operation::{OpCode, Subject};
pub use slot::{Entry, Saved, Slot, State};
pub use table::{
    HEADER, Header, MAGIC, MAPS_NAME, NAME, Overflow, REQUIRED_SEALS, SIZE, SLOTS, Table, TableError,
    VERSION, is_head, used_bytes,
};
