//! Executables and libraries that a checkpoint keeps, so that a package upgrade does not end its life.
//!
//! ```text
//! STORE/GROUP/ID/pinned/DEV-INODE-MTIME-SIZE      as the kernel told them at the checkpoint, in hexadecimal
//! ```
//!
//! A file is taken over from an earlier checkpoint of the group by hard link, else it is a reflink of the original, else a hard link to it
//! (an upgrade puts a new file in its place and leaves the old one), else a copy. At a restore it is used only where the file at the path
//! is not what it was. Their bytes are not counted among those of the image.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ckpt_image::Digest;
use ckpt_image::records::FileRecord;
use nix::fcntl::{AT_FDCWD, AtFlags};

/// The directory below that of a checkpoint.
pub const DIRECTORY: &str = "pinned";

/// The name under which a file is kept.
pub fn name(file: &FileRecord) -> String {
    format!("{:x}-{:x}-{:x}-{:x}", file.dev, file.ino, file.mtime, file.size)
}

/// The bytes of an image, of whose files the manifest tells.
pub fn image_bytes(files: &BTreeMap<String, Digest>) -> u64 {
    let of_image = files.iter().filter(|(name, _)| !Path::new(name).starts_with(DIRECTORY));
    of_image.map(|(_, digest)| digest.bytes).sum()
}

/// Keeps files in the directory of a checkpoint, synced. What cannot be kept is left out: the restore then needs it at its path, as it is.
/// Gives the entries for the manifest.
pub fn keep(directory: &Path, files: Vec<(FileRecord, OwnedFd)>) -> io::Result<BTreeMap<String, Digest>> {
    let mut kept = BTreeMap::new();
    if files.is_empty() {
        return Ok(kept);
    }
    let place = directory.join(DIRECTORY);
    fs::create_dir(&place)?;
    let earlier = earlier(directory);
    for (record, fd) in files {
        let name = name(&record);
        let entry = format!("{DIRECTORY}/{name}");
        if kept.contains_key(&entry) {
            continue; // two units have it
        }
        let to = place.join(&name);
        let source = File::from(fd);
        let taken = earlier.iter().any(|other| fs::hard_link(other.join(&name), &to).is_ok());
        if (taken || take(&source, &to).is_ok()) && is_it(&to, &record) {
            kept.insert(entry, Digest { bytes: record.size, blake3: None });
        } else {
            let _ = fs::remove_file(&to);
        }
    }
    File::open(&place)?.sync_all()?;
    Ok(kept)
}

/// Whether a kept file has the size of the record, and its time of change.
fn is_it(path: &Path, record: &FileRecord) -> bool {
    fs::metadata(path).is_ok_and(|now| {
        (now.len(), now.mtime() * 1_000_000_000 + now.mtime_nsec()) == (record.size, record.mtime)
    })
}

/// The same directories of the group's other checkpoints.
fn earlier(directory: &Path) -> Vec<PathBuf> {
    let siblings = directory.parent().and_then(|group| fs::read_dir(group).ok());
    let mut places: Vec<_> = siblings
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path != directory)
        .map(|path| path.join(DIRECTORY))
        .filter(|path| path.is_dir())
        .collect();
    // Newest first: identifiers are ordered by time.
    places.sort();
    places.reverse();
    places
}

/// Reflink, hard link or copy, in this order.
fn take(source: &File, to: &Path) -> io::Result<()> {
    let made = File::options().write(true).create_new(true).open(to)?;
    if ckpt_sys::btrfs::clone_file(source.as_fd(), made.as_fd()).is_ok() {
        return finish(source, &made);
    }
    fs::remove_file(to)?;
    let link = format!("/proc/self/fd/{}", source.as_raw_fd());
    if nix::unistd::linkat(AT_FDCWD, link.as_str(), AT_FDCWD, to, AtFlags::AT_SYMLINK_FOLLOW).is_ok() {
        return Ok(());
    }
    let mut made = File::options().write(true).create_new(true).open(to)?;
    io::copy(&mut &*source, &mut made)?;
    finish(source, &made)
}

/// Mode and time of the original, and durable.
fn finish(source: &File, made: &File) -> io::Result<()> {
    let meta = source.metadata()?;
    made.set_permissions(meta.permissions())?;
    made.set_times(fs::FileTimes::new().set_modified(meta.modified()?))?;
    made.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ckpt_image::records::{FileSource, UnitIndex};

    fn record(path: &Path) -> FileRecord {
        let meta = fs::metadata(path).unwrap();
        FileRecord {
            unit: UnitIndex(0),
            path: path.into(),
            dev: meta.dev(),
            ino: meta.ino(),
            mode: meta.mode(),
            uid: meta.uid(),
            gid: meta.gid(),
            size: meta.len(),
            mtime: meta.mtime() * 1_000_000_000 + meta.mtime_nsec(),
            rdev: 0,
            attributes: Vec::new(),
            source: FileSource::Path { immutable: true },
        }
    }

    #[test]
    fn a_file_is_kept_when_another_takes_its_place_and_once_for_all_checkpoints() {
        let top = std::env::temp_dir().join(format!("ckpt-pinned-{}", std::process::id()));
        let (first, second) = (top.join("01"), top.join("02"));
        fs::create_dir_all(&first).unwrap();
        fs::create_dir_all(&second).unwrap();
        let library = top.join("library");
        fs::write(&library, "old").unwrap();
        let record = record(&library);
        let one = || (record.clone(), OwnedFd::from(File::open(&library).unwrap()));
        let open = || vec![one(), one()];
        let kept = keep(&first, open()).unwrap();
        assert_eq!(
            kept.keys().map(String::as_str).collect::<Vec<_>>(),
            [format!("pinned/{}", name(&record))]
        );
        keep(&second, open()).unwrap();
        fs::write(top.join("new"), "new and longer").unwrap();
        fs::rename(top.join("new"), &library).unwrap();
        let one = first.join(DIRECTORY).join(name(&record));
        let two = second.join(DIRECTORY).join(name(&record));
        assert_eq!(fs::read_to_string(&one).unwrap(), "old");
        assert_eq!(fs::metadata(&one).unwrap().ino(), fs::metadata(&two).unwrap().ino());
        assert_eq!(fs::metadata(&one).unwrap().modified().ok(), fs::metadata(&two).unwrap().modified().ok());
        fs::remove_dir_all(&top).unwrap();
    }
}
