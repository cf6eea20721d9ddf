//! What a rebuild needs of the image alone: done while systemd still stops the old units and starts the stubs.

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};

use ckpt_image::records::GroupImage;
use ckpt_image::{PAGE_SIZE, PageReader, Place, Run, read_state};
use ckpt_sys::nursery;
use serde::{Deserialize, Serialize};

use super::host::Blockade;
use super::{Failure, Reply, Request, tables};

/// Bytes of pages up to which all are compared with their checksums ahead. More of them may not all be read before the group runs, and are
/// compared while they are read.
const AHEAD: u64 = 64 << 20;
/// Bytes compared at a time.
const PART: u64 = 1 << 20;

/// What ckptd asks of ckpt-restore first, as one line of JSON on its standard input; the [`Request`] follows when the units
/// are ready. Where none follows nothing is restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preparation {
    /// The checkpoint's directory, then those of the chain that it rests on, the full last.
    pub chain: Vec<PathBuf>,
}

/// An image that is read.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) image: GroupImage,
    pub(super) pages: PageReader,
    /// All pages were compared with their checksums.
    pub(super) compared: bool,
}

impl Prepared {
    /// Reads it. Errors: those of [`read_state`], [`PageReader::open`] and [`PageReader::read_at`].
    fn of(preparation: &Preparation) -> Result<Self, Failure> {
        let directory = preparation.chain.first().map_or(Path::new(""), PathBuf::as_path);
        let image = read_state(directory)?;
        nursery::raise_descriptor_limit()?;
        // The rebuild needs the numbers that members use.
        let blockade = Blockade::below(tables::floor(&image))?;
        let pages = PageReader::open(&preparation.chain)?;
        drop(blockade);
        let bytes: u64 = stored(&pages).map(|(.., len)| len).sum();
        let compared = bytes <= AHEAD;
        if compared {
            compare(&pages, stored(&pages))?;
        }
        Ok(Self { image, pages, compared })
    }
}

/// What ckpt-restore does: reads a [`Preparation`] and a [`Request`], one line of JSON each, and answers with a [`Reply`], one line, too. False
/// where it failed. Without a request it does nothing. This process must have one thread only.
///
/// Errors: what was asked could not be read, or the answer not be written.
pub fn serve(mut input: impl BufRead, mut output: impl Write) -> std::io::Result<bool> {
    let mut line = String::new();
    input.read_line(&mut line)?;
    let prepared = Prepared::of(&serde_json::from_str(&line)?);
    line.clear();
    if input.read_line(&mut line)? == 0 {
        return Ok(true);
    }
    let request: Request = serde_json::from_str(&line)?;
    let reply = match prepared.and_then(|prepared| prepared.run(&request)) {
        Ok(report) => Reply::Restored(report),
        Err(failure) => Reply::Failed(failure),
    };
    writeln!(output, "{}", serde_json::to_string(&reply)?)?;
    output.flush()?;
    Ok(matches!(reply, Reply::Restored(_)))
}

/// Image, offset and length of everything that the checkpoint has stored.
fn stored(pages: &PageReader) -> impl Iterator<Item = (usize, u64, u64)> + '_ {
    let runs = pages.containers().flat_map(|container| pages.runs(container, 0, u64::MAX));
    runs.filter_map(|run| place_of(&run))
}

/// The same of a run; none of zero pages.
pub(super) fn place_of(run: &Run) -> Option<(usize, u64, u64)> {
    match run.place {
        Place::File { image, offset } => Some((image, offset, run.count * PAGE_SIZE)),
        Place::Zero => None,
    }
}

/// Reads image, offset and length of each, and compares it with its checksums. Errors: those of [`PageReader::read_at`].
pub(super) fn compare(
    pages: &PageReader,
    parts: impl Iterator<Item = (usize, u64, u64)>,
) -> Result<(), Failure> {
    let mut bytes = vec![0; PART as usize];
    for (image, offset, len) in parts {
        let mut done = 0;
        while done < len {
            let part = &mut bytes[..(len - done).min(PART) as usize];
            pages
                .read_at(image, offset + done, part)
                .map_err(|e| Failure::corrupt(crate::error::with_sources(&e)))?;
            done += part.len() as u64;
        }
    }
    Ok(())
}
