//! Where snapshots lie: `.ckpt/GROUP/ID/` in the top directory of the mount of their subvolume.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use ckpt_sys::btrfs;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, fchmod, mkdirat};

use crate::config::Settings;
use crate::error::Error;

/// The setting `snapshots`: a path relative to the top directory of a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    relative: PathBuf,
}

impl Place {
    /// The place that the settings name. Errors: InvalidArgs unless it is relative and without `..`.
    pub fn new(settings: &Settings) -> Result<Self, Error> {
        let relative = settings.snapshots.clone();
        let normal = relative.components().all(|c| matches!(c, Component::Normal(_)));
        if !normal || relative.as_os_str().is_empty() {
            return Err(Error::InvalidArgs(format!(
                "snapshots = \"{}\" is not a relative path without `..`",
                relative.display()
            )));
        }
        Ok(Self { relative })
    }

    /// The path below the top directory.
    pub(super) fn relative(&self) -> &Path {
        &self.relative
    }

    /// Opens the place below `top`, making it where it is missing: its last part a subvolume, all of it 0700.
    pub(super) fn make(&self, top: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
        let mut directory = top.try_clone_to_owned().map_err(|e| super::errno(&e))?;
        let parts: Vec<&OsStr> = self.relative.iter().collect();
        for (i, part) in parts.iter().enumerate() {
            let made = if i + 1 == parts.len() {
                btrfs::create_subvolume(directory.as_fd(), part)
            } else {
                mkdirat(&directory, *part, Mode::S_IRWXU)
            };
            if !matches!(made, Ok(()) | Err(Errno::EEXIST)) {
                made?;
            }
            directory = open_directory(directory.as_fd(), Path::new(part))?;
            if made.is_ok() {
                fchmod(&directory, Mode::S_IRWXU)?;
            }
        }
        Ok(directory)
    }
}

/// Opens a directory below another, following no symbolic link and leaving neither the directory nor its mount. openat2(2), Linux 5.6.
pub(super) fn open_directory(from: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW)
        .resolve(
            ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV,
        );
    openat2(from, path, how)
}

/// Opens a directory below another, making the directories on the way where they are missing, 0700.
pub(super) fn make_directory(from: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let mut directory = from.try_clone_to_owned().map_err(|e| super::errno(&e))?;
    for part in path.iter() {
        match mkdirat(&directory, part, Mode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(e) => return Err(e),
        }
        directory = open_directory(directory.as_fd(), Path::new(part))?;
    }
    Ok(directory)
}

/// An absolute path as one file name, the way `systemd-escape --path` does it: `/srv/my web` is `srv-my\x20web`.
/// What would be longer than a file name may be ends in a checksum instead.
pub fn escape(path: &Path) -> String {
    let mut name = String::new();
    for part in path.components() {
        let Component::Normal(part) = part else { continue };
        if !name.is_empty() {
            name.push('-');
        }
        for &byte in part.as_bytes() {
            let plain = byte.is_ascii_alphanumeric()
                || matches!(byte, b':' | b'_')
                || (byte == b'.' && !name.is_empty());
            if plain {
                name.push(char::from(byte));
            } else {
                name.push_str(&format!("\\x{byte:02x}"));
            }
        }
    }
    if name.is_empty() {
        return "-".into();
    }
    if name.len() > 200 {
        let sum = name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3));
        name.truncate(180);
        name.push_str(&format!("-{sum:016x}"));
    }
    name
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn paths_become_names_as_systemd_escape_does_it() {
        for (path, name) in [
            ("/srv/web", "srv-web"),
            ("/srv/my web-site", "srv-my\\x20web\\x2dsite"),
            ("/.hidden/a.b", "\\x2ehidden-a.b"),
            ("/", "-"),
        ] {
            assert_eq!(escape(Path::new(path)), name);
        }
        let long = |c: &str| escape(&Path::new("/").join("d".repeat(250)).join(c));
        assert!(long("a").len() < 255 && long("a") != long("b"));
    }

    #[test]
    fn a_place_outside_the_mount_is_refused() {
        for bad in ["", "/x", "../x", "a/../b"] {
            let settings = Settings { snapshots: bad.into(), ..Settings::default() };
            assert!(Place::new(&settings).is_err(), "{bad:?}");
        }
        assert!(Place::new(&Settings::default()).is_ok());
    }
}
