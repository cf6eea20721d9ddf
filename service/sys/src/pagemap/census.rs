//! What the page tables of a stopped process tell, asked for once and then looked at mapping by mapping: a call for each of the
//! thirty mappings of a small process costs more than the walk.

use super::{FILE, Found, GUARD, Masks, PRESENT, Pagemap, SWAPPED, Tracked, WATCHED, WRITTEN, Wanted, ZERO};
use super::{raw, region_range};
use crate::error::Result;
use crate::{AddrRange, VirtAddr};

/// A range of which a census is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Ascending, apart from the others. It may hold mappings of any kind.
    pub range: AddrRange,
    /// It is one anonymous mapping that [`crate::write_watch`] may watch: of it only what may have been written is looked at page by page,
    /// and the rest counts as its own, watched and clean. Of a file's mapping a mark without a page would count, too.
    pub watched: bool,
}

/// Regions of pages that are the process's own, ascending, with what is known of each.
#[derive(Default)]
pub struct Census {
    regions: Vec<raw::page_region>,
}

impl std::fmt::Debug for Census {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Census").field("regions", &self.regions.len()).finish()
    }
}

impl Span {
    /// The same in parts of at most so many bytes, a multiple of the page; only what is watched is parted.
    pub fn parted(self, most: u64) -> impl Iterator<Item = Self> {
        let Self { range, watched } = self;
        let most = if watched { most } else { range.len().max(most) };
        (range.start.0..range.end.0).step_by(most as usize).map(move |start| {
            let end = range.end.min(VirtAddr(start).add(most));
            Self { range: AddrRange { start: VirtAddr(start), end }, watched }
        })
    }
}

impl Pagemap {
    /// Takes it. The process must stand still until the last look at it.
    ///
    /// Errors: ENOTTY before Linux 6.7.
    pub fn census(&mut self, spans: &[Span]) -> Result<Census> {
        let mut regions = Vec::new();
        for Span { range, watched } in spans {
            if !watched {
                self.count(*range, &mut regions)?;
                continue;
            }
            let mut from = range.start;
            for part in self.may_be_written_if_watched(*range)? {
                regions.extend(clean(AddrRange { start: from, end: part.start }));
                self.count(part, &mut regions)?;
                from = part.end;
            }
            regions.extend(clean(AddrRange { start: from, end: range.end }));
        }
        Ok(Census { regions })
    }

    /// Looks at a range page by page.
    fn count(&mut self, range: AddrRange, regions: &mut Vec<raw::page_region>) -> Result<()> {
        let masks = |guards| {
            let guard = if guards { GUARD } else { 0 };
            Masks {
                flags: 0,
                not: FILE,
                all: 0,
                any: PRESENT | SWAPPED | guard,
                told: SWAPPED | ZERO | WRITTEN | WATCHED | guard,
            }
        };
        self.walk(range, masks, |region, parts| {
            let part = |part: &AddrRange| raw::page_region {
                start: part.start.0,
                end: part.end.0,
                categories: region.categories,
            };
            regions.extend(parts.iter().map(part));
        })
    }
}

/// Protected pages, unless there are none.
fn clean(range: AddrRange) -> Option<raw::page_region> {
    let region = raw::page_region { start: range.start.0, end: range.end.0, categories: WATCHED };
    (range.start < range.end).then_some(region)
}

impl Census {
    /// One of several, of spans that follow each other.
    #[must_use]
    pub fn of_parts(parts: impl IntoIterator<Item = Self>) -> Self {
        Self { regions: parts.into_iter().flat_map(|part| part.regions).collect() }
    }

    /// The same as [`Pagemap::scan`].
    pub fn scan(&self, range: AddrRange, wanted: Wanted, found: &mut Found) {
        self.regions(range, wanted, |categories, part| {
            let list = if categories & GUARD != 0 { &mut found.guards } else { &mut found.pages };
            part.append_to(list);
        });
    }

    /// The same as [`Pagemap::tracked`].
    pub fn tracked(&self, range: AddrRange, wanted: Wanted, found: &mut Tracked) {
        self.regions(range, wanted, |categories, part| found.add(categories, part));
    }

    /// Calls `each` with the wanted regions inside `range`.
    fn regions(&self, range: AddrRange, wanted: Wanted, mut each: impl FnMut(u64, AddrRange)) {
        let first = self.regions.partition_point(|region| region.end <= range.start.0);
        for region in self.regions[first..].iter().take_while(|region| region.start < range.end.0) {
            if region.categories & ZERO != 0 && wanted == Wanted::Own {
                continue;
            }
            region_range(region).common(range).into_iter().for_each(|part| each(region.categories, part));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_watched_is_parted() {
        let span = |start, end, watched| Span {
            range: AddrRange { start: VirtAddr(start), end: VirtAddr(end) },
            watched,
        };
        let parts = |span: Span| span.parted(0x4000).collect::<Vec<_>>();
        assert_eq!(parts(span(0x1000, 0x9000, false)), [span(0x1000, 0x9000, false)]);
        assert_eq!(parts(span(0x1000, 0x2000, true)), [span(0x1000, 0x2000, true)]);
        assert_eq!(
            parts(span(0x1000, 0xa000, true)),
            [span(0x1000, 0x5000, true), span(0x5000, 0x9000, true), span(0x9000, 0xa000, true)]
        );
    }
}
