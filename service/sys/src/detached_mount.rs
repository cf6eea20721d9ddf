//! Mounts that nobody sees: the new mount interface (fsopen(2), fsmount(2), move_mount(2); Linux 5.2).

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use linux_raw_sys::general as raw;
use nix::errno::Errno;

/// Flags of a mount, as proc_pid_mountinfo(5) shows them (`rw,nosuid,noatime`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attributes {
    set: u64,
}

impl Attributes {
    /// Reads the options field of a mount (not that of its file system). Words that are no flag of a mount are left out.
    pub fn parse(options: &str) -> Self {
        let mut set = 0;
        let mut access_times = u64::from(raw::MOUNT_ATTR_STRICTATIME);
        for word in options.split(',') {
            match word {
                "ro" => set |= u64::from(raw::MOUNT_ATTR_RDONLY),
                "nosuid" => set |= u64::from(raw::MOUNT_ATTR_NOSUID),
                "nodev" => set |= u64::from(raw::MOUNT_ATTR_NODEV),
                "noexec" => set |= u64::from(raw::MOUNT_ATTR_NOEXEC),
                "nodiratime" => set |= u64::from(raw::MOUNT_ATTR_NODIRATIME),
                "nosymfollow" => set |= u64::from(raw::MOUNT_ATTR_NOSYMFOLLOW),
                "noatime" => access_times = u64::from(raw::MOUNT_ATTR_NOATIME),
                "relatime" => access_times = u64::from(raw::MOUNT_ATTR_RELATIME),
                _ => {}
            }
        }
        Self { set: set | access_times }
    }
}

/// Mounts a subvolume of a btrfs, given by its path in the file system (`/`: the top-level one), without a place in any mount
/// namespace: descriptors opened below it can be used like any other. It goes when the last of them is closed.
///
/// Errors: those of mount(2); ENOENT if `source` or the subvolume is not there.
pub fn btrfs(source: &str, subvolume: &Path) -> Result<OwnedFd, Errno> {
    let source = CString::new(source).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the name is a string that ends in zero; the kernel keeps no pointer.
    let context =
        unsafe { libc::syscall(libc::SYS_fsopen, c"btrfs".as_ptr(), raw::FSOPEN_CLOEXEC as libc::c_uint) };
    let context = owned(context)?;
    set(&context, c"source", &source)?;
    if subvolume == Path::new("/") {
        // Without this it would be the default subvolume, which need not be the top-level one.
        set(&context, c"subvolid", c"5")?;
    } else {
        set(
            &context,
            c"subvol",
            &CString::new(subvolume.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?,
        )?;
    }
    // SAFETY: the descriptor is open during the call; this command takes neither key nor value.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            raw::fsconfig_command::FSCONFIG_CMD_CREATE as libc::c_uint,
            std::ptr::null::<libc::c_char>(),
            std::ptr::null::<libc::c_char>(),
            0,
        )
    })?;
    // SAFETY: the descriptor is open during the call.
    owned(unsafe {
        libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), raw::FSMOUNT_CLOEXEC as libc::c_uint, 0)
    })
}

fn set(context: &OwnedFd, key: &CStr, value: &CStr) -> Result<(), Errno> {
    // SAFETY: the descriptor is open during the call; key and value end in zero and outlive the call.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            raw::fsconfig_command::FSCONFIG_SET_STRING as libc::c_uint,
            key.as_ptr(),
            value.as_ptr(),
            0,
        )
    })
    .map(drop)
}

/// Gives a mount these flags, in place of those it has. mount_setattr(2), Linux 5.12.
pub fn set_attributes(mount: BorrowedFd<'_>, attributes: Attributes) -> Result<(), Errno> {
    let all = raw::MOUNT_ATTR_RDONLY
        | raw::MOUNT_ATTR_NOSUID
        | raw::MOUNT_ATTR_NODEV
        | raw::MOUNT_ATTR_NOEXEC
        | raw::MOUNT_ATTR_NODIRATIME
        | raw::MOUNT_ATTR_NOSYMFOLLOW
        | raw::MOUNT_ATTR__ATIME;
    let request =
        raw::mount_attr { attr_set: attributes.set, attr_clr: u64::from(all), propagation: 0, userns_fd: 0 };
    // SAFETY: the descriptor is open during the call; the kernel reads one structure of the size given.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const request,
            size_of::<raw::mount_attr>(),
        )
    })
    .map(drop)
}

/// Puts `mount` in the place of what is mounted at `point`; open files of the old mount stay open. Beneath the old one first,
/// where the kernel can (Linux 6.5), so that there is no moment without a mount; else after it. move_mount(2).
pub fn replace(mount: BorrowedFd<'_>, point: &Path) -> Result<(), Errno> {
    let detach = || nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
    match move_to(mount, point, raw::MOVE_MOUNT_BENEATH) {
        Ok(()) => detach(),
        // EINVAL: not known, or not possible here (a mount that came by propagation).
        Err(Errno::EINVAL) => {
            detach()?;
            move_to(mount, point, 0)
        }
        Err(e) => Err(e),
    }
}

/// A copy, without a place, of the mount whose root this path is; what is mounted below it is not in it. open_tree(2), Linux 5.2.
pub fn copy(point: &Path) -> Result<OwnedFd, Errno> {
    let point = CString::new(point.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    let flags = raw::OPEN_TREE_CLONE | raw::OPEN_TREE_CLOEXEC | libc::AT_NO_AUTOMOUNT as u32;
    // SAFETY: the path ends in zero and outlives the call.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, point.as_ptr(), flags) })
}

/// Mounts a mount without a place there. move_mount(2).
pub fn attach(mount: BorrowedFd<'_>, point: &Path) -> Result<(), Errno> {
    move_to(mount, point, 0)
}

fn move_to(mount: BorrowedFd<'_>, point: &Path, flags: u32) -> Result<(), Errno> {
    let point = CString::new(point.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the descriptor is open during the call; both paths end in zero and outlive the call.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            point.as_ptr(),
            raw::MOVE_MOUNT_F_EMPTY_PATH | flags,
        )
    })
    .map(drop)
}

/// The descriptor that a system call answered with.
fn owned(result: libc::c_long) -> Result<OwnedFd, Errno> {
    let fd = Errno::result(result)?;
    let fd = i32::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_mountinfo_become_flags() {
        let set = |options| Attributes::parse(options).set;
        assert_eq!(set("rw,relatime"), 0);
        assert_eq!(
            set("ro,nosuid,nodev,noexec,noatime,idmapped"),
            u64::from(
                raw::MOUNT_ATTR_RDONLY
                    | raw::MOUNT_ATTR_NOSUID
                    | raw::MOUNT_ATTR_NODEV
                    | raw::MOUNT_ATTR_NOEXEC
                    | raw::MOUNT_ATTR_NOATIME
            )
        );
        assert_eq!(set("rw"), u64::from(raw::MOUNT_ATTR_STRICTATIME));
    }

    #[test]
    fn what_is_not_there_cannot_be_mounted() {
        if nix::unistd::geteuid().is_root() {
            assert!(btrfs("/nonexistent", Path::new("/")).is_err());
        }
    }
}
