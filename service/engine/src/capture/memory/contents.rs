//! The contents of shared objects and unlinked files: nobody tells who writes them, so they are compared with what is stored.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use ckpt_image::Container;

use super::copy::{Piece, Source};
use super::{Capture, MemoryError, PAGE, Told};
use crate::capture::files::data_ranges;
use crate::track::{Chain, ContentHashes};

/// Pages compared at a time.
const CHUNK: u64 = 256;

impl Capture {
    pub(super) fn content(
        &mut self,
        container: Container,
        size: u64,
        fd: BorrowedFd<'_>,
        chain: Option<&Chain>,
    ) -> Result<(), MemoryError> {
        let failed = |source| MemoryError::Content { container, source };
        // A description of our own: seeking for data must not move the member's offset.
        let file = File::open(format!("/proc/self/fd/{}", fd.as_raw_fd())).map_err(failed)?;
        let ranges = data_ranges(file.as_fd(), size).map_err(|errno| failed(errno.into()))?;
        let stat = nix::sys::stat::fstat(&file).map_err(|errno| failed(errno.into()))?;
        let identity = (stat.st_dev, stat.st_ino);
        let known = chain.and_then(|chain| {
            let known = chain.contents.get(&identity)?;
            (chain.parent.is_some() && known.container.is_some()).then_some((chain, known))
        });
        let mut told = Told {
            container,
            inherits: known.and_then(|(_, known)| known.container),
            parents: Vec::new(),
            early: None,
            stale: Vec::new(),
            identity: Some(identity),
        };
        let source = self.sources.len();
        let mut done = 0;
        for (start, len) in ranges {
            let first = (start / PAGE).max(done);
            let end = (start + len).div_ceil(PAGE);
            if first >= end {
                continue;
            }
            done = end;
            match known {
                None => self.pieces.push(Piece { container, source, first, count: end - first }),
                Some((chain, known)) => {
                    let whole = Piece { container, source, first, count: end - first };
                    self.compare(&file, size, whole, chain, known, &mut told).map_err(failed)?;
                }
            }
        }
        self.told.push(told);
        self.sources.push(Source::File(file, size));
        Ok(())
    }

    /// Queues those pages of `whole` that are not as the parent has them; the others are told to be the parent's.
    fn compare(
        &mut self,
        file: &File,
        size: u64,
        whole: Piece,
        chain: &Chain,
        known: &ContentHashes,
        told: &mut Told,
    ) -> std::io::Result<()> {
        let mut bytes = vec![0; (CHUNK * PAGE) as usize];
        let mut at = whole.first;
        let end = whole.first + whole.count;
        while at < end {
            let count = CHUNK.min(end - at);
            let part = &mut bytes[..(count * PAGE) as usize];
            let inside = size.saturating_sub(at * PAGE).min(count * PAGE) as usize;
            file.read_exact_at(&mut part[..inside], at * PAGE)?;
            part[inside..].fill(0); // the last page behind the end of the file
            for (page, bytes) in (at..).zip(part.chunks_exact(PAGE as usize)) {
                if known.pages.get(&page) == Some(&chain.hash(bytes)) {
                    match told.parents.last_mut() {
                        Some((first, count)) if *first + *count == page => *count += 1,
                        _ => told.parents.push((page, 1)),
                    }
                } else {
                    match self.pieces.last_mut() {
                        Some(last) if last.source == whole.source && last.first + last.count == page => {
                            last.count += 1;
                        }
                        _ => self.pieces.push(Piece { first: page, count: 1, ..whole }),
                    }
                }
            }
            at += count;
        }
        Ok(())
    }
}
