//! btrfs subvolumes by descriptor: what they are, snapshots, deletion, the commit of a transaction.
//!
//! The ioctls of linux/btrfs.h rather than libbtrfsutil where a directory descriptor is what the caller holds: libbtrfsutil
//! goes by path, and its crate waits for the commit of the file system in `snapshot`, which would lie in the freeze window.

use std::ffi::{CStr, CString, OsStr};
use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use linux_raw_sys::btrfs as raw;
use nix::errno::Errno;

/// Inode number of the root directory of every subvolume (BTRFS_FIRST_FREE_OBJECTID).
pub const SUBVOLUME_INODE: u64 = 256;
/// Tree id of the top-level subvolume (BTRFS_FS_TREE_OBJECTID).
pub const TOP_LEVEL: u64 = 5;

const READ_ONLY: u64 = raw::BTRFS_SUBVOL_RDONLY as u64;

/// The requests themselves, by their number in linux/btrfs.h.
#[allow(missing_docs)]
mod request {
    use super::raw;

    nix::ioctl_write_ptr!(snap_create_v2, 0x94, 23, raw::btrfs_ioctl_vol_args_v2);
    nix::ioctl_write_ptr!(subvol_create_v2, 0x94, 24, raw::btrfs_ioctl_vol_args_v2);
    nix::ioctl_write_ptr!(snap_destroy, 0x94, 15, raw::btrfs_ioctl_vol_args);
    nix::ioctl_read!(start_sync_raw, 0x94, 24, u64);
    nix::ioctl_write_ptr!(wait_sync_raw, 0x94, 22, u64);
    nix::ioctl_read!(subvol_getflags, 0x94, 25, u64);
    nix::ioctl_write_ptr!(subvol_setflags, 0x94, 26, u64);
    nix::ioctl_read!(fs_info, 0x94, 31, raw::btrfs_ioctl_fs_info_args);
    nix::ioctl_read!(get_subvol_info, 0x94, 60, raw::btrfs_ioctl_get_subvol_info_args);
    nix::ioctl_readwrite!(get_subvol_rootref, 0x94, 61, raw::btrfs_ioctl_get_subvol_rootref_args);
    nix::ioctl_readwrite!(ino_paths, 0x94, 35, raw::btrfs_ioctl_ino_path_args);
    nix::ioctl_readwrite!(ino_lookup_user, 0x94, 62, raw::btrfs_ioctl_ino_lookup_user_args);
}

/// A UUID as btrfs stores it; shown as `blkid` and `btrfs subvolume show` show it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// All zeroes: none.
    pub fn is_nil(&self) -> bool {
        self.0 == [0; 16]
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What btrfs knows of a subvolume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubvolumeInfo {
    /// Its tree id; [`TOP_LEVEL`] for the one that every file system has.
    pub id: u64,
    /// The last part of its path in the file system; empty for the top-level subvolume.
    pub name: String,
    /// Its UUID. Stays the same when it is renamed; nil for a top-level subvolume made before btrfs-progs 4.16.
    pub uuid: Uuid,
    /// UUID of the subvolume that it is a snapshot of; nil if it is none.
    pub parent_uuid: Uuid,
    /// UUID of what `btrfs receive` got it from; nil if it was not received.
    pub received_uuid: Uuid,
    /// Transaction of its last change.
    pub generation: u64,
    /// Transaction in which an inode of it was last changed (ctransid); a balance does not count.
    pub changed: u64,
    /// Transaction that made it (otransid).
    pub made: u64,
    /// Whether it is read-only.
    pub read_only: bool,
}

/// Whether the descriptor lies in a btrfs. fstatfs(2).
pub fn is_btrfs(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(nix::sys::statfs::fstatfs(fd)?.filesystem_type() == nix::sys::statfs::BTRFS_SUPER_MAGIC)
}

/// Whether the descriptor is the root directory of a subvolume (the top-level one included).
pub fn is_subvolume(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(is_btrfs(fd)? && nix::sys::stat::fstat(fd)?.st_ino == SUBVOLUME_INODE)
}

/// UUID of the file system that the descriptor lies in. BTRFS_IOC_FS_INFO.
pub fn file_system_uuid(fd: BorrowedFd<'_>) -> Result<Uuid, Errno> {
    // SAFETY: the structure is plain integers; zero is a valid value of each.
    let mut args: raw::btrfs_ioctl_fs_info_args = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open during the call and the kernel writes one structure of this size.
    unsafe { request::fs_info(fd.as_raw_fd(), &mut args)? };
    Ok(Uuid(args.fsid))
}

/// Makes a file, empty so far, share the whole content of another (ioctl_ficlone(2), Linux 4.5). Not of btrfs alone. Errors: EOPNOTSUPP and
/// EXDEV where the file systems cannot.
pub fn clone_file(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: takes two descriptors, which are open during the call.
    Errno::result(unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONE, from.as_raw_fd()) }).map(drop)
}

/// The names that an inode has, relative to the root of the subvolume that the descriptor lies in. Those of the file system's last state in
/// memory; up to 64 KiB of them. Errors: EPERM without CAP_SYS_ADMIN, ENOENT. BTRFS_IOC_INO_PATHS, Linux 3.1.
pub fn names_of(fd: BorrowedFd<'_>, inode: u64) -> Result<Vec<PathBuf>, Errno> {
    const WORDS: usize = 8192;
    const HEAD: usize = 2;
    let mut words = vec![0u64; WORDS];
    // SAFETY: the structure is plain integers; zero is a valid value of each.
    let mut args: raw::btrfs_ioctl_ino_path_args = unsafe { std::mem::zeroed() };
    args.inum = inode;
    args.size = (WORDS * 8) as u64;
    args.fspath = words.as_mut_ptr() as u64;
    // SAFETY: the descriptor is open during the call; the kernel writes at most `size` bytes to fspath, which outlives it.
    unsafe { request::ino_paths(fd.as_raw_fd(), &mut args)? };
    // struct btrfs_data_container: bytes_left, bytes_missing, elem_cnt, elem_missed, each u32; then offsets from here on.
    let count = (words[1] & 0xffff_ffff) as usize;
    let bytes: Vec<u8> = words[HEAD..].iter().flat_map(|word| word.to_ne_bytes()).collect();
    let name = |offset: &u64| {
        let rest = bytes.get(*offset as usize..)?;
        Some(PathBuf::from(OsStr::from_bytes(CStr::from_bytes_until_nul(rest).ok()?.to_bytes())))
    };
    Ok(words[HEAD..].iter().take(count).filter_map(name).collect())
}

/// The subvolume that the descriptor lies in. Needs no privilege. Errors: ENOTTY outside btrfs. BTRFS_IOC_GET_SUBVOL_INFO, Linux 4.18.
pub fn subvolume_info(fd: BorrowedFd<'_>) -> Result<SubvolumeInfo, Errno> {
    // SAFETY: the structure is plain integers; zero is a valid value of each.
    let mut args: raw::btrfs_ioctl_get_subvol_info_args = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open during the call and the kernel writes one structure of this size.
    unsafe { request::get_subvol_info(fd.as_raw_fd(), &mut args)? };
    Ok(SubvolumeInfo {
        id: args.treeid,
        name: text(&args.name).to_string_lossy().into_owned(),
        uuid: Uuid(args.uuid),
        parent_uuid: Uuid(args.parent_uuid),
        received_uuid: Uuid(args.received_uuid),
        generation: args.generation,
        changed: args.ctransid,
        made: args.otransid,
        // The flags here are those of the root item (BTRFS_ROOT_SUBVOL_RDONLY), not those of SUBVOL_GETFLAGS.
        read_only: args.flags & 1 != 0,
    })
}

/// Makes `name` in `directory` a snapshot of the subvolume whose root `source` is. Returns when it is there, not when it is
/// durable (see [`start_sync`]). Errors: EXDEV in another file system, EEXIST, EINVAL if `source` is no subvolume, ENAMETOOLONG.
/// BTRFS_IOC_SNAP_CREATE_V2.
pub fn snapshot(
    source: BorrowedFd<'_>,
    directory: BorrowedFd<'_>,
    name: &OsStr,
    read_only: bool,
) -> Result<(), Errno> {
    let mut args = vol_args_v2(name)?;
    args.fd = i64::from(source.as_raw_fd());
    args.flags = if read_only { READ_ONLY } else { 0 };
    // SAFETY: both descriptors are open during the call; the kernel reads one structure of this size, whose name ends in zero.
    unsafe { request::snap_create_v2(directory.as_raw_fd(), &args)? };
    Ok(())
}

/// Makes an empty subvolume. Errors: EEXIST. BTRFS_IOC_SUBVOL_CREATE_V2.
pub fn create_subvolume(directory: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    let args = vol_args_v2(name)?;
    // SAFETY: the descriptor is open during the call; the kernel reads one structure of this size, whose name ends in zero.
    unsafe { request::subvol_create_v2(directory.as_raw_fd(), &args)? };
    Ok(())
}

/// Removes the subvolume `name` of `directory`; its space comes back later, in the background. Errors: ENOENT, ENOTEMPTY if
/// subvolumes are nested in it, EBUSY if it is the default subvolume or a mount point, EINVAL if it is no subvolume.
/// BTRFS_IOC_SNAP_DESTROY.
pub fn delete_subvolume(directory: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    // SAFETY: the structure is plain integers; zero is a valid value of each.
    let mut args: raw::btrfs_ioctl_vol_args = unsafe { std::mem::zeroed() };
    copy_name(&mut args.name, name)?;
    // SAFETY: the descriptor is open during the call; the kernel reads one structure of this size, whose name ends in zero.
    unsafe { request::snap_destroy(directory.as_raw_fd(), &args)? };
    Ok(())
}

/// Removes the subvolume at `path` with all subvolumes nested in it. The path must lie where only root may rename. libbtrfsutil.
pub fn delete_subvolume_tree(path: &Path) -> Result<(), std::io::Error> {
    let subvolume = btrfsutil::subvolume::Subvolume::get(path).map_err(std::io::Error::other)?;
    subvolume.delete(btrfsutil::subvolume::DeleteFlags::RECURSIVE).map_err(std::io::Error::other)
}

/// Begins the commit of the running transaction and returns its number. BTRFS_IOC_START_SYNC.
pub fn start_sync(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    let mut transaction = 0;
    // SAFETY: the descriptor is open during the call and the kernel writes eight bytes.
    unsafe { request::start_sync_raw(fd.as_raw_fd(), &mut transaction)? };
    Ok(transaction)
}

/// Waits until a transaction is on disk. BTRFS_IOC_WAIT_SYNC.
pub fn wait_sync(fd: BorrowedFd<'_>, transaction: u64) -> Result<(), Errno> {
    // SAFETY: the descriptor is open during the call and the kernel reads eight bytes.
    unsafe { request::wait_sync_raw(fd.as_raw_fd(), &transaction)? };
    Ok(())
}

/// Makes a subvolume read-only or writable. Errors: EINVAL if the descriptor is not the root of a subvolume.
/// BTRFS_IOC_SUBVOL_SETFLAGS.
pub fn set_read_only(fd: BorrowedFd<'_>, read_only: bool) -> Result<(), Errno> {
    let mut flags = 0;
    // SAFETY: the descriptor is open during the call and the kernel writes eight bytes.
    unsafe { request::subvol_getflags(fd.as_raw_fd(), &mut flags)? };
    flags = if read_only { flags | READ_ONLY } else { flags & !READ_ONLY };
    // SAFETY: the descriptor is open during the call and the kernel reads eight bytes.
    unsafe { request::subvol_setflags(fd.as_raw_fd(), &flags)? };
    Ok(())
}

/// Paths, relative to the subvolume whose root `fd` is, of the subvolumes directly nested in it.
/// BTRFS_IOC_GET_SUBVOL_ROOTREF and BTRFS_IOC_INO_LOOKUP_USER, Linux 4.18.
pub fn nested(fd: BorrowedFd<'_>) -> Result<Vec<PathBuf>, Errno> {
    let mut found = Vec::new();
    let mut from = 0;
    loop {
        // SAFETY: the structure is plain integers; zero is a valid value of each.
        let mut refs: raw::btrfs_ioctl_get_subvol_rootref_args = unsafe { std::mem::zeroed() };
        refs.min_treeid = from;
        // SAFETY: the descriptor is open during the call; the kernel reads and writes one structure of this size.
        let answer = unsafe { request::get_subvol_rootref(fd.as_raw_fd(), &mut refs) };
        // EOVERFLOW: the structure is full and there are more.
        let more = match answer {
            Ok(_) => false,
            Err(Errno::EOVERFLOW) => true,
            Err(e) => return Err(e),
        };
        for reference in refs.rootref.iter().take(usize::from(refs.num_items)) {
            match nested_path(fd, reference.treeid, reference.dirid) {
                Ok(path) => found.push(path),
                // Removed in between.
                Err(Errno::ENOENT) => {}
                Err(e) => return Err(e),
            }
        }
        if !more {
            found.sort();
            return Ok(found);
        }
        from = refs.min_treeid;
    }
}

fn nested_path(fd: BorrowedFd<'_>, tree: u64, directory: u64) -> Result<PathBuf, Errno> {
    // SAFETY: the structure is plain integers; zero is a valid value of each.
    let mut args: raw::btrfs_ioctl_ino_lookup_user_args = unsafe { std::mem::zeroed() };
    args.treeid = tree;
    args.dirid = directory;
    // SAFETY: the descriptor is open during the call; the kernel reads and writes one structure of this size.
    unsafe { request::ino_lookup_user(fd.as_raw_fd(), &mut args)? };
    let (directory, name) = (text(&args.path), text(&args.name));
    Ok(Path::new(OsStr::from_bytes(directory.to_bytes())).join(OsStr::from_bytes(name.to_bytes())))
}

fn vol_args_v2(name: &OsStr) -> Result<raw::btrfs_ioctl_vol_args_v2, Errno> {
    // SAFETY: the structure is plain integers and a union of arrays of bytes; zero is a valid value of each.
    let mut args: raw::btrfs_ioctl_vol_args_v2 = unsafe { std::mem::zeroed() };
    // SAFETY: `name` is the member of the union that these ioctls use; all its bytes are zero now.
    copy_name(unsafe { &mut args.__bindgen_anon_2.name }, name)?;
    Ok(args)
}

/// Copies a name into a field that is all zero, so that it ends in zero. Errors: ENAMETOOLONG; EINVAL for what is no name.
fn copy_name(field: &mut [std::ffi::c_char], name: &OsStr) -> Result<(), Errno> {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes.contains(&b'/') || bytes == b"." || bytes == b".." {
        return Err(Errno::EINVAL);
    }
    let name = CString::new(bytes).map_err(|_| Errno::EINVAL)?;
    // 255 is BTRFS_NAME_LEN.
    if bytes.len() > 255 || bytes.len() >= field.len() {
        return Err(Errno::ENAMETOOLONG);
    }
    for (to, from) in field.iter_mut().zip(name.as_bytes()) {
        *to = *from as std::ffi::c_char;
    }
    Ok(())
}

/// The text in a field that the kernel filled; what follows the last byte counts as zero.
fn text(field: &[std::ffi::c_char]) -> CString {
    let bytes: Vec<u8> = field.iter().take_while(|c| **c != 0).map(|c| *c as u8).collect();
    CString::new(bytes).unwrap_or_else(|_| CStr::to_owned(c""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_uuid_is_shown_as_blkid_shows_it() {
        let uuid = Uuid(std::array::from_fn(|i| i as u8));
        assert_eq!(uuid.to_string(), "00010203-0405-0607-0809-0a0b0c0d0e0f");
        assert!(!uuid.is_nil() && Uuid::default().is_nil());
    }

    #[test]
    fn names_that_are_no_names_are_refused() {
        for name in ["", ".", "..", "a/b", "a\0b"] {
            assert_eq!(copy_name(&mut [0; 300], OsStr::new(name)), Err(Errno::EINVAL), "{name:?}");
        }
        assert_eq!(copy_name(&mut [0; 300], OsStr::new(&"n".repeat(256))), Err(Errno::ENAMETOOLONG));
        let mut field = [0; 8];
        copy_name(&mut field, OsStr::new("abc")).unwrap();
        assert_eq!(text(&field).as_bytes(), b"abc");
    }

    #[test]
    fn what_is_not_btrfs_is_said_so() {
        let proc = std::fs::File::open("/proc").unwrap();
        assert_eq!(is_btrfs(proc.as_fd()), Ok(false));
        assert_eq!(is_subvolume(proc.as_fd()), Ok(false));
        assert_eq!(subvolume_info(proc.as_fd()), Err(Errno::ENOTTY));
    }
}
