//! What the page tables of a stopped process tell, asked for once and then looked at mapping by mapping: a call for each of the
//! thirty mappings of a small process costs more than the walk.

use super::{FILE, Found, GUARD, Masks, PRESENT, Pagemap, SWAPPED, Tracked, WATCHED, WRITTEN, Wanted, ZERO};
use super::{raw, region_range};
use crate::AddrRange;
use crate::error::Result;

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

impl Pagemap {
    /// Takes it of `ranges`, ascending; they may hold mappings of any kind. The process must stand still until the last look at it.
    ///
    /// Errors: ENOTTY before Linux 6.7.
    pub fn census(&mut self, ranges: &[AddrRange]) -> Result<Census> {
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
        let mut regions = Vec::new();
        for range in ranges {
            self.walk(*range, masks, |region, parts| {
                let part = |part: &AddrRange| raw::page_region {
                    start: part.start.0,
                    end: part.end.0,
                    categories: region.categories,
                };
                regions.extend(parts.iter().map(part));
            })?;
        }
        Ok(Census { regions })
    }
}

impl Census {
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
