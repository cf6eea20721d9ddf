//! Batches of many members at once: each runs in a slot of its own while the next is made, so that members wait neither for each other nor
//! for who drives them.

use std::collections::VecDeque;

use ckpt_sys::batch::{Batch, Outcome, Slot};
use ckpt_sys::nursery;

use super::{Failure, Member};

/// Calls that one batch may not have room for.
#[derive(Debug)]
pub struct Batches {
    slot: Slot,
    full: VecDeque<Batch>,
    last: Batch,
}

impl Batches {
    /// None, for this slot.
    pub fn new(slot: Slot) -> Self {
        Self { slot, full: VecDeque::new(), last: Batch::new(slot) }
    }

    /// A batch with room for so many calls, and so many bytes of data.
    pub fn room(&mut self, calls: usize, data: usize) -> &mut Batch {
        if !self.last.is_empty() && !self.last.has_room(calls, data) {
            self.full.push_back(std::mem::replace(&mut self.last, Batch::new(self.slot)));
        }
        &mut self.last
    }

    /// All that have a call, in order.
    pub fn all(mut self) -> VecDeque<Batch> {
        if !self.last.is_empty() {
            self.full.push_back(self.last);
        }
        self.full
    }
}

/// Runs the batches of some members. `next` makes the batch that the member at a place runs next, in the slot given, with what it is for;
/// it is told what came of the one before. `None`: there is no more. The error says at which place it was.
pub fn side_by_side(
    members: &mut [&mut Member],
    mut next: impl FnMut(usize, Slot, Option<Outcome>) -> Result<Option<(&'static str, Batch)>, Failure>,
) -> Result<(), (usize, Failure)> {
    let mut begin = |place: usize, member: &mut Member, slot: Slot, before: Option<Outcome>| {
        let batch = next(place, slot, before).map_err(|e| (place, e))?;
        let Some((what, batch)) = batch else { return Ok(false) };
        member.begin(what, batch).map_err(|e| (place, e))?;
        Ok(true)
    };
    let mut first = 0;
    for some in members.chunks_mut(nursery::SLOTS as usize) {
        let mut running = VecDeque::new();
        for (number, member) in some.iter_mut().enumerate() {
            let none = || (first + number, Failure::not_restorable("there is no slot"));
            let slot = nursery::slot(&member.runner(), number).ok_or_else(none)?;
            if begin(first + number, member, slot, None)? {
                running.push_back((number, slot));
            }
        }
        while let Some((number, slot)) = running.pop_front() {
            let outcome = some[number].end().map_err(|e| (first + number, e))?;
            if begin(first + number, some[number], slot, outcome)? {
                running.push_back((number, slot));
            }
        }
        first += some.len();
    }
    Ok(())
}
