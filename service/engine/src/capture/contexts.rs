//! Contexts of kernel AIO before anything is captured: the requests that were under way end while the members stand still, as those of
//! io_uring(7) do (`rings.rs`). They end by themselves: no thread has to run for it.

use ckpt_sys::Error as SysError;
use ckpt_sys::maps::{Mapping, read_maps};
use ckpt_sys::thread::Deadline;
use nix::errno::Errno;
use nix::libc;

use super::Member;
use super::member::refusal;
use super::memory::is_aio;
use super::under_way::{PAUSE, Quiet};
use crate::kinds::aio::{AGAIN, CODE, Look, UNSEEN, WITHOUT, look, under_way};

/// Waits for the requests of a prepared member's contexts to end.
///
/// Errors: those of running batches, and the kernel's.
pub(super) fn wait(
    member: &mut Member,
    unit: &str,
    quiet: &mut Quiet,
    until: Deadline,
    deadline: Deadline,
) -> Result<(), SysError> {
    let (process, thread) = (member.live.process().as_raw(), member.live.pid());
    let rings: Vec<Mapping> = read_maps(thread)?.into_iter().filter(is_aio).collect();
    let alive = answering(member, &rings, deadline)?;
    for (mapping, alive) in rings.iter().zip(alive) {
        let ring = mapping.range.start;
        let problem = |text: &str, remedy| {
            refusal(CODE, unit, process, format!("the context at {:x}", ring.0), text, remedy)
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
