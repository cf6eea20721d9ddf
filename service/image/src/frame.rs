//! The frame around every binary file: told apart and checked before anything in it is decoded.
//!
//! ```text
//!  0        magic    8 bytes
//!  8        version  u32, little endian as all numbers
//! 12        flags    u32, 0
//! 16        length   u64, bytes of the payload
//! 24        reserved u64, 0
//! 32        payload
//! 32+length BLAKE3 of all before it, 32 bytes; the file ends here
//! ```

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;

use crate::{Digest, ImageError, Result};

/// Bytes before the payload.
pub(crate) const HEADER: usize = 32;
/// Bytes after the payload.
const TRAILER: usize = 32;

/// One kind of framed file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind {
    pub magic: &'static [u8; 8],
    /// What is written, and the newest that is read.
    pub version: u32,
    /// The oldest that is read: its payload means the same in all versions from it on.
    pub oldest: u32,
    pub name: &'static str,
    /// The largest payload that is read or written.
    pub limit: u64,
}

impl Kind {
    pub(crate) fn header(self, length: u64) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(self.magic);
        header[8..12].copy_from_slice(&self.version.to_le_bytes());
        header[16..24].copy_from_slice(&length.to_le_bytes());
        header
    }

    /// The payload length that a header tells, after a look at magic, version and limit.
    pub(crate) fn parse_header(self, path: &Path, header: &[u8]) -> Result<u64> {
        if header.len() < HEADER || header[..8] != self.magic[..] {
            return Err(ImageError::NotOurs { path: path.to_path_buf(), kind: self.name });
        }
        let version = u32_at(header, 8);
        if version < self.oldest || version > self.version {
            return Err(ImageError::Version {
                path: path.to_path_buf(),
                found: version,
                supported: self.version,
            });
        }
        if header[12..16] != [0; 4] || header[24..32] != [0; 8] {
            return Err(ImageError::corrupt(path, "reserved header bytes are set"));
        }
        let length = u64::from_le_bytes(header[16..24].try_into().unwrap_or_default());
        if length > self.limit {
            return Err(ImageError::TooLarge { path: path.to_path_buf(), found: length, limit: self.limit });
        }
        Ok(length)
    }

    /// Writes and fsyncs a new file. Gives its size and the BLAKE3 of all its bytes.
    pub(crate) fn write(self, path: &Path, payload: &[u8]) -> Result<Digest> {
        if payload.len() as u64 > self.limit {
            return Err(ImageError::TooLarge {
                path: path.to_path_buf(),
                found: payload.len() as u64,
                limit: self.limit,
            });
        }
        let header = self.header(payload.len() as u64);
        let mut hasher = blake3::Hasher::new();
        let hash = *hasher.update(&header).update(payload).finalize().as_bytes();
        // The trailer answers for the file alone, the digest in the manifest for the whole file.
        let whole = *hasher.update(&hash).finalize().as_bytes();
        let mut file = create(path)?;
        file.write_all(&header)
            .and_then(|()| file.write_all(payload))
            .and_then(|()| file.write_all(&hash))
            .map_err(ImageError::io("write", path))?;
        file.sync_all().map_err(ImageError::io("fsync", path))?;
        Ok(Digest { bytes: (HEADER + payload.len() + TRAILER) as u64, blake3: Some(hex(&whole)) })
    }

    /// Reads a whole file and gives its payload, the digest verified.
    pub(crate) fn read(self, path: &Path) -> Result<Vec<u8>> {
        let bytes = read_bounded(path, self.limit + (HEADER + TRAILER) as u64)?;
        self.unframe(path, bytes)
    }

    /// The payload of the bytes of a whole file.
    pub(crate) fn unframe(self, path: &Path, mut bytes: Vec<u8>) -> Result<Vec<u8>> {
        let length = self.parse_header(path, &bytes)? as usize;
        if bytes.len() != HEADER + length + TRAILER {
            return Err(ImageError::corrupt(path, "its size is not what its header says"));
        }
        let (content, trailer) = bytes.split_at(HEADER + length);
        if blake3::hash(content) != *<&[u8; 32]>::try_from(trailer).unwrap_or(&[0; 32]) {
            return Err(ImageError::corrupt(path, "its digest does not fit its content"));
        }
        bytes.truncate(HEADER + length);
        bytes.drain(..HEADER);
        Ok(bytes)
    }
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap_or_default())
}

/// A file that must not exist yet, readable by its owner only: memory holds secrets.
pub(crate) fn create(path: &Path) -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(ImageError::io("create", path))
}

/// The whole of a file that may be hostile: never more than `limit` bytes.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(ImageError::io("open", path))?;
    let size = file.metadata().map_err(ImageError::io("stat", path))?.len();
    if size > limit {
        return Err(ImageError::TooLarge { path: path.to_path_buf(), found: size, limit });
    }
    let mut bytes = Vec::with_capacity(size as usize);
    file.take(limit).read_to_end(&mut bytes).map_err(ImageError::io("read", path))?;
    Ok(bytes)
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
