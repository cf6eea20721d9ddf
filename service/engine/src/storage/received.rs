//! Snapshots as streams: btrfs-send(8), and btrfs-receive(8) into the place where snapshots lie.
//!
//! ```text
//! .ckpt/GROUP/R/NAME      what btrfs receive makes; R is an id that no checkpoint has: an orphan, if this ends here
//! .ckpt/GROUP/ID/NAME     a read-only snapshot of it: made in one step, unchanged since, as those of a checkpoint are
//! ```

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use ckpt_image::SnapshotEntry;
use ckpt_sys::btrfs;
use ulid::Ulid;

use super::place::{make_directory, open_directory};
use super::snapshot::{entries_of, remove_empty_directories, remove_subvolume_at};
use super::{Place, escape, failed, mounts};
use crate::error::Error;

/// A running `btrfs`; killed when it is dropped before its end.
#[derive(Debug)]
pub struct Btrfs {
    child: Child,
    what: String,
}

impl Btrfs {
    fn start(what: String, arguments: &[&std::ffi::OsStr], command: &mut Command) -> Result<Self, Error> {
        let child = command.args(arguments).stderr(Stdio::piped()).spawn().map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::Unsupported(
                "sending and receiving snapshots without the program btrfs; install btrfs-progs".into(),
            ),
            _ => Error::io("start btrfs", e),
        })?;
        Ok(Self { child, what })
    }

    /// Sends a read-only snapshot: gives the stream. To be read to its end, then [`Btrfs::finish`].
    pub fn send(entry: &SnapshotEntry) -> Result<(Self, ChildStdout), Error> {
        drop(super::snapshot::open(entry)?);
        let mut command = Command::new("btrfs");
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let what = format!("send {}", entry.path.display());
        let mut this =
            Self::start(what, &["send".as_ref(), "-q".as_ref(), entry.path.as_os_str()], &mut command)?;
        let stream =
            this.child.stdout.take().ok_or_else(|| Error::Failed("btrfs send has no output".into()))?;
        Ok((this, stream))
    }

    /// Waits for its end. Errors: what it said.
    pub fn finish(mut self) -> Result<(), Error> {
        let mut said = String::new();
        if let Some(stderr) = self.child.stderr.take() {
            // The end of what it says is the end of it.
            let _ = stderr.take(64 << 10).read_to_string(&mut said);
        }
        let status = self.child.wait().map_err(|e| Error::io("wait for btrfs", e))?;
        match status.success() {
            true => Ok(()),
            false => Err(Error::Failed(format!("btrfs could not {}: {} ({status})", self.what, said.trim()))),
        }
    }
}

impl Drop for Btrfs {
    fn drop(&mut self) {
        // After `finish` it is gone, and these do nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The directories into which a snapshot of a subvolume is received; what is in them is removed again unless it was taken over.
#[derive(Debug)]
pub struct Reception {
    subvolume: PathBuf,
    /// `.ckpt/GROUP/R` and `.ckpt/GROUP/ID`.
    received: (OwnedFd, PathBuf),
    wanted: (OwnedFd, PathBuf),
}

impl Reception {
    /// Makes the directories in the mount in which the subvolume lies or would lie.
    ///
    /// Errors: SnapshotFailed where that is no btrfs, NoSpace, Exists.
    pub fn new(place: &Place, subvolume: &Path, group: &str, id: &str) -> Result<Self, Error> {
        let refuse =
            |why: &str| Error::SnapshotFailed { subvolume: subvolume.display().to_string(), why: why.into() };
        let plain = |part| matches!(part, Component::Normal(_) | Component::RootDir);
        if !subvolume.is_absolute() || !subvolume.components().all(plain) {
            return Err(refuse("it is no absolute path"));
        }
        let there =
            subvolume.ancestors().find(|p| p.exists()).ok_or_else(|| refuse("it is no absolute path"))?;
        let file = File::open(there).map_err(|e| Error::io(format!("open {}", there.display()), e))?;
        let mount = mounts::of(file.as_fd())?;
        let failed = |e| failed(subvolume, "make the directory of the snapshot", e);
        let top = File::open(&mount.point).map_err(|e| failed(super::errno(&e)))?;
        if !btrfs::is_btrfs(top.as_fd()).map_err(failed)? {
            return Err(refuse(&format!("{} is no btrfs on this host", mount.point.display())));
        }
        let directory = place.make(top.as_fd()).map_err(failed)?;
        let make = |name: &str| {
            let within = Path::new(group).join(name);
            let fd = make_directory(directory.as_fd(), &within)?;
            Ok((fd, mount.point.join(place.relative()).join(&within)))
        };
        let wanted = make(id).map_err(failed)?;
        let received = make(&Ulid::new().to_string()).map_err(failed)?;
        let this = Self { subvolume: subvolume.to_owned(), received, wanted };
        match this.target().exists() {
            true => Err(Error::Exists(format!("the snapshot {}", this.target().display()))),
            false => Ok(this),
        }
    }

    fn target(&self) -> PathBuf {
        self.wanted.1.join(escape(&self.subvolume))
    }

    /// Starts `btrfs receive`, confined to its directory. The stream is to be written to what this gives, which is then closed, then
    /// [`Btrfs::finish`].
    pub fn start(&self) -> Result<(Btrfs, ChildStdin), Error> {
        let mut command = Command::new("btrfs");
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        let what = format!("receive the snapshot of {}", self.subvolume.display());
        let arguments = ["receive".as_ref(), "-q".as_ref(), "-C".as_ref(), self.received.1.as_os_str()];
        let mut btrfs = Btrfs::start(what, &arguments, &mut command)?;
        let input = btrfs.child.stdin.take();
        Ok((btrfs, input.ok_or_else(|| Error::Failed("btrfs receive has no input".into()))?))
    }

    /// Takes what was received for the snapshot of the checkpoint, and waits until it is on disk.
    ///
    /// Errors: Corrupt unless exactly one subvolume was received.
    pub fn finish(self) -> Result<SnapshotEntry, Error> {
        let entries = entries_of(&self.received.1)?;
        let [(name, path)] = entries.as_slice() else {
            let why = format!("its stream made {} subvolumes, not one", entries.len());
            return Err(Error::Corrupt { path: self.subvolume.display().to_string(), why });
        };
        let failed = |e| failed(&self.subvolume, "take the received snapshot", e);
        let received = open_directory_there(path).map_err(failed)?;
        if !btrfs::is_subvolume(received.as_fd()).map_err(failed)? {
            let why = format!("its stream made {name}, which is no subvolume");
            return Err(Error::Corrupt { path: self.subvolume.display().to_string(), why });
        }
        let (target, to) = (self.target(), self.wanted.0.as_fd());
        let own = escape(&self.subvolume);
        btrfs::snapshot(received.as_fd(), to, own.as_ref(), true).map_err(failed)?;
        nix::unistd::syncfs(to).map_err(failed)?;
        let snapshot = open_directory(to, Path::new(&own)).map_err(failed)?;
        let info = btrfs::subvolume_info(snapshot.as_fd()).map_err(failed)?;
        let fs_uuid = btrfs::file_system_uuid(snapshot.as_fd()).map_err(failed)?;
        Ok(SnapshotEntry {
            subvolume: self.subvolume.clone(),
            path: target,
            uuid: info.uuid.to_string(),
            subvolume_uuid: info.parent_uuid.to_string(),
            fs_uuid: fs_uuid.to_string(),
            generation: info.generation,
        })
    }
}

fn open_directory_there(path: &Path) -> Result<OwnedFd, nix::errno::Errno> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(nix::errno::Errno::EINVAL);
    };
    let parent = File::open(parent).map_err(|e| super::errno(&e))?;
    open_directory(parent.as_fd(), Path::new(name))
}

impl Drop for Reception {
    fn drop(&mut self) {
        for (_, path) in entries_of(&self.received.1).unwrap_or_default() {
            let _ = remove_subvolume_at(&path);
        }
        let _ = std::fs::remove_dir(&self.received.1);
        // Where nothing was taken over.
        remove_empty_directories(&self.target());
    }
}
