//! The files and shared objects behind mappings.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use ckpt_image::records::{FileId, ObjectId, ObjectKind, UnitIndex};
use ckpt_sys::maps::{MapName, Mapping};
use nix::sys::stat::{FileStat, SFlag, major, minor};

use super::classify::{ObjectClass, Refusal};
use super::{Capture, Member, MemoryError, Shown};
use crate::capture::files::Seen;
use crate::capture::{Files, Objects};

/// `/proc/TID/map_files/…` of a mapping: opens the mapped file itself, deleted or not (proc_pid_map_files(5)).
pub(super) fn map_files(member: &Member<'_>, mapping: &Mapping) -> PathBuf {
    let range = mapping.range;
    PathBuf::from(format!("/proc/{}/map_files/{:x}-{:x}", member.tid, range.start.0, range.end.0))
}

/// The refusal of a mapping of a device node, or of anything else that is no file with pages.
fn refused_node(stat: &FileStat) -> Option<Refusal> {
    let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
    let zero = kind == SFlag::S_IFCHR && (major(stat.st_rdev), minor(stat.st_rdev)) == (1, 5);
    (kind != SFlag::S_IFREG && !zero).then_some(Refusal {
        code: "device-mapping",
        text: "it is memory of a device",
        remedy: "stop the use of the device (GPU, DRM, VFIO, …) before the checkpoint",
    })
}

/// The same for a mapping of a running member; `None` if it cannot be looked at now.
pub(super) fn is_refused_device(member: &Member<'_>, mapping: &Mapping) -> Option<Refusal> {
    // Executables and libraries are most mappings and need no look.
    if !mapping.shared && mapping.prot & 4 != 0 {
        return None;
    }
    nix::sys::stat::stat(&map_files(member, mapping)).ok().and_then(|stat| refused_node(&stat))
}

fn proc_error(path: &Path, source: impl Into<std::io::Error>) -> MemoryError {
    MemoryError::Proc { path: path.display().to_string(), source: source.into() }
}

impl Capture {
    /// The file behind a mapping.
    pub(super) fn mapped_file(
        &mut self,
        member: &Member<'_>,
        mapping: &Mapping,
        files: &mut Files,
    ) -> Result<Result<FileId, Refusal>, MemoryError> {
        let MapName::File { path, deleted } = &mapping.name else {
            return Err(proc_error(&map_files(member, mapping), std::io::ErrorKind::InvalidData));
        };
        let key = Shown {
            unit: member.unit,
            dev: mapping.dev,
            ino: mapping.ino,
            path: path.clone(),
            deleted: *deleted,
            shared: mapping.shared,
        };
        if let Some(id) = self.known.get(&key) {
            return Ok(Ok(*id));
        }
        let link = map_files(member, mapping);
        let stat = nix::sys::stat::stat(&link).map_err(|e| proc_error(&link, e))?;
        if let Some(refusal) = refused_node(&stat) {
            return Ok(Err(refusal));
        }
        let id = self.file(member, &link, &stat, !mapping.shared, files)?;
        if mapping.shared
            && files.get(id).source == (ckpt_image::records::FileSource::Path { immutable: false })
        {
            store_if_tmpfs(&link, id, files)?;
        }
        self.known.insert(key, id);
        Ok(Ok(id))
    }

    /// The file behind a link of /proc (map_files, exe).
    pub(super) fn file(
        &mut self,
        member: &Member<'_>,
        link: &Path,
        stat: &FileStat,
        immutable: bool,
        files: &mut Files,
    ) -> Result<FileId, MemoryError> {
        let shown = std::fs::read_link(link).map_err(|e| proc_error(link, e))?;
        let (path, deleted) = real_name(member, &shown, stat);
        let id = files.record(&Seen { unit: member.unit, path: &path, stat, deleted, immutable });
        if files.needs_content(id) && is_regular(stat) {
            let file = File::open(link).map_err(|e| proc_error(link, e))?;
            files.keep_content(id, file.as_fd()).map_err(|e| proc_error(link, e))?;
        }
        if files.needs_pin(id)
            && is_regular(stat)
            && let Ok(file) = File::open(link)
        {
            files.keep_pin(id, file.into());
        }
        Ok(id)
    }

    /// The shared memory object behind a mapping.
    pub(super) fn mapped_object(
        &mut self,
        member: &Member<'_>,
        mapping: &Mapping,
        class: ObjectClass,
        objects: &mut Objects,
    ) -> Result<ObjectId, MemoryError> {
        let link = map_files(member, mapping);
        let stat = nix::sys::stat::stat(&link).map_err(|e| proc_error(&link, e))?;
        let identity = match class {
            ObjectClass::SysvShm => (ipc_namespace(member)?, stat.st_ino),
            _ => (stat.st_dev, stat.st_ino),
        };
        let id = match objects.find(identity) {
            Some(id) => id,
            None => {
                let kind = self.object_kind(member, mapping, class, &link, &stat)?;
                objects.record(identity, stat.st_size as u64, || kind)
            }
        };
        if objects.descriptor(id).is_none() {
            let file = File::open(&link).map_err(|e| proc_error(&link, e))?;
            objects.keep_descriptor(id, file.into());
        }
        Ok(id)
    }

    fn object_kind(
        &self,
        member: &Member<'_>,
        mapping: &Mapping,
        class: ObjectClass,
        link: &Path,
        stat: &FileStat,
    ) -> Result<ObjectKind, MemoryError> {
        let details = mapping.details.unwrap_or_default();
        let page = if details.flags.has(b"ht") { details.page_size } else { 0 };
        Ok(match class {
            ObjectClass::Anonymous if page != 0 => ObjectKind::AnonymousHuge { page },
            ObjectClass::Anonymous => ObjectKind::Anonymous,
            ObjectClass::Memfd => {
                let file = File::open(link).map_err(|e| proc_error(link, e))?;
                let seals = nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_GET_SEALS)
                    .map_err(|e| proc_error(link, e))?;
                ObjectKind::Memfd {
                    name: memfd_name(&std::fs::read_link(link).map_err(|e| proc_error(link, e))?),
                    seals: seals as u32,
                    mode: stat.st_mode,
                    owner: (stat.st_uid, stat.st_gid),
                    hugetlb: page,
                }
            }
            ObjectClass::SysvShm => sysv_shm(member, stat.st_ino)?,
        })
    }
}

/// `/memfd:NAME (deleted)` without what the kernel adds.
fn memfd_name(shown: &Path) -> Vec<u8> {
    let name = shown.as_os_str().as_bytes();
    let name = name.strip_prefix(b"/memfd:").unwrap_or(name);
    name.strip_suffix(b" (deleted)").unwrap_or(name).to_vec()
}

fn is_regular(stat: &FileStat) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits()
}

/// The name a link of /proc shows, and whether the file has lost it. A name that really ends in ` (deleted)` is looked up.
fn real_name(member: &Member<'_>, shown: &Path, stat: &FileStat) -> (PathBuf, bool) {
    let bytes = shown.as_os_str().as_bytes();
    let Some(name) = bytes.strip_suffix(b" (deleted)") else {
        return (shown.to_owned(), false);
    };
    let literal = Path::new("/proc").join(member.tid.to_string()).join("root");
    let literal = literal.join(shown.strip_prefix("/").unwrap_or(shown));
    let same = nix::sys::stat::lstat(&literal)
        .is_ok_and(|found| (found.st_dev, found.st_ino) == (stat.st_dev, stat.st_ino));
    if same { (shown.to_owned(), false) } else { (PathBuf::from(OsStr::from_bytes(name)), true) }
}

/// A named file of a tmpfs that is mapped shared is memory, too: no subvolume keeps its content, so the image does.
fn store_if_tmpfs(link: &Path, id: FileId, files: &mut Files) -> Result<(), MemoryError> {
    use nix::sys::statfs::{TMPFS_MAGIC, statfs};
    let fs = statfs(link).map_err(|e| proc_error(link, e))?;
    if fs.filesystem_type() == TMPFS_MAGIC {
        let file = File::open(link).map_err(|e| proc_error(link, e))?;
        files.store(id, file.as_fd()).map_err(|e| proc_error(link, e))?;
    }
    Ok(())
}

/// Tells the identities of System V segments of one IPC namespace from those of another and from inode numbers.
fn ipc_namespace(member: &Member<'_>) -> Result<u64, MemoryError> {
    let path = PathBuf::from(format!("/proc/{}/ns/ipc", member.tid));
    let stat = nix::sys::stat::stat(&path).map_err(|e| proc_error(&path, e))?;
    Ok(stat.st_ino | 1 << 63)
}

/// A segment as its IPC namespace tells it. A thread enters the namespace: /proc/sysvipc shows the reader's.
fn sysv_shm(member: &Member<'_>, shmid: u64) -> Result<ObjectKind, MemoryError> {
    let path = PathBuf::from("/proc/sysvipc/shm");
    let ns_path = PathBuf::from(format!("/proc/{}/ns/ipc", member.tid));
    let ns = File::open(&ns_path).map_err(|e| proc_error(&ns_path, e))?;
    let read = std::thread::spawn(move || -> std::io::Result<String> {
        nix::sched::setns(ns, nix::sched::CloneFlags::CLONE_NEWIPC)?;
        ckpt_sys::proc_file::read_text("/proc/sysvipc/shm")
    });
    let text = read.join().map_err(|_| MemoryError::Thread)?.map_err(|e| proc_error(&path, e))?;
    parse_sysv_shm(&text, shmid, member.unit)
        .ok_or_else(|| proc_error(&path, std::io::Error::other(format!("no segment {shmid}"))))
}

/// The line of a segment in /proc/sysvipc/shm: key shmid perms size cpid lpid nattch uid gid cuid cgid …
fn parse_sysv_shm(text: &str, shmid: u64, unit: UnitIndex) -> Option<ObjectKind> {
    text.lines().skip(1).find_map(|line| {
        let field: Vec<&str> = line.split_ascii_whitespace().collect();
        if field.get(1)?.parse() != Ok(shmid) {
            return None;
        }
        let number = |at: usize| field.get(at)?.parse().ok();
        Some(ObjectKind::SysvShm {
            shmid: shmid as i32,
            key: field[0].parse::<i64>().ok()? as i32,
            mode: u32::from_str_radix(field.get(2)?, 8).ok()?,
            owner: [number(7)?, number(8)?, number(9)?, number(10)?],
            unit,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_found_by_its_id() {
        let text = "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid\n\
                    \x20        0          3  1600                 65536  1 1      1     5     6     7     8\n\
                    -559038737          4   600                 56  1 1      1     0     0     0     0\n";
        let unit = UnitIndex(2);
        let found = parse_sysv_shm(text, 3, unit).unwrap();
        assert_eq!(found, ObjectKind::SysvShm { shmid: 3, key: 0, mode: 0o1600, owner: [5, 6, 7, 8], unit });
        assert!(matches!(parse_sysv_shm(text, 4, unit), Some(ObjectKind::SysvShm { key: -559038737, .. })));
        assert_eq!(parse_sysv_shm(text, 5, unit), None);
    }

    #[test]
    fn memfd_names_lose_only_what_the_kernel_added() {
        assert_eq!(memfd_name(Path::new("/memfd:a (deleted) (deleted)")), b"a (deleted)");
    }
}
