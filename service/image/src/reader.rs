use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::frame::u32_at;
use crate::pages::{MAGIC, VERSION, header_block};
use crate::{Container, ImageError, PAGE_SIZE, PAGES_FILE, PageIndex, PageMap, Result, Store};

/// Where a run of pages is to be read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// They are zero bytes.
    Zero,
    /// In `pages`, uncompressed, from this offset in bytes on.
    File {
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

/// The pages of one full image, open for reading.
#[derive(Debug)]
pub struct PageReader {
    path: PathBuf,
    file: File,
    checksums: Vec<u32>,
    containers: BTreeMap<Container, PageMap>,
}

impl PageReader {
    /// Opens `pages` and `pages.index` of a checkpoint's directory and checks that they belong together.
    ///
    /// Errors: Io, NotOurs, Version, Corrupt; Corrupt also where the image is an incremental, which cannot be read alone.
    pub fn open(dir: &Path) -> Result<Self> {
        let index = PageIndex::read(dir)?;
        let path = dir.join(PAGES_FILE);
        let file = File::open(&path).map_err(ImageError::io("open", &path))?;
        let size = file.metadata().map_err(ImageError::io("stat", &path))?.len();
        if size != index.pages_bytes() {
            return Err(ImageError::corrupt(
                &path,
                format!("it has {size} bytes, its index tells {}", index.pages_bytes()),
            ));
        }
        let mut header = header_block();
        file.read_exact_at(&mut header, 0).map_err(ImageError::io("read", &path))?;
        if header[..8] != MAGIC[..] {
            return Err(ImageError::NotOurs { path, kind: "pages" });
        }
        let found = u32_at(&header, 8);
        if found != VERSION {
            return Err(ImageError::Version { path, found, supported: VERSION });
        }
        let mut containers: BTreeMap<Container, PageMap> = BTreeMap::new();
        for one in index.containers {
            if one.inherits.is_some() {
                return Err(ImageError::corrupt(
                    &path,
                    "it is an incremental and was opened without its parent",
                ));
            }
            let map = containers.entry(one.container).or_default();
            one.extents.into_iter().for_each(|extent| map.insert(extent));
        }
        Ok(Self { path, file, checksums: index.checksums, containers })
    }

    /// The pages `[first, end)` of a container that the image has, ascending. What is not told is a hole.
    pub fn runs(&self, container: Container, first: u64, end: u64) -> Vec<Run> {
        let Some(map) = self.containers.get(&container) else { return Vec::new() };
        map.range(first, end)
            .filter_map(|extent| {
                let place = match extent.store {
                    Store::Zero => Place::Zero,
                    Store::Hole => return None,
                    Store::Raw { block } => Place::File { offset: block * PAGE_SIZE },
                };
                Some(Run { first: extent.first, count: extent.count, place })
            })
            .collect()
    }

    /// The containers that have pages.
    pub fn containers(&self) -> impl Iterator<Item = Container> + '_ {
        self.containers.keys().copied()
    }

    /// The file `pages`, for preadv(2) and mmap(2).
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The content of one page as the container shows it; holes are zero bytes. Checks its checksum.
    pub fn page(&self, container: Container, page: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; PAGE_SIZE as usize];
        if let Some(Run { place: Place::File { offset }, .. }) = self.runs(container, page, page + 1).first()
        {
            self.read_block(offset / PAGE_SIZE, &mut bytes)?;
        }
        Ok(bytes)
    }

    fn read_block(&self, block: u64, bytes: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(bytes, block * PAGE_SIZE).map_err(ImageError::io("read", &self.path))?;
        self.check_block(block, bytes)
    }

    fn check_block(&self, block: u64, bytes: &[u8]) -> Result<()> {
        if self.checksums.get(block as usize) != Some(&crc32fast::hash(bytes)) {
            return Err(ImageError::corrupt(&self.path, format!("block {block} does not fit its checksum")));
        }
        Ok(())
    }

    /// Reads the whole file and compares every block with its checksum; `progress` gets the bytes done after each part and
    /// ends it by `false` (then `Ok(false)`).
    pub fn verify(&self, mut progress: impl FnMut(u64) -> bool) -> Result<bool> {
        const PART: u64 = 256;
        let mut bytes = vec![0; (PART * PAGE_SIZE) as usize];
        let blocks = self.checksums.len() as u64;
        let mut block = 0;
        while block < blocks {
            let count = PART.min(blocks - block);
            let part = &mut bytes[..(count * PAGE_SIZE) as usize];
            self.file.read_exact_at(part, block * PAGE_SIZE).map_err(ImageError::io("read", &self.path))?;
            for (n, page) in part.chunks_exact(PAGE_SIZE as usize).enumerate() {
                self.check_block(block + n as u64, page)?;
            }
            block += count;
            if !progress(block * PAGE_SIZE) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::{ObjectId, SpaceId};
    use crate::{PagesWriter, tests::temp_dir};
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
            let reader = PageReader::open(&dir).unwrap();
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

    #[test]
    fn damage_is_seen() {
        let dir = temp_dir("damage");
        let object = Container::Object(ObjectId(3));
        let mut writer = PagesWriter::create(&dir).unwrap();
        writer.append(object, 5, &[7; 3 * PAGE]).unwrap();
        assert!(writer.append(object, 5, &[7; PAGE + 1]).is_err());
        writer.hole(object, 6, 1);
        writer.finish().unwrap();
        let path = dir.join(PAGES_FILE);
        let reader = PageReader::open(&dir).unwrap();
        assert_eq!(reader.runs(object, 0, 100).len(), 2);
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
        assert!(matches!(PageReader::open(&dir), Err(ImageError::Corrupt { .. })));
    }
}
