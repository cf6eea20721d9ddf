//! The file `state`: the kernel state of the group, framed (see the drawing in `frame`), its payload the postcard of [`GroupImage`].

use std::path::Path;

use crate::frame::Kind;
use crate::records::GroupImage;
use crate::{Digest, ImageError, Result};

/// Its name in the checkpoint's directory.
pub const STATE_FILE: &str = "state";

const KIND: Kind = Kind { magic: b"ckptSTAT", version: 1, oldest: 1, name: "state", limit: 1 << 30 };

/// Writes and fsyncs `state` in the directory of a checkpoint. Gives its size and digest.
///
/// Errors: Io (EEXIST where there is one already, ENOSPC), TooLarge past 1 GiB.
pub fn write_state(dir: &Path, image: &GroupImage) -> Result<Digest> {
    let path = dir.join(STATE_FILE);
    let payload = postcard::to_stdvec(image)
        .map_err(|e| ImageError::Encode { path: path.clone(), what: e.to_string() })?;
    KIND.write(&path, &payload)
}

/// Reads `state` from the directory of a checkpoint: header and digest first, then the records.
///
/// Errors: Io, NotOurs, Version, TooLarge, Corrupt. The records refer to each other by number: use `GroupImage`'s vectors with `get`.
pub fn read_state(dir: &Path) -> Result<GroupImage> {
    let path = dir.join(STATE_FILE);
    decode(&path, &KIND.read(&path)?)
}

fn decode(path: &Path, payload: &[u8]) -> Result<GroupImage> {
    match postcard::take_from_bytes(payload) {
        Ok((image, [])) => Ok(image),
        Ok(_) => Err(ImageError::corrupt(path, "there is more after the records")),
        Err(e) => Err(ImageError::corrupt(path, format!("its records cannot be decoded ({e})"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Hostile records end in an error or in records, never in a panic or in unbounded memory.
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = decode(Path::new("state"), &bytes);
        }

        #[test]
        fn any_file_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut file = KIND.header(bytes.len() as u64).to_vec();
            file.extend(bytes);
            prop_assert!(KIND.unframe(Path::new("state"), file).is_err());
        }
    }

    #[test]
    fn written_state_reads_back_and_damage_is_seen() {
        let dir = crate::tests::temp_dir("state");
        let image = GroupImage { files: vec![], seccomp_filters: vec![vec![1, 2, 3]], ..Default::default() };
        let digest = write_state(&dir, &image).unwrap();
        assert_eq!(read_state(&dir).unwrap(), image);
        let path = dir.join(STATE_FILE);
        let good = std::fs::read(&path).unwrap();
        assert_eq!(digest.bytes, good.len() as u64);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert!(KIND.unframe(&path, bad).is_err(), "damage of byte {at} was not seen");
            assert!(KIND.unframe(&path, good[..at].to_vec()).is_err());
        }
        let mut newer = good;
        newer[8] = 2;
        assert!(matches!(KIND.unframe(&path, newer), Err(ImageError::Version { found: 2, .. })));
    }
}
