use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ckpt_image::{CheckpointState, Kind, Manifest, SnapshotEntry};

use super::archive::{Entry, Reader, corrupt};
use super::flow::Flow;
use super::{END, End, MANIFEST, SMALL, Stream};
use crate::api::{Job, Stage};
use crate::error::Error;
use crate::local::check_image;
use crate::storage::{self, Place, Reception};
use crate::store::{Store, sync_directory};

/// The longest wait for the beginning of a file.
const PATIENCE: Duration = Duration::from_secs(30);

/// A file whose beginning was read: it says of which group it is.
#[derive(Debug)]
pub struct Incoming {
    file: File,
    manifest: Manifest,
    digest: String,
}

impl Incoming {
    /// Reads the manifest at the beginning of a file.
    ///
    /// Errors: Corrupt, Unsupported for another version, Canceled where nothing comes for half a minute.
    pub fn open(file: File) -> Result<Self, Error> {
        let begin = Instant::now();
        let late = move || begin.elapsed() > PATIENCE;
        let flow = Flow::new(&file, &late).map_err(|e| Error::io("look at the file to import", e))?;
        let mut reader = Reader::new(flow);
        let entry = reader.next()?;
        if entry.name != MANIFEST {
            return Err(corrupt("it does not begin with a manifest"));
        }
        let text = reader.small(&entry, SMALL)?;
        let manifest = Manifest::parse(&text)?;
        if manifest.kind != Kind::Full || manifest.state != CheckpointState::Durable {
            return Err(corrupt("its manifest is not that of a full checkpoint"));
        }
        if !is_name(&manifest.group) {
            return Err(corrupt("its manifest names a group that cannot be"));
        }
        let digest = blake3::hash(&text).to_hex().to_string();
        Ok(Self { file, manifest, digest })
    }

    /// The group it is of.
    pub fn group(&self) -> &str {
        &self.manifest.group
    }

    /// The checkpoint's id, which it keeps.
    pub fn id(&self) -> String {
        self.manifest.id.to_string()
    }
}

/// Whether a group can be called that: its name is one of a directory, here and among the snapshots.
fn is_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.@\\:".contains(&b);
    !name.is_empty() && name.len() <= 255 && !name.starts_with('.') && name.bytes().all(plain)
}

/// Reads the rest, checks everything, and only then makes it a checkpoint of the store.
///
/// Errors: Exists, Corrupt, SnapshotFailed where a subvolume's file system is no btrfs here, NoSpace, Canceled, Io. Then nothing is left of it.
pub fn import(store: &Store, place: &Place, from: &Incoming, job: &dyn Job) -> Result<Manifest, Error> {
    job.stage(Stage::Importing);
    let manifest = &from.manifest;
    let (group, id) = (&manifest.group, manifest.id.to_string());
    let directory = store.directory(group, &id);
    if directory.exists() {
        return Err(Error::Exists(format!("checkpoint {id} of group {group}")));
    }
    store.begin(group, manifest.id)?;
    let mut staging = Staging { directory: directory.clone(), snapshots: Vec::new(), kept: false };
    let canceled = || job.canceled();
    let flow = Flow::new(&from.file, &canceled).map_err(|e| Error::io("look at the file to import", e))?;
    let mut reader = Reader::new(flow);
    let total = manifest.image_bytes;
    let mut done = 0;
    for _ in 0..manifest.files.len() {
        let entry = reader.next()?;
        file(&mut reader, &entry, manifest, &directory, &mut |bytes| {
            done += bytes;
            job.progress(done, total);
        })?;
    }
    sync_tree(&directory)?;
    let mut manifest = manifest.clone();
    check_image(&directory, &manifest, job)?;
    job.stage(Stage::Importing);
    let (streams, entry) = snapshots(&mut reader, place, &manifest, &mut staging)?;
    let end = reader.small(&entry, SMALL)?;
    let end: End = serde_json::from_slice(&end).map_err(|e| corrupt(&e.to_string()))?;
    if end.manifest != from.digest || end.snapshots != streams {
        return Err(corrupt("its end does not fit what came before"));
    }
    manifest.snapshots.clone_from(&staging.snapshots);
    storage::verify(&manifest.snapshots)?;
    manifest.commit(&directory)?;
    staging.kept = true;
    sync_directory(directory.parent().unwrap_or(Path::new("/")))?;
    Ok(manifest)
}

/// One file of the image, of which the manifest knows name and size.
fn file(
    reader: &mut Reader<Flow<'_>>,
    entry: &Entry,
    manifest: &Manifest,
    directory: &Path,
    done: &mut dyn FnMut(u64),
) -> Result<(), Error> {
    let Some(digest) = manifest.files.get(&entry.name) else {
        return Err(corrupt(&format!("the manifest does not tell of {}", entry.name)));
    };
    if digest.bytes != entry.bytes {
        return Err(corrupt(&format!("{} has another size than the manifest says", entry.name)));
    }
    // Where in the directory it may lie: at the top, or one below.
    let parts: Vec<&str> = entry.name.split('/').collect();
    let plain =
        |part: &&str| !part.is_empty() && !part.starts_with('.') && *part != ckpt_image::MANIFEST_FILE;
    if parts.len() > 2 || !parts.iter().all(plain) {
        return Err(corrupt(&format!("{} is no name of a file of a checkpoint", entry.name)));
    }
    let path = directory.join(&entry.name);
    let io = |e| Error::io(format!("write {}", path.display()), e);
    if let [within, _] = parts.as_slice() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory.join(within)).map_err(io)?;
    }
    let mut out = File::options().write(true).create_new(true).mode(0o600).open(&path).map_err(io)?;
    reader.content(entry, &mut |part| {
        done(part.len() as u64);
        out.write_all(part).map_err(|e| no_space(e, &path))
    })?;
    out.sync_all().map_err(|e| no_space(e, &path))
}

/// Receives the snapshots; gives what came, and the entry after them.
fn snapshots(
    reader: &mut Reader<Flow<'_>>,
    place: &Place,
    manifest: &Manifest,
    staging: &mut Staging,
) -> Result<(Vec<Stream>, Entry), Error> {
    let mut streams = Vec::new();
    let mut entry = reader.next()?;
    for (index, snapshot) in manifest.snapshots.iter().enumerate() {
        let reception =
            Reception::new(place, &snapshot.subvolume, &manifest.group, &manifest.id.to_string())?;
        let (btrfs, mut input) = reception.start()?;
        let (mut bytes, mut hasher) = (0, blake3::Hasher::new());
        let mut number = 0;
        while entry.name == format!("snapshots/{index}/{number:08}") {
            let mut broken = false;
            reader.content(&entry, &mut |part| {
                bytes += part.len() as u64;
                hasher.update(part);
                // It says itself why it does not read on.
                broken = broken || input.write_all(part).is_err();
                Ok(())
            })?;
            if broken {
                break;
            }
            number += 1;
            entry = reader.next()?;
        }
        drop(input);
        btrfs.finish()?;
        staging.snapshots.push(reception.finish()?);
        streams.push(Stream { bytes, blake3: hasher.finalize().to_hex().to_string() });
    }
    match entry.name.as_str() {
        END => Ok((streams, entry)),
        other => Err(corrupt(&format!("{other} was not expected"))),
    }
}

/// fsync of a directory and the directories in it.
fn sync_tree(directory: &Path) -> Result<(), Error> {
    let io = |e| Error::io(format!("list {}", directory.display()), e);
    let mut directories = BTreeSet::from([directory.to_owned()]);
    for entry in fs::read_dir(directory).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.is_dir() {
            directories.insert(path);
        }
    }
    directories.iter().try_for_each(|path| sync_directory(path))
}

fn no_space(error: std::io::Error, path: &Path) -> Error {
    match error.raw_os_error() {
        Some(nix::libc::ENOSPC | nix::libc::EDQUOT) => {
            Error::NoSpace(format!("{} does not fit", path.display()))
        }
        _ => Error::io(format!("write {}", path.display()), error),
    }
}

/// What there is of an import that may still fail; removed unless it is kept.
struct Staging {
    directory: PathBuf,
    snapshots: Vec<SnapshotEntry>,
    kept: bool,
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.kept {
            let _ = storage::remove(&self.snapshots);
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}
