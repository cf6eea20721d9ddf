//! The pages of a checkpoint, read through one merged index of its whole chain.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::chain::{self, Merged, Span};
use crate::pages_file::Pages;
use crate::{Chunk, Container, INDEX_FILE, ImageError, PAGE_SIZE, PageIndex, Result, Store};

/// Pages that are compared with others at a time.
const ALIKE: u64 = 64;

/// Where a run of pages is to be read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// They are zero bytes.
    Zero,
    /// In the file `pages` of an image of the chain, uncompressed, from this offset in bytes on.
    File {
        /// The image: 0 is the newest, its parent 1, and so on; for [`PageReader::file`].
        image: usize,
        /// Byte offset, page-aligned.
        offset: u64,
    },
}

/// Consecutive pages of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First page: address or offset divided by 4096.
    pub first: u64,
    /// Number of pages.
    pub count: u64,
    /// Where they are.
    pub place: Place,
}

impl Run {
    /// The page after the last.
    pub fn end(&self) -> u64 {
        self.first + self.count
    }

    /// The run that a span is; a page of a parent is none.
    fn of(span: &Span) -> Option<Self> {
        let Span { image, extent } = *span;
        let place = match extent.store {
            Store::Zero => Place::Zero,
            Store::Raw { block } => Place::File { image, offset: block * PAGE_SIZE },
            // What is packed was unpacked when the image was opened.
            Store::Parent | Store::Packed(_) => return None,
        };
        Some(Self { first: extent.first, count: extent.count, place })
    }
}

/// Opens a chain, compares every block with its checksum, and decodes what is compressed, in little memory. `progress` gets bytes done and in
/// total and ends it by `false` (then `Ok(false)`).
///
/// Errors: those of [`PageReader::open`].
pub fn verify(dirs: &[PathBuf], mut progress: impl FnMut(u64, u64) -> bool) -> Result<bool> {
    let reader = PageReader::open_packed(dirs)?;
    let total = reader.bytes();
    if !reader.verify(|done| progress(done, total))? {
        return Ok(false);
    }
    for (image, chunk) in reader.chunks() {
        reader.images[image].chunk(&chunk)?;
        if !progress(total, total) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The chunk that a span is of, without what tells spans of the same chunk apart.
fn packed(span: &Span) -> Option<(usize, Chunk)> {
    match span.extent.store {
        Store::Packed(chunk) => Some((span.image, Chunk { skip: 0, ..chunk })),
        _ => None,
    }
}

/// The files `pages` of a chain with the checksums of their blocks, and nothing of what is where.
#[derive(Debug)]
pub struct PageFiles {
    images: Vec<Pages>,
}

/// One of [`PageFiles`]: its path, which serves for messages only, the file, and the checksum of each block.
pub type PageFile = (PathBuf, File, Vec<u32>);

impl PageFiles {
    /// Of these, the newest first.
    pub fn new(files: Vec<PageFile>) -> Self {
        let images = files.into_iter().map(|(path, file, checksums)| Pages { path, file, checksums });
        Self { images: images.collect() }
    }

    /// The parts that it was made of.
    pub fn into_parts(self) -> Vec<PageFile> {
        self.images.into_iter().map(|pages| (pages.path, pages.file, pages.checksums)).collect()
    }

    /// Reads whole pages of the file of an image, from where a [`Run`] says, and compares each with its checksum.
    ///
    /// # Panics
    /// If there is no image of that number.
    pub fn read_at(&self, image: usize, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.images[image].read_pages(offset, bytes)
    }
}

/// The pages of a checkpoint, open for reading through one merged index of its whole chain.
#[derive(Debug)]
pub struct PageReader {
    images: Vec<Pages>,
    containers: BTreeMap<Container, Merged>,
}

impl PageReader {
    /// Opens `pages` and `pages.index` of the directories of a chain, newest first, the full it rests on last (alone for a full), and checks
    /// that they belong together.
    ///
    /// Errors: Io, NotOurs, Version, Corrupt; Corrupt also where an image inherits from a container that the next one does not have, or the
    /// last one inherits at all.
    pub fn open(dirs: &[PathBuf]) -> Result<Self> {
        let mut reader = Self::open_packed(dirs)?;
        reader.unpack()?;
        Ok(reader)
    }

    /// The same, what is compressed left as it is: no run tells of it.
    fn open_packed(dirs: &[PathBuf]) -> Result<Self> {
        if dirs.is_empty() {
            return Err(ImageError::corrupt(Path::new(INDEX_FILE), "a chain of no image has no pages"));
        }
        let mut images = Vec::with_capacity(dirs.len());
        let mut indexes = Vec::with_capacity(dirs.len());
        for dir in dirs {
            let mut index = PageIndex::read(dir)?;
            images.push(Pages::open(dir, std::mem::take(&mut index.checksums))?);
            indexes.push(index);
        }
        let containers = chain::merge(&indexes)
            .map_err(|(image, what)| ImageError::corrupt(&dirs[image].join(INDEX_FILE), what))?;
        if let (Some(oldest), Some(dir)) = (indexes.last(), dirs.last())
            && let Some(one) = oldest.containers.iter().find(|one| one.inherits.is_some())
        {
            let what = format!("{:?} rests on an image that is not there", one.container);
            return Err(ImageError::corrupt(&dir.join(INDEX_FILE), what));
        }
        Ok(Self { images, containers })
    }

    /// The chunks that the checkpoint needs.
    fn chunks(&self) -> BTreeSet<(usize, Chunk)> {
        let spans = self.containers.values().flat_map(|merged| &merged.spans);
        spans.filter_map(packed).collect()
    }

    /// Decodes what is compressed into memory that is one more image of the chain, without a name.
    fn unpack(&mut self) -> Result<()> {
        let chunks = self.chunks();
        if chunks.is_empty() {
            return Ok(());
        }
        let path = PathBuf::from("the unpacked pages");
        let io = |e: nix::errno::Errno| ImageError::io("make a memory file for", &path)(e.into());
        let file = memfd_create(c"ckpt-pages", MFdFlags::MFD_CLOEXEC).map_err(io)?;
        let mut unpacked = Pages { path: path.clone(), file: File::from(file), checksums: Vec::new() };
        let mut places: BTreeMap<(usize, u64), u64> = BTreeMap::new();
        for (image, chunk) in chunks {
            let bytes = self.images[image].chunk(&chunk)?;
            let block = unpacked.checksums.len() as u64;
            unpacked.file.write_all_at(&bytes, block * PAGE_SIZE).map_err(ImageError::io("write", &path))?;
            unpacked.checksums.extend(bytes.chunks_exact(PAGE_SIZE as usize).map(crc32fast::hash));
            places.insert((image, chunk.block), block);
        }
        for span in self.containers.values_mut().flat_map(|merged| &mut merged.spans) {
            if let Store::Packed(chunk) = span.extent.store
                && let Some(block) = places.get(&(span.image, chunk.block))
            {
                span.extent.store = Store::Raw { block: block + u64::from(chunk.skip) };
                span.image = self.images.len();
            }
        }
        self.images.push(unpacked);
        Ok(())
    }

    /// The pages `[first, end)` of a container that the checkpoint has, ascending. What is not told is a hole.
    pub fn runs(&self, container: Container, first: u64, end: u64) -> Vec<Run> {
        let Some(merged) = self.containers.get(&container) else { return Vec::new() };
        chain::range(&merged.spans, first, end).filter_map(|span| Run::of(&span)).collect()
    }

    /// The containers of the checkpoint.
    pub fn containers(&self) -> impl Iterator<Item = Container> + '_ {
        self.containers.keys().copied()
    }

    /// Number of images in the chain.
    pub fn images(&self) -> usize {
        self.images.len()
    }

    /// The file `pages` of an image that a [`Run`] of this reader names, for preadv(2) and mmap(2).
    ///
    /// # Panics
    /// If the number is not below [`PageReader::images`].
    pub fn file(&self, image: usize) -> &File {
        &self.images[image].file
    }

    /// The content of one page as the container shows it; holes are zero bytes. Checks its checksum.
    pub fn page(&self, container: Container, page: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; PAGE_SIZE as usize];
        if let Some(Run { place: Place::File { image, offset }, .. }) =
            self.runs(container, page, page + 1).first()
        {
            self.images[*image].read_block(offset / PAGE_SIZE, &mut bytes)?;
        }
        Ok(bytes)
    }

    /// Reads whole pages of the file `pages` of an image, from where a [`Run`] of this reader says, and compares each with its checksum.
    ///
    /// # Panics
    /// If the number of the image is not below [`PageReader::images`].
    pub fn read_at(&self, image: usize, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.images[image].read_pages(offset, bytes)
    }

    /// Which of `count` pages that two places hold are alike, counted from there: first page and number, ascending. By their
    /// checksums, then by their bytes.
    ///
    /// # Panics
    /// If the number of an image is not below [`PageReader::images`].
    pub fn alike(&self, one: (usize, u64), other: (usize, u64), count: u64) -> Result<Vec<(u64, u64)>> {
        if one == other {
            return Ok(vec![(0, count)]);
        }
        let sum = |(image, offset): (usize, u64), n: u64| {
            self.images[image].checksums.get((offset / PAGE_SIZE + n) as usize)
        };
        let same = |n: u64| sum(one, n).is_some() && sum(one, n) == sum(other, n);
        let (mut alike, mut bytes) = (Vec::<(u64, u64)>::new(), [Vec::new(), Vec::new()]);
        let mut at = 0;
        while at < count {
            let most = count.min(at + ALIKE);
            let Some(first) = (at..most).find(|n| same(*n)) else {
                at = most;
                continue;
            };
            let end = (first..most).find(|n| !same(*n)).unwrap_or(most);
            for (bytes, (image, offset)) in bytes.iter_mut().zip([one, other]) {
                bytes.resize(((end - first) * PAGE_SIZE) as usize, 0);
                let Pages { file, path, .. } = &self.images[image];
                let from = offset + first * PAGE_SIZE;
                file.read_exact_at(bytes, from).map_err(ImageError::io("read", path))?;
            }
            let [left, right] = &bytes;
            let page = PAGE_SIZE as usize;
            for (n, (a, b)) in (first..end).zip(left.chunks_exact(page).zip(right.chunks_exact(page))) {
                match alike.last_mut() {
                    _ if a != b => {}
                    Some(last) if last.0 + last.1 == n => last.1 += 1,
                    _ => alike.push((n, 1)),
                }
            }
            at = end;
        }
        Ok(alike)
    }

    /// Only the files, once more: what is where, others know. Errors: Io, where there are too many descriptors.
    pub fn files(&self) -> Result<PageFiles> {
        let again = |pages: &Pages| {
            let file = pages.file.try_clone().map_err(ImageError::io("dup", &pages.path))?;
            Ok(Pages { path: pages.path.clone(), file, checksums: pages.checksums.clone() })
        };
        Ok(PageFiles { images: self.images.iter().map(again).collect::<Result<_>>()? })
    }

    /// Reads the files `pages` of the whole chain and compares every block with its checksum; `progress` gets the bytes done after each part and
    /// ends it by `false` (then `Ok(false)`).
    pub fn verify(&self, mut progress: impl FnMut(u64) -> bool) -> Result<bool> {
        let mut before = 0;
        for pages in &self.images {
            if !pages.verify(|done| progress(before + done))? {
                return Ok(false);
            }
            before += pages.bytes();
        }
        Ok(true)
    }

    /// Bytes of all files `pages` of the chain.
    pub fn bytes(&self) -> u64 {
        self.images.iter().map(Pages::bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::{ObjectId, SpaceId};
    use crate::{PAGES_FILE, PagesWriter, tests::temp_dir};
    use proptest::prelude::*;

    const PAGE: usize = PAGE_SIZE as usize;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        /// What was stored last is what is read, whatever the order; zero pages take no space.
        #[test]
        fn pages_read_back(writes in proptest::collection::vec((0..2u32, 0..40u64, proptest::collection::vec(0..4u8, 1..10)), 0..20)) {
            let dir = temp_dir("pages");
            let mut writer = PagesWriter::create(&dir).unwrap();
            let mut plain = vec![vec![None; 60]; 2];
            let mut stored = 0;
            for (space, first, fills) in &writes {
                let data: Vec<u8> = fills.iter().flat_map(|fill| vec![*fill; PAGE]).collect();
                stored += writer.append(Container::Space(SpaceId(*space)), *first, &data).unwrap();
                for (n, fill) in fills.iter().enumerate() {
                    plain[*space as usize][*first as usize + n] = Some(*fill);
                }
            }
            let summary = writer.finish().unwrap();
            prop_assert_eq!(summary.pages_written, stored);
            let nonzero = writes.iter().flat_map(|(_, _, fills)| fills).filter(|fill| **fill != 0).count();
            prop_assert_eq!(stored, nonzero as u64);
            let reader = PageReader::open(std::slice::from_ref(&dir)).unwrap();
            for space in 0..2u32 {
                let container = Container::Space(SpaceId(space));
                let mut told = [false; 60];
                for run in reader.runs(container, 0, 60) {
                    (run.first..run.first + run.count).for_each(|page| told[page as usize] = true);
                }
                for page in 0..60 {
                    let expected = plain[space as usize][page as usize];
                    prop_assert_eq!(told[page as usize], expected.is_some());
                    prop_assert_eq!(reader.page(container, page).unwrap(), vec![expected.unwrap_or(0); PAGE]);
                }
            }
            prop_assert!(reader.verify(|_| true).unwrap());
            std::fs::remove_dir_all(&dir).unwrap();
        }
    }

    /// No byte of what pages are read from can change without an error.
    #[test]
    fn damage_of_any_byte_is_an_error() {
        for codec in [None, Some(crate::Codec::Lz4), Some(crate::Codec::Zstd)] {
            let (full, top) = (temp_dir("bytes"), temp_dir("bytes"));
            let space = Container::Space(SpaceId(1));
            let mut writer = PagesWriter::create(&full).unwrap();
            writer.compress(codec);
            writer.append(space, 5, &[7; 9 * PAGE]).unwrap();
            writer.finish().unwrap();
            let mut writer = PagesWriter::create(&top).unwrap();
            writer.compress(codec);
            writer.container(space, Some(space));
            writer.parent(space, 5, 9);
            writer.append(space, 6, &[8; 3 * PAGE]).unwrap();
            writer.finish().unwrap();
            let dirs = [top, full];
            assert!(super::verify(&dirs, |_, _| true).unwrap());
            let reader = PageReader::open(&dirs).unwrap();
            let shown = (5..14).map(|page| reader.page(space, page).unwrap()[9]).collect::<Vec<_>>();
            assert_eq!(shown, [7, 8, 8, 8, 7, 7, 7, 7, 7]);
            for path in dirs.iter().flat_map(|dir| [dir.join(PAGES_FILE), dir.join(INDEX_FILE)]) {
                let sound = std::fs::read(&path).unwrap();
                let step = (sound.len() / 200).max(1);
                for at in (0..sound.len()).step_by(step) {
                    let mut damaged = sound.clone();
                    damaged[at] ^= 1 << (at % 8);
                    std::fs::write(&path, &damaged).unwrap();
                    let seen = super::verify(&dirs, |_, _| true).is_err();
                    assert!(seen, "{codec:?}: byte {at} of {}", path.display());
                    // Whatever it is opened for: an error or nothing wrong that is checked, never a panic.
                    if let Ok(reader) = PageReader::open(&dirs) {
                        (5..14).for_each(|page| drop(reader.page(space, page)));
                    }
                }
                std::fs::write(&path, &sound).unwrap();
            }
        }
    }

    #[test]
    fn damage_is_seen() {
        let dir = temp_dir("damage");
        let object = Container::Object(ObjectId(3));
        let mut writer = PagesWriter::create(&dir).unwrap();
        writer.append(object, 5, &[7; 3 * PAGE]).unwrap();
        assert!(writer.append(object, 5, &[7; PAGE + 1]).is_err());
        writer.zero(object, 6, 1);
        writer.finish().unwrap();
        let path = dir.join(PAGES_FILE);
        let reader = PageReader::open(std::slice::from_ref(&dir)).unwrap();
        assert_eq!(reader.runs(object, 0, 100).len(), 3);
        assert!(reader.verify(|_| true).unwrap());
        assert!(!reader.verify(|_| false).unwrap());

        let mut bytes = std::fs::read(&path).unwrap();
        bytes[2 * PAGE + 9] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert!(matches!(reader.verify(|_| true), Err(ImageError::Corrupt { .. })));
        assert!(reader.page(object, 5).is_ok());
        assert!(reader.page(object, 7).is_ok());
        bytes.truncate(3 * PAGE);
        std::fs::write(&path, &bytes).unwrap();
        assert!(matches!(PageReader::open(std::slice::from_ref(&dir)), Err(ImageError::Corrupt { .. })));
    }
}
