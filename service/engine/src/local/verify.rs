//! Reading a checkpoint whole: every digest and checksum that its manifest and index hold.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use ckpt_image::{Digest, Manifest, PAGES_FILE, PageReader, read_state};

use crate::api::{Job, Stage};
use crate::error::Error;

/// Compares every byte of an image with its digests. Errors: Corrupt, Canceled, Io.
pub fn image(directory: &Path, manifest: &Manifest, job: &dyn Job) -> Result<(), Error> {
    job.stage(Stage::Verifying);
    for (name, digest) in &manifest.files {
        file(&directory.join(name), digest)?;
    }
    if manifest.files.contains_key(PAGES_FILE) {
        let total = manifest.files[PAGES_FILE].bytes;
        let reader = PageReader::open(directory)?;
        let complete = reader.verify(|done| {
            job.progress(done, total);
            !job.canceled()
        })?;
        if !complete {
            return Err(Error::Canceled);
        }
        read_state(directory)?;
    }
    Ok(())
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
