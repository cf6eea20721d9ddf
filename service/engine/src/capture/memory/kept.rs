//! Memory whose content the record of its mapping holds: the preload library's table, rings of kernel AIO.

use ckpt_sys::AddrRange;
use ckpt_sys::gather::gather;
use ckpt_sys::maps::Mapping;
use nix::errno::Errno;
use nix::unistd::Pid;

use super::{Member, MemoryError};

/// Whether shared memory without a name is the preload library's table: it has no memfd under a seccomp filter.
pub(super) fn is_nameless_gate(member: &Member<'_>, mapping: &Mapping) -> bool {
    if !mapping.shared || mapping.offset != 0 || mapping.range.len() != ckpt_wire::SIZE as u64 {
        return false;
    }
    let head = head(member, mapping, ckpt_wire::HEADER);
    head.is_ok_and(|head| head.as_slice().try_into().is_ok_and(ckpt_wire::is_head))
}

/// The preload library's table, as far as it was ever used.
pub(super) fn gate_content(member: &Member<'_>, mapping: &Mapping) -> Result<Vec<u8>, MemoryError> {
    let first = head(member, mapping, ckpt_wire::HEADER)?;
    head(member, mapping, first.as_slice().try_into().map_or(0, ckpt_wire::used_bytes))
}

/// The ring of a context of kernel AIO that was asked for so many events. Without a context there may be nothing left behind the mapping: the
/// parent, whose it was, has ended it.
pub(super) fn context_content(
    member: &Member<'_>,
    mapping: &Mapping,
    events: u32,
) -> Result<Vec<u8>, MemoryError> {
    match head(member, mapping, usize::MAX) {
        Err(MemoryError::Kernel(e)) if events == 0 && e.errno() == Some(Errno::EIO) => Ok(Vec::new()),
        other => other,
    }
}

/// The first `len` bytes of a mapping, or all of it.
fn head(member: &Member<'_>, mapping: &Mapping, len: usize) -> Result<Vec<u8>, MemoryError> {
    let mut head = vec![0; (mapping.range.len() as usize).min(len)];
    let range = AddrRange::new(mapping.range.start, head.len() as u64);
    gather(Pid::from_raw(member.tid), &[range], &mut head)?;
    Ok(head)
}
