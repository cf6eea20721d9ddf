use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use ckpt_image::Manifest;

use super::archive::Writer;
use super::flow::Flow;
use super::{END, End, MANIFEST, PART, Stream};
use crate::api::{Job, Stage};
use crate::error::Error;
use crate::storage::{self, Btrfs};
use crate::store::Store;

/// Writes a checkpoint to a file or a pipe. An incremental is written as the full one that it is with its chain.
///
/// Errors: NoSuchCheckpoint, Corrupt, FileMismatch for a snapshot that is not the checkpoint's, NoSpace, Canceled, Io.
pub fn export(store: &Store, group: &str, id: &str, to: &File, job: &dyn Job) -> Result<(), Error> {
    job.stage(Stage::Checking);
    let chain = store.ancestry(group, id)?;
    storage::verify(&chain[0].snapshots)?;
    let folded;
    let (directory, manifest) = if chain.len() > 1 {
        job.stage(Stage::Merging);
        folded = store.folded(&chain, &mut |done, total| {
            job.progress(done, total);
            !job.canceled()
        })?;
        (folded.directory().to_owned(), folded.manifest().clone())
    } else {
        (store.directory(group, &chain[0].id.to_string()), chain[0].clone())
    };
    job.stage(Stage::Exporting);
    let canceled = || job.canceled();
    let flow = Flow::new(to, &canceled).map_err(|e| Error::io("look at the file to export to", e))?;
    let done =
        Export { out: Writer { out: Counted { inner: flow, done: 0, job, total: manifest.image_bytes } } };
    done.all(&directory, &manifest)?;
    // A pipe cannot be synced, and need not be.
    match to.sync_all() {
        Err(e) if !matches!(e.raw_os_error(), Some(nix::libc::EINVAL | nix::libc::EROFS)) => Err(written(e)),
        _ => Ok(()),
    }
}

/// Tells the job how many bytes have gone out.
struct Counted<'a> {
    inner: Flow<'a>,
    done: u64,
    total: u64,
    job: &'a dyn Job,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let some = self.inner.write(bytes)?;
        self.done += some as u64;
        // How much btrfs sends is known when it has.
        self.total = self.total.max(self.done);
        self.job.progress(self.done, self.total);
        Ok(some)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

struct Export<'a> {
    out: Writer<Counted<'a>>,
}

impl Export<'_> {
    fn all(mut self, directory: &Path, manifest: &Manifest) -> Result<(), Error> {
        let json = |e: serde_json::Error| Error::Failed(e.to_string());
        let text = serde_json::to_vec_pretty(manifest).map_err(json)?;
        self.bytes(MANIFEST, &text)?;
        for (name, digest) in &manifest.files {
            let path: PathBuf = directory.join(name);
            let mut file = File::open(&path).map_err(|e| Error::io(format!("open {}", path.display()), e))?;
            self.out.entry(name, digest.bytes, &mut file).map_err(|e| match e.kind() {
                io::ErrorKind::UnexpectedEof => Error::Corrupt {
                    path: path.display().to_string(),
                    why: format!("it has less than the {} bytes that the manifest says", digest.bytes),
                },
                _ => written(e),
            })?;
        }
        let mut snapshots = Vec::new();
        for (index, entry) in manifest.snapshots.iter().enumerate() {
            let (btrfs, stream) = Btrfs::send(entry)?;
            snapshots.push(self.stream(index, stream)?);
            btrfs.finish()?;
        }
        let end = End { manifest: blake3::hash(&text).to_hex().to_string(), snapshots };
        self.bytes(END, &serde_json::to_vec(&end).map_err(json)?)?;
        self.out.end().map_err(written)
    }

    fn bytes(&mut self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        self.out.entry(name, bytes.len() as u64, &mut &*bytes).map_err(written)
    }

    /// A stream of unknown length, in parts.
    fn stream(&mut self, index: usize, mut stream: impl Read) -> Result<Stream, Error> {
        let mut part = Vec::with_capacity(PART);
        let mut hasher = blake3::Hasher::new();
        let mut bytes = 0;
        for number in 0.. {
            part.clear();
            let read = (&mut stream).take(PART as u64).read_to_end(&mut part);
            read.map_err(|e| Error::io("read what btrfs sends", e))?;
            if part.is_empty() {
                break;
            }
            hasher.update(&part);
            bytes += part.len() as u64;
            self.bytes(&format!("snapshots/{index}/{number:08}"), &part)?;
        }
        Ok(Stream { bytes, blake3: hasher.finalize().to_hex().to_string() })
    }
}

/// A write that failed.
fn written(error: io::Error) -> Error {
    match (error.kind(), error.raw_os_error()) {
        (io::ErrorKind::TimedOut, None) => Error::Canceled,
        (_, Some(nix::libc::ENOSPC | nix::libc::EDQUOT)) => Error::NoSpace("the export does not fit".into()),
        _ => Error::io("write the export", error),
    }
}
