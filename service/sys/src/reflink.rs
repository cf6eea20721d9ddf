//! Sharing the blocks of one file with another (ioctl_ficlonerange(2)): no data is read or written.

use std::fs::File;
use std::os::fd::AsRawFd;

use linux_raw_sys::general::file_clone_range;
use nix::errno::Errno;

#[allow(missing_docs)]
mod request {
    nix::ioctl_write_ptr!(clone_range, 0x94, 13, super::file_clone_range);
}

/// Shares `len` bytes of `from` at `offset` with `to` at `at`, over what is there. `false` where that cannot be done with these files: another file
/// system (EXDEV), one that cannot (EOPNOTSUPP, ENOTTY), or one whose blocks are larger than the alignment (EINVAL). FICLONERANGE, Linux 4.5.
///
/// Errors: ENOSPC, EIO, EBADF, … as ioctl_ficlonerange(2) says.
pub fn share(from: &File, offset: u64, to: &File, at: u64, len: u64) -> Result<bool, Errno> {
    let range = file_clone_range {
        src_fd: i64::from(from.as_raw_fd()),
        src_offset: offset,
        src_length: len,
        dest_offset: at,
    };
    // SAFETY: both descriptors are open during the call; the kernel only reads the structure, which outlives the call.
    match unsafe { request::clone_range(to.as_raw_fd(), &range) } {
        Ok(_) => Ok(true),
        Err(Errno::EXDEV | Errno::EOPNOTSUPP | Errno::ENOTTY | Errno::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}
