//! After the thaw.

use ckpt_image::{ImageError, PagesWriter};
use ckpt_sys::arena::Arena;

use super::copy::Piece;

/// Bytes between two looks at the job.
const STEP: u64 = 64 << 20;

/// The group's memory as it was in the window, in memory of ours.
#[derive(Debug)]
pub struct Copied {
    pub(super) arena: Arena,
    pub(super) pieces: Vec<Piece>,
}

impl Copied {
    /// Bytes that were copied.
    pub fn bytes(&self) -> u64 {
        self.pieces.iter().map(Piece::bytes).sum()
    }

    /// Writes everything to the image. `progress` gets the bytes done so far and ends the writing by `false` (then `Ok(false)`).
    ///
    /// Errors: those of [`PagesWriter::append`].
    pub fn write(
        &self,
        pages: &mut PagesWriter,
        mut progress: impl FnMut(u64) -> bool,
    ) -> Result<bool, ImageError> {
        let mut rest = &self.arena[..];
        let mut pieces = &self.pieces[..];
        let mut done = 0;
        while !pieces.is_empty() {
            let mut bytes = 0;
            let some = pieces.iter().take_while(|piece| {
                let more = bytes < STEP;
                bytes += if more { piece.bytes() } else { 0 };
                more
            });
            let some = some.count();
            let (now, later) = pieces.split_at(some);
            pages.append_all(now.iter().map(|piece| {
                let (data, behind) = rest.split_at(piece.bytes() as usize);
                rest = behind;
                (piece.container, piece.first, data)
            }))?;
            pieces = later;
            done += bytes;
            if !progress(done) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
