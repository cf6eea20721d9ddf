//! Shared memory made here for members: anonymous, and System V segments with the ids they had (shmget(2), shmop(2), shmctl(2)).

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;

use crate::error::{Error, Result, Subject};
use crate::sysctl::write_sysctl;

fn fail(op: &'static str) -> Error {
    Error::Kernel { op, subject: Subject::Here, source: Errno::last() }
}

/// Opens what is mapped at `[start, start + len)` of this process, for reading and perhaps writing, through /proc/self/map_files.
/// EPERM without CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN.
fn open_mapped(start: *mut libc::c_void, len: usize, write: bool) -> Result<File> {
    let start = start as usize;
    let path = format!("/proc/self/map_files/{start:x}-{:x}", start + len);
    OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(libc::O_CLOEXEC)
        .open(&path)
        .map_err(|e| Error::io("open", path, &e))
}

/// Shared anonymous memory of `len` bytes with a descriptor: members that map it have what mmap(MAP_SHARED | MAP_ANONYMOUS) makes. It lives
/// as long as a descriptor or a mapping of it. `huge`: the size of its pages where hugetlbfs has them, else 0; `len` is a multiple of it, or of
/// 4,096.
///
/// Errors: ENOMEM where there are not as many huge pages.
pub fn anonymous(len: u64, huge: u64) -> Result<File> {
    let len = len as usize;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let pages = match huge {
        0 => libc::MAP_NORESERVE,
        size => libc::MAP_HUGETLB | (size.trailing_zeros() as i32) << libc::MAP_HUGE_SHIFT,
    };
    let kind = libc::MAP_SHARED | libc::MAP_ANONYMOUS | pages;
    // SAFETY: a new mapping at an address that the kernel chooses touches nothing of ours.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, kind, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(fail("mmap of shared memory"));
    }
    let file = open_mapped(start, len, true);
    // SAFETY: the mapping just made, to which nothing refers.
    unsafe { libc::munmap(start, len) };
    file
}

/// A file of hugetlbfs, mapped to be written: write(2) is not to be had there.
#[derive(Debug)]
pub struct Written {
    start: std::ptr::NonNull<u8>,
    len: usize,
}

impl Written {
    /// Maps the first `len` bytes, a multiple of the file's page size. All pages are reserved, so none is missing later.
    ///
    /// Errors: ENOMEM where there are not as many.
    pub fn map(file: &File, len: u64) -> Result<Self> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let fd = std::os::fd::AsRawFd::as_raw_fd(file);
        // SAFETY: a new mapping at an address that the kernel chooses touches nothing of ours.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len as usize, prot, libc::MAP_SHARED, fd, 0) };
        match std::ptr::NonNull::new(start.cast()) {
            Some(at) if start != libc::MAP_FAILED => Ok(Self { start: at, len: len as usize }),
            _ => Err(fail("mmap of huge pages")),
        }
    }

    /// Writes bytes at an offset.
    ///
    /// # Panics
    /// If they do not lie inside.
    pub fn put(&mut self, offset: u64, bytes: &[u8]) {
        let offset = offset as usize;
        assert!(offset.checked_add(bytes.len()).is_some_and(|end| end <= self.len), "outside of the mapping");
        // SAFETY: inside of the mapping, as just checked, which is ours alone and does not overlap `bytes`.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.as_ptr().add(offset), bytes.len());
        }
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        // SAFETY: the mapping made in map(), to which nothing refers any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// Bit of a segment's mode: it is locked into memory, by shmctl(2) with this command.
const SHM_LOCKED: u32 = 0o2000;
const SHM_LOCK: libc::c_int = 11;

/// Opens a System V segment of the caller's IPC namespace, of `size` bytes, by attaching to it for a moment: after that we are the last
/// who used it.
pub fn open_segment(shmid: i32, size: u64, write: bool) -> Result<File> {
    // SAFETY: attaches at an address that the kernel chooses.
    let start = unsafe { libc::shmat(shmid, std::ptr::null(), if write { 0 } else { libc::SHM_RDONLY }) };
    if start as isize == -1 {
        return Err(fail("shmat"));
    }
    let file = open_mapped(start, (size as usize).next_multiple_of(4096), write);
    // SAFETY: attached above; nothing refers to it.
    unsafe { libc::shmdt(start) };
    file
}

/// A System V segment as it is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Its id.
    pub shmid: i32,
    /// Its key, 0 for IPC_PRIVATE.
    pub key: i32,
    /// Bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Owning group.
    pub gid: u32,
}

impl Segment {
    /// Makes it in the caller's IPC namespace, zero, and opens it. The kernel gives the next segment the id that sysctl kernel.shm_next_id tells
    /// (CONFIG_CHECKPOINT_RESTORE). A segment in its place (same id or key) that nobody is attached to is
    /// taken for a leftover of the group and removed.
    ///
    /// Errors: EEXIST where somebody is attached to one in its place, ENOENT where the kernel does not let the id be chosen.
    pub fn make(&self) -> Result<File> {
        self.remove_leftover(self.shmid)?;
        if self.key != libc::IPC_PRIVATE {
            // SAFETY: no pointers.
            let id = unsafe { libc::shmget(self.key, 0, 0) };
            if id >= 0 {
                self.remove_leftover(id)?;
            }
        }
        write_sysctl("kernel/shm_next_id", &self.shmid.to_string())?;
        let flags = libc::IPC_CREAT | libc::IPC_EXCL | (self.mode & 0o777) as i32;
        // SAFETY: no pointers.
        let id = unsafe { libc::shmget(self.key, self.size as usize, flags) };
        if id < 0 {
            return Err(fail("shmget"));
        }
        let file = if id == self.shmid { self.open() } else { Err(exists()) };
        if file.is_err() {
            remove(id);
        }
        file
    }

    /// Gives it its owner and opens it.
    fn open(&self) -> Result<File> {
        // SAFETY: shmid_ds is plain numbers, for which zero is a value.
        let mut ds: libc::shmid_ds = unsafe { std::mem::zeroed() };
        // SAFETY: ds outlives the call.
        if unsafe { libc::shmctl(self.shmid, libc::IPC_STAT, &raw mut ds) } != 0 {
            return Err(fail("shmctl IPC_STAT"));
        }
        (ds.shm_perm.uid, ds.shm_perm.gid) = (self.uid, self.gid);
        ds.shm_perm.mode = (self.mode & 0o777) as _;
        // SAFETY: ds outlives the call, which only reads it.
        if unsafe { libc::shmctl(self.shmid, libc::IPC_SET, &raw mut ds) } != 0 {
            return Err(fail("shmctl IPC_SET"));
        }
        if self.mode & SHM_LOCKED != 0 {
            // SAFETY: SHM_LOCK takes no buffer. Without it the segment is the same, only that it may be swapped out.
            unsafe { libc::shmctl(self.shmid, SHM_LOCK, std::ptr::null_mut()) };
        }
        open_segment(self.shmid, self.size, true)
    }

    fn remove_leftover(&self, id: i32) -> Result<()> {
        // SAFETY: as in open.
        let mut ds: libc::shmid_ds = unsafe { std::mem::zeroed() };
        // SAFETY: ds outlives the call.
        if unsafe { libc::shmctl(id, libc::IPC_STAT, &raw mut ds) } != 0 {
            return Ok(()); // there is none
        }
        if ds.shm_nattch != 0 || ds.shm_perm.uid != self.uid {
            return Err(exists());
        }
        remove(id);
        Ok(())
    }

    /// Marks it for removal: it is gone when the last process detaches. For those that had SHM_DEST; when the members are attached.
    pub fn mark_removed(&self) {
        remove(self.shmid);
    }
}

fn exists() -> Error {
    Error::Kernel {
        op: "make a System V segment with its old id",
        subject: Subject::Here,
        source: Errno::EEXIST,
    }
}

fn remove(id: i32) {
    // SAFETY: IPC_RMID takes no buffer.
    unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn anonymous_shared_memory_has_a_descriptor() {
        let file = anonymous(8192, 0).unwrap();
        file.write_all_at(b"there", 5000).unwrap();
        let link = std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file)));
        assert_eq!(link.unwrap().to_str(), Some("/dev/zero (deleted)"));
        assert_eq!(file.metadata().unwrap().len(), 8192);
    }

    #[test]
    fn a_segment_is_made_with_its_id() {
        // In an IPC namespace of our own: ids of the host are not ours to take.
        std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWIPC).unwrap();
            let segment = Segment { shmid: 77, key: 0x1234, size: 5000, mode: 0o1640, uid: 5, gid: 6 };
            let file = segment.make().unwrap();
            file.write_all_at(b"x", 4999).unwrap();
            let text = std::fs::read_to_string("/proc/sysvipc/shm").unwrap();
            let line: Vec<&str> = text.lines().nth(1).unwrap().split_ascii_whitespace().collect();
            assert_eq!((line[0], line[1], line[2], line[3], line[7]), ("4660", "77", "640", "5000", "5"));
            // Left by a dead group: replaced.
            segment.make().unwrap();
            segment.mark_removed();
        })
        .join()
        .unwrap();
    }
}
