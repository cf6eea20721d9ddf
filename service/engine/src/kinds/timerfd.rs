//! timerfd_create(2). Times go on from where they were; an absolute time of the real-time clock stays that time of day.

use std::os::fd::AsFd;

use ckpt_image::records::{DescriptionKind, DescriptionRecord, TimerfdRecord};
use ckpt_sys::descriptor::make;
use nix::errno::Errno;
use nix::libc;

use super::collect::Found;
use super::rebuild::Rebuild;
use super::{Error, Refusal};

pub(super) fn capture(found: &Found) -> Result<DescriptionKind, Refusal> {
    let timer = found.info.timer.ok_or_else(|| {
        Refusal::new("descriptor-unreadable", "the kernel does not tell its setting", "report it")
    })?;
    Ok(DescriptionKind::Timerfd(TimerfdRecord {
        clock: timer.clock,
        flags: timer.flags,
        ticks: timer.ticks,
        value: timer.value,
        interval: timer.interval,
    }))
}

pub(super) fn create(
    cx: &mut Rebuild<'_>,
    record: &DescriptionRecord,
    timer: &TimerfdRecord,
) -> Result<(), Error> {
    let failed = |op| Error::call(op, cx.describe(record));
    let fd = make::timerfd(timer.clock).map_err(failed("timerfd_create"))?;
    if timer.value != 0 || timer.interval != 0 {
        let absolute = timer.flags & libc::TFD_TIMER_ABSTIME as u32 != 0;
        let value = if absolute { base(cx, timer)? + timer.value } else { timer.value };
        let failed = |op| Error::call(op, cx.describe(record));
        make::timerfd_set(fd.as_fd(), timer.flags, value.max(1), timer.interval)
            .map_err(failed("timerfd_settime"))?;
    }
    if timer.ticks > 0 {
        match make::timerfd_set_ticks(fd.as_fd(), timer.ticks) {
            Ok(()) => {}
            // Without CONFIG_CHECKPOINT_RESTORE the number of ticks is lost, but not that there were some.
            Err(Errno::ENOTTY) => make::timerfd_set(fd.as_fd(), 0, 1, timer.interval)
                .map_err(Error::call("timerfd_settime", cx.describe(record)))?,
            Err(e) => return Err(Error::call("ioctl(TFD_IOC_SET_TICKS)", cx.describe(record))(e)),
        }
    }
    cx.put(record.id, fd)
}

/// What the time that was left is to be added to: the checkpoint's time of day for wall clocks, now for all others.
fn base(cx: &Rebuild<'_>, timer: &TimerfdRecord) -> Result<u64, Error> {
    match timer.clock {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_ALARM => Ok(cx.image.clocks.realtime as u64),
        clock => make::clock(clock).map_err(Error::call("clock_gettime", format!("clock {clock}"))),
    }
}
