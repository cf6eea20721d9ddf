//! The members' clocks: CLOCK_MONOTONIC and CLOCK_BOOTTIME go on from where they were, however long the group did not run and however often
//! the machine was started since (time_namespaces(7)).
//!
//! ```text
//!  checkpoint       restore                      what the members read
//!  monotonic 5000   monotonic 9000               5000: a time namespace with an offset of -4000
//!                   monotonic   60 (rebooted)    5000: one with +4940
//! ```
//! So a deadline in a member's memory is as far away as it was. CLOCK_REALTIME is the time of day, and jumps.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};

use ckpt_image::records::{GroupImage, UnitClocks, UnitIndex};
use ckpt_sys::clone::{CloneArgs, fork_with};
use ckpt_sys::namespace::NEW_TIME;
use ckpt_sys::time_namespace::Offsets;
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use super::Failure;
use super::places::Places;
use crate::machine;

/// Puts each unit into a time namespace in which its clocks go on; units whose clocks were equal share one. Gives a warning where the kernel
/// cannot.
pub fn go_on(places: &mut Places, image: &GroupImage) -> Result<Option<String>, Failure> {
    let (ours, own) = (machine::clocks().map_err(|e| Failure::from_error(&e))?, Offsets::of(Pid::this()));
    let mut units: BTreeMap<(i64, i64), Vec<UnitIndex>> = BTreeMap::new();
    for (index, unit) in image.units.iter().enumerate().filter(|(_, u)| u.clocks != UnitClocks::default()) {
        let then = (unit.clocks.monotonic, unit.clocks.boottime);
        units.entry(then).or_default().push(UnitIndex(index as u32));
    }
    for ((monotonic, boottime), units) in units {
        let offsets = Offsets {
            monotonic: monotonic - ours.monotonic + own.monotonic,
            boottime: boottime - ours.boottime + own.boottime,
        };
        let holder = match hold(offsets)? {
            Ok(holder) => holder,
            Err(e) => return Ok(Some(format!("the clocks of the members jump: no time namespace ({e})"))),
        };
        let taken = units.into_iter().try_for_each(|unit| places.take(unit, NEW_TIME, holder));
        let _ = kill(holder, Signal::SIGKILL);
        let _ = waitpid(holder, Some(WaitPidFlag::__WALL));
        taken?;
    }
    Ok(None)
}

/// A process that holds a time namespace for its children until it is killed; what the kernel says against it.
fn hold(offsets: Offsets) -> Result<Result<Pid, Errno>, Failure> {
    let fail = |e: Errno| Failure::not_restorable(format!("pipe: {e}"));
    let (reader, writer) = nix::unistd::pipe().map_err(fail)?;
    let (mut reader, writer) = (File::from(reader), File::from(writer));
    let args = CloneArgs { exit_signal: libc::SIGCHLD, ..Default::default() };
    let holder = fork_with(&args, || {
        let errno = offsets.unshare().err().map_or(0, |e| e as i32);
        let told = (&writer).write_all(&errno.to_le_bytes());
        while told.is_ok() && errno == 0 {
            nix::unistd::pause();
        }
        1
    })?;
    drop(writer);
    let mut errno = [0; 4];
    let read = reader.read_exact(&mut errno);
    match (read, i32::from_le_bytes(errno)) {
        (Ok(()), 0) => Ok(Ok(holder)),
        (read, errno) => {
            let _ = waitpid(holder, Some(WaitPidFlag::__WALL));
            Ok(Err(if read.is_ok() { Errno::from_raw(errno) } else { Errno::ECHILD }))
        }
    }
}
