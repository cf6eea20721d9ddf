//! signalfd(2). What can be read from it are the pending signals of who reads: nothing of its own besides the mask.

use ckpt_image::records::{DescriptionKind, DescriptionRecord, SignalfdRecord};
use ckpt_sys::descriptor::make;

use super::collect::Found;
use super::rebuild::Rebuild;
use super::{Error, Refusal};

pub(super) fn capture(found: &Found) -> Result<DescriptionKind, Refusal> {
    let mask = found.info.sigmask.ok_or_else(|| {
        Refusal::new("descriptor-unreadable", "the kernel does not tell its mask", "report it")
    })?;
    Ok(DescriptionKind::Signalfd(SignalfdRecord { mask }))
}

pub(super) fn create(
    cx: &mut Rebuild<'_>,
    record: &DescriptionRecord,
    signalfd: &SignalfdRecord,
) -> Result<(), Error> {
    let fd = make::signalfd(signalfd.mask).map_err(Error::call("signalfd", cx.describe(record)))?;
    cx.put(record.id, fd)
}
