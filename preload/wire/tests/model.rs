//! Every order of the protocol's four steps (the drawing at the head of the crate), on a machine that holds stores back
//! as x86-64 does. The model is also run with weaker steps, to show that it would find what is wrong.
use std::collections::BTreeSet;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Word {
    Free,
    Added,
    Executing,
}

/// How a side makes its first step.
#[derive(Clone, Copy, PartialEq, Debug)]
enum First {
    /// Visible at once, as a swap is.
    Swap,
    /// Held back in the store buffer, as a plain store may be.
    Store,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct World {
    word: Word,
    closed: bool,
    /// Stores of the member and of the daemon that nobody else sees yet, the oldest first.
    held_words: Vec<Word>,
    held_gate: Option<bool>,
    member: u8,
    daemon: u8,
    /// The member makes its call.
    started: bool,
    /// What the daemon saw in the slot when it took the barrier for reached.
    seen: Option<Word>,
}

impl World {
    fn new() -> World {
        World {
            word: Word::Free,
            closed: false,
            held_words: vec![],
            held_gate: None,
            member: 0,
            daemon: 0,
            started: false,
            seen: None,
        }
    }

    /// A call that the daemon knows nothing of.
    fn slipped(&self) -> bool {
        self.started && self.seen == Some(Word::Free)
    }

    fn next(&self, member: First, daemon: First) -> Vec<World> {
        let mut next = vec![];
        let mut step = |change: &dyn Fn(&mut World)| {
            let mut world = self.clone();
            change(&mut world);
            next.push(world);
        };
        if !self.held_words.is_empty() {
            step(&|world| world.word = world.held_words.remove(0));
        }
        if self.held_gate.is_some() {
            step(&|world| world.closed = world.held_gate.take().unwrap_or(world.closed));
        }
        match self.member {
            0 => step(&|world| {
                world.member = 1;
                match member {
                    First::Swap => world.word = Word::Added,
                    First::Store => world.held_words.push(Word::Added),
                }
            }),
            // The load of the gate, and the plain store that follows it.
            1 => step(&|world| {
                world.member = 2;
                world.started = !world.closed;
                world.held_words.push(if world.closed { Word::Free } else { Word::Executing });
            }),
            _ => {}
        }
        match self.daemon {
            0 => step(&|world| {
                world.daemon = 1;
                match daemon {
                    First::Swap => world.closed = true,
                    First::Store => world.held_gate = Some(true),
                }
            }),
            1 if self.word != Word::Added => step(&|world| {
                world.daemon = 2;
                world.seen = Some(world.word);
            }),
            _ => {}
        }
        next
    }
}

/// Whether any order lets a call slip.
fn can_slip(member: First, daemon: First) -> bool {
    let mut seen = BTreeSet::new();
    let mut open = vec![World::new()];
    while let Some(world) = open.pop() {
        if world.slipped() {
            return true;
        }
        if seen.insert(world.clone()) {
            open.extend(world.next(member, daemon));
        }
    }
    assert!(seen.len() > 10, "the model has walked");
    false
}

#[test]
fn no_order_lets_a_call_slip_behind_the_barrier() {
    assert!(!can_slip(First::Swap, First::Swap));
}

#[test]
fn a_plain_store_on_either_side_would() {
    assert!(can_slip(First::Store, First::Swap));
    assert!(can_slip(First::Swap, First::Store));
}
