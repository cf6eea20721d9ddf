//! Driving a script through a member.

use std::os::fd::RawFd;

use ckpt_sys::VirtAddr;
use ckpt_sys::batch::Batch;

use super::{Arg, Blob, Call, Expect, FdRef, Script};
use crate::rebuild::{Failure, Member};

impl Script {
    /// Makes the calls inside the member, in batches. `fd` tells at which number of the member a descriptor is.
    ///
    /// Errors: a call failed, or answered something else than it must; then the member is of no use any more.
    pub fn run(
        &self,
        member: &mut Member,
        fd: &mut dyn FnMut(FdRef) -> Result<RawFd, Failure>,
    ) -> Result<(), Failure> {
        let mut next = 0;
        while next < self.calls.len() {
            let mut batch = member.batch();
            let mut made = Vec::new();
            while let Some(call) = self.calls.get(next) {
                // A call together with all its blobs, or the next batch.
                if !batch.has_room(1 + self.blob_count(call), self.blob_bytes(call)) {
                    break;
                }
                made.push((call, self.push(call, &mut batch, fd)?));
                next += 1;
            }
            if made.is_empty() {
                return Err(Failure::not_restorable("a system call does not fit into the runner's slot"));
            }
            let outcome = member.run("make the memory", &batch)?;
            for (call, at) in made {
                let Expect::Value(wanted) = call.must else { continue };
                match outcome.result(at) {
                    Ok(got) if got == wanted => {}
                    Ok(got) => {
                        let text =
                            format!("system call {} answered {got:#x} instead of {wanted:#x}", call.nr);
                        return Err(Failure::not_restorable(text).of_pid(member.pid.0));
                    }
                    Err(e) => {
                        let text = format!("system call {}: {e}", call.nr);
                        return Err(Failure::not_restorable(text).of_pid(member.pid.0));
                    }
                }
            }
        }
        Ok(())
    }

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
