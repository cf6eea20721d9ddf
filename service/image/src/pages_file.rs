//! The file `pages` of an image, open for reading.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::frame::u32_at;
use crate::pack::unpack;
use crate::pages::{MAGIC, VERSION, header_block};
use crate::{Chunk, ImageError, PAGE_SIZE, PAGES_FILE, Result};

/// The file `pages` of one image of a chain.
#[derive(Debug)]
pub(crate) struct Pages {
    pub path: PathBuf,
    pub file: File,
    pub checksums: Vec<u32>,
}

impl Pages {
    /// Opens the file in a checkpoint's directory, whose index tells these checksums.
    pub fn open(dir: &Path, checksums: Vec<u32>) -> Result<Self> {
        let path = dir.join(PAGES_FILE);
        let file = File::open(&path).map_err(ImageError::io("open", &path))?;
        let size = file.metadata().map_err(ImageError::io("stat", &path))?.len();
        let pages = Self { path, file, checksums };
        if size != pages.bytes() {
            let what = format!("it has {size} bytes, its index tells {}", pages.bytes());
            return Err(ImageError::corrupt(&pages.path, what));
        }
        let mut header = header_block();
        pages.file.read_exact_at(&mut header, 0).map_err(ImageError::io("read", &pages.path))?;
        if header[..8] != MAGIC[..] {
            return Err(ImageError::NotOurs { path: pages.path, kind: "pages" });
        }
        let found = u32_at(&header, 8);
        if found != VERSION {
            return Err(ImageError::Version { path: pages.path, found, supported: VERSION });
        }
        Ok(pages)
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> u64 {
        self.checksums.len() as u64 * PAGE_SIZE
    }

    /// Reads whole pages from a byte offset on, each compared with its checksum.
    pub fn read_pages(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(bytes, offset).map_err(ImageError::io("read", &self.path))?;
        for (n, page) in bytes.chunks_exact(PAGE_SIZE as usize).enumerate() {
            self.check_block(offset / PAGE_SIZE + n as u64, page)?;
        }
        Ok(())
    }

    /// Reads one block, compared with its checksum.
    pub fn read_block(&self, block: u64, bytes: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(bytes, block * PAGE_SIZE).map_err(ImageError::io("read", &self.path))?;
        self.check_block(block, bytes)
    }

    fn check_block(&self, block: u64, bytes: &[u8]) -> Result<()> {
        if self.checksums.get(block as usize) != Some(&crc32fast::hash(bytes)) {
            return Err(ImageError::corrupt(&self.path, format!("block {block} does not fit its checksum")));
        }
        Ok(())
    }

    /// The pages of a chunk, its blocks compared with their checksums.
    pub fn chunk(&self, chunk: &Chunk) -> Result<Vec<u8>> {
        let mut packed = vec![0; (chunk.blocks() * PAGE_SIZE) as usize];
        for (n, block) in packed.chunks_exact_mut(PAGE_SIZE as usize).enumerate() {
            self.read_block(chunk.block + n as u64, block)?;
        }
        packed.truncate(chunk.bytes as usize);
        unpack(chunk.codec, &packed, u64::from(chunk.pages)).map_err(|what| {
            ImageError::corrupt(
                &self.path,
                format!("the chunk at block {} cannot be unpacked: {what}", chunk.block),
            )
        })
    }

    /// Compares every block with its checksum; `progress` gets the bytes done and ends it by `false` (then `Ok(false)`).
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
