//! What changes a file's attributes.
use libc::{c_char, c_int, c_void, gid_t, mode_t, size_t, timespec, timeval, uid_t, utimbuf};

hooks! {
    chmod(path: *const c_char, mode: mode_t) -> c_int = Chmod(-1, -1, 0) [SYS_chmod];
    fchmod(fd: c_int, mode: mode_t) -> c_int = Chmod(fd, -1, 0) [SYS_fchmod];
    fchmodat(directory: c_int, path: *const c_char, mode: mode_t, flags: c_int) -> c_int = Chmod(directory, -1, 0);
    lchmod(path: *const c_char, mode: mode_t) -> c_int = Chmod(-1, -1, 0);
    chown(path: *const c_char, user: uid_t, group: gid_t) -> c_int = Chown(-1, -1, 0) [SYS_chown];
    lchown(path: *const c_char, user: uid_t, group: gid_t) -> c_int = Chown(-1, -1, 0) [SYS_lchown];
    fchown(fd: c_int, user: uid_t, group: gid_t) -> c_int = Chown(fd, -1, 0) [SYS_fchown];
    fchownat(directory: c_int, path: *const c_char, user: uid_t, group: gid_t, flags: c_int) -> c_int
        = Chown(directory, -1, 0) [SYS_fchownat];
    utime(path: *const c_char, times: *const utimbuf) -> c_int = Utimes(-1, -1, 0) [SYS_utime];
    utimes(path: *const c_char, times: *const timeval) -> c_int = Utimes(-1, -1, 0) [SYS_utimes];
    lutimes(path: *const c_char, times: *const timeval) -> c_int = Utimes(-1, -1, 0);
    futimes(fd: c_int, times: *const timeval) -> c_int = Utimes(fd, -1, 0);
    futimesat(directory: c_int, path: *const c_char, times: *const timeval) -> c_int
        = Utimes(directory, -1, 0) [SYS_futimesat];
    utimensat(directory: c_int, path: *const c_char, times: *const timespec, flags: c_int) -> c_int
        = Utimes(directory, -1, 0) [SYS_utimensat];
    futimens(fd: c_int, times: *const timespec) -> c_int = Utimes(fd, -1, 0);
    setxattr(path: *const c_char, name: *const c_char, value: *const c_void, size: size_t, flags: c_int) -> c_int
        = Xattr(-1, -1, size) [SYS_setxattr];
    lsetxattr(path: *const c_char, name: *const c_char, value: *const c_void, size: size_t, flags: c_int) -> c_int
        = Xattr(-1, -1, size) [SYS_lsetxattr];
    fsetxattr(fd: c_int, name: *const c_char, value: *const c_void, size: size_t, flags: c_int) -> c_int
        = Xattr(fd, -1, size) [SYS_fsetxattr];
    removexattr(path: *const c_char, name: *const c_char) -> c_int = Xattr(-1, -1, 0) [SYS_removexattr];
    lremovexattr(path: *const c_char, name: *const c_char) -> c_int = Xattr(-1, -1, 0) [SYS_lremovexattr];
    fremovexattr(fd: c_int, name: *const c_char) -> c_int = Xattr(fd, -1, 0) [SYS_fremovexattr];
}
