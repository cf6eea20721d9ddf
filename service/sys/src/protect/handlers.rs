//! Signals while the tracker is on: our handlers for SIGSEGV and SIGSYS, and what the application believes instead.

use std::mem::offset_of;

use ckpt_wire::protect::{Control as Wire, Dispatch, INSTALLED, OURS};

use super::control::{Control, Head};
use super::frames;
use crate::error::Result;
use crate::inject::Live;
use crate::maps::Mapping;
use crate::thread::Deadline;
use crate::{VirtAddr, remote};

/// SA_NODEFER | SA_RESTORER | SA_SIGINFO.
const FLAGS: u64 = 0x4400_0004;
const SA_ONSTACK: u64 = 0x0800_0000;

impl Live {
    /// Our handlers in the application's stead, whose wishes are kept; no handler and no mask blocks ours.
    pub(super) fn install(
        &mut self,
        control: &Control,
        head: &Head,
        slots: &[u64],
        mappings: &[Mapping],
        deadline: Deadline,
    ) -> Result<()> {
        let caught = crate::task::status(self.pid())?.caught;
        let signals: Vec<i32> = (1..=64).filter(|s| (caught | OURS) & 1 << (s - 1) != 0).collect();
        let found = self.actions(&signals, deadline)?;
        if !self.protection.lifted {
            self.mark_frames(mappings, &found)?;
        }
        let mut masked = [0u64; 2];
        let mut new = Vec::new();
        for (signal, action) in signals.into_iter().zip(found) {
            let bit = 1u64 << (signal - 1);
            if bit & OURS != 0 {
                let which = usize::from(signal == libc::SIGSYS);
                for (word, value) in action.iter().enumerate() {
                    control.set_u64(offset_of!(Wire, actions) + which * 32 + word * 8, *value)?;
                }
                new.push(match which {
                    0 => (signal, [head.on_fault(), FLAGS | SA_ONSTACK, head.restorer(), !OURS]),
                    _ => (signal, [head.on_call(), FLAGS, head.restorer(), 0]),
                });
            } else if action[3] & OURS != 0 {
                for (which, own) in [libc::SIGSEGV, libc::SIGSYS].into_iter().enumerate() {
                    masked[which] |= if action[3] & 1 << (own - 1) != 0 { bit } else { 0 };
                }
                new.push((signal, [action[0], action[1], action[2], action[3] & !OURS]));
            }
        }
        for (which, masked) in masked.into_iter().enumerate() {
            control.set_u64(offset_of!(Wire, masked) + which * 8, masked)?;
        }
        control.set_u32(offset_of!(Wire, state), INSTALLED)?;
        self.set_actions(&new, deadline)?;
        self.strip_masks(control, slots, deadline)
    }

    /// Threads that block what they are not to block any more may do so in handlers only.
    fn mark_frames(&self, mappings: &[Mapping], actions: &[[u64; 4]]) -> Result<()> {
        let mut restorers: Vec<u64> = actions.iter().map(|action| action[2]).filter(|at| *at != 0).collect();
        restorers.sort_unstable();
        restorers.dedup();
        let blocking = self.threads().filter(|view| view.mask & OURS != 0);
        blocking
            .into_iter()
            .try_for_each(|view| frames::mark(self.pid(), view.at_stop.rsp, mappings, &restorers))
    }

    /// No thread blocks SIGSEGV or SIGSYS; its slot says what it believes.
    fn strip_masks(&mut self, control: &Control, slots: &[u64], deadline: Deadline) -> Result<()> {
        let mut changed = Vec::new();
        for (thread, slot) in slots.iter().enumerate() {
            let mask = self.mask(thread);
            let wish = (mask >> (libc::SIGSEGV - 1) & 1) | (mask >> (libc::SIGSYS - 1) & 1) << 1;
            let at = VirtAddr(*slot).add(offset_of!(Dispatch, wish) as u64);
            remote::write(control.pid, at, &[wish as u8])?;
            if wish != 0 {
                self.set_mask(thread, mask & !OURS);
                changed.push(thread);
            }
        }
        self.put_masks(&changed, deadline)
    }
}
