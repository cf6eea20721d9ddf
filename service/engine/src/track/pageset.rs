//! A set of page numbers, in ranges.

use std::collections::BTreeMap;

/// Page numbers of one container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageSet {
    /// First page → the page behind the last; neither overlapping nor touching.
    ranges: BTreeMap<u64, u64>,
}

impl PageSet {
    /// Adds pages.
    pub fn insert(&mut self, first: u64, count: u64) {
        if count == 0 {
            return;
        }
        let (mut start, mut end) = (first, first + count);
        let near: Vec<_> =
            self.ranges.range(..=end).rev().take_while(|(_, e)| **e >= start).map(|(s, _)| *s).collect();
        for at in near {
            if let Some(old) = self.ranges.remove(&at) {
                start = start.min(at);
                end = end.max(old);
            }
        }
        self.ranges.insert(start, end);
    }

    /// Takes pages away.
    pub fn remove(&mut self, first: u64, count: u64) {
        if count == 0 {
            return;
        }
        let end = first + count;
        let near: Vec<_> =
            self.ranges.range(..end).rev().take_while(|(_, e)| **e > first).map(|(s, _)| *s).collect();
        for at in near {
            let Some(old) = self.ranges.remove(&at) else { continue };
            if at < first {
                self.ranges.insert(at, first);
            }
            if old > end {
                self.ranges.insert(end, old);
            }
        }
    }

    /// Cuts a range where membership changes: first page, number of pages, whether they are in the set; ascending.
    pub fn split(&self, first: u64, count: u64) -> Vec<(u64, u64, bool)> {
        let end = first + count;
        let mut parts = Vec::new();
        let mut at = first;
        let before = self.ranges.range(..first).next_back().filter(|(_, e)| **e > first);
        for (start, stop) in before.into_iter().chain(self.ranges.range(first..end)) {
            let (start, stop) = ((*start).max(first), (*stop).min(end));
            if at < start {
                parts.push((at, start - at, false));
            }
            parts.push((start, stop - start, true));
            at = stop;
        }
        if at < end {
            parts.push((at, end - at, false));
        }
        parts
    }

    /// The ranges: first page, number of pages; ascending.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.ranges.iter().map(|(start, end)| (*start, end - start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// It is a set, however its ranges came and went.
        #[test]
        fn it_is_a_set(steps in proptest::collection::vec((any::<bool>(), 0u64..60, 0u64..20), 0..40)) {
            let mut set = PageSet::default();
            let mut plain = [false; 80];
            for (add, first, count) in steps {
                if add { set.insert(first, count) } else { set.remove(first, count) }
                plain[first as usize..(first + count) as usize].fill(add);
            }
            let mut told = [false; 80];
            let mut last = None;
            for (first, count) in set.iter() {
                prop_assert!(count > 0 && last.is_none_or(|end| end < first));
                last = Some(first + count);
                told[first as usize..(first + count) as usize].fill(true);
            }
            prop_assert_eq!(told, plain);
            for (first, count) in [(0, 80), (13, 40), (7, 1)] {
                let mut at = first;
                for (start, len, inside) in set.split(first, count) {
                    prop_assert!(start == at && len > 0);
                    prop_assert!(plain[start as usize..(start + len) as usize].iter().all(|p| *p == inside));
                    at = start + len;
                }
                prop_assert_eq!(at, first + count);
            }
        }
    }
}
