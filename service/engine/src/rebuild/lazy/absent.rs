//! The pages of an address space that are in the image and not in memory yet.

use std::collections::BTreeMap;

use ckpt_image::{Place, Run};
use serde::{Deserialize, Serialize};

/// Consecutive pages, and where the image has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// First page: address divided by 4096.
    pub first: u64,
    /// Number of pages.
    pub count: u64,
    /// Image of the chain, as [`Place::File`] has it.
    pub image: usize,
    /// Byte offset in its file `pages`.
    pub offset: u64,
}

impl Part {
    fn end(&self) -> u64 {
        self.first + self.count
    }

    /// What of it lies in `[from, end)`.
    fn within(&self, from: u64, end: u64) -> Option<Part> {
        let (first, last) = (self.first.max(from), self.end().min(end));
        let offset = self.offset + (first - self.first) * ckpt_image::PAGE_SIZE;
        (first < last).then(|| Part { first, count: last - first, offset, ..*self })
    }
}

/// By address. What is not in it is not the image's any more, or never was: it reads as zeros.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Absent {
    parts: BTreeMap<u64, Part>,
}

impl Absent {
    /// Adds a run of the image; runs of zeros are none.
    pub fn insert(&mut self, run: &Run) {
        if let Place::File { image, offset } = run.place {
            self.put(Part { first: run.first, count: run.count, image, offset });
        }
    }

    fn put(&mut self, part: Part) {
        self.parts.insert(part.first, part);
    }

    /// Takes the pages `[first, first + count)` out; gives what was there.
    pub fn remove(&mut self, first: u64, count: u64) -> Vec<Part> {
        let end = first.saturating_add(count);
        let begin = self.parts.range(..=first).next_back().map_or(first, |(key, _)| *key);
        let touched: Vec<Part> =
            self.parts.range(begin..end).map(|(_, part)| *part).filter(|part| part.end() > first).collect();
        let mut removed = Vec::new();
        for part in touched {
            self.parts.remove(&part.first);
            part.within(0, first)
                .into_iter()
                .chain(part.within(end, u64::MAX))
                .for_each(|rest| self.put(rest));
            removed.extend(part.within(first, end));
        }
        removed
    }

    /// mremap(2): what was at `from` is at `to` now, and nothing else is there.
    pub fn move_to(&mut self, from: u64, to: u64, count: u64) {
        let moved = self.remove(from, count);
        self.remove(to, count);
        moved.into_iter().for_each(|part| self.put(Part { first: part.first - from + to, ..part }));
    }

    /// The pages around this one, itself among them, inside an aligned window of `window` pages. `None`: this one is not the image's.
    pub fn around(&self, page: u64, window: u64) -> Option<Part> {
        let part = self.parts.range(..=page).next_back().map(|(_, part)| part).filter(|p| p.end() > page)?;
        let from = page - page % window;
        part.within(from, from + window)
    }

    /// The first pages at or after `from`, and from the beginning once there are none; at most `most`.
    pub fn next(&self, from: u64, most: u64) -> Option<Part> {
        if let Some(part) = self.around(from, 1) {
            let whole = self.parts.range(..=from).next_back().map(|(_, whole)| *whole)?;
            return whole.within(part.first, part.first + most);
        }
        let after = self.parts.range(from..).next().or_else(|| self.parts.iter().next());
        after.and_then(|(_, part)| part.within(part.first, part.first + most))
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Number of pages.
    pub fn pages(&self) -> u64 {
        self.parts.values().map(|part| part.count).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The image's page at each page, if it is absent.
    fn flat(absent: &Absent, pages: u64) -> Vec<Option<u64>> {
        (0..pages).map(|page| absent.around(page, 1).map(|part| part.offset / 4096)).collect()
    }

    proptest! {
        /// Whatever is removed and moved, every page is the one that a plain array has there.
        #[test]
        fn pages_are_those_of_an_array(
            runs in proptest::collection::btree_map(0..8u64, 1..9u64, 0..8),
            steps in proptest::collection::vec((any::<bool>(), 0..70u64, 0..70u64, 1..20u64), 0..30),
        ) {
            let (mut absent, mut plain) = (Absent::default(), vec![None; 100]);
            for (place, count) in runs {
                let first = place * 8;
                let place = Place::File { image: 0, offset: (first + 1000) * 4096 };
                absent.insert(&Run { first, count: count.min(8), place });
                (first..first + count.min(8)).for_each(|page| plain[page as usize] = Some(page + 1000));
            }
            for (moved, from, to, count) in steps {
                let (from, count) = (from as usize, count as usize);
                let taken: Vec<_> = plain[from..from + count].to_vec();
                plain[from..from + count].fill(None);
                if moved {
                    let to = to as usize;
                    plain[to..to + count].copy_from_slice(&taken);
                    absent.move_to(from as u64, to as u64, count as u64);
                } else {
                    absent.remove(from as u64, count as u64);
                }
                prop_assert_eq!(flat(&absent, 100), plain.clone());
                prop_assert_eq!(absent.pages(), plain.iter().flatten().count() as u64);
            }
            let mut seen = 0;
            let mut at = 50;
            while let Some(part) = absent.next(at, 3) {
                prop_assert!(part.count <= 3 && plain[part.first as usize] == Some(part.offset / 4096));
                absent.remove(part.first, part.count);
                at = part.first + part.count;
                seen += part.count;
            }
            prop_assert_eq!(seen, plain.iter().flatten().count() as u64);
            prop_assert!(absent.is_empty());
        }
    }
}
