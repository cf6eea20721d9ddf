//! What members share and the image holds: shared memory objects, gates, files without a name, files in memory. Made and filled here,
//! before the members are cloned, so that all of them inherit one description.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs::{File, OpenOptions, Permissions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

use ckpt_image::records::{
    FileId, FileRecord, FileSource, GroupImage, MappingKind, ObjectId, ObjectKind, ObjectRecord, UnitIndex,
};
use ckpt_image::{Container, PAGE_SIZE, PageReader, Place};
use ckpt_sys::shared::{Segment, anonymous};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::Failure;
use super::memory::FdRef;

/// Bytes copied at a time.
const PART: usize = 1 << 20;
const SHM_DEST: u32 = 0o1000;

/// Runs a function in the namespaces of a unit and gives what it gives.
pub type Within<'a> = &'a mut dyn FnMut(
    UnitIndex,
    &mut dyn FnMut() -> Result<Option<File>, Failure>,
) -> Result<Option<File>, Failure>;

/// Everything that was made, by descriptor, O_RDWR (O_RDONLY for files that are executed).
#[derive(Debug, Default)]
pub struct Contents {
    objects: BTreeMap<ObjectId, File>,
    gates: BTreeMap<(u32, u64), File>,
    files: BTreeMap<FileId, File>,
}

impl Contents {
    /// Makes and fills all. Errors name the object.
    pub fn make(image: &GroupImage, pages: &PageReader, within: Within<'_>) -> Result<Self, Failure> {
        let mut contents = Self::default();
        for record in &image.objects {
            let file = object(record, within).map_err(|e| e.of_object(name(record)))?;
            fill(&file, Container::Object(record.id), record.size, pages)?;
            seal(&file, record, false).map_err(|e| e.of_object(name(record)))?;
            contents.objects.insert(record.id, file);
        }
        for (space, mapping) in image.spaces.iter().flat_map(|s| s.mappings.iter().map(move |m| (s.id.0, m)))
        {
            if let MappingKind::Gate { content } = &mapping.kind {
                contents.gates.insert((space, mapping.start), gate(content, mapping.end - mapping.start)?);
            }
        }
        let executed: BTreeSet<FileId> = image.spaces.iter().map(|space| space.exe).collect();
        for (n, record) in image.files.iter().enumerate() {
            let id = FileId(n as u32);
            if !matches!(record.source, FileSource::Unlinked | FileSource::Memory) {
                continue;
            }
            let named = |e: Failure| e.of_object(record.path.display().to_string());
            let file = within(record.unit, &mut || make_file(record).map(Some)).map_err(named)?;
            let file = file.ok_or_else(|| named(Failure::not_restorable("it was not made")))?;
            fill(&file, Container::File(id), record.size, pages)?;
            dress(&file, record).map_err(named)?;
            let file = if executed.contains(&id) { reopen(&file).map_err(named)? } else { file };
            contents.files.insert(id, file);
        }
        Ok(contents)
    }

    /// The descriptor of a shared object.
    pub fn object(&self, id: ObjectId) -> Option<BorrowedFd<'_>> {
        self.objects.get(&id).map(AsFd::as_fd)
    }

    /// The descriptor of a file whose content the image holds.
    pub fn file(&self, id: FileId) -> Option<BorrowedFd<'_>> {
        self.files.get(&id).map(AsFd::as_fd)
    }

    /// The descriptor behind a reference of a memory script, if it is one of these.
    pub fn descriptor(&self, wanted: FdRef) -> Option<BorrowedFd<'_>> {
        match wanted {
            FdRef::Object(id) => self.object(id),
            FdRef::File { file, .. } => self.file(file),
            FdRef::Gate { space, start } => self.gates.get(&(space, start)).map(AsFd::as_fd),
            FdRef::Pages | FdRef::Zero => None,
        }
    }

    /// When all members have mapped their memory: seals that would have been in the way, and segments that were marked for removal.
    pub fn finish(&self, image: &GroupImage, within: Within<'_>) -> Result<(), Failure> {
        for record in &image.objects {
            if let Some(file) = self.objects.get(&record.id) {
                seal(file, record, true).map_err(|e| e.of_object(name(record)))?;
            }
            if let (Some(segment), ObjectKind::SysvShm { mode, unit, .. }) = (segment(record), &record.kind)
                && mode & SHM_DEST != 0
            {
                within(*unit, &mut || {
                    segment.mark_removed();
                    Ok(None)
                })?;
            }
        }
        Ok(())
    }
}

/// An object as failures name it.
fn name(record: &ObjectRecord) -> String {
    match &record.kind {
        ObjectKind::Anonymous => "shared memory".into(),
        ObjectKind::Memfd { name, .. } => format!("memfd {}", String::from_utf8_lossy(name)),
        ObjectKind::SysvShm { shmid, .. } => format!("System V segment {shmid}"),
    }
}

fn io(what: &str) -> impl FnOnce(std::io::Error) -> Failure + use<> {
    let what = what.to_string();
    move |e| Failure::not_restorable(format!("{what}: {e}"))
}

fn object(record: &ObjectRecord, within: Within<'_>) -> Result<File, Failure> {
    match &record.kind {
        ObjectKind::Anonymous => Ok(anonymous(record.size.next_multiple_of(PAGE_SIZE))?),
        ObjectKind::Memfd { name, mode, owner, hugetlb, .. } => {
            if *hugetlb != 0 {
                return Err(Failure::unsupported("a memfd of huge pages cannot be made again"));
            }
            let file = memfd(name)?;
            file.set_len(record.size).map_err(io("ftruncate"))?;
            fchown(&file, Some(owner.0), Some(owner.1)).map_err(io("fchown"))?;
            file.set_permissions(Permissions::from_mode(mode & 0o7777)).map_err(io("fchmod"))?;
            Ok(file)
        }
        ObjectKind::SysvShm { unit, .. } => {
            let Some(segment) = segment(record) else { return Err(Failure::corrupt("it is no segment")) };
            let made = within(*unit, &mut || Ok(Some(segment.make()?)))?;
            made.ok_or_else(|| Failure::not_restorable("it was not made"))
        }
    }
}

fn segment(record: &ObjectRecord) -> Option<Segment> {
    match record.kind {
        ObjectKind::SysvShm { shmid, key, mode, owner, .. } => {
            Some(Segment { shmid, key, size: record.size, mode, uid: owner[0], gid: owner[1] })
        }
        _ => None,
    }
}

fn memfd(name: &[u8]) -> Result<File, Failure> {
    let name = CString::new(name).map_err(|_| Failure::corrupt("a memfd has a zero byte in its name"))?;
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let fd = memfd_create(name.as_c_str(), flags)
        .map_err(|e| Failure::not_restorable(format!("memfd_create: {e}")))?;
    Ok(fd.into())
}

/// Seals of a memfd. Those that forbid writing at all go on before it is mapped, those that writable mappings outlive (and F_SEAL_SEAL)
/// when it is.
fn seal(file: &File, record: &ObjectRecord, late: bool) -> Result<(), Failure> {
    let ObjectKind::Memfd { seals, .. } = record.kind else { return Ok(()) };
    let seals = SealFlag::from_bits_retain(seals as i32);
    let later = SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_FUTURE_WRITE;
    let now = if late { seals & later } else { seals - later };
    if now.is_empty() {
        return Ok(());
    }
    fcntl(file, FcntlArg::F_ADD_SEALS(now))
        .map(drop)
        .map_err(|e| Failure::not_restorable(format!("F_ADD_SEALS: {e}")))
}

/// A member's table, as it was but with its gate open: whoever closed it is not closing it now.
fn gate(content: &[u8], len: u64) -> Result<File, Failure> {
    let file = memfd(ckpt_wire::NAME.to_bytes())?;
    file.set_len(len).map_err(io("ftruncate"))?;
    file.write_all_at(&content[..content.len().min(len as usize)], 0).map_err(io("write"))?;
    file.write_all_at(&ckpt_wire::OPEN.to_le_bytes(), ckpt_wire::GATE_WORD as u64).map_err(io("write"))?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::from_bits_retain(ckpt_wire::REQUIRED_SEALS)))
        .map_err(|e| Failure::not_restorable(format!("F_ADD_SEALS: {e}")))?;
    Ok(file)
}

/// Puts the pages of a container into a file of zeros.
fn fill(file: &File, container: Container, size: u64, pages: &PageReader) -> Result<(), Failure> {
    let mut buf = vec![0; PART];
    for run in pages.runs(container, 0, size.div_ceil(PAGE_SIZE)) {
        let Place::File { offset } = run.place else { continue };
        let (start, len) = (run.first * PAGE_SIZE, run.count * PAGE_SIZE);
        let len = len.min(size - start);
        let mut done = 0;
        while done < len {
            let part = &mut buf[..(len - done).min(PART as u64) as usize];
            pages.file().read_exact_at(part, offset + done).map_err(io("read the image"))?;
            file.write_all_at(part, start + done).map_err(io("write"))?;
            done += part.len() as u64;
        }
    }
    Ok(())
}

/// A file without a name in the directory where it was (or above, if that is gone), or the file by its name, empty.
fn make_file(record: &FileRecord) -> Result<File, Failure> {
    if record.mode & libc::S_IFMT != libc::S_IFREG {
        return Err(Failure::unsupported("only regular files can be made again without a name"));
    }
    let file = match record.source {
        FileSource::Memory => named(&record.path)?,
        _ => unnamed(&record.path)?,
    };
    file.set_len(record.size).map_err(io("ftruncate"))?;
    Ok(file)
}

fn named(path: &Path) -> Result<File, Failure> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(io("mkdir"))?;
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true).mode(0o600);
    options.custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC).open(path).map_err(io("open"))
}

fn unnamed(path: &Path) -> Result<File, Failure> {
    let mut error = std::io::ErrorKind::NotFound.into();
    for dir in path.ancestors().skip(1) {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        match options.clone().custom_flags(libc::O_TMPFILE | libc::O_CLOEXEC).open(dir) {
            Ok(file) => return Ok(file),
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                let path = dir.join(format!(".ckpt-{}", ulid::Ulid::new()));
                let made = options.create_new(true).custom_flags(libc::O_CLOEXEC).open(&path);
                let made = made.map_err(io("create"))?;
                std::fs::remove_file(&path).map_err(io("unlink"))?;
                return Ok(made);
            }
            Err(e) => error = e,
        }
    }
    Err(io("make a file without a name")(error))
}

/// Owner, mode and time.
fn dress(file: &File, record: &FileRecord) -> Result<(), Failure> {
    use nix::sys::{stat::futimens, time::TimeSpec};
    fchown(file, Some(record.uid), Some(record.gid)).map_err(io("fchown"))?;
    file.set_permissions(Permissions::from_mode(record.mode & 0o7777)).map_err(io("fchmod"))?;
    let time = TimeSpec::new(record.mtime.div_euclid(1_000_000_000), record.mtime.rem_euclid(1_000_000_000));
    futimens(file, &TimeSpec::UTIME_OMIT, &time).map_err(|e| io("futimens")(e.into()))
}

/// The same file, read-only: what is open for writing cannot be executed (ETXTBSY).
fn reopen(file: &File) -> Result<File, Failure> {
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(io("open read-only"))
}
