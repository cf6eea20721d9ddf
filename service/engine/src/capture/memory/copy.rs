//! Copying inside the window: what is to be copied is known by now; the pieces lie in the arena in the order of the list.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use ckpt_image::Container;
use ckpt_sys::{AddrRange, VirtAddr, gather::gather};
use nix::unistd::Pid;

use super::MemoryError;

/// Bytes that one thread takes at a time.
const BATCH: u64 = 4 << 20;
/// Below this, a second thread costs more than it gains.
const PARALLEL: u64 = 16 << 20;
const PAGE: u64 = ckpt_image::PAGE_SIZE;

/// Where pages are copied from.
#[derive(Debug)]
pub(super) enum Source {
    /// The memory of a stopped task.
    Memory(Pid),
    /// A file: shared memory or an unlinked file; its size in bytes.
    File(File, u64),
}

/// Consecutive pages of one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub container: Container,
    /// Index of its source.
    pub source: usize,
    /// First page in the container; also in the source.
    pub first: u64,
    /// Number of pages.
    pub count: u64,
}

impl Piece {
    pub(super) fn bytes(&self) -> u64 {
        self.count * PAGE
    }
}

/// One thread's next work: pieces of one source and their place in the arena.
struct Batch<'a> {
    pieces: Vec<Piece>,
    into: &'a mut [u8],
}

/// Copies all pieces into `arena`, which has room for them, on up to two processors.
///
/// Errors: the kernel's; Deadline when it passes.
pub(super) fn copy(
    sources: &[Source],
    pieces: &[Piece],
    arena: &mut [u8],
    deadline: Option<Instant>,
) -> Result<(), MemoryError> {
    let total: u64 = pieces.iter().map(Piece::bytes).sum();
    let batches = Mutex::new(batches(pieces, arena).into_iter());
    let failed = AtomicBool::new(false);
    let work = || -> Result<(), MemoryError> {
        loop {
            let next = batches.lock().ok().and_then(|mut batches| batches.next());
            let Some(batch) = next else { return Ok(()) };
            if failed.load(Ordering::Relaxed) {
                return Ok(());
            }
            let done = match deadline {
                Some(deadline) if Instant::now() >= deadline => Err(MemoryError::Deadline { bytes: total }),
                _ => one(&sources[batch.pieces[0].source], &batch.pieces, batch.into),
            };
            if done.is_err() {
                failed.store(true, Ordering::Relaxed);
                return done;
            }
        }
    };
    if total < PARALLEL {
        return work();
    }
    std::thread::scope(|scope| {
        let other = std::thread::Builder::new().name("ckpt-copy".into()).spawn_scoped(scope, work);
        let ours = work();
        match other.map(|thread| thread.join()) {
            Ok(Ok(theirs)) => ours.and(theirs),
            Ok(Err(_)) => Err(MemoryError::Thread),
            Err(_) => ours, // no thread could be made: we did it all
        }
    })
}

/// Cuts the list into batches of one source and at most [`BATCH`] bytes (a piece that is larger is cut).
fn batches<'a>(pieces: &[Piece], arena: &'a mut [u8]) -> Vec<Batch<'a>> {
    let mut batches = Vec::new();
    let mut rest = arena;
    let mut open: Vec<Piece> = Vec::new();
    let mut bytes = 0;
    let mut close = |open: &mut Vec<Piece>, bytes: &mut u64| {
        if !open.is_empty() {
            let (into, behind) = std::mem::take(&mut rest).split_at_mut(*bytes as usize);
            rest = behind;
            batches.push(Batch { pieces: std::mem::take(open), into });
            *bytes = 0;
        }
    };
    for piece in pieces {
        if open.last().is_some_and(|last| last.source != piece.source) {
            close(&mut open, &mut bytes);
        }
        let mut left = *piece;
        while left.count > 0 {
            let count = left.count.min((BATCH - bytes) / PAGE);
            open.push(Piece { count, ..left });
            bytes += count * PAGE;
            left = Piece { first: left.first + count, count: left.count - count, ..left };
            if bytes == BATCH {
                close(&mut open, &mut bytes);
            }
        }
    }
    close(&mut open, &mut bytes);
    batches
}

fn one(source: &Source, pieces: &[Piece], into: &mut [u8]) -> Result<(), MemoryError> {
    match source {
        Source::Memory(tid) => {
            let ranges: Vec<AddrRange> = pieces
                .iter()
                .map(|piece| AddrRange::new(VirtAddr(piece.first * PAGE), piece.bytes()))
                .collect();
            Ok(gather(*tid, &ranges, into)?)
        }
        Source::File(file, size) => {
            let mut into = into;
            for piece in pieces {
                let (part, behind) = std::mem::take(&mut into).split_at_mut(piece.bytes() as usize);
                into = behind;
                let inside = size.saturating_sub(piece.first * PAGE).min(piece.bytes()) as usize;
                let (data, tail) = part.split_at_mut(inside);
                file.read_exact_at(data, piece.first * PAGE)
                    .map_err(|source| MemoryError::Content { container: piece.container, source })?;
                tail.fill(0); // the last page behind the end of the file
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ckpt_image::records::SpaceId;

    #[test]
    fn batches_cover_the_arena_in_order() {
        let piece =
            |source, first, count| Piece { container: Container::Space(SpaceId(0)), source, first, count };
        let pieces = [piece(0, 5, 3), piece(0, 10, 5000), piece(1, 0, 1), piece(1, 9, 2), piece(0, 1, 1)];
        let total: u64 = pieces.iter().map(Piece::bytes).sum();
        let mut arena = vec![0; total as usize];
        let mut seen = Vec::new();
        for batch in batches(&pieces, &mut arena) {
            let bytes: u64 = batch.pieces.iter().map(Piece::bytes).sum();
            assert_eq!(bytes, batch.into.len() as u64);
            assert!(bytes <= BATCH);
            assert!(
                batch.pieces.iter().all(|piece| piece.source == batch.pieces[0].source && piece.count > 0)
            );
            seen.extend(batch.pieces);
        }
        let pages = |pieces: &[Piece]| -> Vec<(usize, u64)> {
            pieces.iter().flat_map(|p| (p.first..p.first + p.count).map(|page| (p.source, page))).collect()
        };
        assert_eq!(pages(&seen), pages(&pieces));
    }
}
