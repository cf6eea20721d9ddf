//! The last stage: registers, the memory that only the rebuilding needed goes, and all run at once.

use std::collections::BTreeMap;

use ckpt_image::records::{ProcessRecord, ProcessState};
use ckpt_sys::thread::Stopped;
use nix::libc;

use super::{Rebuild, first_thread};
use crate::rebuild::process::living;
use crate::rebuild::{Failure, release};

impl Rebuild<'_> {
    /// Registers; then lets all go at once. Gives the numbers of processes and threads.
    pub(super) fn release(mut self) -> Result<(u32, u32), Failure> {
        let mut stopped = Vec::new();
        let mut last_of_space = BTreeMap::new();
        for (record, body) in living(self.image) {
            let others = self.threads.remove(&record.pid).unwrap_or_default();
            for (other, thread) in others.into_iter().zip(body.threads.iter().skip(1)) {
                let free = other.into_thread()?;
                release::set_registers(&free, thread)?;
                stopped.push(free);
            }
            last_of_space.insert(body.space, record.pid);
        }
        let mut unmapping = Vec::new();
        for (record, body) in living(self.image) {
            let Some(member) = self.members.remove(&record.pid) else {
                return Err(Failure::not_restorable("it was not made").of_pid(record.pid.0));
            };
            unmapping.push(match last_of_space.get(&body.space) == Some(&record.pid) {
                true => {
                    let instruction = self.vdso_of(body)?.add(self.gadget);
                    (record, body, Err((release::begin_unmap(member, instruction)?, instruction)))
                }
                false => (record, body, Ok(member.into_thread()?)),
            });
        }
        let mut processes = Vec::new();
        for (record, body, thread) in unmapping {
            let unmapped = thread.or_else(|(thread, instruction)| release::end_unmap(thread, instruction));
            let free = unmapped.map_err(|e| e.of_pid(record.pid.0))?;
            release::set_registers(&free, first_thread(record, body)?)?;
            processes.push((record, free));
        }
        self.descriptions.quiet(self.image);
        let counts = (processes.len() as u32, (stopped.len() + processes.len()) as u32);
        stop_those_that_were(&processes)?;
        stopped.extend(processes.into_iter().map(|(_, free)| free));
        stopped.extend(self.waiting.into_iter().map(|(free, _)| free));
        for free in stopped {
            match free.detach_with(0) {
                // One that was let go before it has ended it already: that is the application's own doing.
                Ok(()) | Err(ckpt_sys::Error::Gone(_)) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(counts)
    }
}

/// Processes that job control had stopped get a SIGSTOP, which takes effect before they execute anything.
fn stop_those_that_were(processes: &[(&ProcessRecord, Stopped)]) -> Result<(), Failure> {
    for (record, thread) in processes {
        if matches!(record.state, ProcessState::Stopped { .. }) {
            let stop = nix::sys::signal::Signal::try_from(libc::SIGSTOP);
            stop.and_then(|signal| nix::sys::signal::kill(thread.tid(), signal))
                .map_err(|e| Failure::not_restorable(format!("stop it: {e}")).of_pid(record.pid.0))?;
        }
    }
    Ok(())
}
