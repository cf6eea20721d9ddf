//! Compressed pages: up to 64 pages as one block of an algorithm, so that any of them can be had by decoding 256 KiB at most.

use crate::{Codec, PAGE_SIZE};

/// Most pages in one chunk.
pub(crate) const CHUNK_PAGES: u64 = 64;
const PAGE: usize = PAGE_SIZE as usize;
/// zstd's quickest ordinary level: the image is written while the group runs.
const LEVEL: i32 = 1;

/// Compresses whole pages, at most [`CHUNK_PAGES`] of them; `None` where that saves no block.
pub(crate) fn pack(codec: Codec, pages: &[u8]) -> Option<Vec<u8>> {
    let packed = match codec {
        Codec::Lz4 => lz4_flex::block::compress(pages),
        // An error means that it did not fit: then the pages are stored as they are.
        Codec::Zstd => zstd::bulk::compress(pages, LEVEL).ok()?,
    };
    (packed.len().div_ceil(PAGE) < pages.len() / PAGE).then_some(packed)
}

/// Decodes a chunk into exactly `pages` pages. The error says what is wrong with it. Never more memory than the pages need.
pub(crate) fn unpack(codec: Codec, packed: &[u8], pages: u64) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; pages.min(CHUNK_PAGES) as usize * PAGE];
    let len = match codec {
        Codec::Lz4 => lz4_flex::block::decompress_into(packed, &mut bytes).map_err(|e| e.to_string())?,
        Codec::Zstd => zstd::bulk::decompress_to_buffer(packed, &mut bytes).map_err(|e| e.to_string())?,
    };
    if len == bytes.len() { Ok(bytes) } else { Err(format!("it has {len} bytes, not {pages} pages")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn packed_pages_come_back(zstd: bool, fills in proptest::collection::vec(0..4u8, 1..65)) {
            let codec = if zstd { Codec::Zstd } else { Codec::Lz4 };
            let pages: Vec<u8> = fills.iter().flat_map(|fill| (0..PAGE).map(|n| *fill ^ (n / 7) as u8).collect::<Vec<_>>()).collect();
            if let Some(packed) = pack(codec, &pages) {
                prop_assert_eq!(unpack(codec, &packed, fills.len() as u64).unwrap(), pages);
                prop_assert!(unpack(codec, &packed, fills.len() as u64 - 1).is_err());
                prop_assert!(unpack(codec, &packed, (fills.len() as u64 + 1).min(64)).is_err() || fills.len() == 64);
            }
        }

        /// Hostile input ends in an error or in pages, in no more memory than those need.
        #[test]
        fn any_bytes_are_survived(zstd: bool, bytes in proptest::collection::vec(any::<u8>(), 0..3000), pages in 1..65u64) {
            let codec = if zstd { Codec::Zstd } else { Codec::Lz4 };
            let _ = unpack(codec, &bytes, pages);
        }
    }
}
