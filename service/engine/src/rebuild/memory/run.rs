//! Driving a script through a member.

use std::os::fd::RawFd;

use ckpt_sys::VirtAddr;
use ckpt_sys::batch::{Batch, Outcome, Slot};

use super::{Arg, Blob, Call, Expect, FdRef, Script};
use crate::rebuild::Failure;

/// A script on its way through a member.
#[derive(Debug)]
pub struct Run<'s> {
    script: &'s Script,
    next: usize,
    /// What the calls of the batch that runs must answer.
    wanted: Vec<(&'s Call, ckpt_sys::batch::Call)>,
}

impl<'s> Run<'s> {
    /// At its beginning.
    pub fn new(script: &'s Script) -> Self {
        Self { script, next: 0, wanted: Vec::new() }
    }

    /// The next calls, as many as fit into a batch; `None`: all were made. `fd` tells at which number of the member a descriptor is.
    pub fn batch(
        &mut self,
        slot: Slot,
        fd: &mut dyn FnMut(FdRef) -> Result<RawFd, Failure>,
    ) -> Result<Option<Batch>, Failure> {
        let script = self.script;
        let mut batch = Batch::new(slot);
        self.wanted.clear();
        while let Some(call) = script.calls.get(self.next) {
            // A call together with all its blobs, or the next batch.
            if !batch.has_room(1 + script.blob_count(call), script.blob_bytes(call)) {
                break;
            }
            self.wanted.push((call, script.push(call, &mut batch, fd)?));
            self.next += 1;
        }
        if batch.is_empty() && self.next < script.calls.len() {
            return Err(Failure::not_restorable("a system call does not fit into the runner's slot"));
        }
        Ok((!batch.is_empty()).then_some(batch))
    }

    /// That the calls of the batch answered what they must; else the member is of no use any more.
    pub fn check(&self, outcome: &Outcome) -> Result<(), Failure> {
        for (call, at) in &self.wanted {
            let Expect::Value(wanted) = call.must else { continue };
            match outcome.result(*at) {
                Ok(got) if got == wanted => {}
                Ok(got) => {
                    let text = format!("system call {} answered {got:#x} instead of {wanted:#x}", call.nr);
                    return Err(Failure::not_restorable(text));
                }
                Err(e) => return Err(Failure::not_restorable(format!("system call {}: {e}", call.nr))),
            }
        }
        Ok(())
    }
}

impl Script {
    fn push(
        &self,
        call: &Call,
        batch: &mut Batch,
        fd: &mut dyn FnMut(FdRef) -> Result<RawFd, Failure>,
    ) -> Result<ckpt_sys::batch::Call, Failure> {
        let mut args = [0; 6];
        for (slot, arg) in args.iter_mut().zip(&call.args) {
            *slot = match arg {
                Arg::Value(value) => *value,
                Arg::Fd(wanted) => fd(*wanted)? as u64,
                Arg::Data(blob) => self.data(&self.blobs[*blob], batch, fd)?.0,
            };
        }
        Ok(match call.must {
            Expect::Any => batch.push(call.nr, args),
            Expect::Success | Expect::Value(_) => batch.must(call.nr, args),
        })
    }

    fn data(
        &self,
        blob: &Blob,
        batch: &mut Batch,
        fd: &mut dyn FnMut(FdRef) -> Result<RawFd, Failure>,
    ) -> Result<VirtAddr, Failure> {
        let mut bytes = blob.bytes.clone();
        for (at, wanted) in &blob.fds {
            bytes[*at..*at + 4].copy_from_slice(&(fd(*wanted)? as u32).to_le_bytes());
        }
        for (at, other) in &blob.blobs {
            let addr = self.data(&self.blobs[*other], batch, fd)?;
            bytes[*at..*at + 8].copy_from_slice(&addr.0.to_le_bytes());
        }
        Ok(batch.data(&bytes))
    }

    fn blobs_of<'a>(&'a self, call: &'a Call) -> impl Iterator<Item = &'a Blob> {
        let direct = call.args.iter().filter_map(|arg| match arg {
            Arg::Data(blob) => Some(&self.blobs[*blob]),
            _ => None,
        });
        direct.flat_map(|blob| {
            std::iter::once(blob).chain(blob.blobs.iter().map(|(_, other)| &self.blobs[*other]))
        })
    }

    fn blob_count(&self, call: &Call) -> usize {
        self.blobs_of(call).count()
    }

    fn blob_bytes(&self, call: &Call) -> usize {
        self.blobs_of(call).map(|blob| blob.bytes.len()).sum()
    }
}
