//! /proc as a unit sees it, of the PID namespace that its members live in.
//!
//! ```text
//!  before   /proc (hidepid=, subset=)     after   the same, of our namespace
//!             sys        ro, of itself              sys        ro, of itself again
//!             kmsg       a node of /run             kmsg       the same node
//! ```
//! What a unit's sandbox (ProtectKernelTunables=, ProtectProc=, InaccessiblePaths=) put there stays in effect.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use ckpt_sys::detached_mount::{self, Attributes};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;

/// A mount at or below /proc.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mount {
    point: PathBuf,
    /// Flags of the mount.
    options: String,
    kind: String,
    /// Options of its file system.
    super_options: String,
}

/// Mounts a proc(5) of our PID namespace over /proc of our mount namespace, if there is one, with the options of the old one, and puts what was
/// mounted below it back.
pub fn mount_to_fit() -> Result<(), Errno> {
    let table = std::fs::read("/proc/self/mountinfo");
    let table = table.map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(nix::libc::EIO)))?;
    let mounts = below_proc(&table);
    let Some(old) = mounts.iter().rfind(|m| m.point == Path::new("/proc") && m.kind == "proc") else {
        return Ok(());
    };
    // Trees of other file systems are taken before the new /proc hides them.
    let mut kept = Vec::new();
    for other in mounts.iter().filter(|m| m.point != Path::new("/proc")) {
        let tree = (other.kind != "proc").then(|| detached_mount::copy(&other.point)).transpose()?;
        kept.push((other, tree));
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let options = proc_options(&old.super_options);
    mount(Some("proc"), "/proc", Some("proc"), flags, Some(options.as_str()))?;
    set_flags(Path::new("/proc"), &old.options)?;
    kept.into_iter().try_for_each(|(other, tree)| put_back(other, tree))
}

/// A mount below the new /proc. What the new one does not have (subset=pid) needs none.
fn put_back(old: &Mount, tree: Option<OwnedFd>) -> Result<(), Errno> {
    if !old.point.exists() {
        return Ok(());
    }
    match tree {
        Some(tree) => detached_mount::attach(tree.as_fd(), &old.point),
        None => {
            mount(Some(&old.point), &old.point, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
            set_flags(&old.point, &old.options)
        }
    }
}

fn set_flags(point: &Path, options: &str) -> Result<(), Errno> {
    let mount = open(point, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    detached_mount::set_attributes(mount.as_fd(), Attributes::parse(options))
}

/// What of a /proc's options mount(2) takes: hidepid=, gid=, subset=.
fn proc_options(super_options: &str) -> String {
    let own = |word: &&str| ["hidepid=", "gid=", "subset="].iter().any(|name| word.starts_with(name));
    super_options.split(',').filter(own).collect::<Vec<_>>().join(",")
}

/// The mounts at or below /proc, in their order (proc_pid_mountinfo(5)).
fn below_proc(table: &[u8]) -> Vec<Mount> {
    let lines = table.split(|b| *b == b'\n');
    // What waits to be mounted on demand is not taken along.
    let wanted = |m: &Mount| m.point.starts_with("/proc") && m.kind != "autofs";
    lines.filter_map(parse).filter(wanted).collect()
}

/// `36 35 98:0 /root /point options optional… - kind source super`.
fn parse(line: &[u8]) -> Option<Mount> {
    let words: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    let dash = words.iter().position(|w| *w == b"-")?;
    let text = |at: usize| Some(String::from_utf8_lossy(words.get(at)?).into_owned());
    Some(Mount {
        point: unescape(words.get(4)?),
        options: text(5)?,
        kind: text(dash + 1)?,
        super_options: text(dash + 3)?,
    })
}

/// Octal escapes (`\040` is a space).
fn unescape(text: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).and_then(|d| std::str::from_utf8(d).ok());
        match digits.and_then(|d| u8::from_str_radix(d, 8).ok()).filter(|_| *first == b'\\') {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_below_proc_are_found_with_their_options() {
        let table = b"25 1 0:22 / / rw,relatime shared:1 - btrfs /dev/x rw\n\
                      26 25 0:23 / /proc rw,nosuid,nodev,noexec - proc proc rw,hidepid=invisible,subset=pid\n\
                      27 26 0:23 /sys /proc/sys ro,nosuid - proc proc rw\n\
                      28 25 0:24 / /process rw - tmpfs tmpfs rw\n\
                      29 26 0:25 /x /proc/a\\040b ro shared:3 master:4 - tmpfs tmpfs rw,size=4k\n";
        let mounts = below_proc(table);
        let points: Vec<_> = mounts.iter().map(|m| m.point.to_str().unwrap()).collect();
        assert_eq!(points, ["/proc", "/proc/sys", "/proc/a b"]);
        assert_eq!(proc_options(&mounts[0].super_options), "hidepid=invisible,subset=pid");
        assert_eq!((mounts[1].options.as_str(), mounts[1].kind.as_str()), ("ro,nosuid", "proc"));
        assert_eq!((mounts[2].kind.as_str(), mounts[2].super_options.as_str()), ("tmpfs", "rw,size=4k"));
    }
}
