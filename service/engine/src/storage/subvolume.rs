//! A subvolume of a group.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ckpt_sys::btrfs::{self, Uuid};

use super::mounts::{self, Mount};
use super::{Place, failed};
use crate::api::{Problem, Severity};
use crate::error::Error;

/// A btrfs subvolume, held open.
#[derive(Debug)]
pub struct Subvolume {
    path: PathBuf,
    real: PathBuf,
    directory: OwnedFd,
    device: u64,
    file_system: Uuid,
    info: btrfs::SubvolumeInfo,
    mount: Mount,
    top: OwnedFd,
}

impl Subvolume {
    /// Opens the subvolume whose root directory `path` is.
    ///
    /// Errors: Io if it is not there; SnapshotFailed, with the reason, if it is no subvolume of a btrfs.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let what = |what: &str| format!("{what} subvolume {}", path.display());
        let real = std::fs::canonicalize(path).map_err(|e| Error::io(what("open"), e))?;
        let file = File::open(&real).map_err(|e| Error::io(what("open"), e))?;
        let device = file.metadata().map_err(|e| Error::io(what("look at"), e))?.dev();
        let directory = OwnedFd::from(file);
        let refused =
            |why: &str| Error::SnapshotFailed { subvolume: path.display().to_string(), why: why.to_string() };
        let failed = |errno| failed(path, "look at the subvolume", errno);
        if !btrfs::is_btrfs(directory.as_fd()).map_err(failed)? {
            return Err(refused("it does not lie in a btrfs; only btrfs subvolumes can be paired"));
        }
        if !btrfs::is_subvolume(directory.as_fd()).map_err(failed)? {
            return Err(refused(
                "it is a directory, not a subvolume; make one with `btrfs subvolume create` and move the files into it",
            ));
        }
        let info = btrfs::subvolume_info(directory.as_fd()).map_err(failed)?;
        let file_system = btrfs::file_system_uuid(directory.as_fd()).map_err(failed)?;
        let mount = mounts::of(directory.as_fd())?;
        let top = mounts::open_top(&mount)?;
        Ok(Self { path: path.to_path_buf(), real, directory, device, file_system, info, mount, top })
    }

    /// The path as the group's configuration names it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// st_dev of its files, as stat(2) shows it in every mount namespace. (/proc/PID/maps shows that of the file system.)
    pub fn device(&self) -> u64 {
        self.device
    }

    /// UUID of the subvolume.
    pub fn uuid(&self) -> Uuid {
        self.info.uuid
    }

    /// UUID of its file system.
    pub fn file_system(&self) -> Uuid {
        self.file_system
    }

    /// Transaction of its last change when it was opened.
    pub fn generation(&self) -> u64 {
        self.info.generation
    }

    /// Where the mount it lies in is mounted.
    pub fn mount_point(&self) -> &Path {
        &self.mount.point
    }

    /// Whether it is a mount of its own.
    pub fn is_mount_point(&self) -> bool {
        self.mount.point == self.real
    }

    /// Whether it is the top-level subvolume of its file system.
    pub fn is_top_level(&self) -> bool {
        self.info.id == btrfs::TOP_LEVEL
    }

    /// Absolute paths of the subvolumes directly nested in it, that of our snapshots left out. They are not in its snapshots.
    pub fn nested(&self, place: &Place) -> Result<Vec<PathBuf>, Error> {
        let found = btrfs::nested(self.directory.as_fd())
            .map_err(|e| failed(&self.path, "look for nested subvolumes", e))?;
        let ours = self.mount.point.join(place.relative());
        Ok(found.into_iter().map(|p| self.path.join(p)).filter(|p| self.real_path(p) != ours).collect())
    }

    fn real_path(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.path).map_or_else(|_| path.to_path_buf(), |rest| self.real.join(rest))
    }

    /// Writes everything dirty of its file system, so that the snapshot in the freeze window has nothing to write. Blocks. syncfs(2).
    pub fn flush(&self) -> Result<(), Error> {
        nix::unistd::syncfs(&self.directory).map_err(|e| failed(&self.path, "flush", e))
    }

    pub(super) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    pub(super) fn top(&self) -> BorrowedFd<'_> {
        self.top.as_fd()
    }

    /// What `check` has to say about it.
    fn problems(&self, place: &Place) -> Result<Vec<Problem>, Error> {
        let mut problems = Vec::new();
        let mut push = |code: &str, severity, object: &Path, text: String, remedy: &str| {
            problems.push(Problem {
                code: code.into(),
                severity,
                unit: String::new(),
                pid: 0,
                object: object.display().to_string(),
                text,
                remedy: remedy.into(),
            });
        };
        if self.is_top_level() {
            push(
                "top-level-subvolume",
                Severity::Error,
                &self.path,
                "it is the top-level subvolume of its file system, which no restore can exchange".into(),
                "make a subvolume in it with `btrfs subvolume create` and move the files into that",
            );
        }
        if self.info.read_only {
            push(
                "read-only-subvolume",
                Severity::Warning,
                &self.path,
                "the subvolume is read-only; after a restore it is writable".into(),
                "leave it out of the group's `subvolumes` if nothing writes to it",
            );
        }
        for nested in self.nested(place)? {
            push(
                "nested-subvolume",
                Severity::Warning,
                &nested,
                format!("it is a subvolume inside {}, so it is in no snapshot of it", self.path.display()),
                "add it to the group's `subvolumes`, or move it elsewhere",
            );
        }
        for mounted in mounts::below(&self.real)? {
            push(
                "mount-below-subvolume",
                Severity::Error,
                &mounted,
                format!(
                    "something is mounted there, inside {}, and a restore would lose it",
                    self.path.display()
                ),
                "unmount it, or mount it outside the subvolume",
            );
        }
        Ok(problems)
    }
}

/// Opens the subvolumes of a group and says what stands against snapshots of them. A subvolume that cannot be opened is a
/// problem of severity error, and is left out.
pub fn check(place: &Place, paths: &[PathBuf]) -> Result<(Vec<Subvolume>, Vec<Problem>), Error> {
    let (mut subvolumes, mut problems): (Vec<Subvolume>, Vec<Problem>) = (Vec::new(), Vec::new());
    for path in paths {
        match Subvolume::open(path) {
            Ok(subvolume) => {
                problems.extend(subvolume.problems(place)?);
                subvolumes.push(subvolume);
            }
            Err(error) => problems.push(Problem {
                code: "no-subvolume".into(),
                severity: Severity::Error,
                unit: String::new(),
                pid: 0,
                object: path.display().to_string(),
                text: match error {
                    Error::SnapshotFailed { why, .. } => why,
                    Error::Io { source, .. } => source.to_string(),
                    other => other.to_string(),
                },
                remedy: "make it a btrfs subvolume, or take it out of the group's `subvolumes`".into(),
            }),
        }
    }
    Ok((subvolumes, problems))
}

/// The subvolume that holds a file, by the file's st_dev (stat(2), statx(2)); `None`: the file is in no snapshot (`unpaired-file`).
/// Each subvolume has a device number of its own, so this is exact, also for unlinked files and in other mount namespaces.
pub fn covering(subvolumes: &[Subvolume], device: u64) -> Option<&Subvolume> {
    subvolumes.iter().find(|s| s.device == device)
}
