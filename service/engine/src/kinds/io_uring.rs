//! io_uring(7): rings with no request under way.
//!
//! ```text
//!  fdinfo: entries taken = completions posted ─► nothing is under way, if each request has one completion
//!  the entries and completions that the memory still holds ─► whether that is so
//!  calls of io_uring_register(2) that must fail ─► what else is registered
//! ```
//! The kernel counts on from where a ring was, and so does the application; a new ring is brought there by requests that do nothing. Its
//! memory is then what it was: what is not read yet, what is not submitted yet, what lies in entries.

use std::os::fd::AsFd;
use std::path::Path;

use ckpt_image::records::{DescriptionKind, DescriptionRecord, IoUringRecord};
use ckpt_sys::io_uring::{self, Hidden, Layout, Mapped, Shape, Told};
use nix::errno::Errno;

use super::collect::{DescriptorCapture, Found};
use super::rebuild::Rebuild;
use super::{Error, Refusal};
use crate::kinds::Depth;

mod entries;

const CODE: &str = "io-uring";
const WITHOUT: &str =
    "start it without io_uring, if it can do without: SystemCallFilter=~io_uring_setup:ENOSYS in its unit";
const FORBIDDEN: &str = "this machine forbids io_uring (sysctl kernel.io_uring_disabled)";
const AGAIN: &str = "try again";
/// Groups of provided buffers that are looked for; the window is short.
const GROUPS: u16 = 256;
/// So many requests take some seconds to be made again.
const MANY: u32 = 50_000_000;
/// And so many about one, one after another.
const A_SECOND: u32 = 10_000_000;

fn refuse<T>(text: impl Into<String>, remedy: &'static str) -> Result<T, Refusal> {
    Err(Refusal::new(CODE, text, remedy))
}

pub(super) fn capture(cx: &mut DescriptorCapture<'_>, found: &Found) -> Result<DescriptionKind, Refusal> {
    let Some(told) = io_uring::told(found.fd()) else {
        return refuse("the kernel does not tell how far the ring is", AGAIN);
    };
    can_be_told(&told)?;
    if let Some(hidden) = io_uring::hidden(found.fd(), GROUPS) {
        return refuse(text_of(hidden), WITHOUT);
    }
    if cx.depth == Depth::Contents {
        if !cx.is_quiet(found.ino()) {
            return refuse("the ring was made while the checkpoint began", AGAIN);
        }
        if !told.is_quiet() {
            return refuse(under_way(&told), AGAIN);
        }
    }
    let Look { shape, layout, mut rings, sqes } = look(found, &told)?;
    entries::check(&told, shape, layout, &mut rings, &sqes)?;
    if told.submitted > MANY && cx.depth == Depth::Surface {
        cx.warn(found, takes_long(&told));
    }
    Ok(DescriptionKind::IoUring(IoUringRecord {
        sq_entries: shape.sq_entries,
        cq_entries: shape.cq_entries,
        array: shape.array,
        layout: layout.words(),
        requests: told.submitted,
        unread: told.posted.wrapping_sub(told.cq_head),
        rings,
        sqes,
    }))
}

/// Whether a link of /proc/PID/fd, or a name in maps, is a ring's.
pub fn is_ring(name: &Path) -> bool {
    name.as_os_str() == "anon_inode:[io_uring]"
}

/// What a ring must not have, whatever it does.
fn can_be_told(told: &Told) -> Result<(), Refusal> {
    if told.has_thread {
        return refuse("a thread of the kernel reads the ring (IORING_SETUP_SQPOLL)", WITHOUT);
    }
    if told.files > 0 {
        return refuse(format!("{} files are registered with the ring", told.files), WITHOUT);
    }
    if told.buffers > 0 {
        return refuse(format!("{} buffers are registered with the ring", told.buffers), WITHOUT);
    }
    if !told.polls.is_empty() || told.in_flight() < 0 {
        return refuse(under_way(told), WITHOUT);
    }
    Ok(())
}

fn takes_long(told: &Told) -> Refusal {
    let (requests, seconds) = (told.submitted, told.submitted / A_SECOND);
    let text =
        format!("{requests} requests were made of the ring, so a restore takes up to {seconds} s longer");
    Refusal::new(CODE, text, "restart the application now and then, if that is too long")
}

/// What is under way, in words.
pub fn under_way(told: &Told) -> String {
    if told.in_flight() < 0 {
        return "the ring has completed more than it was asked for (multishot requests, messages from other rings), so nobody can \
                tell what is under way"
            .into();
    }
    if told.overflown > 0 {
        return format!("{} completions wait for room in the ring", told.overflown);
    }
    let mut text = format!("{} requests of the ring have not completed", told.in_flight());
    if !told.polls.is_empty() {
        let mut names: Vec<_> = told.polls.iter().map(|op| entries::name(*op)).collect();
        names.sort();
        names.dedup();
        text += &format!("; {} wait for their files ({})", told.polls.len(), names.join(", "));
    }
    text
}

fn text_of(hidden: Hidden) -> String {
    match hidden {
        Hidden::SingleIssuer => "the ring may be used by one thread only (IORING_SETUP_SINGLE_ISSUER)".into(),
        Hidden::Disabled => "the ring is not enabled yet (IORING_SETUP_R_DISABLED)".into(),
        Hidden::Restricted => "what may be done with the ring is restricted".into(),
        Hidden::Polled => "devices are polled for the ring (IORING_SETUP_IOPOLL)".into(),
        Hidden::Eventfd => "an eventfd is registered with the ring".into(),
        Hidden::Region => "memory for arguments is registered with the ring".into(),
        Hidden::Buffers(group) => format!("buffers are provided to the ring (group {group})"),
    }
}

/// What a ring is like, and what lies in its memory.
struct Look {
    shape: Shape,
    layout: Layout,
    rings: Vec<u8>,
    sqes: Vec<u8>,
}

/// A ring's shape, by the size of its memory, and its content. Where the size fits with and without an array, it has one: an array that
/// names each entry by its number is as good as none.
fn look(found: &Found, told: &Told) -> Result<Look, Refusal> {
    for array in [true, false] {
        let shape = Shape { sq_entries: told.sq_entries, cq_entries: told.cq_entries, array };
        let layout = match io_uring::setup(shape) {
            Ok(ring) => ring.layout,
            Err(Errno::EINVAL) if !array => break,
            Err(Errno::EPERM) => return refuse(FORBIDDEN, "set the sysctl to 0 or 1"),
            Err(e) => return Err(Refusal::call("io_uring_setup")(e)),
        };
        match Mapped::read_only(found.fd(), shape, layout) {
            Ok(mapped) => {
                let (rings, sqes) = mapped.content();
                return Ok(Look { shape, layout, rings, sqes });
            }
            Err(Errno::EINVAL) => {}
            Err(e) => return Err(Refusal::call("mmap of the ring")(e)),
        }
    }
    refuse(
        "the ring's memory is of a sort that cannot be captured (large entries, or the application's own memory)",
        WITHOUT,
    )
}

/// Whether this machine can have such a ring. Errors: why not.
pub fn can_be_made(record: &IoUringRecord) -> Result<(), String> {
    new(record).map(drop)
}

fn shape(record: &IoUringRecord) -> Shape {
    Shape { sq_entries: record.sq_entries, cq_entries: record.cq_entries, array: record.array }
}

fn new(record: &IoUringRecord) -> Result<io_uring::New, String> {
    let ring = io_uring::setup(shape(record)).map_err(|e| match e {
        Errno::EPERM => FORBIDDEN.to_owned(),
        e => format!("io_uring_setup: {}", e.desc()),
    })?;
    if ring.layout.words() != record.layout {
        return Err("this kernel lays the memory of a ring of io_uring out in another way".into());
    }
    Ok(ring)
}

pub(super) fn create(
    cx: &mut Rebuild<'_>,
    record: &DescriptionRecord,
    old: &IoUringRecord,
) -> Result<(), Error> {
    let failed = |op| Error::call(op, cx.describe(record));
    let ring = new(old).map_err(Error::Host)?;
    let mapped = Mapped::new(&ring, shape(old)).map_err(failed("mmap"))?;
    mapped.wind(shape(old), old.requests, old.unread).map_err(failed("io_uring_enter"))?;
    mapped.put(&old.rings, &old.sqes).map_err(failed("put back the memory"))?;
    drop(mapped);
    let told = io_uring::told(ring.fd.as_fd());
    if !told.is_some_and(|told| told.is_quiet() && told.submitted == old.requests) {
        return Err(Error::Host(format!("{} does not count as it did", cx.describe(record))));
    }
    cx.put(record.id, ring.fd)
}
