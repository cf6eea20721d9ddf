//! A set of page numbers, in ranges.

use std::collections::{BTreeMap, btree_map};
use std::iter::Peekable;

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

    /// For cutting ranges as [`PageSet::split`] does; quickly where they come in ascending order.
    pub fn cursor(&self) -> Cursor<'_> {
        Cursor { set: self, at: 0, ranges: self.ranges.iter().peekable() }
    }

    /// What is left without other ranges, which come in ascending order: first page, number of pages; ascending.
    pub fn without(&self, others: impl Iterator<Item = (u64, u64)>) -> Vec<(u64, u64)> {
        let (mut rest, mut others) = (Vec::new(), others.peekable());
        for (first, count) in self.iter() {
            let (mut at, end) = (first, first + count);
            while let Some((start, len)) = others.next_if(|(start, _)| *start < end) {
                if at < start {
                    rest.push((at, start - at));
                }
                at = at.max(start + len);
            }
            if at < end {
                rest.push((at, end - at));
            }
        }
        rest
    }

    /// The ranges: first page, number of pages; ascending.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.ranges.iter().map(|(start, end)| (*start, end - start))
    }
}

/// A place in a set.
#[derive(Debug)]
pub struct Cursor<'s> {
    set: &'s PageSet,
    /// Behind the last range that was cut.
    at: u64,
    ranges: Peekable<btree_map::Iter<'s, u64, u64>>,
}

impl Cursor<'_> {
    /// Cuts a range where membership changes: `each` gets first page, number of pages, whether they are in the set; ascending.
    pub fn split(&mut self, first: u64, count: u64, mut each: impl FnMut(u64, u64, bool)) {
        if first < self.at {
            self.ranges = self.set.ranges.iter().peekable();
        }
        let (mut at, end) = (first, first + count);
        self.at = end;
        while at < end {
            while self.ranges.next_if(|(_, stop)| **stop <= at).is_some() {}
            let (start, stop) = self.ranges.peek().map_or((end, end), |(start, stop)| (**start, **stop));
            let start = start.clamp(at, end);
            if at < start {
                each(at, start - at, false);
            }
            at = start.max(stop.min(end));
            if start < at {
                each(start, at - start, true);
            }
        }
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
            let (mut cursor, mut parts) = (set.cursor(), Vec::<(u64, u64, bool)>::new());
            for (first, count) in [(0, 3), (3, 20), (30, 1), (31, 49), (5, 9)] {
                let mut of_this = Vec::new();
                cursor.split(first, count, |first, count, inside| of_this.push((first, count, inside)));
                prop_assert_eq!(&of_this, &set.split(first, count));
                if parts.last().is_none_or(|(last, ..)| *last < first) {
                    parts.extend(of_this);
                }
            }
            let within = parts.iter().filter(|(.., inside)| *inside).map(|(first, count, _)| (*first, *count));
            let mut rest = set.clone();
            within.clone().for_each(|(first, count)| rest.remove(first, count));
            prop_assert_eq!(set.without(within), rest.iter().collect::<Vec<_>>());
        }
    }
}
