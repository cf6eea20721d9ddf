//! What works on names: opening, making, renaming, removing.
use libc::{c_char, c_int, c_uint, dev_t, mode_t, off_t};

// open's third argument is variadic in C; on x86-64 a variadic integer is passed as a fixed one is.
hooks! {
    open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int = Open(-1, -1, 0) [SYS_open];
    open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int = Open(-1, -1, 0) [SYS_open];
    __open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int = Open(-1, -1, 0) [SYS_open];
    __open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int = Open(-1, -1, 0) [SYS_open];
    __open_2(path: *const c_char, flags: c_int) -> c_int = Open(-1, -1, 0);
    __open64_2(path: *const c_char, flags: c_int) -> c_int = Open(-1, -1, 0);
    openat(directory: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int
        = Open(directory, -1, 0) [SYS_openat];
    openat64(directory: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int
        = Open(directory, -1, 0) [SYS_openat];
    __openat_2(directory: c_int, path: *const c_char, flags: c_int) -> c_int = Open(directory, -1, 0);
    __openat64_2(directory: c_int, path: *const c_char, flags: c_int) -> c_int = Open(directory, -1, 0);
    creat(path: *const c_char, mode: mode_t) -> c_int = Open(-1, -1, 0) [SYS_creat];
    creat64(path: *const c_char, mode: mode_t) -> c_int = Open(-1, -1, 0) [SYS_creat];
    mkstemp(template: *mut c_char) -> c_int = Open(-1, -1, 0);
    mkstemp64(template: *mut c_char) -> c_int = Open(-1, -1, 0);
    mkostemp(template: *mut c_char, flags: c_int) -> c_int = Open(-1, -1, 0);
    mkostemp64(template: *mut c_char, flags: c_int) -> c_int = Open(-1, -1, 0);
    mkstemps(template: *mut c_char, suffix: c_int) -> c_int = Open(-1, -1, 0);
    mkstemps64(template: *mut c_char, suffix: c_int) -> c_int = Open(-1, -1, 0);
    mkostemps(template: *mut c_char, suffix: c_int, flags: c_int) -> c_int = Open(-1, -1, 0);
    mkostemps64(template: *mut c_char, suffix: c_int, flags: c_int) -> c_int = Open(-1, -1, 0);
    mkdtemp(template: *mut c_char) -> *mut c_char = Mkdir(-1, -1, 0);

    truncate(path: *const c_char, length: off_t) -> c_int = Truncate(-1, length, 0) [SYS_truncate];
    truncate64(path: *const c_char, length: off_t) -> c_int = Truncate(-1, length, 0) [SYS_truncate];

    rename(from: *const c_char, to: *const c_char) -> c_int = Rename(-1, -1, 0) [SYS_rename];
    renameat(from_directory: c_int, from: *const c_char, directory: c_int, to: *const c_char) -> c_int
        = Rename(directory, -1, 0) [SYS_renameat];
    renameat2(from_directory: c_int, from: *const c_char, directory: c_int, to: *const c_char, flags: c_uint) -> c_int
        = Rename(directory, -1, 0) [SYS_renameat2];
    link(from: *const c_char, to: *const c_char) -> c_int = Link(-1, -1, 0) [SYS_link];
    linkat(from_directory: c_int, from: *const c_char, directory: c_int, to: *const c_char, flags: c_int) -> c_int
        = Link(directory, -1, 0) [SYS_linkat];
    symlink(target: *const c_char, path: *const c_char) -> c_int = Symlink(-1, -1, 0) [SYS_symlink];
    symlinkat(target: *const c_char, directory: c_int, path: *const c_char) -> c_int
        = Symlink(directory, -1, 0) [SYS_symlinkat];
    unlink(path: *const c_char) -> c_int = Unlink(-1, -1, 0) [SYS_unlink];
    unlinkat(directory: c_int, path: *const c_char, flags: c_int) -> c_int = Unlink(directory, -1, 0) [SYS_unlinkat];
    rmdir(path: *const c_char) -> c_int = Unlink(-1, -1, 0) [SYS_rmdir];
    remove(path: *const c_char) -> c_int = Unlink(-1, -1, 0);
    mkdir(path: *const c_char, mode: mode_t) -> c_int = Mkdir(-1, -1, 0) [SYS_mkdir];
    mkdirat(directory: c_int, path: *const c_char, mode: mode_t) -> c_int = Mkdir(directory, -1, 0) [SYS_mkdirat];
    mknod(path: *const c_char, mode: mode_t, device: dev_t) -> c_int = Mknod(-1, -1, 0) [SYS_mknod];
    mknodat(directory: c_int, path: *const c_char, mode: mode_t, device: dev_t) -> c_int
        = Mknod(directory, -1, 0) [SYS_mknodat];
    __xmknod(version: c_int, path: *const c_char, mode: mode_t, device: *mut dev_t) -> c_int = Mknod(-1, -1, 0);
    __xmknodat(version: c_int, directory: c_int, path: *const c_char, mode: mode_t, device: *mut dev_t) -> c_int
        = Mknod(directory, -1, 0);
    mkfifo(path: *const c_char, mode: mode_t) -> c_int = Mknod(-1, -1, 0);
    mkfifoat(directory: c_int, path: *const c_char, mode: mode_t) -> c_int = Mknod(directory, -1, 0);
}
