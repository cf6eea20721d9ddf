//! Time namespaces (time_namespaces(7), Linux 5.6): what CLOCK_MONOTONIC and CLOCK_BOOTTIME are apart from those of the machine.

use std::fmt::Write;
use std::fs;

use nix::errno::Errno;
use nix::sched::unshare;
use nix::unistd::Pid;

use crate::namespace::NEW_TIME;

const SECOND: i64 = 1_000_000_000;

/// What is added to the machine's own clocks, nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Offsets {
    /// To CLOCK_MONOTONIC.
    pub monotonic: i64,
    /// To CLOCK_BOOTTIME.
    pub boottime: i64,
}

impl Offsets {
    /// Those that children of a process are born with, which are its own unless it made a namespace for them. None, where the process is gone
    /// or the kernel has no time namespaces, are zero.
    #[must_use]
    pub fn of(pid: Pid) -> Self {
        parse(&fs::read_to_string(format!("/proc/{pid}/timens_offsets")).unwrap_or_default())
    }

    /// Makes a time namespace with these offsets for the children of this process. Errors: EINVAL or ENOSYS where the kernel has none, EPERM
    /// without CAP_SYS_TIME, ERANGE where a clock would be negative.
    pub fn unshare(self) -> Result<(), Errno> {
        unshare(NEW_TIME)?;
        let errno = |e: std::io::Error| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO));
        fs::write("/proc/self/timens_offsets", self.text()).map_err(errno)
    }

    fn text(self) -> String {
        let mut text = String::new();
        for (clock, offset) in [("monotonic", self.monotonic), ("boottime", self.boottime)] {
            // The nanoseconds count up, also of a negative offset.
            let _ = writeln!(text, "{clock} {} {}", offset.div_euclid(SECOND), offset.rem_euclid(SECOND));
        }
        text
    }
}

/// Reads a text of /proc/PID/timens_offsets; what is missing is zero.
fn parse(text: &str) -> Offsets {
    let mut offsets = Offsets::default();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let (clock, seconds, rest) = (words.next(), words.next(), words.next());
        let number = |word: Option<&str>| word.and_then(|w| w.parse::<i64>().ok()).unwrap_or(0);
        let offset = number(seconds).saturating_mul(SECOND).saturating_add(number(rest));
        match clock {
            Some("monotonic") => offsets.monotonic = offset,
            Some("boottime") => offsets.boottime = offset,
            _ => {}
        }
    }
    offsets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_read_as_they_are_written() {
        let offsets = Offsets { monotonic: -1_500_000_000, boottime: 86_400_000_000_001 };
        assert_eq!(offsets.text(), "monotonic -2 500000000\nboottime 86400 1\n");
        assert_eq!(parse(&offsets.text()), offsets);
        assert_eq!(
            parse("monotonic           0         0\nboottime            5         0\n").boottime,
            5 * SECOND
        );
        assert_eq!(parse("nonsense"), Offsets::default());
    }
}
