//! What members share and the image holds: shared memory objects, gates, System V objects. Made and filled here, before the members are cloned, so
//! that all of them inherit one description. Files whose content the image holds are made where descriptions are.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{File, Permissions};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, PermissionsExt, fchown};

use ckpt_image::records::{GroupImage, MappingKind, ObjectId, ObjectKind, ObjectRecord, UnitIndex};
use ckpt_image::{Container, PAGE_SIZE, PageReader, Place};
use ckpt_sys::shared::{Segment, Written, anonymous};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::memory::FdRef;
use super::{Failure, sysv};
use crate::error::with_sources;

/// Bytes copied at a time.
const PART: usize = 1 << 20;
const SHM_DEST: u32 = 0o1000;

/// Runs a function in the namespaces of a unit and gives what it gives.
pub type Within<'a> = &'a mut dyn FnMut(
    UnitIndex,
    &mut dyn FnMut() -> Result<Option<File>, Failure>,
) -> Result<Option<File>, Failure>;

/// Everything that was made, by descriptor, O_RDWR.
#[derive(Debug, Default)]
pub struct Contents {
    objects: BTreeMap<ObjectId, File>,
    /// By space and address.
    mappings: BTreeMap<(u32, u64), File>,
}

impl Contents {
    /// Makes and fills all. Errors name the object.
    pub fn make(image: &GroupImage, pages: &PageReader, within: Within<'_>) -> Result<Self, Failure> {
        let mut contents = Self::default();
        for record in &image.objects {
            let file = object(record, within).map_err(|e| e.of_object(name(record)))?;
            fill_object(&file, record, pages).map_err(|e| e.of_object(name(record)))?;
            seal(&file, record, false).map_err(|e| e.of_object(name(record)))?;
            contents.objects.insert(record.id, file);
        }
        for space in &image.spaces {
            let mut contexts = 0;
            for mapping in &space.mappings {
                let file = match &mapping.kind {
                    MappingKind::Gate { content } => gate(content, mapping.end - mapping.start)?,
                    MappingKind::Aio { events, content } => {
                        let id = contexts;
                        contexts += u32::from(*events != 0);
                        context(content, id)?
                    }
                    _ => continue,
                };
                contents.mappings.insert((space.id.0, mapping.start), file);
            }
        }
        sysv::make(image, within)?;
        Ok(contents)
    }

    /// The descriptor of a shared object.
    pub fn object(&self, id: ObjectId) -> Option<BorrowedFd<'_>> {
        self.objects.get(&id).map(AsFd::as_fd)
    }

    /// The descriptor behind a reference of a memory script, if it is one of these.
    pub fn descriptor(&self, wanted: FdRef) -> Option<BorrowedFd<'_>> {
        match wanted {
            FdRef::Object(id) => self.object(id),
            FdRef::Mapping { space, start } => self.mappings.get(&(space, start)).map(AsFd::as_fd),
            FdRef::Pages(_) | FdRef::Zero | FdRef::File { .. } | FdRef::Ring(_) => None,
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
        ObjectKind::AnonymousHuge { .. } => "shared memory in huge pages".into(),
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
        ObjectKind::Anonymous => Ok(anonymous(record.size.next_multiple_of(PAGE_SIZE), 0)?),
        ObjectKind::AnonymousHuge { page } => {
            anonymous(record.size, *page).map_err(|e| too_few(e, record.size, *page))
        }
        ObjectKind::Memfd { name, mode, owner, hugetlb, .. } => {
            let file = memfd(name, *hugetlb)?;
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

/// Huge pages come from a pool that the administrator has set up.
fn too_few(e: ckpt_sys::Error, bytes: u64, page: u64) -> Failure {
    let (needed, kib) = (bytes / page.max(1), page >> 10);
    Failure::not_restorable(format!(
        "{needed} huge pages of {kib} KiB are needed (sysctl vm.nr_hugepages): {e}"
    ))
}

/// `hugetlb`: the size of its pages in bytes, where they are huge.
fn memfd(name: &[u8], hugetlb: u64) -> Result<File, Failure> {
    let name = CString::new(name).map_err(|_| Failure::corrupt("a memfd has a zero byte in its name"))?;
    let mut flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    if hugetlb != 0 {
        flags |= MFdFlags::MFD_HUGETLB;
        flags |= MFdFlags::from_bits_retain(hugetlb.trailing_zeros() << libc::MFD_HUGE_SHIFT);
    }
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
    let file = memfd(ckpt_wire::NAME.to_bytes(), 0)?;
    file.set_len(len).map_err(io("ftruncate"))?;
    file.write_all_at(&content[..content.len().min(len as usize)], 0).map_err(io("write"))?;
    file.write_all_at(&ckpt_wire::OPEN.to_le_bytes(), ckpt_wire::GATE_WORD as u64).map_err(io("write"))?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::from_bits_retain(ckpt_wire::REQUIRED_SEALS)))
        .map_err(|e| Failure::not_restorable(format!("F_ADD_SEALS: {e}")))?;
    Ok(file)
}

/// The ring of a context of kernel AIO that is made as the `id`th of its address space, which the kernel has put into its ring.
fn context(content: &[u8], id: u32) -> Result<File, Failure> {
    let mut content = content.to_vec();
    if let Some(place) = content.get_mut(ckpt_sys::aio::ID) {
        place.copy_from_slice(&id.to_le_bytes());
    }
    let file = memfd(b"ckpt-aio", 0)?;
    file.write_all_at(&content, 0).map_err(io("write"))?;
    Ok(file)
}

/// Puts the pages of an object into it.
fn fill_object(file: &File, record: &ObjectRecord, pages: &PageReader) -> Result<(), Failure> {
    let (container, size) = (Container::Object(record.id), record.size);
    let page = match record.kind {
        ObjectKind::AnonymousHuge { page } | ObjectKind::Memfd { hugetlb: page @ 1.., .. } => page,
        _ => return fill(file, container, size, pages),
    };
    if size == 0 {
        return Ok(());
    }
    // write(2) knows no hugetlbfs.
    let mut memory = Written::map(file, size).map_err(|e| too_few(e, size, page))?;
    fill_with(container, size, pages, |bytes, at| {
        memory.put(at, bytes);
        Ok(())
    })
}

/// Puts the pages of a container into a file of zeros. Errors: those of reading the image and of writing.
pub(super) fn fill(file: &File, container: Container, size: u64, pages: &PageReader) -> Result<(), Failure> {
    fill_with(container, size, pages, |bytes, at| file.write_all_at(bytes, at).map_err(io("write")))
}

/// Gives the pages of a container that are not zero to `put`, bytes and offset.
fn fill_with(
    container: Container,
    size: u64,
    pages: &PageReader,
    mut put: impl FnMut(&[u8], u64) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut buf = vec![0; PART];
    for run in pages.runs(container, 0, size.div_ceil(PAGE_SIZE)) {
        let Place::File { image, offset } = run.place else { continue };
        let (start, len) = (run.first * PAGE_SIZE, run.count * PAGE_SIZE);
        let len = len.min(size - start);
        let mut done = 0;
        while done < len {
            let here = (len - done).min(PART as u64);
            let whole = &mut buf[..here.next_multiple_of(PAGE_SIZE) as usize];
            pages.read_at(image, offset + done, whole).map_err(|e| Failure::corrupt(with_sources(&e)))?;
            put(&whole[..here as usize], start + done)?;
            done += here;
        }
    }
    Ok(())
}
