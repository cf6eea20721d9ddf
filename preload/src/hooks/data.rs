//! What moves data: read, write and their relatives, lengths, flushing, copying, mappings.
use crate::gate::{gated, gated_two};
use ckpt_wire::OpCode;
use libc::{c_int, c_uint, c_void, iovec, off_t, size_t, ssize_t};

hooks! {
    read(fd: c_int, buffer: *mut c_void, length: size_t) -> ssize_t = Read(fd, -1, length) [SYS_read];
    write(fd: c_int, buffer: *const c_void, length: size_t) -> ssize_t = Write(fd, -1, length) [SYS_write];
    pread(fd: c_int, buffer: *mut c_void, length: size_t, offset: off_t) -> ssize_t
        = Read(fd, offset, length) [SYS_pread64];
    pread64(fd: c_int, buffer: *mut c_void, length: size_t, offset: off_t) -> ssize_t
        = Read(fd, offset, length) [SYS_pread64];
    pwrite(fd: c_int, buffer: *const c_void, length: size_t, offset: off_t) -> ssize_t
        = Write(fd, offset, length) [SYS_pwrite64];
    pwrite64(fd: c_int, buffer: *const c_void, length: size_t, offset: off_t) -> ssize_t
        = Write(fd, offset, length) [SYS_pwrite64];
    __read_chk(fd: c_int, buffer: *mut c_void, length: size_t, room: size_t) -> ssize_t = Read(fd, -1, length);
    __pread_chk(fd: c_int, buffer: *mut c_void, length: size_t, offset: off_t, room: size_t) -> ssize_t
        = Read(fd, offset, length);
    __pread64_chk(fd: c_int, buffer: *mut c_void, length: size_t, offset: off_t, room: size_t) -> ssize_t
        = Read(fd, offset, length);
    __read(fd: c_int, buffer: *mut c_void, length: size_t) -> ssize_t = Read(fd, -1, length) [SYS_read];
    __write(fd: c_int, buffer: *const c_void, length: size_t) -> ssize_t = Write(fd, -1, length) [SYS_write];
    __pread64(fd: c_int, buffer: *mut c_void, length: size_t, offset: off_t) -> ssize_t
        = Read(fd, offset, length) [SYS_pread64];
    __pwrite64(fd: c_int, buffer: *const c_void, length: size_t, offset: off_t) -> ssize_t
        = Write(fd, offset, length) [SYS_pwrite64];

    readv(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t = Read(fd, -1, 0) [SYS_readv];
    writev(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t = Write(fd, -1, 0) [SYS_writev];
    preadv(fd: c_int, parts: *const iovec, count: c_int, offset: off_t) -> ssize_t = Read(fd, offset, 0);
    preadv64(fd: c_int, parts: *const iovec, count: c_int, offset: off_t) -> ssize_t = Read(fd, offset, 0);
    pwritev(fd: c_int, parts: *const iovec, count: c_int, offset: off_t) -> ssize_t = Write(fd, offset, 0);
    pwritev64(fd: c_int, parts: *const iovec, count: c_int, offset: off_t) -> ssize_t = Write(fd, offset, 0);
    preadv2(fd: c_int, parts: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t
        = Read(fd, offset, 0);
    preadv64v2(fd: c_int, parts: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t
        = Read(fd, offset, 0);
    pwritev2(fd: c_int, parts: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t
        = Write(fd, offset, 0);
    pwritev64v2(fd: c_int, parts: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t
        = Write(fd, offset, 0);

    ftruncate(fd: c_int, length: off_t) -> c_int = Ftruncate(fd, length, 0) [SYS_ftruncate];
    ftruncate64(fd: c_int, length: off_t) -> c_int = Ftruncate(fd, length, 0) [SYS_ftruncate];
    fallocate(fd: c_int, mode: c_int, offset: off_t, length: off_t) -> c_int
        = Fallocate(fd, offset, length) [SYS_fallocate];
    fallocate64(fd: c_int, mode: c_int, offset: off_t, length: off_t) -> c_int
        = Fallocate(fd, offset, length) [SYS_fallocate];
    posix_fallocate(fd: c_int, offset: off_t, length: off_t) -> c_int = Fallocate(fd, offset, length);
    posix_fallocate64(fd: c_int, offset: off_t, length: off_t) -> c_int = Fallocate(fd, offset, length);

    fsync(fd: c_int) -> c_int = Fsync(fd, -1, 0) [SYS_fsync];
    fdatasync(fd: c_int) -> c_int = Fsync(fd, -1, 0) [SYS_fdatasync];
    syncfs(fd: c_int) -> c_int = Sync(fd, -1, 0) [SYS_syncfs];
    sync_file_range(fd: c_int, offset: off_t, length: off_t, flags: c_uint) -> c_int
        = Fsync(fd, offset, length) [SYS_sync_file_range];
    sync() -> () = Sync(-1, -1, 0);

    msync(address: *mut c_void, length: size_t, flags: c_int) -> c_int = Msync(-1, -1, length) [SYS_msync];
}

macro_rules! copies {
    ($($name:ident($($arg:ident: $type:ty),*) -> $result:ty = $code:ident($to:ident, $from:ident, $length:ident)
        [$number:ident];)*) => { $(
        hook_with! {
            $name($($arg: $type),*) -> $result,
            |real| gated_two(OpCode::$code, $to, $from, $length as u64, real), $number
        }
    )* };
}

copies! {
    copy_file_range(from: c_int, from_at: *mut off_t, to: c_int, to_at: *mut off_t, length: size_t, flags: c_uint)
        -> ssize_t = CopyFileRange(to, from, length) [SYS_copy_file_range];
    sendfile(to: c_int, from: c_int, offset: *mut off_t, length: size_t) -> ssize_t
        = Sendfile(to, from, length) [SYS_sendfile];
    sendfile64(to: c_int, from: c_int, offset: *mut off_t, length: size_t) -> ssize_t
        = Sendfile(to, from, length) [SYS_sendfile];
    splice(from: c_int, from_at: *mut off_t, to: c_int, to_at: *mut off_t, length: size_t, flags: c_uint)
        -> ssize_t = Splice(to, from, length) [SYS_splice];
}

macro_rules! mappings {
    ($($name:ident)*) => { $(
        hook_with! {
            $name(address: *mut c_void, length: size_t, protection: c_int, flags: c_int, fd: c_int, offset: off_t)
                -> *mut c_void,
            |real| if fd >= 0 && flags & libc::MAP_ANONYMOUS == 0 && flags & libc::MAP_SHARED != 0 {
                gated(OpCode::Mmap, fd, offset, length as u64, real)
            } else {
                real()
            },
            SYS_mmap
        }
    )* };
}

// MAP_SHARED_VALIDATE has MAP_SHARED's bit, as MAP_PRIVATE (2) has not.
mappings! { mmap mmap64 }

macro_rules! asynchronous {
    ($($name:ident($($arg:ident: $type:ty),*);)*) => { $(
        hook_with! {
            $name($($arg: $type),*) -> c_int,
            |real| {
                crate::gate::pass();
                real()
            }
        }
    )* };
}

// These only hand an operation over to threads of libc's, which no hook sees.
asynchronous! {
    aio_write(block: *mut c_void);
    aio_write64(block: *mut c_void);
    aio_fsync(operation: c_int, block: *mut c_void);
    aio_fsync64(operation: c_int, block: *mut c_void);
    lio_listio(mode: c_int, list: *const *mut c_void, count: c_int, event: *mut c_void);
    lio_listio64(mode: c_int, list: *const *mut c_void, count: c_int, event: *mut c_void);
}
