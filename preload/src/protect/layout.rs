//! Calls that change what is mapped, or how it is protected: under the lock, and what they touch is gone from the table.
use super::{pass, table};
use libc::{
    MADV_DODUMP, MADV_DOFORK, MADV_DONTDUMP, MADV_DONTFORK, MADV_HUGEPAGE, MADV_MERGEABLE, MADV_NOHUGEPAGE,
    MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_UNMERGEABLE, MADV_WILLNEED,
};

const SYS_MSEAL: i64 = 462;
/// The longest segment of System V shared memory is not known before it is attached.
const MAP_FIXED: usize = libc::MAP_FIXED as usize;
const SHM_REMAP: usize = 0o40000;

/// Makes such a call; `None` if it is none.
pub fn call(number: i64, args: &[usize; 6]) -> Option<isize> {
    let [start, length, ..] = *args;
    Some(match number {
        libc::SYS_mmap => map(args),
        libc::SYS_munmap => {
            let _lock = table::lock(false);
            let result = raw(number, args);
            if result == 0 {
                forget(start, length);
            }
            result
        }
        libc::SYS_mprotect | libc::SYS_pkey_mprotect | SYS_MSEAL | libc::SYS_remap_file_pages => {
            with_released(number, args)
        }
        libc::SYS_madvise if is_hint(args[2]) => raw(number, args),
        libc::SYS_madvise => with_released(number, args),
        libc::SYS_mremap => remap(args),
        libc::SYS_brk => brk(args),
        libc::SYS_shmat => attach(args),
        libc::SYS_shmdt => {
            // Its length is known to the kernel alone; attached memory is never protected.
            let _lock = table::lock(false);
            raw(number, args)
        }
        _ => return None,
    })
}

fn raw(number: i64, args: &[usize; 6]) -> isize {
    // SAFETY: the application's own call.
    unsafe { pass::raw(number, *args) }
}

fn forget(start: usize, length: usize) {
    table::forget(start as u64, (start as u64).saturating_add(length as u64));
}

fn release(start: usize, length: usize) {
    table::release(start as u64, (start as u64).saturating_add(length as u64));
}

fn is_error(result: isize) -> bool {
    (-4095..0).contains(&result)
}

/// What is open and gone before the call is right whatever part of it succeeds.
fn with_released(number: i64, args: &[usize; 6]) -> isize {
    let _lock = table::lock(false);
    release(args[0], args[1]);
    raw(number, args)
}

fn map(args: &[usize; 6]) -> isize {
    let _lock = table::lock(false);
    if args[3] & MAP_FIXED != 0 {
        release(args[0], args[1]);
    }
    let result = raw(libc::SYS_mmap, args);
    if !is_error(result) {
        forget(result as usize, args[1]);
    }
    result
}

fn remap(args: &[usize; 6]) -> isize {
    let [old, length, new_length, flags, to, _] = *args;
    let _lock = table::lock(false);
    release(old, length.max(new_length));
    if flags & libc::MREMAP_FIXED as usize != 0 {
        release(to, new_length);
    }
    let result = raw(libc::SYS_mremap, args);
    if !is_error(result) {
        forget(result as usize, new_length);
    }
    result
}

fn brk(args: &[usize; 6]) -> isize {
    let _lock = table::lock(false);
    let old = raw(libc::SYS_brk, &[0; 6]) as usize;
    let new = raw(libc::SYS_brk, args) as usize;
    forget(old.min(new), old.abs_diff(new));
    new as isize
}

fn attach(args: &[usize; 6]) -> isize {
    let [id, place, flags, ..] = *args;
    let _lock = table::lock(false);
    let mut about = [0u64; 32];
    let stat = [id, libc::IPC_STAT as usize, &raw mut about as usize, 0, 0, 0];
    // SAFETY: about is larger than a shmid64_ds.
    let known = unsafe { pass::raw(libc::SYS_shmctl, stat) } == 0;
    // struct shmid64_ds: struct ipc64_perm of 48 bytes, then the size. It may be attached without being readable.
    let length = if known { about[6] as usize } else { 0 };
    if place != 0 && flags & SHM_REMAP != 0 {
        release(place, length);
    }
    let result = raw(libc::SYS_shmat, args);
    if !is_error(result) {
        forget(result as usize, length);
    }
    result
}

/// Advice that leaves contents and protection as they are.
fn is_hint(advice: usize) -> bool {
    const COLD: i32 = 20;
    const PAGEOUT: i32 = 21;
    matches!(
        advice as i32,
        MADV_NORMAL
            | MADV_RANDOM
            | MADV_SEQUENTIAL
            | MADV_WILLNEED
            | MADV_DONTFORK
            | MADV_DOFORK
            | MADV_MERGEABLE
            | MADV_UNMERGEABLE
            | MADV_HUGEPAGE
            | MADV_NOHUGEPAGE
            | MADV_DONTDUMP
            | MADV_DODUMP
            | COLD
            | PAGEOUT
    )
}
