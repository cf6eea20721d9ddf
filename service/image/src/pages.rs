//! The file `pages`: page contents, append-only.
//!
//! ```text
//! block 0    "ckptPAGE", version u32 = 1, the rest zero: 4096 bytes
//! block 1…   one page each, or a chunk of compressed pages in several, in the order they were stored; which is which tells `pages.index`
//! ```
//! Blocks are page-aligned, so that they can be mapped (lazy restore) and shared between images (reflink).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{IoSlice, Write};
use std::path::{Path, PathBuf};

use crate::frame::create;
use crate::pack::{CHUNK_PAGES, pack};
use crate::{
    Chunk, Codec, Container, ContainerIndex, Digest, Extent, ImageError, PAGE_SIZE, PageIndex, PageMap,
    Result, Store,
};

/// Its name in the checkpoint's directory.
pub const PAGES_FILE: &str = "pages";

/// Magic of block 0.
pub(crate) const MAGIC: &[u8; 8] = b"ckptPAGE";
/// Version in block 0.
pub(crate) const VERSION: u32 = 1;

const PAGE: usize = PAGE_SIZE as usize;
static ZEROES: [u8; PAGE] = [0; PAGE];
/// Slices given to one writev(2), IOV_MAX.
const MAX_SLICES: usize = 1024;
/// Bytes gathered for one write.
const LARGE: usize = 8 << 20;

/// What a finished writer tells for the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PagesSummary {
    /// Pages whose content is in `pages`; zero pages are not counted.
    pub pages_written: u64,
    /// Size of `pages`, without a digest: its blocks are covered by the checksums in the index.
    pub pages: Digest,
    /// Size and digest of `pages.index`.
    pub index: Digest,
}

/// Writes `pages` and, at the end, `pages.index`.
#[derive(Debug)]
pub struct PagesWriter {
    dir: PathBuf,
    path: PathBuf,
    file: File,
    containers: BTreeMap<Container, (Option<Container>, PageMap)>,
    checksums: Vec<u32>,
    codec: Option<Codec>,
    stored: u64,
}

impl PagesWriter {
    /// Creates `pages` in the directory of a checkpoint. Errors: Io (EEXIST where there is one).
    pub fn create(dir: &Path) -> Result<Self> {
        let path = dir.join(PAGES_FILE);
        let mut file = create(&path)?;
        let header = header_block();
        file.write_all(&header).map_err(ImageError::io("write", &path))?;
        let checksums = vec![crc32fast::hash(&header)];
        Ok(Self {
            dir: dir.to_path_buf(),
            path,
            file,
            containers: BTreeMap::new(),
            checksums,
            codec: None,
            stored: 0,
        })
    }

    /// Compresses the pages that are stored from now on, in chunks of up to 64 that are stored together.
    pub fn compress(&mut self, codec: Option<Codec>) {
        self.codec = codec;
    }

    /// Makes a container known, also one that gets no page. In an incremental `inherits` is the container of the parent image that has the
    /// pages which [`PagesWriter::parent`] tells.
    pub fn container(&mut self, container: Container, inherits: Option<Container>) {
        self.containers.entry(container).or_default().0 = inherits;
    }

    /// Stores the pages from page number `first` on, `data.len() / 4096` of them; pages of zero bytes take no space. A page that
    /// was stored before is replaced. Gives the number of pages whose content was written.
    ///
    /// Errors: Io (ENOSPC: see [`ImageError::is_no_space`]). `data` must be whole pages, else Encode.
    pub fn append(&mut self, container: Container, first: u64, data: &[u8]) -> Result<u64> {
        self.append_all([(container, first, data)])
    }

    /// [`PagesWriter::append`] of many pieces (container, first page, bytes), gathered into large writes.
    pub fn append_all<'a>(
        &mut self,
        pieces: impl IntoIterator<Item = (Container, u64, &'a [u8])>,
    ) -> Result<u64> {
        let before = self.stored;
        let mut slices: Vec<Cow<'_, [u8]>> = Vec::with_capacity(MAX_SLICES);
        let mut bytes = 0;
        for (container, first, data) in pieces {
            if !data.len().is_multiple_of(PAGE) {
                let what = format!("{} bytes are not whole pages", data.len());
                return Err(ImageError::Encode { path: self.path.clone(), what });
            }
            self.index(container, first, data, &mut slices);
            bytes += data.len();
            if bytes >= LARGE || slices.len() >= MAX_SLICES {
                self.write(&slices)?;
                slices.clear();
                bytes = 0;
            }
        }
        self.write(&slices)?;
        Ok(self.stored - before)
    }

    /// Enters pages into index and checksums as if `slices`, to which it adds those that are not zero, were written already.
    fn index<'a>(
        &mut self,
        container: Container,
        first: u64,
        data: &'a [u8],
        slices: &mut Vec<Cow<'a, [u8]>>,
    ) {
        let mut at = 0;
        while at < data.len() {
            let zero = data[at..at + PAGE] == ZEROES;
            let mut end = at;
            while end < data.len() && (data[end..end + PAGE] == ZEROES) == zero {
                end += PAGE;
            }
            let (page, run) = (first + (at / PAGE) as u64, &data[at..end]);
            match self.codec {
                _ if zero => self.zero(container, page, (run.len() / PAGE) as u64),
                None => self.raw(container, page, run, slices),
                Some(codec) => {
                    for (n, part) in run.chunks(CHUNK_PAGES as usize * PAGE).enumerate() {
                        let page = page + n as u64 * CHUNK_PAGES;
                        match pack(codec, part) {
                            Some(packed) => {
                                self.packed(container, page, part.len() / PAGE, codec, packed, slices)
                            }
                            None => self.raw(container, page, part, slices),
                        }
                    }
                }
            }
            at = end;
        }
    }

    /// Pages as they are.
    fn raw<'a>(&mut self, container: Container, first: u64, data: &'a [u8], slices: &mut Vec<Cow<'a, [u8]>>) {
        let block = self.checksums.len() as u64;
        self.checksums.extend(data.chunks_exact(PAGE).map(crc32fast::hash));
        let count = (data.len() / PAGE) as u64;
        self.stored += count;
        self.put(container, Extent { first, count, store: Store::Raw { block } });
        slices.push(Cow::Borrowed(data));
    }

    /// So many pages as one chunk.
    fn packed(
        &mut self,
        container: Container,
        first: u64,
        pages: usize,
        codec: Codec,
        mut packed: Vec<u8>,
        slices: &mut Vec<Cow<'_, [u8]>>,
    ) {
        let block = self.checksums.len() as u64;
        let chunk = Chunk { block, bytes: packed.len() as u32, pages: pages as u8, skip: 0, codec };
        packed.resize(packed.len().next_multiple_of(PAGE), 0);
        self.checksums.extend(packed.chunks_exact(PAGE).map(crc32fast::hash));
        self.stored += pages as u64;
        self.put(container, Extent { first, count: pages as u64, store: Store::Packed(chunk) });
        slices.push(Cow::Owned(packed));
    }

    /// Records pages that are known to be zero, without their bytes.
    pub fn zero(&mut self, container: Container, first: u64, count: u64) {
        self.put(container, Extent { first, count, store: Store::Zero });
    }

    /// Records pages that are as the container of the parent has them, which [`PagesWriter::container`] names. A page that was stored
    /// before is replaced.
    pub fn parent(&mut self, container: Container, first: u64, count: u64) {
        self.put(container, Extent { first, count, store: Store::Parent });
    }

    /// Forgets pages that were stored: they become holes.
    pub fn forget(&mut self, container: Container, first: u64, count: u64) {
        if let Some((_, map)) = self.containers.get_mut(&container) {
            map.cut(first, first + count);
        }
    }

    /// Gives everything that was stored for one container to another one, which must not be known yet; `None`: forgets it.
    pub fn rename(&mut self, from: Container, to: Option<Container>) {
        if let Some(stored) = self.containers.remove(&from)
            && let Some(to) = to
        {
            self.containers.insert(to, stored);
        }
    }

    /// Waits until the disk has what was stored so far. Errors: Io.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(ImageError::io("fdatasync", &self.path))
    }

    /// Bytes of `pages` so far.
    pub fn bytes(&self) -> u64 {
        self.checksums.len() as u64 * PAGE_SIZE
    }

    fn put(&mut self, container: Container, extent: Extent) {
        self.containers.entry(container).or_default().1.insert(extent);
    }

    fn write(&mut self, slices: &[Cow<'_, [u8]>]) -> Result<()> {
        let mut slices: Vec<IoSlice<'_>> = slices.iter().map(|slice| IoSlice::new(slice)).collect();
        let mut left = &mut slices[..];
        while !left.is_empty() {
            let some = left.len().min(MAX_SLICES);
            match self.file.write_vectored(&left[..some]) {
                Ok(0) => {
                    let source = std::io::ErrorKind::WriteZero.into();
                    return Err(ImageError::Io { op: "write", path: self.path.clone(), source });
                }
                Ok(n) => IoSlice::advance_slices(&mut left, n),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(source) => return Err(ImageError::Io { op: "write", path: self.path.clone(), source }),
            }
        }
        Ok(())
    }

    /// Fsyncs `pages`, writes and fsyncs `pages.index`. The directory is fsynced by the manifest's commit.
    ///
    /// Errors: Io; Encode where a container has pages of a parent but inherits from none.
    pub fn finish(self) -> Result<PagesSummary> {
        self.file.sync_all().map_err(ImageError::io("fsync", &self.path))?;
        let containers = self
            .containers
            .into_iter()
            .map(|(container, (inherits, map))| ContainerIndex {
                container,
                inherits,
                extents: map.iter().copied().collect(),
            })
            .collect();
        let index = PageIndex { containers, checksums: self.checksums };
        Ok(PagesSummary {
            pages_written: self.stored,
            pages: Digest { bytes: index.pages_bytes(), blake3: None },
            index: index.write(&self.dir)?,
        })
    }
}

pub(crate) fn header_block() -> [u8; PAGE] {
    let mut header = ZEROES;
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header
}
