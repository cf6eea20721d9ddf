//! The file `pages.index`: which page of which container lies in which block of `pages`, and a checksum of every block.
//!
//! ```text
//! frame header "ckptINDX" (frame.rs)
//!   0       blocks    u64, size of `pages` in blocks of 4 KiB, the first included
//!   8       crc32[]   u32 each: CRC-32 (IEEE) of block n of `pages`; independent of what the block holds,
//!                     so that blocks can be moved into another image (reflink) with their checksums, unread
//!   8+4·n   postcard of Vec<ContainerIndex>:
//!             container         Space(SpaceId) | Object(ObjectId) | File(FileId)
//!             inherits          an incremental: the parent image's container that has the pages told as Parent here
//!             extents[]         first page, count, Zero | Parent | Raw{block} | Packed(Chunk); ascending, none overlapping
//! BLAKE3
//! ```
//! A page is a page-aligned address divided by 4096 in a space, an offset divided by 4096 in an object or a file.
//! Every page that exists is told. *Zero* is a page full of zero bytes; *Parent* is what the container `inherits` of the parent image
//! tells of the page with the same number. A page that is not told, here or by the parent, is a hole: what lies below it (the file of a
//! private file mapping, nothing) is seen. *Packed* pages are part of a chunk
//! of up to 64 pages that were compressed together. New ways to store pages are new variants at the end of [`Store`], with a new version. Version 1 had no *Parent*; its full images read the same.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::Path;

use crate::frame::{Kind, u32_at};
use crate::pack::CHUNK_PAGES;
use crate::records::{FileId, ObjectId, SpaceId};
use crate::{Digest, ImageError, PAGE_SIZE, Result};

/// Its name in the checkpoint's directory.
pub const INDEX_FILE: &str = "pages.index";

const KIND: Kind = Kind { magic: b"ckptINDX", version: 2, oldest: 1, name: "page index", limit: 4 << 30 };

/// The most pages a container may span: 2^52, all of a 64-bit address space.
const MAX_PAGE: u64 = 1 << 52;

/// What pages belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Container {
    /// An address space: private pages, by address.
    Space(SpaceId),
    /// A shared memory object, by offset.
    Object(ObjectId),
    /// A file without a name, by offset.
    File(FileId),
}

/// Where pages are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Store {
    /// Zero bytes.
    Zero,
    /// As in the container that this one inherits from, in the parent image, same page number.
    Parent,
    /// Uncompressed, one page a block, from this block of `pages` on.
    Raw {
        /// Block number; block 0 is the file's header.
        block: u64,
    },
    /// Compressed, in a chunk of several.
    Packed(Chunk),
}

/// How pages are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Codec {
    /// The block format of LZ4, without a size before it.
    Lz4,
    /// One frame of Zstandard (RFC 8878).
    Zstd,
}

/// Pages that were compressed together, and which of them are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Chunk {
    /// First block; the last one is filled up with zero bytes.
    pub block: u64,
    /// Bytes of the compressed content.
    pub bytes: u32,
    /// Pages in it, 1 to 64.
    pub pages: u8,
    /// Pages in it before the first that is meant.
    pub skip: u8,
    /// By what.
    pub codec: Codec,
}

impl Chunk {
    /// Blocks that it occupies.
    pub fn blocks(&self) -> u64 {
        u64::from(self.bytes).div_ceil(PAGE_SIZE)
    }

    /// What is wrong with it as the place of `count` pages in a file of so many blocks, if anything.
    fn fits(&self, count: u64, blocks: u64) -> bool {
        let pages = u64::from(self.pages);
        self.block > 0
            && self.bytes > 0
            && pages <= CHUNK_PAGES
            && self.blocks() < pages.max(2)
            && u64::from(self.skip) + count <= pages
            && self.block.checked_add(self.blocks()).is_some_and(|end| end <= blocks)
    }
}

/// Consecutive pages that are stored in the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// First page.
    pub first: u64,
    /// Number of pages, at least 1.
    pub count: u64,
    /// Where they are.
    pub store: Store,
}

/// The pages of one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerIndex {
    /// The container.
    pub container: Container,
    /// In an incremental: the container of the parent image that has the pages told as [`Store::Parent`]; may be another one.
    pub inherits: Option<Container>,
    /// The pages that exist, ascending, none overlapping.
    pub extents: Vec<Extent>,
}

/// The whole index of one image.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PageIndex {
    /// The containers, each at most once.
    pub containers: Vec<ContainerIndex>,
    /// CRC-32 of every block of `pages`.
    pub checksums: Vec<u32>,
}

impl PageIndex {
    /// Writes and fsyncs `pages.index`. Gives its size and digest. Errors: Io, TooLarge; Encode where it contradicts itself.
    pub fn write(&self, dir: &Path) -> Result<Digest> {
        let path = dir.join(INDEX_FILE);
        self.check().map_err(|what| ImageError::Encode { path: path.clone(), what })?;
        let mut payload = Vec::with_capacity(8 + 4 * self.checksums.len());
        payload.extend((self.checksums.len() as u64).to_le_bytes());
        self.checksums.iter().for_each(|crc| payload.extend(crc.to_le_bytes()));
        let payload = postcard::to_extend(&self.containers, payload)
            .map_err(|e| ImageError::Encode { path: path.clone(), what: e.to_string() })?;
        KIND.write(&path, &payload)
    }

    /// Reads and checks `pages.index`: after this every extent lies inside `pages` (as the index tells its size) and no two overlap.
    ///
    /// Errors: Io, NotOurs, Version, TooLarge, Corrupt.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(INDEX_FILE);
        Self::decode(&path, &KIND.read(&path)?)
    }

    fn decode(path: &Path, payload: &[u8]) -> Result<Self> {
        let cut = || ImageError::corrupt(path, "it ends too early");
        let (blocks, rest) = payload.split_at_checked(8).ok_or_else(cut)?;
        let blocks = u64::from_le_bytes(blocks.try_into().unwrap_or_default());
        let sums = usize::try_from(blocks).ok().and_then(|n| n.checked_mul(4)).ok_or_else(cut)?;
        let (sums, records) = rest.split_at_checked(sums).ok_or_else(cut)?;
        let checksums = sums.chunks_exact(4).map(|crc| u32_at(crc, 0)).collect();
        let containers = match postcard::take_from_bytes(records) {
            Ok((containers, [])) => containers,
            Ok(_) => return Err(ImageError::corrupt(path, "there is more after the records")),
            Err(e) => {
                return Err(ImageError::corrupt(path, format!("its records cannot be decoded ({e})")));
            }
        };
        let index = Self { containers, checksums };
        index.check().map_err(|what| ImageError::corrupt(path, what))?;
        Ok(index)
    }

    /// What is wrong with it, if anything.
    fn check(&self) -> std::result::Result<(), String> {
        let mut seen = BTreeSet::new();
        for one in &self.containers {
            let container = one.container;
            if !seen.insert(container) {
                return Err(format!("{container:?} is told twice"));
            }
            let mut end = 0;
            for extent in &one.extents {
                if extent.count == 0
                    || extent.first < end
                    || extent.first > MAX_PAGE
                    || extent.count > MAX_PAGE
                {
                    return Err(format!("{container:?} has pages out of order at {}", extent.first));
                }
                end = extent.first + extent.count;
                if extent.store == Store::Parent && one.inherits.is_none() {
                    return Err(format!("{container:?} has pages of a parent but inherits from none"));
                }
                let outside =
                    |e: &Extent| Err(format!("{container:?} has pages outside of `pages` at {}", e.first));
                if let Store::Packed(chunk) = extent.store
                    && !chunk.fits(extent.count, self.checksums.len() as u64)
                {
                    return outside(extent);
                }
                if let Store::Raw { block } = extent.store {
                    let last = block.checked_add(extent.count);
                    if block == 0 || last.is_none_or(|last| last > self.checksums.len() as u64) {
                        return outside(extent);
                    }
                }
            }
        }
        Ok(())
    }

    /// Size that the file `pages` must have, in bytes.
    pub fn pages_bytes(&self) -> u64 {
        self.checksums.len() as u64 * PAGE_SIZE
    }

    /// The pages of one container, `None` where the image has none.
    pub fn container(&self, container: Container) -> Option<&ContainerIndex> {
        self.containers.iter().find(|one| one.container == container)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> PageIndex {
        let raw = |first, count, block| Extent { first, count, store: Store::Raw { block } };
        PageIndex {
            containers: vec![
                ContainerIndex {
                    container: Container::Space(SpaceId(0)),
                    inherits: None,
                    extents: vec![
                        raw(0x7f_0000, 2, 1),
                        Extent { first: 0x7f_0002, count: 1, store: Store::Zero },
                        raw(0x7f_0003, 1, 3),
                    ],
                },
                ContainerIndex {
                    container: Container::Object(ObjectId(7)),
                    inherits: Some(Container::Object(ObjectId(3))),
                    extents: vec![Extent { first: 0, count: 9, store: Store::Parent }],
                },
            ],
            checksums: vec![1, 2, 3, 4],
        }
    }

    #[test]
    fn an_index_reads_back() {
        let dir = crate::tests::temp_dir("index");
        sample().write(&dir).unwrap();
        assert_eq!(PageIndex::read(&dir).unwrap(), sample());
        assert_eq!(sample().pages_bytes(), 4 * 4096);
    }

    #[test]
    fn an_index_that_contradicts_itself_is_refused() {
        let refuse = |change: fn(&mut PageIndex)| {
            let mut index = sample();
            change(&mut index);
            assert!(index.check().is_err(), "{index:?}");
        };
        refuse(|i| i.containers[0].extents[0].count = 3);
        refuse(|i| i.containers[0].extents[0].count = 0);
        refuse(|i| i.containers[0].extents[0].count = u64::MAX);
        refuse(|i| i.containers[0].extents[2].store = Store::Raw { block: 4 });
        refuse(|i| i.containers[0].extents[2].store = Store::Raw { block: 0 });
        refuse(|i| i.containers[0].extents[2].store = Store::Raw { block: u64::MAX });
        refuse(|i| i.containers[0].extents.swap(0, 1));
        refuse(|i| i.containers[1].inherits = None);
        refuse(|i| i.containers[1].container = Container::Space(SpaceId(0)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(blocks in 0..20u64, bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut payload = blocks.to_le_bytes().to_vec();
            payload.extend(&bytes);
            let _ = PageIndex::decode(Path::new("pages.index"), &payload);
            let _ = PageIndex::decode(Path::new("pages.index"), &bytes);
        }
    }
}
