//! Reading a checkpoint whole: every digest and checksum that its manifest and index hold.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use ckpt_image::{Digest, INDEX_FILE, Manifest, PAGES_FILE, STATE_FILE, read_state};

use crate::api::{Job, Stage};
use crate::error::Error;
use crate::store::Store;

/// How much is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Everything.
    All,
    /// Not the pages of memory: whoever reads them compares them then.
    AllButPages,
}

/// Compares every byte of an image, and of the images it rests on, with their digests; `ancestry` is what
/// [`Store::ancestry`](crate::store::Store::ancestry) gives. Answers the bytes of all pages.
/// Errors: Corrupt, Canceled, Io.
pub fn chain(store: &Store, ancestry: &[Manifest], extent: Extent, job: &dyn Job) -> Result<u64, Error> {
    let of = |m: &Manifest| store.directory(&m.group, &m.id.to_string());
    images(&ancestry.iter().map(|m| (of(m), m)).collect::<Vec<_>>(), extent, job)
}

/// The same for one full image that is not in its place yet.
pub(crate) fn check_image(directory: &Path, manifest: &Manifest, job: &dyn Job) -> Result<(), Error> {
    images(&[(directory.to_owned(), manifest)], Extent::All, job).map(drop)
}

/// The images of a chain, newest first. Answers the bytes of all pages.
fn images(chain: &[(PathBuf, &Manifest)], extent: Extent, job: &dyn Job) -> Result<u64, Error> {
    job.stage(Stage::Verifying);
    let mut directories = Vec::with_capacity(chain.len());
    for (directory, manifest) in chain {
        for name in [STATE_FILE, PAGES_FILE, INDEX_FILE] {
            if !manifest.files.contains_key(name) {
                let why = format!("the manifest does not tell of its file {name}");
                return Err(Error::Corrupt { path: directory.display().to_string(), why });
            }
        }
        for (name, digest) in &manifest.files {
            file(&directory.join(name), digest)?;
        }
        read_state(directory)?;
        directories.push(directory.clone());
    }
    let bytes = chain.iter().filter_map(|(_, m)| m.files.get(PAGES_FILE)).map(|digest| digest.bytes).sum();
    if extent == Extent::AllButPages {
        return Ok(bytes);
    }
    let complete = ckpt_image::verify(&directories, |done, total| {
        job.progress(done, total);
        !job.canceled()
    })?;
    if complete { Ok(bytes) } else { Err(Error::Canceled) }
}

/// Compares one file with its size and, where it has one, its BLAKE3.
fn file(path: &Path, digest: &Digest) -> Result<(), Error> {
    let read = |e| Error::io(format!("read {}", path.display()), e);
    let corrupt = |why: String| Error::Corrupt { path: path.display().to_string(), why };
    let mut file = File::open(path).map_err(read)?;
    let size = file.metadata().map_err(read)?.len();
    if size != digest.bytes {
        return Err(corrupt(format!("it has {size} bytes, the manifest says {}", digest.bytes)));
    }
    let Some(expected) = &digest.blake3 else { return Ok(()) };
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(read)? {
            0 => break,
            n => hasher.update(&buffer[..n]),
        };
    }
    if hasher.finalize().to_hex().as_str() != expected {
        return Err(corrupt("its content does not fit the digest in the manifest".into()));
    }
    Ok(())
}
