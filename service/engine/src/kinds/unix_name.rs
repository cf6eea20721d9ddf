//! Names of unix sockets in the file system.
//!
//! A rebuilt socket is bound to its name, so that getsockname(2) tells it, and its node is moved aside at once: nobody outside can
//! connect while the group is rebuilt. The node gets its place, owner and mode when everything is done; a name that had no node
//! any more loses it again. Many servers bind to a passing name and rename the node or link it to the one that clients know, so that
//! theirs is never missing: the node is looked for in its directory, and gets all names that it has there.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ckpt_image::records::{UnitIndex, UnixName, UnixNode};
use ckpt_sys::descriptor::socket;
use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::libc;
use nix::sys::stat::{FileStat, Mode, fstat};

use super::collect::Found;
use super::rebuild::Rebuild;
use super::{Error, Refusal};

/// The name of a socket, `node_ino` being the inode of its node, as sock_diag tells it.
pub(super) fn capture(found: &Found, node_ino: Option<u32>) -> Result<Option<UnixName>, Refusal> {
    let address = socket::name(found.fd()).map_err(Refusal::call("getsockname"))?;
    let bytes = socket::unix_path(&address).to_vec();
    let path = match bytes.first() {
        None => return Ok(None),
        Some(0) => return Ok(Some(UnixName { bytes, directory: None, node: None })),
        Some(_) => PathBuf::from(OsStr::from_bytes(&bytes)),
    };
    // One in flight was met in our own process; its path is then looked up in vain and it has no node.
    let pid = found.place.pid;
    let there = node_ino.and_then(|ino| node(pid, &path, ino)).map(|node| (node, home(pid, &path)));
    let (node, directory) = match there.or_else(|| elsewhere(found.fd(), &path)) {
        Some((node, directory)) => (Some(node), directory),
        None => (None, None),
    };
    Ok(Some(UnixName { bytes, directory, node }))
}

/// What a path of a process begins at; `None` where that is the root of its unit.
fn home(pid: i32, path: &Path) -> Option<PathBuf> {
    let base = if path.is_relative() { "cwd" } else { "root" };
    let home = std::fs::read_link(format!("/proc/{pid}/{base}")).ok();
    home.filter(|home| path.is_relative() || home != Path::new("/"))
}

/// The node of a socket whose process has moved since bind(2) (chdir(2), chroot(2)), and what the path began at then.
fn elsewhere(fd: BorrowedFd<'_>, path: &Path) -> Option<(UnixNode, Option<PathBuf>)> {
    let file = socket::unix_file(fd).ok()?;
    let stat = fstat(&file).ok().filter(|stat| stat.st_nlink > 0)?;
    let real = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
    let name = real.file_name().filter(|name| !name.as_bytes().ends_with(b" (deleted)"))?;
    let below = path.strip_prefix("/").unwrap_or(path).parent()?;
    let directory = real.parent().filter(|directory| directory.ends_with(below))?;
    let base = directory.ancestors().nth(below.components().count())?.to_owned();
    let node = as_node(&stat, vec![name.into()]);
    Some((node, Some(base).filter(|base| path.is_relative() || base != Path::new("/"))))
}

/// The node with an inode number, at the path that it was bound to or by other names beside it.
fn node(pid: i32, path: &Path, ino: u32) -> Option<UnixNode> {
    let is_it = |stat: &FileStat| ino == stat.st_ino as u32 && stat.st_mode & libc::S_IFMT == libc::S_IFSOCK;
    let there = lookup(pid, path).ok().filter(is_it);
    if let (Some(stat), Some(name)) = (there.filter(|stat| stat.st_nlink == 1), path.file_name()) {
        return Some(as_node(&stat, vec![name.into()]));
    }
    let (mut found, mut names) = (None, Vec::new());
    for name in sockets_beside(pid, path, ino).unwrap_or_default() {
        if let Some(stat) = lookup(pid, &path.with_file_name(&name)).ok().filter(is_it) {
            found = Some(stat);
            names.push(name);
        }
    }
    found.map(|stat| as_node(&stat, names))
}

fn as_node(stat: &FileStat, names: Vec<PathBuf>) -> UnixNode {
    UnixNode { names, mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid }
}

/// Names of sockets in the directory of a path that may have this inode number.
fn sockets_beside(pid: i32, path: &Path, ino: u32) -> Result<Vec<PathBuf>, Errno> {
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut entries = Dir::from_fd(look(pid, directory, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?)?;
    let mut names = Vec::new();
    for entry in entries.iter() {
        let entry = entry?;
        // A file system may tell no types.
        if entry.ino() as u32 == ino && matches!(entry.file_type(), None | Some(Type::Socket)) {
            names.push(OsStr::from_bytes(entry.file_name().to_bytes()).into());
        }
    }
    names.sort();
    Ok(names)
}

/// What a path is for a process: links on its way are followed within its root (openat2(2), Linux 5.6).
pub(super) fn lookup(pid: i32, path: &Path) -> Result<FileStat, Errno> {
    fstat(look(pid, path, OFlag::O_PATH | OFlag::O_NOFOLLOW)?)
}

fn look(pid: i32, path: &Path, how: OFlag) -> Result<OwnedFd, Errno> {
    let base = if path.is_relative() { "cwd" } else { "root" };
    let base = format!("/proc/{pid}/{base}");
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let base = open(base.as_str(), flags | OFlag::O_DIRECTORY, Mode::empty())?;
    let within = if path.is_relative() { ResolveFlag::empty() } else { ResolveFlag::RESOLVE_IN_ROOT };
    openat2(&base, path, OpenHow::new().flags(how | OFlag::O_CLOEXEC).resolve(within))
}

/// A node that is aside until the group is rebuilt.
#[derive(Debug)]
pub(super) struct Aside {
    unit: UnitIndex,
    now: PathBuf,
    /// The directory it belongs in; `None` to remove it.
    place: Option<(PathBuf, UnixNode)>,
    /// What was in its place and is moved back.
    former: Option<(PathBuf, PathBuf)>,
}

/// Binds a socket to its name, in the unit's namespaces, and gives the address at which it can be connected to meanwhile.
pub(super) fn bind(
    cx: &mut Rebuild<'_>,
    fd: BorrowedFd<'_>,
    unit: UnitIndex,
    name: &UnixName,
) -> Result<Vec<u8>, Error> {
    let text = String::from_utf8_lossy(&name.bytes).into_owned();
    let address = socket::unix_address(&name.bytes).map_err(Error::call("bind", &text))?;
    if name.bytes.first() == Some(&0) {
        socket::bind(fd, &address).map_err(Error::call("bind", &text))?;
        return Ok(address);
    }
    let (base, path) = place(name);
    let directory = path.parent().unwrap_or(Path::new("/")).to_owned();
    cx.enter(unit)?;
    cx.asides += 1;
    let aside = |what: &str| directory.join(format!(".{what}{:x}", cx.asides));
    let (now, former) = (aside("ckpt"), aside("old"));
    let names = name.node.as_ref().map_or(&[][..], |node| &node.names);
    let stays = names.iter().any(|name| path.file_name() == Some(name.as_os_str()));
    names.iter().try_for_each(|name| may_replace(&directory.join(name)))?;
    let former = make_room(&path, former, stays)?;
    bind_in(base.as_deref(), fd, name, &address).map_err(Error::call("bind", path.display()))?;
    rename(&path, &now)?;
    let connect_to =
        socket::unix_address(now.as_os_str().as_bytes()).map_err(Error::call("connect", now.display()))?;
    cx.aside.push(Aside { unit, now, place: name.node.clone().map(|node| (directory, node)), former });
    Ok(connect_to)
}

/// bind(2) with the directory or the root that its name begins at.
fn bind_in(base: Option<&Path>, fd: BorrowedFd<'_>, name: &UnixName, address: &[u8]) -> Result<(), Errno> {
    let Some(base) = base else { return socket::bind(fd, address) };
    let at = |path| open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
    let (here, root) = (at(".")?, at("/")?);
    let relative = name.bytes.first() != Some(&b'/');
    if relative { nix::unistd::chdir(base) } else { nix::unistd::chroot(base) }?;
    let bound = socket::bind(fd, address);
    if !relative {
        nix::unistd::fchdir(&root)?;
        nix::unistd::chroot(".")?;
    }
    nix::unistd::fchdir(&here)?;
    bound
}

/// What the name begins at, and the absolute path of the node.
fn place(name: &UnixName) -> (Option<PathBuf>, PathBuf) {
    let path = Path::new(OsStr::from_bytes(&name.bytes));
    let below = path.strip_prefix("/").unwrap_or(path);
    match &name.directory {
        Some(base) => (Some(base.clone()), base.join(below)),
        None if path.is_absolute() => (None, path.to_owned()),
        // A relative name whose directory is not known has no node to be put anywhere: any directory does.
        None => (Some("/tmp".into()), Path::new("/tmp").join(below)),
    }
}

/// A socket's node is what the former socket left, or will be replaced; anything else is in the way where our node is to stay.
fn may_replace(path: &Path) -> Result<(), Error> {
    match std::fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => {
            Err(Error::FileMismatch { path: path.display().to_string(), why: "is not a socket now".into() })
        }
        _ => Ok(()),
    }
}

/// Clears the place for bind(2): what is there is moved aside, unless our node replaces it.
fn make_room(path: &Path, aside: PathBuf, stays: bool) -> Result<Option<(PathBuf, PathBuf)>, Error> {
    if std::fs::symlink_metadata(path).is_err() {
        return Ok(None);
    }
    if stays {
        std::fs::remove_file(path).map_err(|e| Error::call("unlink", path.display())(errno(&e)))?;
        return Ok(None);
    }
    rename(path, &aside)?;
    Ok(Some((aside, path.to_owned())))
}

fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    std::fs::rename(from, to).map_err(|e| Error::call("rename", from.display())(errno(&e)))
}

fn errno(e: &std::io::Error) -> Errno {
    Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO))
}

/// Puts every node in its place, or takes it away.
pub(super) fn publish(cx: &mut Rebuild<'_>) -> Result<(), Error> {
    for aside in std::mem::take(&mut cx.aside) {
        cx.enter(aside.unit)?;
        let now = &aside.now;
        match &aside.place {
            Some((directory, node)) => {
                let failed = |op| move |e: std::io::Error| Error::call(op, directory.display())(errno(&e));
                std::os::unix::fs::lchown(now, Some(node.uid), Some(node.gid)).map_err(failed("chown"))?;
                let mode = std::fs::Permissions::from_mode(node.mode);
                std::fs::set_permissions(now, mode).map_err(failed("chmod"))?;
                let (first, others) = node.names.split_first().ok_or_else(|| Error::FileMismatch {
                    path: now.display().to_string(),
                    why: "has no name".into(),
                })?;
                for other in others {
                    let place = directory.join(other);
                    let _ = std::fs::remove_file(&place);
                    std::fs::hard_link(now, &place).map_err(failed("link"))?;
                }
                rename(now, &directory.join(first))?;
            }
            None => std::fs::remove_file(now).map_err(|e| Error::call("unlink", now.display())(errno(&e)))?,
        }
        if let Some((from, to)) = &aside.former {
            rename(from, to)?;
        }
    }
    Ok(())
}

/// Removes what a failed rebuild left aside; best effort.
pub(super) fn abandon(cx: &mut Rebuild<'_>) {
    for aside in std::mem::take(&mut cx.aside) {
        if cx.enter(aside.unit).is_err() {
            continue;
        }
        let _ = std::fs::remove_file(&aside.now);
        if let Some((from, to)) = &aside.former {
            let _ = std::fs::rename(from, to);
        }
    }
}
