//! Extended attributes of open files (xattr(7)).

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// The most the kernel allows for one value and for the list of names (XATTR_SIZE_MAX, XATTR_LIST_MAX).
const MOST: usize = 64 << 10;

/// All names and values; empty where the file system has none. Errors: those of flistxattr(2) and fgetxattr(2).
pub fn read(fd: BorrowedFd<'_>) -> Result<Vec<(CString, Vec<u8>)>, Errno> {
    let mut names = vec![0u8; MOST];
    // SAFETY: the buffer is writable for its whole length and outlives the call.
    let len = unsafe { libc::flistxattr(fd.as_raw_fd(), names.as_mut_ptr().cast(), names.len()) };
    let len = match Errno::result(len) {
        Ok(len) => len as usize,
        Err(Errno::ENOTSUP) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    names.truncate(len);
    let mut all = Vec::new();
    for name in names.split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        let mut value = vec![0u8; MOST];
        // SAFETY: the name is terminated, the buffer writable for its whole length; both outlive the call.
        let len =
            unsafe { libc::fgetxattr(fd.as_raw_fd(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
        match Errno::result(len) {
            Ok(len) => value.truncate(len as usize),
            Err(Errno::ENODATA | Errno::ENOTSUP) => continue,
            Err(e) => return Err(e),
        }
        all.push((name.to_owned(), value));
    }
    Ok(all)
}

/// Sets one. Errors: those of fsetxattr(2).
pub fn write(fd: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> Result<(), Errno> {
    // SAFETY: the name is terminated, the value readable for its whole length; both outlive the call.
    let result =
        unsafe { libc::fsetxattr(fd.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn what_is_written_is_read() {
        let path = std::env::temp_dir().join(format!("ckpt-xattr-{}", std::process::id()));
        let file = std::fs::File::create(&path).unwrap();
        match write(file.as_fd(), c"user.ckpt", b"value") {
            Ok(()) => {
                let all = read(file.as_fd()).unwrap();
                assert!(all.contains(&(c"user.ckpt".to_owned(), b"value".to_vec())));
            }
            Err(e) => eprintln!("skipped: {} has no user attributes: {e}", path.display()),
        }
        std::fs::remove_file(path).unwrap();
    }
}
