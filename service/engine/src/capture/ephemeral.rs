//! Directories that systemd removes with the unit: RuntimeDirectory=, /tmp and /var/tmp of PrivateTmp=, and TemporaryFileSystem=. Their
//! content goes into the image, one archive a unit.
//!
//! ```text
//!  ephemeral/N.tar   N: the unit's index; entries named by the path of the directory without its leading slash
//!    PAX records: CKPT.mtime  nanoseconds since the epoch
//!                 CKPT.socket 1: the entry (a FIFO to tar) is a unix socket
//!                 SCHILY.xattr.NAME
//! ```

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use tar::{Builder, EntryType, Header};

use crate::api::Unit;
use crate::error::Error;

/// Where the archives lie in the checkpoint's directory.
pub const DIRECTORY: &str = "ephemeral";
/// PAX record: modification time, nanoseconds since the epoch.
pub const PAX_MTIME: &str = "CKPT.mtime";
/// PAX record: the entry is a unix socket.
pub const PAX_SOCKET: &str = "CKPT.socket";
/// PAX record: prefix of extended attributes.
pub const PAX_XATTR: &str = "SCHILY.xattr.";
/// Directories in directories deeper than this are an error, not a stack overflow.
const DEEPEST: usize = 200;

/// The directories of a unit that its processes see and systemd removes with it.
pub fn directories(unit: &Unit) -> Vec<PathBuf> {
    let mut all = unit.runtime_directories.clone();
    if unit.private_tmp {
        all.extend(["/tmp".into(), "/var/tmp".into()]);
    }
    all.extend(unit.temporary_file_systems.iter().filter(|path| is_own(path)).cloned());
    all
}

/// Whether a temporary file system holds what the unit's processes put there: others are as systemd makes them.
fn is_own(path: &Path) -> bool {
    path.parent().is_some() && !["/run", "/dev", "/proc", "/sys"].iter().any(|root| path.starts_with(root))
}

/// Whether a directory of a unit is a mount of a file system in memory, and is to be filled only if it is one.
pub fn is_mount(path: &Path) -> bool {
    is_own(path) && ![Path::new("/tmp"), Path::new("/var/tmp")].contains(&path)
}

/// Archives the directories as process `pid` of the unit sees them, into `image/ephemeral/INDEX.tar`, which is written but not
/// synced. A directory that is not there is left out. Gives those that were. Errors: those of the files, which it names.
pub fn archive(pid: i32, directories: &[PathBuf], image: &Path, index: usize) -> Result<Vec<PathBuf>, Error> {
    let there = image.join(DIRECTORY);
    std::fs::create_dir_all(&there).map_err(|e| Error::io(format!("create {}", there.display()), e))?;
    let path = there.join(format!("{index}.tar"));
    let file = File::create(&path).map_err(|e| Error::io(format!("create {}", path.display()), e))?;
    let link = format!("/proc/{pid}/root");
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = nix::fcntl::open(link.as_str(), flags, Mode::empty())
        .map_err(|e| Error::io(format!("open {link}"), e))?;
    let mut archive =
        Archive { out: Builder::new(std::io::BufWriter::new(file)), links: HashMap::new(), device: 0 };
    let mut done = Vec::new();
    for directory in directories {
        if archive
            .add_top(&root, directory)
            .map_err(|(path, e)| Error::io(format!("archive {}", path.display()), e))?
        {
            done.push(directory.clone());
        }
    }
    let finish = archive.out.into_inner().and_then(|mut w| w.flush());
    finish.map_err(|e| Error::io(format!("write {}", path.display()), e))?;
    Ok(done)
}

/// A failure and the path it is about.
type Failed = (PathBuf, std::io::Error);

struct Archive<W: Write> {
    out: Builder<W>,
    /// Files with several names, by inode: the first name.
    links: HashMap<u64, PathBuf>,
    /// Of the directory that is being archived: mounts below it are left out.
    device: u64,
}

impl<W: Write> Archive<W> {
    /// Adds a directory with all below it; `false` if there is none.
    fn add_top(&mut self, root: &OwnedFd, directory: &Path) -> Result<bool, Failed> {
        let fail = |e: Errno| (directory.to_owned(), e.into());
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let fd = match openat2(root, directory, how) {
            Ok(fd) => fd,
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(false),
            Err(e) => return Err(fail(e)),
        };
        let stat = fstat(&fd).map_err(fail)?;
        self.device = stat.st_dev;
        self.links.clear();
        let name = directory.strip_prefix("/").unwrap_or(directory).to_owned();
        self.add_directory(fd, &stat, &name, 0)?;
        Ok(true)
    }

    fn add_directory(
        &mut self,
        fd: OwnedFd,
        stat: &FileStat,
        name: &Path,
        depth: usize,
    ) -> Result<(), Failed> {
        let fail = |e: Errno| (name.to_owned(), std::io::Error::from(e));
        if depth > DEEPEST {
            return Err(fail(Errno::ELOOP));
        }
        self.head(stat, name, EntryType::Directory, 0, Some(&fd), None)?;
        let copy = fd.try_clone().map_err(|e| (name.to_owned(), e))?;
        let mut listing = Dir::from_fd(copy).map_err(fail)?;
        let mut names = Vec::new();
        for entry in listing.iter() {
            let entry = entry.map_err(fail)?.file_name().to_owned();
            if !matches!(entry.as_bytes(), b"." | b"..") {
                names.push(entry);
            }
        }
        names.sort();
        for entry in names {
            let path = name.join(std::ffi::OsStr::from_bytes(entry.as_bytes()));
            let at = |e: Errno| (path.clone(), std::io::Error::from(e));
            let stat = match fstatat(&fd, entry.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::ENOENT) => continue,
                Err(e) => return Err(at(e)),
            };
            if stat.st_dev == self.device {
                self.add_entry(&fd, &entry, &stat, &path, depth)?;
            }
        }
        Ok(())
    }

    fn add_entry(
        &mut self,
        parent: &OwnedFd,
        entry: &std::ffi::CStr,
        stat: &FileStat,
        path: &Path,
        depth: usize,
    ) -> Result<(), Failed> {
        let fail = |e: Errno| (path.to_owned(), std::io::Error::from(e));
        let flags =
            OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFDIR => {
                let fd = openat(parent, entry, flags | OFlag::O_DIRECTORY, Mode::empty()).map_err(fail)?;
                self.add_directory(fd, stat, path, depth + 1)
            }
            SFlag::S_IFREG => {
                if stat.st_nlink > 1
                    && let Some(first) = self.links.get(&stat.st_ino).cloned()
                {
                    return self.head(stat, path, EntryType::Link, 0, None, Some(&first));
                }
                self.links.insert(stat.st_ino, path.to_owned());
                let fd = openat(parent, entry, flags, Mode::empty()).map_err(fail)?;
                self.add_file(fd, path)
            }
            SFlag::S_IFLNK => {
                let target = readlinkat(parent, entry).map_err(fail)?;
                self.head(stat, path, EntryType::Symlink, 0, None, Some(Path::new(&target)))
            }
            SFlag::S_IFIFO | SFlag::S_IFSOCK => self.head(stat, path, EntryType::Fifo, 0, None, None),
            // Device nodes are systemd's to make.
            _ => Ok(()),
        }
    }

    fn add_file(&mut self, fd: OwnedFd, path: &Path) -> Result<(), Failed> {
        let fail = |e: std::io::Error| (path.to_owned(), e);
        let stat = fstat(&fd).map_err(|e| fail(e.into()))?;
        let size = stat.st_size as u64;
        self.head(&stat, path, EntryType::Regular, size, Some(&fd), None)?;
        // Exactly as many bytes as the head says, whatever happens to the file meanwhile.
        let mut content = std::io::Read::take(File::from(fd), size);
        let out = self.out.get_mut();
        let copied = std::io::copy(&mut content, out).map_err(fail)?;
        let pad = size - copied + (512 - size % 512) % 512;
        std::io::copy(&mut std::io::Read::take(std::io::repeat(0), pad), out).map_err(fail)?;
        Ok(())
    }

    /// Writes PAX records and header of an entry.
    fn head(
        &mut self,
        stat: &FileStat,
        path: &Path,
        kind: EntryType,
        size: u64,
        fd: Option<&OwnedFd>,
        target: Option<&Path>,
    ) -> Result<(), Failed> {
        let fail = |e: std::io::Error| (path.to_owned(), e);
        let mtime = i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec);
        let mut records = vec![(PAX_MTIME.to_owned(), mtime.to_string().into_bytes())];
        records.push(("path".into(), path.as_os_str().as_bytes().to_vec()));
        if let Some(target) = target {
            records.push(("linkpath".into(), target.as_os_str().as_bytes().to_vec()));
        }
        if stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFSOCK.bits() {
            records.push((PAX_SOCKET.into(), b"1".to_vec()));
        }
        if let Some(fd) = fd {
            let attributes = ckpt_sys::xattr::read(fd.as_fd()).map_err(|e| fail(e.into()))?;
            for (name, value) in attributes {
                records.push((format!("{PAX_XATTR}{}", name.to_string_lossy()), value));
            }
        }
        let borrowed = records.iter().map(|(k, v)| (k.as_str(), v.as_slice()));
        self.out.append_pax_extensions(borrowed).map_err(fail)?;
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(stat.st_mode & 0o7777);
        header.set_uid(u64::from(stat.st_uid));
        header.set_gid(u64::from(stat.st_gid));
        header.set_size(size);
        header.set_mtime(stat.st_mtime.max(0) as u64);
        header.set_cksum();
        self.out.get_mut().write_all(header.as_bytes()).map_err(fail)
    }
}
