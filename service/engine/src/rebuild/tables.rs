//! Descriptor tables of members: numbers as they were, out of what the member inherited; then nothing else.

use std::os::fd::RawFd;

use ckpt_image::records::{DescriptionId, FdTableRecord, GroupImage};
use ckpt_sys::batch::Batch;
use nix::libc;

use super::waves::Batches;
use super::{Failure, Member};
use crate::kinds::late::LateCall;

/// The first descriptor number that no member uses: everything opened for the rebuild lies at or above it.
pub fn floor(image: &GroupImage) -> RawFd {
    let numbers = image.fd_tables.iter().flat_map(|t| &t.descriptors).map(|d| d.fd);
    numbers.max().unwrap_or(0).max(2) + 1
}

/// Puts every description at its number and closes all other numbers below `floor`. `source` gives where a description is open
/// here; `None` leaves the number to be filled later (what can be opened only in the member).
pub fn place(
    batches: &mut Batches,
    table: &FdTableRecord,
    floor: RawFd,
    source: impl Fn(DescriptionId) -> Option<RawFd>,
) {
    let mut at = 0;
    for descriptor in &table.descriptors {
        if descriptor.fd > at {
            close(batches.room(1, 0), at, descriptor.fd - 1);
        }
        at = descriptor.fd + 1;
    }
    if at < floor {
        close(batches.room(1, 0), at, floor - 1);
    }
    for descriptor in &table.descriptors {
        let batch = batches.room(1, 0);
        let Some(from) = source(descriptor.description) else {
            close(batch, descriptor.fd, descriptor.fd);
            continue;
        };
        let flags = if descriptor.cloexec { libc::O_CLOEXEC as u64 } else { 0 };
        batch.must(libc::SYS_dup3, [from as u64, descriptor.fd as u64, flags, 0, 0, 0]);
    }
}

/// Makes one call for a descriptor in a member, and moves what it opens to its numbers.
pub fn late(member: &mut Member, call: &LateCall) -> Result<(), Failure> {
    let mut batch = member.batch();
    let mut args = call.args;
    if let Some((argument, bytes)) = &call.data
        && let Some(place) = args.get_mut(*argument)
    {
        *place = batch.data(bytes).get();
    }
    let made = batch.must(call.nr, args);
    let outcome = member.run(&call.what, &batch)?;
    if call.moved_to.is_empty() {
        return Ok(());
    }
    let fd = outcome.result(made).unwrap_or(u64::MAX);
    let mut batch = member.batch();
    for (number, cloexec) in call.moved_to.iter().filter(|(number, _)| *number as u64 != fd) {
        let flags = if *cloexec { libc::O_CLOEXEC as u64 } else { 0 };
        batch.must(libc::SYS_dup3, [fd, *number as u64, flags, 0, 0, 0]);
    }
    match call.moved_to.iter().find(|(number, _)| *number as u64 == fd) {
        None => batch.must(libc::SYS_close, [fd, 0, 0, 0, 0, 0]),
        Some((_, cloexec)) => {
            batch.must(libc::SYS_fcntl, [fd, libc::F_SETFD as u64, u64::from(*cloexec), 0, 0, 0])
        }
    };
    member.run(&call.what, &batch).map(drop)
}

/// Closes all that was opened for the rebuild.
pub fn close_high(batch: &mut Batch, floor: RawFd) {
    close(batch, floor, RawFd::MAX);
}

fn close(batch: &mut Batch, first: RawFd, last: RawFd) {
    batch.must(libc::SYS_close_range, [first as u64, last as u64, 0, 0, 0, 0]);
}
