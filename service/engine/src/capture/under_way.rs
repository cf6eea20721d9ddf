//! Requests that the kernel works on while no thread of a member is in a call: those of io_uring(7) (`rings.rs`) and of kernel AIO (`contexts.rs`).
//! They end while the members stand still, before anything is captured.
//!
//! A request writes to files and memory until it completes, so none may be under way when snapshots and pages are taken: the image
//! would tell of a write that the snapshot does not have. New ones are not made, since no thread runs.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use ckpt_image::records::UnitRecord;
use ckpt_sys::Error as SysError;
use ckpt_sys::VirtAddr;
use ckpt_sys::thread::Deadline;

use super::{Members, contexts, rings};
use crate::Problem;

/// Requests to disks end within this, or it takes another attempt.
const PATIENCE: Duration = Duration::from_millis(60);
/// Between two looks.
pub(super) const PAUSE: Duration = Duration::from_micros(500);

/// What came of waiting.
#[derive(Debug, Default)]
pub struct Quiet {
    /// The rings of io_uring(7) in which nothing is under way, by inode.
    pub rings: HashSet<u64>,
    /// The contexts of kernel AIO in which nothing is under way, by a thread of the process and the address of the ring: how many events each was
    /// asked for, 0 where only its memory is there.
    pub contexts: HashMap<(i32, VirtAddr), u32>,
    /// What is under way in others.
    pub busy: Vec<Problem>,
    /// What stands against a checkpoint for good.
    pub refused: Vec<Problem>,
}

/// Waits for the requests of these processes to end, their threads being stopped. The rest of the group is not looked at.
///
/// Errors: those of running batches, and the kernel's.
pub fn wait(
    members: &mut Members,
    units: &[UnitRecord],
    (with_rings, with_contexts): (&[i32], &[i32]),
    deadline: Deadline,
) -> Result<Quiet, SysError> {
    let mut quiet = Quiet::default();
    let until = Deadline::after(PATIENCE.min(deadline.left() / 3));
    for member in &mut members.members {
        let pid = member.live.process().as_raw();
        let (rings, contexts) = (with_rings.contains(&pid), with_contexts.contains(&pid));
        if !rings && !contexts {
            continue;
        }
        let unit = member.unit_name(units).to_owned();
        let prepared = member.begin_prepare(&unit, &mut quiet.refused)?
            && member.end_prepare(&unit, deadline, &mut quiet.refused)?;
        if prepared && rings {
            rings::wait(member, &unit, &mut quiet, until, deadline)?;
        }
        if prepared && contexts {
            contexts::wait(member, &unit, &mut quiet, until, deadline)?;
        }
    }
    Ok(quiet)
}
