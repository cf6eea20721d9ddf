//! Contexts of kernel AIO before anything is captured: the requests that were under way end while the members stand still, as those of
//! io_uring(7) do (`rings.rs`). They end by themselves: no thread has to run for it.

use std::collections::HashMap;
use std::time::Duration;

use ckpt_image::records::UnitRecord;
use ckpt_sys::Error as SysError;
use ckpt_sys::VirtAddr;
use ckpt_sys::maps::{Mapping, read_maps};
use ckpt_sys::thread::Deadline;
use nix::errno::Errno;
use nix::libc;

use super::member::refusal;
use super::memory::is_aio;
use super::{Member, Members};
use crate::Problem;
use crate::kinds::aio::{AGAIN, CODE, Look, UNSEEN, WITHOUT, look, under_way};

/// Requests to disks end within this, or it takes another attempt.
const PATIENCE: Duration = Duration::from_millis(60);
const PAUSE: Duration = Duration::from_micros(500);

/// What came of waiting.
#[derive(Debug, Default)]
pub struct Quiet {
    /// The contexts in which nothing is under way, by a thread of the process and the address of the ring: how many events each was asked for,
    /// 0 where only its memory is there.
    pub contexts: HashMap<(i32, VirtAddr), u32>,
    /// What is under way in others.
    pub busy: Vec<Problem>,
    /// What stands against a checkpoint for good.
    pub refused: Vec<Problem>,
}

/// Waits for the requests of these processes (`with_contexts`) to end, their threads being stopped.
///
/// Errors: those of running batches, and the kernel's.
pub fn wait(
    members: &mut Members,
    units: &[UnitRecord],
    with_contexts: &[i32],
    deadline: Deadline,
) -> Result<Quiet, SysError> {
    let mut quiet = Quiet::default();
    let until = Deadline::after(PATIENCE.min(deadline.left() / 3));
    for member in &mut members.members {
        if with_contexts.contains(&member.live.process().as_raw()) {
            of_member(member, units, &mut quiet, until, deadline)?;
        }
    }
    Ok(quiet)
}

fn of_member(
    member: &mut Member,
    units: &[UnitRecord],
    quiet: &mut Quiet,
    until: Deadline,
    deadline: Deadline,
) -> Result<(), SysError> {
    let unit = member.unit_name(units).to_owned();
    let (process, thread) = (member.live.process().as_raw(), member.live.pid());
    let prepared = member.begin_prepare(&unit, &mut quiet.refused)?
        && member.end_prepare(&unit, deadline, &mut quiet.refused)?;
    if !prepared {
        return Ok(());
    }
    let rings: Vec<Mapping> = read_maps(thread)?.into_iter().filter(is_aio).collect();
    let alive = answering(member, &rings, deadline)?;
    for (mapping, alive) in rings.iter().zip(alive) {
        let ring = mapping.range.start;
        let problem = |text: &str, remedy| {
            refusal(CODE, &unit, process, format!("the context at {:x}", ring.0), text, remedy)
        };
        let seen = match alive {
            true => settle(|| look(thread, ring), until)?,
            false => Look::Inherited,
        };
        match seen {
            Look::Quiet(events) => {
                quiet.contexts.insert((thread.as_raw(), ring), events);
            }
            Look::Inherited => {
                quiet.contexts.insert((thread.as_raw(), ring), 0);
            }
            Look::Busy(requests) => quiet.busy.push(problem(&under_way(requests), AGAIN)),
            Look::Unseen => quiet.refused.push(problem(UNSEEN, WITHOUT)),
        }
    }
    Ok(())
}

/// Looks until nothing is under way, or it is too late.
fn settle(look: impl Fn() -> Result<Look, SysError>, until: Deadline) -> Result<Look, SysError> {
    loop {
        let seen = look()?;
        if !matches!(seen, Look::Busy(_)) || until.passed() {
            return Ok(seen);
        }
        std::thread::sleep(PAUSE);
    }
}

/// Which of the rings are of contexts that the kernel knows: a child of fork has the memory of its parent's and not the contexts. Where the
/// process may not ask, the library's word is taken.
fn answering(member: &mut Member, rings: &[Mapping], deadline: Deadline) -> Result<Vec<bool>, SysError> {
    let args = |mapping: &Mapping| [mapping.range.start.0, 0, 0, 0, 0, 0];
    let allowed = |mapping| member.live.allows(libc::SYS_io_getevents, &args(mapping));
    if !rings.iter().all(allowed) {
        return Ok(vec![true; rings.len()]);
    }
    let mut batch = member.live.batch(0)?;
    let calls: Vec<_> =
        rings.iter().map(|mapping| batch.push(libc::SYS_io_getevents, args(mapping))).collect();
    let outcomes = member.live.run(&[(0, &batch)], deadline)?;
    let answer = |call| outcomes.first().map_or(Err(Errno::EINVAL), |outcome| outcome.result(call));
    Ok(calls.into_iter().map(|call| answer(call) != Err(Errno::EINVAL)).collect())
}
