use std::collections::BTreeMap;

use crate::{Chunk, Extent, Store};

/// Which pages of one container are where; a later entry wins over an earlier one: a page copied again is the newer copy.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PageMap {
    /// First page → extent; never overlapping.
    extents: BTreeMap<u64, Extent>,
}

impl PageMap {
    /// Puts an extent over whatever was there. An empty one changes nothing.
    pub fn insert(&mut self, extent: Extent) {
        if extent.count == 0 {
            return;
        }
        self.cut(extent.first, extent.end());
        let mut extent = extent;
        if let Some((&first, before)) = self.extents.range(..extent.first).next_back()
            && let Some(joined) = before.joined(&extent)
        {
            self.extents.remove(&first);
            extent = joined;
        }
        if let Some(after) = self.extents.get(&extent.end()).copied()
            && let Some(joined) = extent.joined(&after)
        {
            self.extents.remove(&after.first);
            extent = joined;
        }
        self.extents.insert(extent.first, extent);
    }

    /// Forgets the pages `[first, end)`.
    pub fn cut(&mut self, first: u64, end: u64) {
        let from = self
            .extents
            .range(..first)
            .next_back()
            .filter(|(_, e)| e.end() > first)
            .map_or(first, |(&at, _)| at);
        let touched: Vec<u64> = self.extents.range(from..end).map(|(&at, _)| at).collect();
        for at in touched {
            let Some(old) = self.extents.remove(&at) else { continue };
            if old.first < first {
                let left = old.slice(old.first, first);
                self.extents.insert(left.first, left);
            }
            if old.end() > end {
                let right = old.slice(end, old.end());
                self.extents.insert(right.first, right);
            }
        }
    }

    /// The extents, ascending by page, none overlapping.
    pub fn iter(&self) -> impl Iterator<Item = &Extent> {
        self.extents.values()
    }

    /// The parts of the extents that lie in `[first, end)`, ascending.
    pub fn range(&self, first: u64, end: u64) -> impl Iterator<Item = Extent> + '_ {
        let end = end.max(first);
        let from = self
            .extents
            .range(..=first)
            .next_back()
            .filter(|(_, e)| e.end() > first)
            .map_or(first, |(&at, _)| at);
        self.extents
            .range(from..end.max(from))
            .map(move |(_, e)| e.slice(e.first.max(first), e.end().min(end)))
            .filter(|part| part.count > 0)
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }
}

impl Extent {
    /// The page after the last.
    pub fn end(&self) -> u64 {
        self.first + self.count
    }

    /// The part `[first, end)` of it; must lie inside.
    pub(crate) fn slice(&self, first: u64, end: u64) -> Self {
        let store = match self.store {
            Store::Raw { block } => Store::Raw { block: block + (first - self.first) },
            Store::Packed(chunk) => {
                // Not more than the 64 pages of a chunk, whatever the index is that it is of.
                let skip = u64::from(chunk.skip) + (first - self.first);
                Store::Packed(Chunk { skip: u8::try_from(skip).unwrap_or(u8::MAX), ..chunk })
            }
            other => other,
        };
        Self { first, count: end - first, store }
    }

    /// First block of `pages` and number of blocks, where it has any.
    pub(crate) fn blocks(&self) -> Option<(u64, u64)> {
        match self.store {
            Store::Raw { block } => Some((block, self.count)),
            Store::Packed(chunk) => Some((chunk.block, chunk.blocks())),
            Store::Zero | Store::Parent => None,
        }
    }

    /// The same pages with their blocks from another one on.
    pub(crate) fn moved(&self, to: u64) -> Self {
        match self.store {
            Store::Raw { .. } => Self { store: Store::Raw { block: to }, ..*self },
            Store::Packed(chunk) => Self { store: Store::Packed(Chunk { block: to, ..chunk }), ..*self },
            Store::Zero | Store::Parent => *self,
        }
    }

    /// Both as one, where `next` follows in the container and in the file.
    pub(crate) fn joined(&self, next: &Self) -> Option<Self> {
        let follows = match (self.store, next.store) {
            (Store::Raw { block }, Store::Raw { block: after }) => block + self.count == after,
            (Store::Packed(chunk), Store::Packed(after)) => {
                chunk == Chunk { skip: chunk.skip, ..after }
                    && u64::from(chunk.skip) + self.count == u64::from(after.skip)
            }
            (a, b) => a == b,
        };
        (self.end() == next.first && follows).then(|| Self { count: self.count + next.count, ..*self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn extents() -> impl Strategy<Value = Vec<Extent>> {
        let store = prop_oneof![
            Just(Store::Zero),
            Just(Store::Parent),
            (1..500u64).prop_map(|block| Store::Raw { block }),
            (1..500u64).prop_map(|block| {
                Store::Packed(Chunk { block, bytes: 5000, pages: 60, skip: 0, codec: crate::Codec::Lz4 })
            })
        ];
        proptest::collection::vec(
            (0..100u64, 0..30u64, store).prop_map(|(first, count, store)| Extent { first, count, store }),
            0..40,
        )
    }

    proptest! {
        /// The map tells of every page what a plain array would.
        #[test]
        fn the_last_entry_of_a_page_wins(extents in extents(), from in 0..140u64, len in 0..140u64) {
            let mut map = PageMap::default();
            let mut plain = vec![None; 300];
            for extent in &extents {
                map.insert(*extent);
                for page in extent.first..extent.end() {
                    plain[page as usize] = Some(extent.slice(page, page + 1).store);
                }
            }
            let mut told = vec![None; 300];
            let mut last = 0;
            for extent in map.range(from, from + len) {
                prop_assert!(extent.count > 0 && extent.first >= last);
                last = extent.end();
                for page in extent.first..extent.end() {
                    told[page as usize] = Some(extent.slice(page, page + 1).store);
                }
            }
            for page in 0..300u64 {
                let inside = page >= from && page < from + len;
                prop_assert_eq!(told[page as usize], if inside { plain[page as usize] } else { None });
            }
            // Neighbours that could be one are one.
            let all: Vec<_> = map.iter().collect();
            for pair in all.windows(2) {
                prop_assert!(pair[0].joined(pair[1]).is_none());
            }
        }
    }
}
