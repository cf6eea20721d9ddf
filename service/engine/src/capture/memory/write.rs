//! After the thaw.

use std::collections::HashMap;

use ckpt_image::{Container, PagesWriter};
use ckpt_sys::arena::Arena;

use super::copy::Piece;
use super::later::Later;
use super::{PAGE, Told};
use crate::error::Error;
use crate::track::{Chain, ContentHashes, Identity};

/// Bytes between two looks at the job.
const STEP: u64 = 64 << 20;

/// The group's memory as it was in the window, in memory of ours.
#[derive(Debug)]
pub struct Copied {
    pub(super) arena: Arena,
    pub(super) pieces: Vec<Piece>,
    /// The rest, in frozen copies of processes.
    pub(super) later: Vec<Later>,
    pub(super) told: Vec<Told>,
}

impl Copied {
    /// Bytes that were copied, or are to be.
    pub fn bytes(&self) -> u64 {
        self.pieces.iter().map(Piece::bytes).chain(self.later.iter().map(Later::bytes)).sum()
    }

    /// Writes everything to the image; the frozen copies first, each of which ends as soon as it is written. `progress` gets the bytes done
    /// so far and ends the writing by `false` (then `Ok(false)`).
    ///
    /// Errors: those of [`PagesWriter::append`]; Failed where a frozen copy was killed.
    pub fn write(
        &mut self,
        pages: &mut PagesWriter,
        mut progress: impl FnMut(u64) -> bool,
    ) -> Result<bool, Error> {
        for told in &self.told {
            if let Some(early) = told.early {
                pages.rename(early, Some(told.container));
            }
            told.stale.iter().for_each(|(first, count)| pages.forget(told.container, *first, *count));
            pages.container(told.container, told.inherits);
            told.parents.iter().for_each(|(first, count)| pages.parent(told.container, *first, *count));
        }
        let mut done = 0;
        let mut later = std::mem::take(&mut self.later);
        later.iter().for_each(Later::leave_the_unit);
        for copy in later.drain(..) {
            if !copy.write(pages, &mut done, &mut progress)? {
                return Ok(false);
            }
        }
        let mut rest = &self.arena[..];
        let mut pieces = &self.pieces[..];
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

    /// The hashes of the compared contents as this image and its parents have them, for the next checkpoint to compare with.
    pub fn hashes(&self, chain: &Chain) -> HashMap<Identity, ContentHashes> {
        // Numbers of System V segments and of other inodes may be the same: then nobody knows which is which.
        let mut count: HashMap<Identity, usize> = HashMap::new();
        self.told.iter().filter_map(|told| told.identity).for_each(|id| *count.entry(id).or_default() += 1);
        let only = |told: &Told| told.identity.filter(|identity| count[identity] == 1);
        let compared = |told: &Told| Some((told.container, only(told)?));
        let identities: HashMap<Container, Identity> = self.told.iter().filter_map(compared).collect();
        let mut hashes: HashMap<Identity, ContentHashes> = HashMap::new();
        for told in &self.told {
            let Some(identity) = only(told) else { continue };
            let entry = hashes.entry(identity).or_default();
            entry.container = Some(told.container);
            let Some(known) = chain.contents.get(&identity) else { continue };
            let pages = told.parents.iter().flat_map(|(first, count)| *first..first + count);
            entry.pages.extend(pages.filter_map(|page| Some((page, *known.pages.get(&page)?))));
        }
        let mut rest = &self.arena[..];
        for piece in &self.pieces {
            let (data, behind) = rest.split_at(piece.bytes() as usize);
            rest = behind;
            let Some(entry) = identities.get(&piece.container).and_then(|id| hashes.get_mut(id)) else {
                continue;
            };
            let pages = (piece.first..).zip(data.chunks_exact(PAGE as usize));
            entry.pages.extend(pages.map(|(page, bytes)| (page, chain.hash(bytes))));
        }
        hashes
    }
}
