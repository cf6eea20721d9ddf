//! What is mounted where, and which mount a descriptor lies in. proc_pid_mountinfo(5), proc_pid_fdinfo(5).

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::error::Error;

/// One line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mount {
    /// Id of the mount.
    pub id: u64,
    /// Device of the file system in the kernel's form: major number << 20 | minor number.
    pub device: u64,
    /// What of the file system is mounted: for btrfs the path of the subvolume.
    pub root: PathBuf,
    /// Where it is mounted, as this process sees it.
    pub point: PathBuf,
    /// Options of the mount itself.
    pub options: String,
    /// What it propagates (shared, master, …), without the numbers of peer groups.
    pub tags: Vec<String>,
    /// Type of the file system.
    pub fs_type: String,
    /// What it is mounted from.
    pub source: String,
    /// Options of the file system.
    pub fs_options: String,
}

/// The lines of a mountinfo; lines that do not look like one are left out.
pub(crate) fn parse(text: &str) -> Vec<Mount> {
    text.lines().filter_map(parse_line).collect()
}

/// One line; `None` if it does not look like one.
pub(crate) fn parse_line(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let before: Vec<&str> = before.split(' ').collect();
    let after: Vec<&str> = after.split(' ').collect();
    let (major, minor) = before.get(2)?.split_once(':')?;
    Some(Mount {
        id: before.first()?.parse().ok()?,
        device: major.parse::<u64>().ok()? << 20 | minor.parse::<u64>().ok()?,
        root: unescape(before.get(3)?),
        point: unescape(before.get(4)?),
        options: (*before.get(5)?).to_string(),
        tags: before[6..].iter().map(|tag| tag.split(':').next().unwrap_or(tag).to_string()).collect(),
        fs_type: (*after.first()?).to_string(),
        source: unescape(after.get(1)?).to_string_lossy().into_owned(),
        fs_options: (*after.get(2)?).to_string(),
    })
}

/// `\040` and its like.
fn unescape(field: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let [first, tail @ ..] = rest {
        if let ([b'\\', octal @ ..], true) = (rest, rest.len() >= 4) {
            let digits = std::str::from_utf8(&octal[..3]).ok();
            if let Some(byte) = digits.and_then(|d| u8::from_str_radix(d, 8).ok()) {
                bytes.push(byte);
                rest = &octal[3..];
                continue;
            }
        }
        bytes.push(*first);
        rest = tail;
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// All mounts that a process sees; none if it is gone.
pub(crate) fn of_process(pid: i32) -> Vec<Mount> {
    let text = std::fs::read(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    parse(&String::from_utf8_lossy(&text))
}

/// All mounts that this process sees.
pub(super) fn read() -> Result<Vec<Mount>, Error> {
    let path = "/proc/thread-self/mountinfo";
    let text = std::fs::read(path).map_err(|e| Error::io(format!("read {path}"), e))?;
    Ok(parse(&String::from_utf8_lossy(&text)))
}

/// Id of the mount that a descriptor lies in.
pub(super) fn id_of(fd: BorrowedFd<'_>) -> Result<u64, Error> {
    let path = format!("/proc/thread-self/fdinfo/{}", fd.as_raw_fd());
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io(format!("read {path}"), e))?;
    text.lines()
        .find_map(|l| l.strip_prefix("mnt_id:")?.trim().parse().ok())
        .ok_or_else(|| Error::Failed(format!("{path} names no mount")))
}

/// The mount that a descriptor lies in.
pub(super) fn of(fd: BorrowedFd<'_>) -> Result<Mount, Error> {
    let id = id_of(fd)?;
    read()?
        .into_iter()
        .find(|m| m.id == id)
        .ok_or_else(|| Error::Failed(format!("mount {id} is not in /proc/thread-self/mountinfo")))
}

/// Opens the top directory of a mount. Errors: Unsupported where another mount hides it.
pub(super) fn open_top(mount: &Mount) -> Result<OwnedFd, Error> {
    use std::os::fd::AsFd;
    let top: OwnedFd =
        File::open(&mount.point).map_err(|e| Error::io(format!("open {}", mount.point.display()), e))?.into();
    if id_of(top.as_fd())? != mount.id {
        return Err(Error::Unsupported(format!(
            "another file system is mounted over {}, so snapshots cannot be placed there; unmount it",
            mount.point.display()
        )));
    }
    Ok(top)
}

/// Mounts below a path, the path itself left out.
pub(super) fn below(path: &Path) -> Result<Vec<PathBuf>, Error> {
    Ok(read()?.into_iter().map(|m| m.point).filter(|p| p != path && p.starts_with(path)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_mountinfo_is_understood() {
        let text = "36 35 0:32 /web\\040site /srv/web rw,noatime shared:1 master:2 - btrfs /dev/loop0 rw,space_cache=v2,subvolid=256\n\
                    37 35 0:33 / /tmp rw - tmpfs tmpfs rw\nnot a mount\n1 2 - \n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!(
            mounts[0],
            Mount {
                id: 36,
                device: 32,
                root: "/web site".into(),
                point: "/srv/web".into(),
                options: "rw,noatime".into(),
                tags: vec!["shared".into(), "master".into()],
                fs_type: "btrfs".into(),
                source: "/dev/loop0".into(),
                fs_options: "rw,space_cache=v2,subvolid=256".into()
            }
        );
        assert_eq!(unescape("a\\134b\\9"), PathBuf::from("a\\b\\9"));
    }

    #[test]
    fn the_mount_of_a_descriptor_is_found() {
        use std::os::fd::AsFd;
        let file = File::open("/proc/self/status").unwrap();
        assert_eq!(of(file.as_fd()).unwrap().fs_type, "proc");
    }
}
