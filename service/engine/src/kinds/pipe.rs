//! Pipes and FIFOs (pipe(7), fifo(7)): the ends are descriptions, what they share is one record.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use ckpt_image::records::{DescriptionId, DescriptionKind, DescriptionRecord, PipeId, PipeRecord};
use ckpt_sys::descriptor::{make, socket};
use nix::errno::Errno;
use nix::fcntl::{OFlag, SpliceFFlags, tee};
use nix::libc;
use nix::unistd::pipe2;

use super::collect::{Depth, DescriptorCapture, Found};
use super::file;
use super::rebuild::Rebuild;
use super::{Error, Refusal};

/// O_LARGEFILE as the kernel has it: libc says 0 where all files are large.
const LARGE_FILE: i32 = 0o100_000;

/// The pipes met by a capture.
#[derive(Debug, Default)]
pub(super) struct Pipes {
    known: HashMap<(u64, u64), PipeId>,
    records: Vec<PipeRecord>,
    ends: Vec<Vec<DescriptionId>>,
}

pub(super) fn capture(cx: &mut DescriptorCapture<'_>, found: &Found) -> Result<DescriptionKind, Refusal> {
    let identity = (found.stat.st_dev, found.stat.st_ino);
    let pipe = match cx.pipes.known.get(&identity) {
        Some(pipe) => *pipe,
        None => {
            let capacity = make::pipe_capacity(found.fd()).map_err(Refusal::call("fcntl(F_GETPIPE_SZ)"))?;
            let (path, deleted) = file::path_of(&found.link);
            let fifo = match path.first() {
                Some(b'/') => {
                    let path = Path::new(std::ffi::OsStr::from_bytes(path));
                    Some(file::record(cx, found, path, deleted)?)
                }
                _ => None,
            };
            let id = PipeId(cx.pipes.records.len() as u32);
            cx.pipes.records.push(PipeRecord { id, capacity, fifo, content: Vec::new() });
            cx.pipes.ends.push(Vec::new());
            cx.pipes.known.insert(identity, id);
            id
        }
    };
    cx.pipes.ends[pipe.index()].push(found.id);
    Ok(DescriptionKind::Pipe { pipe, unmet: false })
}

fn reads(found: &Found) -> bool {
    found.flags() as i32 & libc::O_ACCMODE != libc::O_WRONLY
}

fn writes(found: &Found) -> bool {
    found.flags() as i32 & libc::O_ACCMODE != libc::O_RDONLY
}

/// Takes the contents, and tells which pipes have an end outside the group, and which readers never had a writer.
pub(super) fn resolve(
    cx: &mut DescriptorCapture<'_>,
    kinds: &mut [Option<DescriptionKind>],
) -> Vec<PipeRecord> {
    let pipes = std::mem::take(&mut cx.pipes);
    let mut records = pipes.records;
    for (record, ends) in records.iter_mut().zip(pipes.ends) {
        let ends: Vec<_> = ends.into_iter().map(|id| cx.found(id).clone()).collect();
        let reader = ends.iter().find(|end| reads(end));
        let writer = ends.iter().find(|end| writes(end));
        let fifo_without_writer = writer.is_none() && record.fifo.is_some();
        let unmet: Vec<_> = ends.iter().filter(|end| fifo_without_writer && is_unmet(end)).collect();
        for end in &unmet {
            if let Some(Some(DescriptionKind::Pipe { unmet, .. })) = kinds.get_mut(end.id.index()) {
                *unmet = true;
            }
        }
        // The other end may be in a queue that was not looked into.
        if !cx.unix.unseen
            && unmet.is_empty()
            && let Some(end) = outside(reader.map(AsRef::as_ref), writer.map(AsRef::as_ref))
        {
            cx.warn(
                end,
                Refusal::new(
                    "pipe-outside",
                    "its other end is held outside the group: after a restore it is closed",
                    "add the process at the other end to the group",
                ),
            );
        }
        if let Some(reader) = reader
            && cx.depth == Depth::Contents
        {
            let packets = ends.iter().any(|end| end.flags() as i32 & libc::O_DIRECT != 0);
            match content(reader.fd(), record.capacity, packets) {
                Ok(content) => record.content = content,
                Err(e) => cx.refuse(reader, Refusal::call("tee")(e)),
            }
        }
    }
    records
}

/// The only end the group has, if the other is open somewhere else: a pipe whose other end is closed hangs up.
fn outside<'a>(reader: Option<&'a Found>, writer: Option<&'a Found>) -> Option<&'a Found> {
    let (end, gone) = match (reader, writer) {
        (Some(reader), None) => (reader, libc::POLLHUP),
        (None, Some(writer)) => (writer, libc::POLLERR),
        _ => return None,
    };
    let ready = socket::ready(end.fd(), 0).unwrap_or(gone);
    (ready & gone == 0).then_some(end)
}

/// Whether the reader of a FIFO was there before any writer: poll(2) tells no hang-up, as if somebody had it open for writing, and tee(2) tells
/// that nobody has.
fn is_unmet(reader: &Found) -> bool {
    socket::ready(reader.fd(), 0).is_ok_and(|ready| ready & libc::POLLHUP == 0)
        && pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
            .is_ok_and(|(_copy, into)| tee(reader.fd(), &into, 1, SpliceFFlags::SPLICE_F_NONBLOCK) == Ok(0))
}

/// What lies in a pipe, left there: a copy of its buffers is made by tee(2) and read.
fn content(reader: BorrowedFd<'_>, capacity: u32, packets: bool) -> Result<Vec<Vec<u8>>, Errno> {
    let bytes = socket::readable(reader)?;
    if bytes == 0 {
        return Ok(Vec::new());
    }
    let (copy, into) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    make::set_pipe_capacity(into.as_fd(), capacity)?;
    let teed = tee(reader, &into, capacity as usize, SpliceFFlags::SPLICE_F_NONBLOCK)?;
    if teed != bytes {
        return Err(Errno::EIO);
    }
    drop(into);
    let mut content = Vec::new();
    let mut buffer = vec![0; capacity as usize];
    loop {
        let n = nix::unistd::read(&copy, &mut buffer)?;
        if n == 0 {
            break;
        }
        content.push(buffer[..n].to_vec());
    }
    Ok(if packets { content } else { vec![content.concat()] })
}

/// What keeps a pipe until all its ends are made.
#[derive(Debug)]
pub struct Held {
    /// Open for reading and writing, so that no end blocks or hangs up meanwhile.
    base: OwnedFd,
    /// What pipe2(2) gave to read and to write, until an end is made of it.
    first: [Option<OwnedFd>; 2],
}

/// One end. What pipe2(2) gave is the end that it was; open(2) would add O_LARGEFILE, which the others have and F_GETFL tells.
pub(super) fn create(cx: &mut Rebuild<'_>, record: &DescriptionRecord, pipe: PipeId) -> Result<(), Error> {
    let mut held = match cx.pipes.remove(&pipe) {
        Some(held) => held,
        None => hold(cx, record, pipe)?,
    };
    let mode = record.flags as i32 & libc::O_ACCMODE;
    let is_first = record.flags as i32 & LARGE_FILE == 0;
    let first = match mode {
        libc::O_RDONLY if is_first => held.first[0].take(),
        libc::O_WRONLY if is_first => held.first[1].take(),
        _ => None,
    };
    let end = match first {
        Some(end) => end,
        None => cx
            .files
            .reopen(held.base.as_fd(), mode | libc::O_NONBLOCK)
            .map_err(Error::call("open(/proc/self/fd)", cx.describe(record)))?,
    };
    cx.pipes.insert(pipe, held);
    cx.put(record.id, end)
}

/// Opens once more a reader that never had a writer, now that [`create`] holds the pipe no longer.
pub(super) fn forget_writer<'i>(cx: &mut Rebuild<'i>, record: &'i DescriptionRecord) -> Result<(), Error> {
    if !matches!(record.kind, DescriptionKind::Pipe { unmet: true, .. }) {
        return Ok(());
    }
    let end = cx
        .files
        .reopen(cx.get(record.id)?, libc::O_RDONLY | libc::O_NONBLOCK)
        .map_err(Error::call("open(/proc/self/fd)", cx.describe(record)))?;
    cx.put(record.id, end)
}

/// The pipe with its content in it.
fn hold(cx: &mut Rebuild<'_>, record: &DescriptionRecord, pipe: PipeId) -> Result<Held, Error> {
    let pipe = cx.image.pipes.get(pipe.index()).ok_or_else(|| Error::Dangling(format!("pipe {pipe}")))?;
    let failed = |op| Error::call(op, cx.describe(record));
    let both = libc::O_RDWR | libc::O_NONBLOCK;
    let (base, first) = match pipe.fifo {
        Some(fifo) => (cx.open_file(fifo, both)?, [None, None]),
        None => {
            let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(failed("pipe2"))?;
            let base = cx.files.reopen(reader.as_fd(), both).map_err(failed("open(/proc/self/fd)"))?;
            (base, [Some(reader), Some(writer)])
        }
    };
    let failed = |op| Error::call(op, cx.describe(record));
    make::set_pipe_capacity(base.as_fd(), pipe.capacity).map_err(failed("fcntl(F_SETPIPE_SZ)"))?;
    if pipe.content.len() > 1 {
        let packet = (libc::O_RDWR | libc::O_NONBLOCK | libc::O_DIRECT) as u32;
        make::set_status(base.as_fd(), packet).map_err(failed("fcntl(F_SETFL)"))?;
    }
    for packet in &pipe.content {
        let mut rest = packet.as_slice();
        while !rest.is_empty() {
            let n = nix::unistd::write(&base, rest).map_err(failed("write"))?;
            rest = &rest[n..];
        }
    }
    Ok(Held { base, first })
}
