//! What a call in progress writes to: opened before the call is made, and kept from being protected until it returns, however
//! often the kernel starts it anew.
use super::{Context, mine, table};
use ckpt_wire::protect::Dispatch;
use core::sync::atomic::{Ordering::Relaxed, Ordering::SeqCst, compiler_fence};

/// The pins of one call. Those of an outer call, which a signal handler interrupted, stay.
pub struct Pins {
    slot: Option<&'static Dispatch>,
    outer: [[u64; 2]; 4],
    all: u8,
    frame: u64,
}

impl Pins {
    /// No pins yet.
    pub fn begin(context: &Context) -> Pins {
        let here = core::ptr::from_ref(context) as u64;
        let slot = mine();
        let mut pins = Pins { slot, outer: [[0; 2]; 4], all: 0, frame: 0 };
        let Some(slot) = slot else { return pins };
        let frame = slot.frame.load(Relaxed);
        let on_alternate = |at: u64| at.wrapping_sub(context.stack[0]) < context.stack[2];
        let is_left = frame != 0 && frame < here && on_alternate(frame) == on_alternate(here);
        if frame != 0 && !is_left {
            for (to, from) in pins.outer.iter_mut().zip(&slot.pins) {
                *to = [from[0].load(Relaxed), from[1].load(Relaxed)];
            }
            (pins.all, pins.frame) = (slot.all.load(Relaxed), frame);
        }
        pins.restore(here);
        pins
    }

    /// Puts what is known of outer calls into the slot.
    fn restore(&self, frame: u64) {
        let Some(slot) = self.slot else { return };
        for (to, from) in slot.pins.iter().zip(&self.outer) {
            to[0].store(from[0], Relaxed);
            to[1].store(from[1], Relaxed);
        }
        slot.all.store(self.all, Relaxed);
        slot.frame.store(frame, Relaxed);
        compiler_fence(SeqCst);
    }

    /// The call writes to [start, start + length): pinned and open when this returns.
    pub fn add(&self, start: usize, length: usize) {
        let (start, end) = (start as u64, (start as u64).saturating_add(length as u64));
        if start < table::PAGE || length == 0 {
            return;
        }
        let Some(slot) = self.slot else { return table::open_all() };
        let pages = [start & !(table::PAGE - 1), end];
        let free = slot.pins.iter().find(|pin| pin[1].load(Relaxed) == 0);
        match free {
            Some(pin) => {
                pin[0].store(pages[0], Relaxed);
                pin[1].store(pages[1], Relaxed);
            }
            // More than there is room for: from the first to the last, which is too much and does no harm.
            None => {
                let [first, end] = &slot.pins[3];
                first.store(first.load(Relaxed).min(pages[0]), Relaxed);
                end.store(end.load(Relaxed).max(pages[1]), Relaxed);
            }
        }
        compiler_fence(SeqCst);
        if table::is_any_closed(pages[0], pages[1]) {
            let _lock = table::lock(false);
            table::open(pages[0], pages[1]);
        }
    }

    /// Nobody knows what the call writes to: everything is open when this returns, and stays so.
    pub fn all(&self) {
        if let Some(slot) = self.slot {
            slot.all.store(1, Relaxed);
            compiler_fence(SeqCst);
        }
        table::open_all();
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        self.restore(self.frame);
    }
}
