//! Exchange of a subvolume that is a mount of its own (`mount -o subvol=web /dev/x /srv/web`).
//!
//! Its `.ckpt` lies in it, and nothing can be exchanged with what it holds. So, in a mount of the whole file system that nobody
//! else sees:
//!
//! ```text
//!   1  beside web           a writable snapshot of the checkpoint's snapshot
//!   2  renameat2            web and what is beside it are exchanged, in one step
//!   3  .ckpt and other nested subvolumes go over from the old one, which is beside now, to web
//!   4  the old one goes to web/.ckpt/GROUP/undo-ID/NAME
//!   5  /srv/web             web is mounted there, in place of the old one
//! ```

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use ckpt_sys::btrfs;
use ckpt_sys::detached_mount::{self, Attributes};
use nix::errno::Errno;

use super::exchanged::{Exchanged, Location, exists, move_subvolume, move_to, remove_if_subvolume, swap};
use super::mounts::{self, Mount};
use super::place::open_directory;
use crate::error::Error;

/// Where a subvolume is mounted.
#[derive(Debug)]
pub(super) struct Mounted {
    /// The place, without symbolic links.
    point: PathBuf,
    attributes: Attributes,
    /// What it is mounted from, and the path of the subvolume in that file system.
    source: String,
    path: PathBuf,
}

impl Mounted {
    /// The location of the subvolume that is mounted at `point`; `None` if nothing is mounted there.
    ///
    /// Errors: Unsupported if what is mounted is not a subvolume that can be exchanged.
    pub fn find(point: &Path) -> Result<Option<Location>, Error> {
        let Ok(file) = File::open(point) else { return Ok(None) };
        let mount = mounts::of(file.as_fd())?;
        if mount.point != point {
            return Ok(None);
        }
        let refused = |why: &str| Error::Unsupported(format!("{} {why}", point.display()));
        if !btrfs::is_subvolume(file.as_fd()).unwrap_or(false) {
            return Err(refused("is a mount of something else than the subvolume; unmount that"));
        }
        if mount.root == Path::new("/") {
            return Err(refused(
                "is the top-level subvolume of its file system, which nothing can be exchanged with",
            ));
        }
        if let Some(below) = mounts::below(point)?.first() {
            return Err(refused(&format!(
                "has {} mounted in it, which a restore would lose; unmount it",
                below.display()
            )));
        }
        let source = device(&mount, &file);
        Self::locate(&mount, source).map(Some).map_err(|e| {
            Error::io(format!("reach the subvolume {} of {}", mount.root.display(), mount.source), e)
        })
    }

    fn locate(mount: &Mount, source: String) -> Result<Location, Errno> {
        let whole = detached_mount::btrfs(&source, Path::new("/"))?;
        // mountinfo(5): the root of a mount of a subvolume is its path in the file system.
        let path = mount.root.strip_prefix("/").unwrap_or(&mount.root);
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = path.file_name().ok_or(Errno::EINVAL)?.to_owned();
        Ok(Location {
            parent: open_directory(whole.as_fd(), parent)?,
            name,
            mounted: Some(Self {
                point: mount.point.clone(),
                attributes: Attributes::parse(&mount.options),
                source,
                path: mount.root.clone(),
            }),
        })
    }

    /// `.ckpt/GROUP`, reached through the location.
    pub fn group_directory(&self, location: &Location, group: &Path) -> Result<OwnedFd, Error> {
        let real =
            std::fs::canonicalize(group).map_err(|e| Error::io(format!("open {}", group.display()), e))?;
        let within = real.strip_prefix(&self.point).map_err(|_| {
            Error::Unsupported(format!(
                "{} is a mount of its own now, and its snapshots lie in {}; unmount it, as it was at the checkpoint",
                self.point.display(),
                group.display()
            ))
        })?;
        open_directory(location.parent.as_fd(), &Path::new(&location.name).join(within))
            .map_err(|e| Error::io(format!("open {}", group.display()), e))
    }
}

/// A device of the file system that can be opened: the one that mountinfo names, or one by its name in sysfs (the kernel keeps the
/// name under which it saw the device first, which may be of another mount namespace or gone).
fn device(mount: &Mount, file: &File) -> String {
    if Path::new(&mount.source).exists() {
        return mount.source.clone();
    }
    let Ok(uuid) = btrfs::file_system_uuid(file.as_fd()) else { return mount.source.clone() };
    let devices = std::fs::read_dir(format!("/sys/fs/btrfs/{uuid}/devices"));
    let names = devices.into_iter().flatten().flatten().map(|d| Path::new("/dev").join(d.file_name()));
    let found = names.filter(|p| p.exists()).find_map(|p| p.to_str().map(str::to_owned));
    found.unwrap_or_else(|| mount.source.clone())
}

impl Exchanged {
    /// The name beside the place.
    fn beside(&self) -> OsString {
        let id = self.held.parent().and_then(Path::file_name).unwrap_or_default();
        let mut name = OsString::from(".");
        name.push(&self.location.name);
        name.push(".ckpt-");
        name.push(id);
        name
    }

    /// Steps 1 to 5.
    pub(super) fn place_mounted(&mut self, snapshot: &OwnedFd) -> Result<(), Errno> {
        let beside = self.beside();
        btrfs::snapshot(snapshot.as_fd(), self.location.parent.as_fd(), &beside, false)?;
        swap(&self.location.parent, &beside, &self.location.parent, &self.location.name)?;
        self.placed = true;
        let old = open_directory(self.location.parent.as_fd(), Path::new(&beside))?;
        self.carry_nested(&old)?;
        move_to(&self.location.parent, &beside, &self.holder, &self.held_name())?;
        self.mount_again()
    }

    /// The same steps back, from wherever they came to.
    pub(super) fn revert_mounted(&mut self) -> Result<(), Errno> {
        let (beside, held) = (self.beside(), self.held_name());
        if self.placed {
            let Location { parent, name, .. } = &self.location;
            if exists(&self.holder, &held)? {
                let old = open_directory(self.holder.as_fd(), Path::new(&held))?;
                // It was made read-only if the exchange was committed.
                btrfs::set_read_only(old.as_fd(), false)?;
                move_to(&self.holder, &held, parent, &beside)?;
            }
            let old = open_directory(parent.as_fd(), Path::new(&beside))?;
            let new = open_directory(parent.as_fd(), Path::new(name))?;
            for path in std::mem::take(&mut self.carried) {
                move_subvolume(&new, &old, &path)?;
            }
            swap(parent, &beside, parent, name)?;
            self.placed = false;
            self.mount_again()?;
        }
        remove_if_subvolume(&self.location.parent, &beside)
    }

    /// Mounts what lies at the place now where the old one is mounted, with the same flags.
    fn mount_again(&self) -> Result<(), Errno> {
        let Some(mounted) = &self.location.mounted else { return Ok(()) };
        let mount = detached_mount::btrfs(&mounted.source, &mounted.path)?;
        detached_mount::set_attributes(mount.as_fd(), mounted.attributes)?;
        detached_mount::replace(mount.as_fd(), &mounted.point)
    }
}
