//! Addresses in the memory of another process.

use std::fmt;

/// An address in the memory of a member, never to be dereferenced here.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct VirtAddr(pub u64);

impl VirtAddr {
    /// The address `bytes` further up; wraps like the machine does.
    #[must_use]
    pub const fn add(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }

    /// The address `bytes` further down; wraps like the machine does.
    #[must_use]
    pub const fn sub(self, bytes: u64) -> Self {
        Self(self.0.wrapping_sub(bytes))
    }

    /// The number itself, for a register or a system call's argument.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Debug for VirtAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for VirtAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl From<u64> for VirtAddr {
    fn from(value: u64) -> Self {
        Self(value)
    }
}

/// A half-open range of addresses in the memory of a member, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct AddrRange {
    /// The first address of the range.
    pub start: VirtAddr,
    /// The first address after the range.
    pub end: VirtAddr,
}

impl AddrRange {
    /// The range of `len` bytes that begins at `start`.
    #[must_use]
    pub const fn new(start: VirtAddr, len: u64) -> Self {
        Self { start, end: start.add(len) }
    }

    /// Bytes in the range.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.end.0.saturating_sub(self.start.0)
    }

    /// Whether the range has no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends the range to an ascending list, joined to its last one where they touch.
    pub fn append_to(self, list: &mut Vec<Self>) {
        match list.last_mut() {
            Some(last) if last.end == self.start => last.end = self.end,
            _ => list.push(self),
        }
    }

    /// What the range has in common with another, if anything.
    #[must_use]
    pub fn common(self, other: Self) -> Option<Self> {
        let range = Self { start: self.start.max(other.start), end: self.end.min(other.end) };
        (range.start < range.end).then_some(range)
    }

    /// What is left of the range without others, which are ascending and apart from each other; ascending.
    #[must_use]
    pub fn without(self, others: &[Self]) -> Vec<Self> {
        let (mut rest, mut from) = (Vec::new(), self.start);
        let first = others.partition_point(|other| other.end <= self.start);
        for other in others[first..].iter().take_while(|other| other.start < self.end) {
            if from < other.start {
                rest.push(Self { start: from, end: other.start });
            }
            from = from.max(other.end);
        }
        if from < self.end {
            rest.push(Self { start: from, end: self.end });
        }
        rest
    }

    /// Whether `addr` lies in the range.
    #[must_use]
    pub const fn contains(&self, addr: VirtAddr) -> bool {
        self.start.0 <= addr.0 && addr.0 < self.end.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_and_compared() {
        let range = |start, end| AddrRange { start: VirtAddr(start), end: VirtAddr(end) };
        let whole = range(10, 50);
        assert_eq!(whole.common(range(40, 60)), Some(range(40, 50)));
        assert_eq!((whole.common(range(50, 60)), range(0, 10).common(whole)), (None, None));
        let others = [range(0, 5), range(5, 12), range(20, 30), range(45, 60), range(70, 80)];
        assert_eq!(whole.without(&others), [range(12, 20), range(30, 45)]);
        assert_eq!(whole.without(&[]), [whole]);
        assert_eq!(whole.without(&[range(0, 100)]), []);
        let space = range(0x1_0000, 0x7fff_ffff_f000);
        let used = [range(0x1_0000, 0x2_0000), range(0x3_0000, 0x4_0000), range(0x4_0000, 0x5_0000)];
        assert_eq!(space.without(&used), [range(0x2_0000, 0x3_0000), range(0x5_0000, 0x7fff_ffff_f000)]);
        assert_eq!(space.without(&[]), [space]);
    }
}
