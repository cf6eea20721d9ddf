//! Merging: the images of a chain as one new image, by whole ranges of blocks, which a file system that can shares instead of copying.
//!
//! ```text
//! newest   pages  [h][a][b][c]                     live: a, c
//! its parent      [h][d][e][f][g][h][i]            live: d, e, i           [h] is the header
//!                                                  a gap: f g h
//! new      pages  [h][a][b][c][d][e][i]            b, superseded, is taken along: one range less to share
//! ```
//! Blocks have their checksum by number, whatever they hold, so checksums move with their blocks and no data is read. What is taken along
//! though it is superseded is bounded: at most half of what is live, and dropped by a later merge.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::chain::{self, Merged};
use crate::frame::create;
use crate::pages::header_block;
use crate::pages_file::Pages;
use crate::{
    Container, ContainerIndex, Digest, Extent, INDEX_FILE, ImageError, PAGE_SIZE, PAGES_FILE, PageIndex,
    PagesSummary, Result, Store,
};

/// Shares `len` bytes of a file at an offset with another file at an offset (FICLONERANGE, ioctl_ficlonerange(2)), all of them page-aligned;
/// `false` where the file systems cannot.
pub type Share<'a> = &'a dyn Fn(&File, u64, &File, u64, u64) -> std::io::Result<bool>;

/// Ranges that are shared before superseded blocks are taken along to save calls; each costs some 10 µs on btrfs.
const FEW: usize = 2048;
/// Bytes shared or copied between two looks at `progress`.
const PART: u64 = 64 << 20;

/// Writes `pages` and `pages.index` of a new image into `into`: what the images of `dirs`, newest first, show together. Where the last of them is a
/// full, so is the new one; else it rests on what that rests on. Pages are shared by `share` where that is possible, else copied. `progress`
/// gets bytes done and in total and ends it by `false` (then `Ok(None)`).
///
/// Errors: Io, NotOurs, Version, Corrupt where the images do not fit each other.
pub fn fold(
    dirs: &[PathBuf],
    into: &Path,
    share: Share<'_>,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<Option<PagesSummary>> {
    fold_by(FEW, dirs, into, share, progress)
}

/// [`fold`] with at most so many ranges to share.
fn fold_by(
    ranges: usize,
    dirs: &[PathBuf],
    into: &Path,
    share: Share<'_>,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<Option<PagesSummary>> {
    let mut indexes = dirs.iter().map(|dir| PageIndex::read(dir)).collect::<Result<Vec<_>>>()?;
    let merged = chain::merge(&indexes)
        .map_err(|(image, what)| ImageError::corrupt(&dirs[image].join(INDEX_FILE), what))?;
    let sums = indexes.iter_mut().map(|index| std::mem::take(&mut index.checksums));
    let images =
        dirs.iter().zip(sums).map(|(dir, sums)| Pages::open(dir, sums)).collect::<Result<Vec<_>>>()?;
    let live = live(&merged);
    let stored = stored_pages(&merged);
    let path = into.join(PAGES_FILE);
    let mut out = create(&path)?;
    let header = header_block();
    out.write_all(&header).map_err(ImageError::io("write", &path))?;
    let few = Plan::make(&live, ranges);
    let transfer = Transfer { images: &images, out: &out, path: &path };
    let (plan, share) = match transfer.probe(&few, share)? {
        true => (few, Some(share)),
        // Each block that is copied costs more than a call.
        false => (Plan::make(&live, usize::MAX), None),
    };
    if !transfer.all(&plan, share, progress)? {
        return Ok(None);
    }
    out.sync_all().map_err(ImageError::io("fsync", &path))?;
    let mut checksums = vec![crc32fast::hash(&header)];
    for piece in &plan.pieces {
        let (from, to) = (piece.block as usize, (piece.block + piece.count) as usize);
        checksums.extend(&images[piece.image].checksums[from..to]);
    }
    let containers =
        merged.into_iter().map(|(container, merged)| plan.container(container, merged)).collect();
    let index = PageIndex { containers, checksums };
    Ok(Some(PagesSummary {
        pages_written: stored,
        pages: Digest { bytes: index.pages_bytes(), blake3: None },
        index: index.write(into)?,
    }))
}

/// Blocks of `pages` of one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Range {
    image: usize,
    block: u64,
    count: u64,
}

impl Range {
    fn end(&self) -> u64 {
        self.block + self.count
    }
}

/// The blocks that the merged image needs: ascending by image and block, apart from each other.
fn live(merged: &BTreeMap<Container, Merged>) -> Vec<Range> {
    let spans = merged.values().flat_map(|one| &one.spans);
    let mut all: Vec<Range> = spans
        .filter_map(|span| {
            let (block, count) = span.extent.blocks()?;
            Some(Range { image: span.image, block, count })
        })
        .collect();
    all.sort_unstable();
    let mut live: Vec<Range> = Vec::with_capacity(all.len());
    for range in all {
        match live.last_mut() {
            Some(last) if last.image == range.image && range.block <= last.end() => {
                last.count = last.count.max(range.end() - last.block);
            }
            _ => live.push(range),
        }
    }
    live
}

/// The pages that the merged image has in its file, each once however many containers show it (as those of a fork do).
fn stored_pages(merged: &BTreeMap<Container, Merged>) -> u64 {
    let spans = merged.values().flat_map(|one| &one.spans);
    // Raw pages lie one a block; packed ones are numbered within their chunk, which block 0 never is.
    let mut stored: Vec<(usize, u64, u64, u64)> = spans
        .filter_map(|span| match span.extent.store {
            Store::Raw { block } => Some((span.image, 0, block, span.extent.count)),
            Store::Packed(chunk) => Some((span.image, chunk.block, u64::from(chunk.skip), span.extent.count)),
            Store::Zero | Store::Parent => None,
        })
        .collect();
    stored.sort_unstable();
    let mut last = (0, 0, 0);
    let mut pages = 0;
    for (image, chunk, first, count) in stored {
        let counted = if (last.0, last.1) == (image, chunk) { last.2 } else { 0 };
        let end = first + count;
        pages += end.saturating_sub(first.max(counted));
        last = (image, chunk, counted.max(end));
    }
    pages
}

/// Which blocks come along, and where to.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    /// Ascending by image and block; they lie in the new file in this order, behind the header.
    pieces: Vec<Range>,
    /// The first block of each in the new file.
    places: Vec<u64>,
}

impl Plan {
    /// At most `few` pieces, by taking along the smallest gaps between live ranges, but more where the gaps would be more than half of what is live.
    fn make(live: &[Range], few: usize) -> Self {
        let gap = |pair: &[Range]| match pair {
            [a, b] if a.image == b.image => b.block - a.end(),
            _ => u64::MAX,
        };
        let mut gaps: Vec<(u64, usize)> = live.windows(2).map(gap).zip(1..).collect();
        gaps.sort_unstable();
        let allowed = live.iter().map(|range| range.count).sum::<u64>() / 2;
        let (mut taken, mut closed) = (0, vec![false; live.len()]);
        let surplus = live.len().saturating_sub(few);
        for (blocks, at) in gaps.into_iter().take(surplus) {
            if blocks == u64::MAX || taken + blocks > allowed {
                break;
            }
            taken += blocks;
            closed[at] = true;
        }
        let mut pieces: Vec<Range> = Vec::new();
        for (range, closed) in live.iter().zip(closed) {
            match pieces.last_mut() {
                Some(last) if closed => last.count = range.end() - last.block,
                _ => pieces.push(*range),
            }
        }
        let places = pieces.iter().scan(1, |next, piece| {
            let at = *next;
            *next += piece.count;
            Some(at)
        });
        Self { places: places.collect(), pieces }
    }

    fn bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.count).sum::<u64>() * PAGE_SIZE
    }

    /// Where a live block of an image lies in the new file.
    fn place(&self, image: usize, block: u64) -> u64 {
        let after = self.pieces.partition_point(|piece| (piece.image, piece.block) <= (image, block));
        let at = after.saturating_sub(1);
        self.places[at] + (block - self.pieces[at].block)
    }

    /// A container's index in the new image.
    fn container(&self, container: Container, merged: Merged) -> ContainerIndex {
        let mut extents: Vec<Extent> = Vec::with_capacity(merged.spans.len());
        for span in merged.spans {
            let extent = match span.extent.blocks() {
                Some((block, _)) => span.extent.moved(self.place(span.image, block)),
                None => span.extent,
            };
            match extents.last_mut() {
                Some(last) => match last.joined(&extent) {
                    Some(joined) => *last = joined,
                    None => extents.push(extent),
                },
                None => extents.push(extent),
            }
        }
        ContainerIndex { container, inherits: merged.inherits, extents }
    }
}

/// From the images of the chain into the new file.
struct Transfer<'a> {
    images: &'a [Pages],
    out: &'a File,
    path: &'a Path,
}

impl Transfer<'_> {
    /// Whether blocks can be shared at all, found out by sharing the first.
    fn probe(&self, plan: &Plan, share: Share<'_>) -> Result<bool> {
        let Some(piece) = plan.pieces.first() else { return Ok(false) };
        share(&self.images[piece.image].file, piece.block * PAGE_SIZE, self.out, PAGE_SIZE, PAGE_SIZE)
            .map_err(ImageError::io("share blocks with", self.path))
    }

    /// Brings over all pieces. `Ok(false)` where `progress` ended it.
    fn all(
        &self,
        plan: &Plan,
        share: Option<Share<'_>>,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<bool> {
        let total = plan.bytes();
        let (mut done, mut told) = (0, 0);
        for (piece, place) in plan.pieces.iter().zip(&plan.places) {
            let pages = &self.images[piece.image];
            let mut moved = 0;
            while moved < piece.count * PAGE_SIZE {
                let len = (piece.count * PAGE_SIZE - moved).min(PART);
                let (from, to) = (piece.block * PAGE_SIZE + moved, place * PAGE_SIZE + moved);
                let shared = share.map_or(Ok(false), |share| share(&pages.file, from, self.out, to, len));
                if !shared.map_err(ImageError::io("share blocks with", self.path))? {
                    self.copy(pages, from, to, len)?;
                }
                moved += len;
                done += len;
                if done - told >= PART || done == total {
                    told = done;
                    if !progress(done, total) {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }

    /// copy_file_range(2) where the kernel has it for these files, else read and write.
    fn copy(&self, pages: &Pages, from: u64, to: u64, len: u64) -> Result<()> {
        let (mut source, mut out) = (&pages.file, self.out);
        source.seek(SeekFrom::Start(from)).map_err(ImageError::io("seek in", &pages.path))?;
        out.seek(SeekFrom::Start(to)).map_err(ImageError::io("seek in", self.path))?;
        let copied =
            std::io::copy(&mut source.take(len), &mut out).map_err(ImageError::io("write", self.path))?;
        if copied != len {
            return Err(ImageError::corrupt(&pages.path, "it ends earlier than its index tells"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::chain::tests::{Model, SPAN, images, space, write};
    use crate::{PageReader, tests::temp_dir};
    use proptest::prelude::*;

    /// What every page of a chain shows: its content, or that it is a hole.
    fn shown(dirs: &[PathBuf]) -> Vec<Option<Vec<u8>>> {
        let reader = PageReader::open(dirs).unwrap();
        assert!(reader.verify(|_| true).unwrap());
        let pages = (0..3).flat_map(|n| (0..SPAN).map(move |page| (space(n), page)));
        let content = |(container, page)| {
            let there = !reader.runs(container, page, page + 1).is_empty();
            there.then(|| reader.page(container, page).unwrap())
        };
        pages.map(content).collect()
    }

    /// As a file system that can share blocks does, seen from here.
    fn shares(from: &File, at: u64, to: &File, offset: u64, len: u64) -> std::io::Result<bool> {
        let mut bytes = vec![0; len as usize];
        from.read_exact_at(&mut bytes, at)?;
        to.write_all_at(&bytes, offset)?;
        Ok(true)
    }

    fn never(_: &File, _: u64, _: &File, _: u64, _: u64) -> std::io::Result<bool> {
        Ok(false)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(80))]
        /// Whatever part of a chain is folded, by whatever means: the chain shows what it did.
        #[test]
        fn a_folded_chain_shows_the_same(
            images in images(), from in 0..6usize, len in 1..6usize, ranges in 1..8usize, sharing: bool,
        ) {
            let mut dirs: Vec<PathBuf> = Vec::new();
            let mut model: Option<Model> = None;
            for image in &images {
                let dir = temp_dir("fold");
                model = Some(write(&dir, image, model.as_ref()));
                dirs.insert(0, dir);
            }
            let from = from.min(dirs.len() - 1);
            let end = (from + len).min(dirs.len());
            let into = temp_dir("folded");
            let share: Share<'_> = if sharing { &shares } else { &never };
            let mut told = 0;
            let summary = fold_by(ranges, &dirs[from..end], &into, share, &mut |done, total| {
                told = done;
                done <= total
            });
            let summary = summary.unwrap().unwrap();
            prop_assert!(summary.pages.bytes >= told);
            let raw = images.iter().all(|image| image.2.is_none());
            if !sharing && raw {
                prop_assert_eq!(summary.pages.bytes, (summary.pages_written + 1) * PAGE_SIZE);
            }
            prop_assert!(summary.pages.bytes <= (summary.pages_written * 3 / 2 + 1) * PAGE_SIZE || !raw);
            let mut folded = dirs[..from].to_vec();
            folded.push(into.clone());
            folded.extend_from_slice(&dirs[end..]);
            prop_assert_eq!(shown(&folded), shown(&dirs));
            if end == dirs.len() {
                prop_assert_eq!(shown(std::slice::from_ref(&into)), shown(&dirs[from..]));
            }
            dirs.iter().chain([&into]).for_each(|dir| std::fs::remove_dir_all(dir).unwrap());
        }
    }

    #[test]
    fn small_gaps_come_along_and_large_ones_do_not() {
        let range = |image, block, count| Range { image, block, count };
        let live = [range(0, 1, 2), range(0, 4, 6), range(0, 20, 2), range(1, 1, 10)];
        let exact = Plan::make(&live, 9);
        assert_eq!((exact.pieces.as_slice(), exact.places.as_slice()), (&live[..], &[1, 3, 9, 11][..]));
        let few = Plan::make(&live, 3);
        assert_eq!(few.pieces, [range(0, 1, 9), range(0, 20, 2), range(1, 1, 10)]);
        assert_eq!((few.place(0, 4), few.place(0, 21), few.place(1, 1)), (4, 11, 12));
        // The gap of ten is more than half of the twenty that are live, with the one before it.
        assert_eq!(Plan::make(&live, 1).pieces, few.pieces);
    }

    #[test]
    fn it_ends_when_it_is_told_to() {
        let (dir, into) = (temp_dir("fold"), temp_dir("folded"));
        let mut writer = crate::PagesWriter::create(&dir).unwrap();
        writer.append(space(0), 0, &[1; 4096]).unwrap();
        writer.finish().unwrap();
        assert!(fold(&[dir], &into, &never, &mut |_, _| false).unwrap().is_none());
    }
}
