//! What was written since it was armed, found without a look at every page.
//!
//! Whether a page belongs to a file, or is the kernel's zero page, is in the description of its frame: some 80 ns a page where that is in
//! no cache, 20 ms a GiB. Whether it is protected is in its page table entry, and a PAGEMAP_SCAN that asks for nothing else
//! (category_mask = return_mask = PAGE_IS_WRITTEN) has a loop of its own in the kernel: 1 ms a GiB. It counts pages that are not there
//! as written, so what it finds is looked at again.

use nix::errno::Errno;

use super::{Masks, PROTECT, Pagemap, Tracked, WRITTEN, Wanted, raw};
use crate::AddrRange;
use crate::error::{Error, Result};

/// A gap that is looked at along with its neighbours: a call for each side costs as much.
const GAP: u64 = 16 * super::PAGE;

impl Pagemap {
    /// The wanted pages of `range` that are watched and were written, appended to `written`; each is armed at the instant at
    /// which it is looked at. What is not watched is passed over.
    pub fn take_written(
        &mut self,
        range: AddrRange,
        wanted: Wanted,
        written: &mut Vec<AddrRange>,
    ) -> Result<()> {
        for part in self.may_be_written(range)? {
            self.arm(part, wanted, |range| range.append_to(written))?;
        }
        Ok(())
    }

    /// Arms those of some ranges, ascending, that are wanted, watched and not armed.
    pub fn arm_all(&mut self, ranges: &[AddrRange], wanted: Wanted) -> Result<()> {
        let mut parts = Vec::new();
        ranges.iter().for_each(|range| append_near(*range, &mut parts));
        parts.into_iter().try_for_each(|part| self.arm(part, wanted, |_| ()))
    }

    /// Bytes of `range` that are wanted, watched and were written. Nothing is armed.
    pub fn written_bytes(&mut self, range: AddrRange, wanted: Wanted) -> Result<u64> {
        let mut found = Tracked::default();
        for part in self.may_be_written(range)? {
            self.tracked(part, wanted, &mut found)?;
        }
        Ok(found.written.iter().map(AddrRange::len).sum())
    }

    fn arm(&mut self, range: AddrRange, wanted: Wanted, mut each: impl FnMut(AddrRange)) -> Result<()> {
        let masks = |guards| {
            let masks = Masks::of(wanted).without_guards(guards);
            Masks { flags: PROTECT, all: WRITTEN, ..masks }
        };
        self.walk(range, masks, |_, parts| parts.iter().for_each(|part| each(*part)))
    }

    /// Parts of `range`, ascending: every page outside of them is protected, or a mark of protection where no page is. Those inside may
    /// be anything.
    fn may_be_written(&mut self, range: AddrRange) -> Result<Vec<AddrRange>> {
        self.unprotected(range, 0)
    }

    /// The same; all of `range` where something of it is not watched, whoever else protects it.
    pub(super) fn may_be_written_if_watched(&mut self, range: AddrRange) -> Result<Vec<AddrRange>> {
        match self.unprotected(range, u64::from(raw::PM_SCAN_CHECK_WPASYNC)) {
            Err(Error::Kernel { source: Errno::EPERM, .. }) => Ok(vec![range]),
            parts => parts,
        }
    }

    fn unprotected(&mut self, range: AddrRange, flags: u64) -> Result<Vec<AddrRange>> {
        let masks = |_| Masks { flags, not: 0, all: WRITTEN, any: 0, told: WRITTEN };
        let mut parts = Vec::new();
        self.walk(range, masks, |_, found| found.iter().for_each(|part| append_near(*part, &mut parts)))?;
        Ok(parts)
    }
}

/// Appends a range to an ascending list, joined to its last one where a call would not be worth the gap between.
fn append_near(range: AddrRange, list: &mut Vec<AddrRange>) {
    match list.last_mut() {
        Some(last) if range.start.0 - last.end.0 <= GAP => last.end = range.end,
        _ => list.push(range),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::VirtAddr;

    #[test]
    fn ranges_near_each_other_are_one_part() {
        let pages = |first: u64, count: u64| {
            AddrRange::new(VirtAddr(first * crate::pagemap::PAGE), count * crate::pagemap::PAGE)
        };
        let mut parts = Vec::new();
        [pages(1, 1), pages(18, 2), pages(37, 1)]
            .into_iter()
            .for_each(|range| append_near(range, &mut parts));
        assert_eq!(parts, [pages(1, 19), pages(37, 1)]);
    }
}
