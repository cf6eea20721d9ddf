//! `soft-dirty`: /proc/PID/clear_refs and the soft-dirty bit of /proc/PID/pagemap, where the kernel is built with it.
//!
//! New and moved mappings have the bit everywhere by the kernel's own work. Clearing is for a whole address space and not at the
//! same instant as looking, so it is done in the window only: there are no rounds.

use ckpt_image::Tracker as Kind;
use ckpt_sys::Error as SysError;
use ckpt_sys::inject::Live;
use ckpt_sys::maps::Mapping;
use ckpt_sys::pagemap::{Pagemap, Tracked, Wanted, clear_soft_dirty, probe_soft_dirty};
use ckpt_sys::thread::Deadline;
use nix::unistd::Pid;

use super::{NewWatch, Tracker, Watch};

/// The tracker.
#[derive(Debug)]
pub(super) struct SoftDirty;

/// Whether the machine has it; the error says why not.
pub(super) fn probe() -> Result<(), String> {
    match probe_soft_dirty() {
        Ok(true) => Ok(()),
        Ok(false) => Err("the kernel is built without CONFIG_MEM_SOFT_DIRTY".into()),
        Err(e) => Err(crate::error::with_sources(&e)),
    }
}

impl Tracker for SoftDirty {
    fn kind(&self) -> Kind {
        Kind::SoftDirty
    }

    fn watch(&self, members: &mut [&mut Live], _: Deadline) -> Result<Vec<NewWatch>, SysError> {
        let watch = |live: &&mut Live| -> NewWatch {
            Some(Box::new(Space { pid: live.pid(), pagemap: None, armed: false }))
        };
        Ok(members.iter().map(watch).collect())
    }
}

/// One address space.
#[derive(Debug)]
struct Space {
    pid: Pid,
    /// Open in the window.
    pagemap: Option<Pagemap>,
    /// The bits were cleared by us.
    armed: bool,
}

impl Watch for Space {
    fn take(&mut self, mapping: &Mapping, wanted: Wanted, found: &mut Tracked) -> Result<(), SysError> {
        let pagemap = match &mut self.pagemap {
            Some(pagemap) => pagemap,
            none => none.insert(Pagemap::open(self.pid)?),
        };
        let mut here = Tracked::default();
        pagemap.soft_dirty(mapping.range, wanted, &mut here)?;
        if !self.armed {
            here.written.append(&mut here.clean);
            here.written.sort_unstable_by_key(|range| range.start);
        }
        found.written.append(&mut here.written);
        found.clean.append(&mut here.clean);
        found.guards.append(&mut here.guards);
        Ok(())
    }

    fn settle(&mut self, _: &mut Live, _: Deadline) -> Result<(), SysError> {
        clear_soft_dirty(self.pid)?;
        self.pagemap = None;
        self.armed = true;
        Ok(())
    }
}
