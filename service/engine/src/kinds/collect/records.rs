//! What is recorded in the end: the tables, the descriptions that were not refused, and which tables need care.

use std::collections::{HashMap, HashSet};

use ckpt_image::records::{
    DescriptionId, DescriptionKind, DescriptionRecord, FdTableId, FdTableRecord, InetState, OwnerRecord,
    PipeRecord,
};
use ckpt_sys::descriptor::make;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::{Captured, DescriptorCapture, Found, message_queue};
use crate::capture::Identities;

impl DescriptorCapture<'_> {
    /// Numbers the captured descriptions without gaps where nothing refers to one that was refused; a refused one makes the capture useless
    /// anyway, so it is left out with all that names it.
    pub(super) fn records(self, kinds: Vec<Option<DescriptionKind>>, pipes: Vec<PipeRecord>) -> Captured {
        let refused: HashSet<DescriptionId> =
            self.found.iter().zip(&kinds).filter(|(_, kind)| kind.is_none()).map(|(f, _)| f.id).collect();
        let mut tables = self.tables;
        for table in &mut tables {
            table.descriptors.retain(|d| !refused.contains(&d.description));
            table.posix_locks.retain(|lock| !refused.contains(&lock.description));
        }
        let is_outside = |kind: &Option<DescriptionKind>| matches!(kind, Some(DescriptionKind::Inet(inet)) if matches!(inet.state, InetState::Outside { .. }));
        let outside = self.found.iter().zip(&kinds).filter(|(_, kind)| is_outside(kind));
        let outside = outside.filter_map(|(found, _)| found.fd.try_clone().ok()).collect();
        let is_ring = |kind: &Option<DescriptionKind>| matches!(kind, Some(DescriptionKind::IoUring(_)));
        let rings = self.found.iter().zip(&kinds).filter(|(_, kind)| is_ring(kind));
        let rings: HashMap<_, _> = rings.map(|(found, _)| (found.ino(), found.id)).collect();
        let of = |is_it: &dyn Fn(&Found, &Option<DescriptionKind>) -> bool| -> HashSet<FdTableId> {
            let is_it: Vec<_> =
                self.found.iter().zip(&kinds).map(|(found, kind)| is_it(found, kind)).collect();
            let has = |table: &&FdTableRecord| table.descriptors.iter().any(|d| is_it[d.description.index()]);
            tables.iter().filter(has).map(|table| table.id).collect()
        };
        let with_rings = of(&|_, kind| is_ring(kind));
        let direct = of(&|found, kind| is_ring(kind) || writes_directly(found, kind));
        let kept_cloexec = self.found.iter().filter(|found| keeps_cloexec(found));
        let kept_cloexec = kept_cloexec.map(|found| found.id).collect();
        let descriptions = self
            .found
            .iter()
            .zip(kinds)
            .filter_map(|(found, kind)| kind.map(|kind| description(found, kind, &self.identities)))
            .collect();
        let message_queue::Queues { records: queues, open: open_queues, .. } = self.queues;
        Captured {
            tables,
            descriptions,
            pipes,
            queues,
            open_queues,
            problems: self.problems,
            outside,
            rings,
            with_rings,
            direct,
            kept_cloexec,
        }
    }
}

/// Whether read(2) may make a device write to the reader's memory itself.
fn writes_directly(found: &Found, kind: &Option<DescriptionKind>) -> bool {
    let is_file = matches!(kind, Some(DescriptionKind::File { .. }));
    is_file && found.flags() & libc::O_DIRECT as u32 != 0
}

/// Whether the flag is the description's: F_GETFL tells it only where open(2) or what is like it left it there.
fn keeps_cloexec(found: &Found) -> bool {
    let flag = libc::O_CLOEXEC;
    found.info.flags & flag as u32 != 0
        && fcntl(found.fd(), FcntlArg::F_GETFL).is_ok_and(|flags| flags & flag != 0)
}

fn description(found: &Found, kind: DescriptionKind, ids: &Identities) -> DescriptionRecord {
    let path_only = found.info.flags & libc::O_PATH as u32 != 0;
    let owner = if path_only { None } else { make::owner(found.fd()).unwrap_or(None) };
    DescriptionRecord {
        id: found.id,
        unit: found.unit,
        flags: found.flags(),
        offset: found.info.pos,
        owner: owner.map(|(kind, pid, signal)| OwnerRecord { kind, pid: ids.known(pid), signal }),
        kind,
    }
}
