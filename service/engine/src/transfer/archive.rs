//! The entries of an archive, one after another. Only what an export writes is read: plain files with short names.

use std::io::{self, Read, Write};

use tar::{EntryType, Header};

use super::ROOT;
use crate::error::Error;

/// An entry's header occupies one block, its content whole blocks.
const BLOCK: usize = 512;

/// Writes entries.
pub(super) struct Writer<W: Write> {
    pub out: W,
}

impl<W: Write> Writer<W> {
    /// Writes an entry of `bytes` bytes, which `content` must have.
    pub fn entry(&mut self, name: &str, bytes: u64, content: &mut dyn Read) -> io::Result<()> {
        let mut header = Header::new_ustar();
        let path = format!("{ROOT}{name}");
        let Some(place) = header.as_old_mut().name.get_mut(..path.len()) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{path} is too long a name")));
        };
        place.copy_from_slice(path.as_bytes());
        header.set_size(bytes);
        header.set_mode(0o600);
        header.set_entry_type(EntryType::Regular);
        header.set_cksum();
        self.out.write_all(header.as_bytes())?;
        let mut buffer = vec![0; (1 << 20).min(bytes.max(1) as usize)];
        let mut left = bytes;
        while left > 0 {
            let some = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            content.read_exact(&mut buffer[..some])?;
            self.out.write_all(&buffer[..some])?;
            left -= some as u64;
        }
        let padding = (BLOCK - (bytes % BLOCK as u64) as usize) % BLOCK;
        self.out.write_all(&[0; BLOCK][..padding])
    }

    /// Writes the end of the archive.
    pub fn end(&mut self) -> io::Result<()> {
        self.out.write_all(&[0; 2 * BLOCK])
    }
}

/// What comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Below the archive's directory.
    pub name: String,
    /// Bytes of its content.
    pub bytes: u64,
}

/// Reads entries.
pub(super) struct Reader<R: Read> {
    input: R,
}

impl<R: Read> Reader<R> {
    /// Goes on where something else has stopped between two entries.
    pub fn new(input: R) -> Self {
        Self { input }
    }

    /// The next entry; its content must be read before the one after it. Errors: Corrupt, Unsupported for another version.
    pub fn next(&mut self) -> Result<Entry, Error> {
        let mut block = [0; BLOCK];
        self.input.read_exact(&mut block).map_err(read)?;
        let header = Header::from_byte_slice(&block);
        // As tar(5) says: the sum of all bytes, those of the field itself as spaces.
        let plain = |(at, byte): (usize, &u8)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) };
        let sum: u32 = block.iter().enumerate().map(plain).sum();
        if header.cksum().ok() != Some(sum) || header.entry_type() != EntryType::Regular {
            return Err(corrupt("it has no entry of an export where one must be"));
        }
        let path = header.path_bytes();
        let path = std::str::from_utf8(&path).map_err(|_| corrupt("a name in it is no text"))?;
        let Some(name) = path.strip_prefix(ROOT) else {
            return Err(match path.starts_with("ckpt-export-") {
                true => Error::Unsupported(format!("an export of another version: {path}")),
                false => corrupt("it is no export of a checkpoint"),
            });
        };
        let bytes = header.entry_size().map_err(|_| corrupt("a size in it is no number"))?;
        Ok(Entry { name: name.to_owned(), bytes })
    }

    /// Passes an entry's content on, part by part.
    pub fn content(
        &mut self,
        entry: &Entry,
        each: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut buffer = vec![0; 1 << 20];
        let mut left = entry.bytes;
        while left > 0 {
            let some = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            self.input.read_exact(&mut buffer[..some]).map_err(read)?;
            each(&buffer[..some])?;
            left -= some as u64;
        }
        let padding = (BLOCK - (entry.bytes % BLOCK as u64) as usize) % BLOCK;
        self.input.read_exact(&mut buffer[..padding]).map_err(read)
    }

    /// All of a small entry's content. Errors: Corrupt where it is larger than `limit`.
    pub fn small(&mut self, entry: &Entry, limit: u64) -> Result<Vec<u8>, Error> {
        if entry.bytes > limit {
            return Err(corrupt(&format!("{} has {} bytes, more than can be", entry.name, entry.bytes)));
        }
        let mut bytes = Vec::new();
        self.content(entry, &mut |part| {
            bytes.extend_from_slice(part);
            Ok(())
        })?;
        Ok(bytes)
    }
}

/// The file is not what an export wrote.
pub(super) fn corrupt(why: &str) -> Error {
    Error::Corrupt { path: "the file to import".into(), why: why.into() }
}

/// A read that failed.
fn read(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => corrupt("it is cut off"),
        io::ErrorKind::TimedOut => Error::Canceled,
        _ => Error::io("read the file to import", error),
    }
}
