//! What a frozen copy of a process holds: read when the group runs again, as the rounds do.

use ckpt_image::PagesWriter;
use ckpt_sys::cgroup::{self, Cgroup};
use ckpt_sys::inject::FrozenCopy;
use ckpt_sys::pagemap::{Found, Pagemap, Wanted};
use ckpt_sys::{AddrRange, VirtAddr, gather::gather};
use nix::unistd::Pid;

use super::PAGE;
use super::copy::Piece;
use crate::capture::pipe::{self, CHUNK, Chunk, Pipe, piped};
use crate::error::{Error, with_sources};
use crate::members::NotAMember;

/// A frozen copy and the pieces that are to be read from it.
#[derive(Debug)]
pub(super) struct Later {
    // In this order: it is nobody's member until it is gone.
    copy: FrozenCopy,
    _not_a_member: NotAMember,
    pieces: Vec<Piece>,
}

impl Later {
    pub(super) fn new(copy: FrozenCopy, pieces: Vec<Piece>) -> Self {
        let pid = copy.pid();
        // If memory becomes scarce it is the one to go, and with it what was kept for it: the checkpoint fails, the group runs on.
        let _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), "1000");
        Self { _not_a_member: NotAMember::note(pid.as_raw()), copy, pieces }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.pieces.iter().map(Piece::bytes).sum()
    }

    /// Takes it out of the unit's cgroup into ours, so that nobody who stops the unit waits for it. Where that is not possible it is there
    /// until it is read.
    pub(super) fn leave_the_unit(&self) {
        let own = cgroup::of_process(Pid::this()).and_then(|name| Cgroup::open(&name));
        let _ = own.and_then(|own| own.take(self.copy.pid()));
    }

    /// Reads and writes all of it, and ends it. `progress` as in [`super::Copied::write`]; `done` is what was written before.
    pub(super) fn write(
        self,
        pages: &mut PagesWriter,
        done: &mut u64,
        progress: &mut impl FnMut(u64) -> bool,
    ) -> Result<bool, Error> {
        let pid = self.copy.pid();
        piped(pages, |pipe| {
            self.is_whole().map_err(|why| lost(pid, &why))?;
            for chunk in chunks(&self.pieces) {
                *done += read(pid, chunk, pipe)?;
                if !progress(*done) {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    /// A mapping may have been marked (MADV_WIPEONFORK) after its marks were read, and be empty in the copy.
    fn is_whole(&self) -> Result<(), String> {
        let text = |e: ckpt_sys::Error| with_sources(&e);
        let mut pagemap = Pagemap::open(self.copy.pid()).map_err(text)?;
        for piece in &self.pieces {
            let mut found = Found::default();
            pagemap.scan(range(piece), Wanted::Own, &mut found).map_err(text)?;
            if found.pages.iter().map(AddrRange::len).sum::<u64>() != piece.bytes() {
                return Err(format!("not all of {:x?} is in it", range(piece)));
            }
        }
        Ok(())
    }
}

fn lost(pid: Pid, why: &str) -> Error {
    Error::Failed(format!("the frozen copy of a member's memory (pid {pid}) cannot be read: {why}"))
}

fn range(piece: &Piece) -> AddrRange {
    AddrRange::new(VirtAddr(piece.first * PAGE), piece.bytes())
}

/// Sends pages on their way; gives their bytes.
fn read(pid: Pid, pieces: Vec<Piece>, pipe: &Pipe) -> Result<u64, Error> {
    let Some(container) = pieces.first().map(|piece| piece.container) else { return Ok(0) };
    let total = pieces.iter().map(Piece::bytes).sum();
    let mut bytes = pipe.buffer(total);
    let ranges: Vec<_> = pieces.iter().map(range).collect();
    gather(pid, &ranges, &mut bytes).map_err(|e| lost(pid, &with_sources(&e)))?;
    let pieces = pieces.iter().map(|piece| (piece.first, piece.count)).collect();
    if pipe.send(Chunk { container, pieces, bytes }) { Ok(total) } else { Err(pipe::ended()) }
}

/// Cuts pieces of one container into lists of at most [`CHUNK`] bytes.
fn chunks(pieces: &[Piece]) -> Vec<Vec<Piece>> {
    let most = CHUNK / PAGE;
    let mut chunks: Vec<Vec<Piece>> = Vec::new();
    let mut free = 0;
    for piece in pieces {
        let mut left = *piece;
        while left.count > 0 {
            if free == 0 {
                chunks.push(Vec::new());
                free = most;
            }
            let count = left.count.min(free);
            chunks.last_mut().map(|chunk| chunk.push(Piece { count, ..left })).unwrap_or_default();
            free -= count;
            left = Piece { first: left.first + count, count: left.count - count, ..left };
        }
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;
    use ckpt_image::Container;
    use ckpt_image::records::SpaceId;

    #[test]
    fn chunks_are_bounded_and_hold_every_page_once() {
        let piece = |first, count| Piece { container: Container::Space(SpaceId(0)), source: 0, first, count };
        let pieces = [piece(1, 1), piece(10, 3000), piece(5000, 47)];
        let pages = |pieces: &[Piece]| -> Vec<u64> {
            pieces.iter().flat_map(|p| p.first..p.first + p.count).collect()
        };
        let cut = chunks(&pieces);
        assert!(cut.iter().all(|chunk| chunk.iter().map(Piece::bytes).sum::<u64>() <= CHUNK));
        assert_eq!(pages(&cut.concat()), pages(&pieces));
        assert_eq!(cut.len(), 3);
    }
}
