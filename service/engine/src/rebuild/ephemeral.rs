//! Puts back the directories that systemd removes with a unit and makes afresh for its stub. The archive's format is drawn in
//! [`crate::capture::ephemeral`].
//!
//! Every path is opened beneath its directory without following links, so that neither the archive nor what the unit's user left there leads
//! anywhere else.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use ckpt_image::records::{GroupImage, UnitIndex};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmodat, fstatat, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, LinkatFlags, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat};
use tar::{Archive, Entry, EntryType};

use super::Failure;
use super::places::Places;
use crate::capture::ephemeral::{DIRECTORY, PAX_MTIME, PAX_SOCKET, PAX_XATTR, is_mount};

/// Puts back the directories of all units from the archives of an image.
pub fn put_back(image: &GroupImage, directory: &Path, places: &Places) -> Result<(), Failure> {
    for (index, unit) in image.units.iter().enumerate().filter(|(_, u)| !u.ephemeral.is_empty()) {
        let path = directory.join(DIRECTORY).join(format!("{index}.tar"));
        let file = File::open(&path)
            .map_err(|e| Failure::corrupt(format!("open {}: {e}", path.display())).of_unit(&unit.name))?;
        let put_back = || {
            mounted(&unit.ephemeral)?;
            extract(file, &unit.ephemeral, Path::new("/"))
        };
        places.within(UnitIndex(index as u32), put_back)?.map_err(|(path, e)| {
            Failure::not_restorable(format!("put back: {e}"))
                .of_unit(&unit.name)
                .of_object(path.display().to_string())
        })?;
    }
    Ok(())
}

type Failed = (PathBuf, std::io::Error);

/// Fails if a directory that was a temporary file system of the unit's own is none any more: what is there now is not ours to empty.
fn mounted(directories: &[PathBuf]) -> Result<(), Failed> {
    for directory in directories.iter().filter(|directory| is_mount(directory)) {
        let fail = |e: Errno| (directory.clone(), std::io::Error::from(e));
        let device = |path: &Path| nix::sys::stat::stat(path).map(|stat| stat.st_dev).map_err(fail);
        let kind = nix::sys::statfs::statfs(directory).map_err(fail)?.filesystem_type();
        let parent = directory.parent().unwrap_or(directory);
        if kind != nix::sys::statfs::TMPFS_MAGIC || device(directory)? == device(parent)? {
            let text = "it was a temporary file system (TemporaryFileSystem=) and is none";
            return Err((directory.clone(), std::io::Error::other(text)));
        }
    }
    Ok(())
}

/// Empties the directories and fills them from the archive, below `root`.
fn extract(file: impl Read, directories: &[PathBuf], root: &Path) -> Result<(), Failed> {
    let fail = |e: Errno| (root.to_owned(), std::io::Error::from(e));
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root_fd = open(root, flags, Mode::empty()).map_err(fail)?;
    for directory in directories {
        let relative = directory.strip_prefix("/").unwrap_or(directory);
        empty(&root_fd, relative).map_err(|e| (directory.clone(), e.into()))?;
    }
    let mut archive = Archive::new(file);
    let mut times = Vec::new();
    for entry in archive.entries().map_err(|e| (root.to_owned(), e))? {
        let mut entry = entry.map_err(|e| (root.to_owned(), e))?;
        let path = entry.path().map_err(|e| (root.to_owned(), e))?.into_owned();
        let ours = directories.iter().any(|d| path.starts_with(d.strip_prefix("/").unwrap_or(d)));
        let plain = path.components().all(|c| matches!(c, Component::Normal(_)));
        if !ours || !plain {
            return Err((path, Errno::EXDEV.into()));
        }
        let mtime = put(&root_fd, &mut entry, &path).map_err(|e| (path.clone(), e))?;
        times.push((path, mtime));
    }
    // Directories get their times when all is in them.
    for (path, mtime) in times.into_iter().rev() {
        set_time(&root_fd, &path, mtime).map_err(|e| (path, e.into()))?;
    }
    Ok(())
}

/// Opens a directory beneath `root` without following links.
fn open_beneath(root: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(root, if path.as_os_str().is_empty() { Path::new(".") } else { path }, how)
}

/// Parent directory and last name.
fn parent<'p>(root: &OwnedFd, path: &'p Path) -> Result<(OwnedFd, &'p OsStr), Errno> {
    let name = path.file_name().ok_or(Errno::EINVAL)?;
    Ok((open_beneath(root, path.parent().unwrap_or(Path::new("")))?, name))
}

/// Removes all that is in a directory; one that is not there stays away.
fn empty(root: &OwnedFd, path: &Path) -> Result<(), Errno> {
    let fd = match open_beneath(root, path) {
        Ok(fd) => fd,
        Err(Errno::ENOENT) => return Ok(()),
        Err(e) => return Err(e),
    };
    let device = nix::sys::stat::fstat(&fd)?.st_dev;
    clear(&fd, device, 0)
}

fn clear(fd: &OwnedFd, device: u64, depth: usize) -> Result<(), Errno> {
    if depth > 200 {
        return Err(Errno::ELOOP);
    }
    let copy = fd.try_clone().map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(0)))?;
    let mut names: Vec<CString> = Vec::new();
    for entry in Dir::from_fd(copy)?.iter() {
        let name = entry?.file_name().to_owned();
        if !matches!(name.as_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    for name in names {
        let stat = fstatat(fd, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if stat.st_dev != device {
            continue; // mounted there
        }
        if stat.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFDIR.bits() {
            unlinkat(fd, name.as_c_str(), UnlinkatFlags::NoRemoveDir)?;
        } else {
            clear(&open_beneath(fd, Path::new(OsStr::from_bytes(name.as_bytes())))?, device, depth + 1)?;
            match unlinkat(fd, name.as_c_str(), UnlinkatFlags::RemoveDir) {
                // What is mounted below stays, with the way there.
                Ok(()) | Err(Errno::ENOTEMPTY | Errno::EBUSY) => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok(())
}

/// What an entry's PAX records tell.
#[derive(Default)]
struct Told {
    mtime: Option<i128>,
    socket: bool,
    attributes: Vec<(CString, Vec<u8>)>,
}

fn told<R: Read>(entry: &mut Entry<'_, R>) -> std::io::Result<Told> {
    let mut told = Told::default();
    let Some(records) = entry.pax_extensions()? else { return Ok(told) };
    for record in records {
        let record = record?;
        let key = record.key().unwrap_or_default();
        if key == PAX_MTIME {
            told.mtime = record.value().ok().and_then(|v| v.parse().ok());
        } else if key == PAX_SOCKET {
            told.socket = true;
        } else if let Some(name) = key.strip_prefix(PAX_XATTR)
            && let Ok(name) = CString::new(name)
        {
            told.attributes.push((name, record.value_bytes().to_vec()));
        }
    }
    Ok(told)
}

/// Makes one entry with owner, mode and attributes. Gives its time of modification.
fn put<R: Read>(root: &OwnedFd, entry: &mut Entry<'_, R>, path: &Path) -> std::io::Result<Option<i128>> {
    let told = told(entry)?;
    let header = entry.header();
    let kind = header.entry_type();
    let mode = Mode::from_bits_truncate(header.mode()?);
    let (uid, gid) = (header.uid()? as u32, header.gid()? as u32);
    let target = entry.link_name()?.map(|t| t.into_owned());
    let (at, name) = parent(root, path)?;
    let mut open_file = None;
    match kind {
        EntryType::Directory => {
            match mkdirat(&at, name, Mode::S_IRWXU) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(e) => return Err(e.into()),
            }
            open_file = Some(open_beneath(&at, Path::new(name))?);
        }
        EntryType::Regular => {
            let fd = create(&at, name)?;
            std::io::copy(entry, &mut File::from(fd.try_clone()?))?;
            open_file = Some(fd);
        }
        EntryType::Symlink => symlinkat(target.as_deref().unwrap_or(Path::new("")), &at, name)?,
        EntryType::Link => {
            let (from, old) = parent(root, target.as_deref().unwrap_or(Path::new("")))?;
            linkat(&from, old, &at, name, LinkatFlags::empty())?;
            return Ok(None);
        }
        EntryType::Fifo => {
            let node = if told.socket { SFlag::S_IFSOCK } else { SFlag::S_IFIFO };
            mknodat(&at, name, node, Mode::S_IRUSR | Mode::S_IWUSR, 0)?;
        }
        _ => return Err(Errno::EINVAL.into()),
    }
    let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    fchownat(&at, name, owner.0, owner.1, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if kind != EntryType::Symlink {
        fchmodat(&at, name, mode, FchmodatFlags::FollowSymlink)?;
    }
    if let Some(fd) = open_file {
        for (key, value) in &told.attributes {
            ckpt_sys::xattr::write(fd.as_fd(), key, value)?;
        }
    }
    Ok(told.mtime)
}

/// A new file beneath `at`.
fn create(at: &OwnedFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .mode(Mode::S_IRUSR | Mode::S_IWUSR)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    openat2(at, name, how)
}

fn set_time(root: &OwnedFd, path: &Path, mtime: Option<i128>) -> Result<(), Errno> {
    let Some(mtime) = mtime else { return Ok(()) };
    let (at, name) = parent(root, path)?;
    let seconds = mtime.div_euclid(1_000_000_000) as i64;
    let time = TimeSpec::new(seconds, mtime.rem_euclid(1_000_000_000) as i64);
    utimensat(&at, name, &time, &time, UtimensatFlags::NoFollowSymlink)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::ephemeral::archive;
    use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("ckpt-ephemeral-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn a_directory_comes_back_with_all_that_was_in_it() {
        let base = scratch("whole");
        let (dir, image) = (base.join("run"), base.join("image"));
        std::fs::create_dir_all(dir.join("sub")).unwrap();
        std::fs::write(dir.join("sub/file"), vec![7; 1500]).unwrap();
        std::fs::set_permissions(dir.join("sub/file"), std::fs::Permissions::from_mode(0o4640)).unwrap();
        std::fs::hard_link(dir.join("sub/file"), dir.join("other")).unwrap();
        symlink("sub/file", dir.join("link")).unwrap();
        nix::unistd::mkfifo(&dir.join("fifo"), Mode::S_IRWXU).unwrap();
        let socket = std::os::unix::net::UnixListener::bind(dir.join("socket")).unwrap();
        let before = std::fs::metadata(dir.join("sub/file")).unwrap();
        let directories = [dir.clone(), base.join("missing")];
        let kept = archive(std::process::id() as i32, &directories, &image, 3).unwrap();
        assert_eq!(kept, std::slice::from_ref(&dir));
        drop(socket);
        std::fs::write(dir.join("later"), "x").unwrap();
        std::fs::remove_file(dir.join("link")).unwrap();

        extract(File::open(image.join("ephemeral/3.tar")).unwrap(), &kept, Path::new("/")).unwrap();
        let after = std::fs::metadata(dir.join("sub/file")).unwrap();
        assert_eq!(std::fs::read(dir.join("sub/file")).unwrap(), vec![7; 1500]);
        assert_eq!(
            (after.mode(), after.uid(), after.mtime_nsec()),
            (before.mode(), before.uid(), before.mtime_nsec())
        );
        assert_eq!((after.nlink(), after.ino()), (2, std::fs::metadata(dir.join("other")).unwrap().ino()));
        assert_eq!(std::fs::read_link(dir.join("link")).unwrap(), Path::new("sub/file"));
        let kind = |name: &str| std::fs::symlink_metadata(dir.join(name)).unwrap().file_type();
        assert!(kind("fifo").is_fifo() && kind("socket").is_socket());
        assert!(!dir.join("later").exists());
        std::fs::remove_dir_all(base).unwrap();
    }

    #[test]
    fn an_archive_cannot_lead_out_of_its_directory() {
        let base = scratch("escape");
        let mut bytes = Vec::new();
        {
            let mut out = tar::Builder::new(&mut bytes);
            let mut header = tar::Header::new_ustar();
            header.set_size(0);
            header.set_mode(0o600);
            header.set_entry_type(EntryType::Regular);
            out.append_pax_extensions([("path", &b"run/../../etc/x"[..])]).unwrap();
            header.set_cksum();
            out.append(&header, &[][..]).unwrap();
        }
        std::fs::create_dir_all(base.join("run")).unwrap();
        assert!(extract(&bytes[..], &["/run".into()], &base).is_err());
        std::fs::remove_dir_all(base).unwrap();
    }
}
