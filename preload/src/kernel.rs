//! System calls without libc: errno is not touched, no lock is taken, no hook is entered.
use core::arch::asm;

/// Makes a system call; a negative errno on failure.
///
/// # Safety
/// The arguments are valid for system call `number` (syscall(2)).
#[inline(always)]
pub unsafe fn call(number: i64, args: [usize; 6]) -> isize {
    let result: isize;
    // SAFETY: the kernel clobbers rcx and r11 only; the caller vouches for the arguments.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result,
            in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
            in("r10") args[3], in("r8") args[4], in("r9") args[5],
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

/// getpid(2)
pub fn process() -> u32 {
    // SAFETY: no arguments.
    unsafe { call(libc::SYS_getpid, [0; 6]) as u32 }
}

/// gettid(2)
pub fn thread() -> u32 {
    // SAFETY: no arguments.
    unsafe { call(libc::SYS_gettid, [0; 6]) as u32 }
}

/// Whether a thread of this process is there: tgkill(2) with signal 0.
pub fn is_alive(process: u32, thread: u32) -> bool {
    // SAFETY: signal 0 is not sent.
    unsafe { call(libc::SYS_tgkill, [process as usize, thread as usize, 0, 0, 0, 0]) == 0 }
}

/// CLOCK_MONOTONIC in nanoseconds. Through libc, so through the vDSO: a seccomp filter may know no clock_gettime(2).
pub fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: time is a timespec to be written; the clock exists, so errno is not touched.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    (time.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec as u64)
}

/// Waits on a shared futex while it holds `value`, for at most `nanoseconds` (below a second). futex(2)
pub fn futex_wait(futex: *const u32, value: u32, nanoseconds: u32) {
    let time = libc::timespec { tv_sec: 0, tv_nsec: nanoseconds.min(999_999_999) as i64 };
    // SAFETY: futex points into the mapped table, time outlives the call; FUTEX_WAIT writes nothing.
    unsafe {
        let time = &raw const time as usize;
        call(libc::SYS_futex, [futex as usize, libc::FUTEX_WAIT as usize, value as usize, time, 0, 0]);
    }
}

/// Wakes all who wait on a shared futex. futex(2)
pub fn futex_wake(futex: *const u32) {
    // SAFETY: FUTEX_WAKE only uses the address.
    unsafe {
        call(libc::SYS_futex, [futex as usize, libc::FUTEX_WAKE as usize, i32::MAX as usize, 0, 0, 0]);
    }
}

/// Whether a descriptor is a regular file, a directory or a block device. fstat(3): the system call that libc makes of
/// it is the one that a service's seccomp filter knows.
pub fn is_file(fd: i32) -> bool {
    let mut stat = core::mem::MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: stat is a stat to be written, and valid as zeroes; errno belongs to the calling thread.
    let (result, mode) = unsafe {
        let errno = *libc::__errno_location();
        let result = libc::fstat(fd, stat.as_mut_ptr());
        *libc::__errno_location() = errno;
        (result, stat.assume_init().st_mode)
    };
    result == 0 && matches!(mode & libc::S_IFMT, libc::S_IFREG | libc::S_IFDIR | libc::S_IFBLK)
}

/// Whether a program of this name space may read the file. access(2), as ld.so calls it
///
/// # Safety
/// `path` is a C string.
pub unsafe fn is_readable(path: *const u8) -> bool {
    // SAFETY: the caller vouches for path.
    unsafe { call(libc::SYS_access, [path as usize, libc::R_OK as usize, 0, 0, 0, 0]) == 0 }
}

/// Private memory of `length` bytes, zeroed; `None` if there is none. mmap(2)
pub fn map_private(length: usize) -> Option<*mut u8> {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new anonymous mapping at a place of the kernel's choice harms nobody.
    let address =
        unsafe { call(libc::SYS_mmap, [0, length, protection as usize, flags as usize, usize::MAX, 0]) };
    (address > 0).then_some(address as *mut u8)
}

/// munmap(2)
///
/// # Safety
/// Nothing uses the mapping any more.
pub unsafe fn unmap(address: *mut u8, length: usize) {
    // SAFETY: the caller's.
    unsafe {
        call(libc::SYS_munmap, [address as usize, length, 0, 0, 0, 0]);
    }
}

/// The memfd of a table, of [`ckpt_wire::SIZE`] bytes and sealed; `None` if the kernel gives none. memfd_create(2)
pub fn make_memfd() -> Option<i32> {
    const NOEXEC_SEAL: u32 = 8; // Linux 6.3; EINVAL before
    let name = ckpt_wire::NAME.as_ptr() as usize;
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: name is a C string; the descriptor that comes back is ours alone.
    unsafe {
        let mut fd = call(libc::SYS_memfd_create, [name, (flags | NOEXEC_SEAL) as usize, 0, 0, 0, 0]);
        if fd == -libc::EINVAL as isize {
            fd = call(libc::SYS_memfd_create, [name, flags as usize, 0, 0, 0, 0]);
        }
        if fd < 0 {
            return None;
        }
        let seals = (ckpt_wire::REQUIRED_SEALS | libc::F_SEAL_SEAL) as usize;
        let sized = resize(fd as i32, ckpt_wire::SIZE)
            && call(libc::SYS_fcntl, [fd as usize, libc::F_ADD_SEALS as usize, seals, 0, 0, 0]) == 0;
        if !sized {
            close(fd as i32);
            return None;
        }
        Some(fd as i32)
    }
}

/// ftruncate(2), but never SIGXFSZ: false if RLIMIT_FSIZE is lower.
fn resize(fd: i32, length: usize) -> bool {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    let resource = libc::RLIMIT_FSIZE as usize;
    // SAFETY: limit is an rlimit64 to be written; fd is ours.
    unsafe {
        if call(libc::SYS_prlimit64, [0, resource, 0, &raw mut limit as usize, 0, 0]) != 0 {
            return false;
        }
        limit.rlim_cur >= length as u64 && call(libc::SYS_ftruncate, [fd as usize, length, 0, 0, 0, 0]) == 0
    }
}

/// Closes a descriptor of ours. close(2)
pub fn close(fd: i32) {
    // SAFETY: only called with a descriptor that this library opened.
    unsafe {
        call(libc::SYS_close, [fd as usize, 0, 0, 0, 0, 0]);
    }
}

/// Maps a table shared, at `place` (in place of what is there) or anywhere: a memfd, or nameless memory if `fd` is -1;
/// `None` on failure. mmap(2)
///
/// # Safety
/// `place` is null, or a former table of [`ckpt_wire::SIZE`] bytes.
pub unsafe fn map_table(fd: i32, place: *mut u8) -> Option<*mut u8> {
    let fixed = if place.is_null() { 0 } else { libc::MAP_FIXED };
    let nameless = if fd < 0 { libc::MAP_ANONYMOUS } else { 0 };
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | fixed | nameless);
    let args = [place as usize, ckpt_wire::SIZE, protection as usize, flags as usize, fd as usize, 0];
    // SAFETY: either a new mapping, or one that replaces a mapping of ours (the caller's).
    let address = unsafe { call(libc::SYS_mmap, args) };
    (address > 0).then_some(address as *mut u8)
}

/// Whether a seccomp filter holds this process (or that cannot be told): a call that it does not know may be the last.
/// Only calls that ld.so has made are made here. The Seccomp line of proc_pid_status(5), Linux 3.8
pub fn is_filtered() -> bool {
    let mut text = [0u8; 4096];
    // SAFETY: a C string; a descriptor of ours; at most the buffer's length is written.
    let length = unsafe {
        let (path, flags) = (c"/proc/self/status".as_ptr() as usize, libc::O_CLOEXEC as usize);
        let fd = call(libc::SYS_openat, [libc::AT_FDCWD as usize, path, flags, 0, 0, 0]);
        if fd < 0 {
            return true;
        }
        let length = call(libc::SYS_read, [fd as usize, text.as_mut_ptr() as usize, text.len(), 0, 0, 0]);
        close(fd as i32);
        length.max(0) as usize
    };
    let mut lines = text[..length.min(text.len())].split(|&byte| byte == b'\n');
    lines.find_map(|line| line.strip_prefix(b"Seccomp:\t")) != Some(b"0")
}

/// Asks the kernel to hand a child of fork zeroes in place of this page. madvise(2), MADV_WIPEONFORK, Linux 4.14
pub fn wipe_on_fork(page: *const u8, length: usize) {
    // SAFETY: only called with a page of ours that is valid as zeroes.
    unsafe {
        call(libc::SYS_madvise, [page as usize, length, libc::MADV_WIPEONFORK as usize, 0, 0, 0]);
    }
}

/// Writes the working directory's path into a buffer; its length without the zero. getcwd(2)
pub fn working_directory(buffer: &mut [u8]) -> Option<usize> {
    // SAFETY: the kernel writes at most the buffer's length.
    let length = unsafe { call(libc::SYS_getcwd, [buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0, 0]) };
    (length > 0 && buffer.first() == Some(&b'/')).then(|| length as usize - 1)
}
