//! Contexts of kernel AIO: a new one has posted nothing, so requests that do nothing bring its tail to where the old one's was. Those whose
//! events were not taken are left so; then the ring's memory is put over all of it.
//!
//! ```text
//!  io_setup ─► io_submit, io_getevents … io_submit ─► pread of what the image has of the ring
//!              ├ posted and taken ┤      ├ unread ┤
//! ```

use ckpt_image::records::{MappingKind, MappingRecord, SpaceId};
use ckpt_sys::aio::{EVENT, REQUEST, REQUEST_FD, Ring};
use nix::libc;

use super::{Arg, Blob, FdRef, Script, v};

/// Requests made at once, at most: a context has room for more than it was asked for.
const AT_ONCE: u64 = 64;

/// Makes the context of a ring, at the one place that is free.
pub(super) fn make(mapping: &MappingRecord, script: &mut Script) {
    let MappingKind::Aio { events, .. } = mapping.kind else { return };
    let context = script.blob(Blob { bytes: vec![0; 8], ..Blob::default() });
    script.must(libc::SYS_io_setup, [v(u64::from(events)), Arg::Data(context), v(0), v(0), v(0), v(0)]);
    // The kernel knows it under this address, or the ring lies elsewhere.
    script.exactly(libc::SYS_io_getevents, [v(mapping.start), v(0), v(0), v(0), v(0), v(0)], 0);
}

/// Brings the kernel's side to where it was, and puts back the memory.
pub(super) fn wind(space: SpaceId, mapping: &MappingRecord, script: &mut Script) {
    let MappingKind::Aio { events: events @ 1.., content } = &mapping.kind else { return };
    let Some(ring) = Ring::parse(content) else { return };
    let unread = u64::from(ring.unread());
    let posted = u64::from(ring.tail) + if ring.tail < ring.unread() { u64::from(ring.room) } else { 0 };
    let at_once = AT_ONCE.min(u64::from(*events)).max(1);
    let request = script.blob(Blob {
        bytes: vec![0; REQUEST], // IOCB_CMD_PREAD of nothing
        fds: vec![(REQUEST_FD, FdRef::Zero)],
        ..Blob::default()
    });
    let requests = script.blob(Blob {
        bytes: vec![0; 8 * at_once as usize],
        blobs: (0..at_once as usize).map(|index| (8 * index, request)).collect(),
        ..Blob::default()
    });
    let taken = script.blob(Blob { bytes: vec![0; (EVENT * at_once) as usize], ..Blob::default() });
    for count in parts(posted - unread, at_once) {
        submit(mapping.start, count, requests, script);
        let args = [v(mapping.start), v(count), v(count), Arg::Data(taken), v(0), v(0)];
        script.exactly(libc::SYS_io_getevents, args, count);
    }
    for count in parts(unread, at_once) {
        submit(mapping.start, count, requests, script);
    }
    let (fd, len) = (Arg::Fd(FdRef::Mapping { space: space.0, start: mapping.start }), content.len() as u64);
    script.exactly(libc::SYS_pread64, [fd, v(mapping.start), v(len), v(0), v(0), v(0)], len);
}

fn submit(context: u64, count: u64, requests: usize, script: &mut Script) {
    let args = [v(context), v(count), Arg::Data(requests), v(0), v(0), v(0)];
    script.exactly(libc::SYS_io_submit, args, count);
}

/// A number in parts of at most `most`.
fn parts(total: u64, most: u64) -> impl Iterator<Item = u64> {
    (0..total).step_by(most as usize).map(move |done| most.min(total - done))
}
