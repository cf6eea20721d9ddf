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

    /// Whether `addr` lies in the range.
    #[must_use]
    pub const fn contains(&self, addr: VirtAddr) -> bool {
        self.start.0 <= addr.0 && addr.0 < self.end.0
    }
}
