//! `write-protect`: in user space alone, by the preload library. Pages are closed by mprotect(2) and opened by the first write.
//!
//! The member is lifted before anything is read of it ([`Live::lift`]), so a checkpoint sees what the application made; it is armed
//! again in the end. Where it cannot be armed, all of it counts as written.

use ckpt_image::Tracker as Kind;
use ckpt_sys::inject::Live;
use ckpt_sys::maps::Mapping;
use ckpt_sys::pagemap::{Found, Pagemap, Tracked, Wanted};
use ckpt_sys::thread::Deadline;
use ckpt_sys::{AddrRange, Error as SysError, protect};
use nix::unistd::Pid;

use super::{NewWatch, Tracker, Watch};

/// Bytes: see [`joined`].
const NEAR: u64 = 64 << 12;

/// The tracker.
#[derive(Debug)]
pub(super) struct WriteProtect;

/// Whether the machine has it; the error says why not.
pub(super) fn probe() -> Result<(), String> {
    protect::probe().map_err(|e| {
        format!("the kernel has no Syscall User Dispatch that ptrace(2) tells of (Linux 6.4): {e}")
    })
}

impl Tracker for WriteProtect {
    fn kind(&self) -> Kind {
        Kind::WriteProtect
    }

    fn watch(&self, members: &mut [&mut Live], _: Deadline) -> Result<Vec<NewWatch>, SysError> {
        let watch = |live: &mut &mut Live| -> Result<NewWatch, SysError> {
            Ok(live.has_library()?.then(|| Box::new(Space::new(live.pid())) as Box<dyn Watch>))
        };
        members.iter_mut().map(watch).collect()
    }
}

/// One address space.
#[derive(Debug)]
struct Space {
    pid: Pid,
    pagemap: Option<Pagemap>,
    /// Pages that were closed when the window began.
    clean: Vec<AddrRange>,
    /// Pages that were there when it was armed: others are new, however they came to be.
    known: Vec<AddrRange>,
    /// Those of this window.
    own: Vec<AddrRange>,
    /// What is to be armed.
    mappings: Vec<Mapping>,
}

impl Space {
    fn new(pid: Pid) -> Self {
        let (clean, known, own) = (Vec::new(), Vec::new(), Vec::new());
        Self { pid, pagemap: None, clean, known, own, mappings: Vec::new() }
    }
}

impl Watch for Space {
    fn enter(&mut self, live: &Live) {
        self.clean = common(live.protection().clean(), &self.known);
    }

    fn take(&mut self, mapping: &Mapping, wanted: Wanted, found: &mut Tracked) -> Result<(), SysError> {
        let pagemap = match &mut self.pagemap {
            Some(pagemap) => pagemap,
            none => none.insert(Pagemap::open(self.pid)?),
        };
        // What is closed still is there as it was: only the rest is looked at, which takes long where there is much memory.
        let clean = common(&[mapping.range], &self.clean);
        let mut looked_at = Found::default();
        for part in joined(mapping.range.without(&clean)) {
            pagemap.scan(part, wanted, &mut looked_at)?;
        }
        let written = without(&looked_at.pages, &clean);
        self.own.extend(both(&written, &clean));
        found.written.extend(written);
        found.clean.extend(clean);
        found.guards.append(&mut looked_at.guards);
        self.mappings.push(mapping.clone());
        Ok(())
    }

    fn settle(&mut self, live: &mut Live, deadline: Deadline) -> Result<(), SysError> {
        let armed = live.arm(&std::mem::take(&mut self.mappings), deadline)?;
        let own = std::mem::take(&mut self.own);
        self.known = if armed { own } else { Vec::new() };
        self.clean.clear();
        self.pagemap = None;
        Ok(())
    }
}

/// What two ascending lists have in common.
fn common(one: &[AddrRange], other: &[AddrRange]) -> Vec<AddrRange> {
    let mut both = Vec::new();
    let (mut a, mut b) = (one.iter().peekable(), other.iter().peekable());
    while let (Some(x), Some(y)) = (a.peek(), b.peek()) {
        both.extend(x.common(**y));
        if x.end <= y.end {
            a.next();
        } else {
            b.next();
        }
    }
    both
}

/// What of an ascending list is not in another.
fn without(all: &[AddrRange], part: &[AddrRange]) -> Vec<AddrRange> {
    let rest = |range: &AddrRange| {
        let first = part.partition_point(|other| other.end <= range.start);
        let end = part.partition_point(|other| other.start < range.end);
        range.without(part.get(first..end).unwrap_or_default())
    };
    all.iter().flat_map(rest).collect()
}

/// Two ascending lists that have nothing in common as one.
fn both(one: &[AddrRange], other: &[AddrRange]) -> Vec<AddrRange> {
    let mut all = [one, other].concat();
    all.sort_unstable_by_key(|range| range.start);
    all
}

/// Ascending ranges, those as one that lie near each other: a look at some pages more takes less than another look.
fn joined(ranges: Vec<AddrRange>) -> Vec<AddrRange> {
    let mut all: Vec<AddrRange> = Vec::new();
    for range in ranges {
        match all.last_mut() {
            Some(last) if range.start.0 - last.end.0 < NEAR => last.end = range.end,
            _ => all.push(range),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use ckpt_sys::VirtAddr;

    fn ranges(list: &[(u64, u64)]) -> Vec<AddrRange> {
        list.iter().map(|(a, b)| AddrRange { start: VirtAddr(*a), end: VirtAddr(*b) }).collect()
    }

    #[test]
    fn written_and_clean_are_all_and_nothing_twice() {
        let all = ranges(&[(1, 5), (7, 9), (10, 20)]);
        let closed = ranges(&[(0, 2), (4, 8), (12, 14), (15, 30)]);
        let clean = common(&all, &closed);
        assert_eq!(clean, ranges(&[(1, 2), (4, 5), (7, 8), (12, 14), (15, 20)]));
        assert_eq!(without(&all, &clean), ranges(&[(2, 4), (8, 9), (10, 12), (14, 15)]));
        assert_eq!(without(&all, &[]), all);
        assert!(without(&all, &all).is_empty() && common(&all, &[]).is_empty());
        assert_eq!(both(&without(&all, &clean), &clean).iter().map(AddrRange::len).sum::<u64>(), 16);
    }

    #[test]
    fn what_lies_near_is_looked_at_at_once() {
        let far = NEAR + 20;
        assert_eq!(joined(ranges(&[(1, 5), (9, 30), (far, far + 1)])), ranges(&[(1, far + 1)]));
        assert_eq!(joined(ranges(&[(1, 5), (far, far + 1)])), ranges(&[(1, 5), (far, far + 1)]));
        assert!(joined(Vec::new()).is_empty());
    }
}
