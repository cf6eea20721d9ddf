//! Rings of io_uring(7) before anything is captured: the requests that were under way end while the members stand still.
//!
//! ```text
//!  stopped ─► every thread of who has a ring makes a call of no effect ─► fdinfo of each ring ─► quiet: snapshots and capture begin
//!                        ▲  what completed is posted by its thread            │
//!                        └──────────── not yet ───────────────────────────────┘  until the patience ends: refused, or another attempt
//! ```

use std::os::fd::{AsFd, OwnedFd, RawFd};

use ckpt_sys::Error as SysError;
use ckpt_sys::batch::Batch;
use ckpt_sys::descriptor;
use ckpt_sys::io_uring::{self, ENTER_REGISTERED_RING, REGISTERED_RINGS, SYS_ENTER};
use ckpt_sys::thread::Deadline;
use nix::errno::Errno;
use nix::libc;
use nix::sys::stat::fstat;

use super::Member;
use super::member::refusal;
use super::under_way::{PAUSE, Quiet};
use crate::kinds;
use crate::kinds::io_uring::under_way;

const CODE: &str = "io-uring";

/// A ring of a member.
struct Ring {
    fd: OwnedFd,
    number: i32,
    ino: u64,
}

/// Waits for the requests of a prepared member's rings to end.
///
/// Errors: those of running batches.
pub(super) fn wait(
    member: &mut Member,
    unit: &str,
    quiet: &mut Quiet,
    until: Deadline,
    deadline: Deadline,
) -> Result<(), SysError> {
    let mut rings = rings_of(member.live.pid().as_raw());
    rings.retain(|ring| !quiet.rings.contains(&ring.ino));
    let pid = member.live.process().as_raw();
    loop {
        if let Some(thread) = stir(member, deadline)? {
            let text = "a thread has registered the descriptor of a ring (io_uring_register_ring_fd(3))";
            let remedy = "configure the application not to use io_uring";
            quiet.refused.push(refusal(CODE, unit, pid, format!("thread {thread}"), text, remedy));
            return Ok(());
        }
        rings.retain(|ring| {
            let told = io_uring::told(ring.fd.as_fd());
            !(told.is_some_and(|told| told.is_quiet()) && quiet.rings.insert(ring.ino))
        });
        if rings.is_empty() {
            return Ok(());
        }
        if until.passed() {
            break;
        }
        std::thread::sleep(PAUSE);
    }
    for ring in rings {
        let told = io_uring::told(ring.fd.as_fd());
        let text =
            told.map_or_else(|| "the kernel does not tell how far the ring is".into(), |t| under_way(&t));
        let object = format!("fd {} (anon_inode:[io_uring])", ring.number);
        quiet.busy.push(refusal(
            CODE,
            unit,
            pid,
            object,
            &text,
            "try again when the application waits for less",
        ));
    }
    Ok(())
}

/// The rings that a process has open.
fn rings_of(pid: i32) -> Vec<Ring> {
    let Ok(process) = descriptor::open_process(pid) else { return Vec::new() };
    let is_ring = |number: &RawFd| {
        std::fs::read_link(format!("/proc/{pid}/fd/{number}")).is_ok_and(|link| kinds::is_ring(&link))
    };
    kinds::numbers(pid)
        .unwrap_or_default()
        .into_iter()
        .filter(is_ring)
        .filter_map(|number| {
            let fd = descriptor::take(process.as_fd(), number).ok()?;
            let ino = fstat(&fd).ok()?.st_ino;
            Some(Ring { fd, number, ino })
        })
        .collect()
}

/// Makes every thread go through the kernel, which posts what completed for it. A thread that has registered rings is told by the calls:
/// each enters the ring of a number, submitting and waiting for nothing.
fn stir(member: &mut Member, deadline: Deadline) -> Result<Option<i32>, SysError> {
    const AT_ONCE: u64 = REGISTERED_RINGS / 2;
    let asks = |number| [number, 0, 0, ENTER_REGISTERED_RING, 0, 0];
    let allowed = member.live.allows(SYS_ENTER, &asks(0));
    let threads = member.live.threads().len();
    for from in [0, AT_ONCE] {
        let mut batches: Vec<(usize, Batch)> = Vec::new();
        let mut calls = Vec::new();
        for thread in 0..threads {
            let mut batch = member.live.batch(thread)?;
            calls.push(match allowed {
                true => (from..from + AT_ONCE).map(|n| batch.push(SYS_ENTER, asks(n))).collect(),
                false => vec![batch.push(libc::SYS_getpid, [0; 6])],
            });
            batches.push((thread, batch));
        }
        let each: Vec<_> = batches.iter().map(|(thread, batch)| (*thread, batch)).collect();
        let outcomes = member.live.run(&each, deadline)?;
        if !allowed {
            return Ok(None);
        }
        let has_none = |answer| matches!(answer, Err(Errno::EBADF | Errno::EINVAL));
        let has_one =
            outcomes.iter().zip(&calls).position(|(o, calls)| !calls.iter().all(|c| has_none(o.result(*c))));
        if let Some(place) = has_one {
            return Ok(member.live.threads().nth(place).map(|thread| thread.tid.as_raw()));
        }
    }
    Ok(None)
}
