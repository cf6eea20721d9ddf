//! eventfd(2).

use ckpt_image::records::{DescriptionKind, DescriptionRecord, EventfdRecord};
use ckpt_sys::descriptor::make;

use super::collect::{DescriptorCapture, Found};
use super::rebuild::Rebuild;
use super::{Error, Refusal};

pub(super) fn capture(cx: &mut DescriptorCapture<'_>, found: &Found) -> Result<DescriptionKind, Refusal> {
    let count = found.info.eventfd_count.ok_or_else(|| {
        Refusal::new("descriptor-unreadable", "the kernel does not tell its counter", "report it")
    })?;
    if found.info.eventfd_semaphore.is_none() {
        cx.warn(
            found,
            Refusal::new(
                "eventfd-semaphore",
                "this kernel does not tell whether it has EFD_SEMAPHORE; taken as without",
                "use Linux 6.5 or newer if the application uses EFD_SEMAPHORE",
            ),
        );
    }
    let semaphore = found.info.eventfd_semaphore.unwrap_or(false);
    Ok(DescriptionKind::Eventfd(EventfdRecord { count, semaphore }))
}

pub(super) fn create(
    cx: &mut Rebuild<'_>,
    record: &DescriptionRecord,
    eventfd: &EventfdRecord,
) -> Result<(), Error> {
    let fd = make::eventfd(eventfd.count, eventfd.semaphore)
        .map_err(Error::call("eventfd", cx.describe(record)))?;
    cx.put(record.id, fd)
}
