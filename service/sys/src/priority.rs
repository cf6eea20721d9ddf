//! Going first for a moment: while a group stands still, the thread that lets it run again must not wait for other programs. And going last:
//! what nobody waits for.

use std::fs;

/// The calling thread is preferred by the scheduler until this is dropped; threads that it starts meanwhile are too.
///
/// By nice value and, where sessions are scheduled as groups (sched(7), "The autogroup feature"), that of the session; what
/// is not permitted (CAP_SYS_NICE) or not there is left alone.
#[derive(Debug)]
pub struct Preferred {
    nice: Option<i32>,
    autogroup: Option<String>,
}

/// The most preferred nice value of ordinary scheduling.
const FIRST: i32 = -20;
const AUTOGROUP: &str = "/proc/self/autogroup";

impl Preferred {
    /// Begins.
    #[must_use]
    pub fn begin() -> Self {
        let nice = own_nice();
        let autogroup = fs::read_to_string(AUTOGROUP).ok().and_then(|text| parse_autogroup(&text));
        let autogroup = autogroup.filter(|_| fs::write(AUTOGROUP, FIRST.to_string()).is_ok());
        Self { nice: nice.filter(|_| set_own_nice(FIRST)), autogroup }
    }
}

impl Drop for Preferred {
    fn drop(&mut self) {
        if let Some(nice) = self.nice {
            set_own_nice(nice);
        }
        if let Some(nice) = &self.autogroup {
            let _ = fs::write(AUTOGROUP, nice);
        }
    }
}

/// The calling thread lets others go before it until this is dropped; so little that what it holds in the kernel is given back soon.
#[derive(Debug)]
pub struct Low {
    nice: Option<i32>,
}

impl Low {
    /// Begins.
    #[must_use]
    pub fn begin() -> Self {
        const LATER: i32 = 5;
        let nice = own_nice();
        Self { nice: nice.filter(|nice| *nice < LATER && set_own_nice(LATER)) }
    }
}

impl Drop for Low {
    fn drop(&mut self) {
        if let Some(nice) = self.nice {
            set_own_nice(nice);
        }
    }
}

/// The nice value in a text of /proc/PID/autogroup: `/autogroup-25 nice 0`.
fn parse_autogroup(text: &str) -> Option<String> {
    text.trim().rsplit_once(" nice ").map(|(_, nice)| nice.to_owned())
}

/// The nice value of the calling thread.
fn own_nice() -> Option<i32> {
    nix::errno::Errno::clear();
    // SAFETY: numbers only. -1 is a value too, so errno tells failure.
    let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    (nice != -1 || nix::errno::Errno::last_raw() == 0).then_some(nice)
}

/// Sets it; false if that is not permitted.
fn set_own_nice(nice: i32) -> bool {
    // SAFETY: numbers only.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thread_is_as_before_afterwards() {
        let before = own_nice();
        let preferred = Preferred::begin();
        assert!(preferred.nice.is_none() || own_nice() == Some(FIRST));
        drop(preferred);
        assert_eq!(own_nice(), before);
    }

    #[test]
    fn autogroup_is_read() {
        assert_eq!(parse_autogroup("/autogroup-25 nice -3\n").as_deref(), Some("-3"));
        assert_eq!(parse_autogroup(""), None);
    }
}
