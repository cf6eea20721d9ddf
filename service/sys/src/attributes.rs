//! Attributes of tasks that the kernel tells without anything running in them: scheduling, robust list.

use nix::errno::Errno;
use nix::unistd::Pid;

use crate::error::{Error, Result};

/// struct sched_attr, first version of 48 bytes (sched_getattr(2), Linux 3.14).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
#[allow(missing_docs)] // the names are the manual's
pub struct Scheduling {
    pub size: u32,
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
}

/// Turns a raw result into a number or the task's error.
fn check(op: &'static str, tid: Pid, ret: libc::c_long) -> Result<libc::c_long> {
    Errno::result(ret).map_err(|e| if e == Errno::ESRCH { Error::Gone(tid) } else { Error::task(op, tid, e) })
}

/// Policy, nice and real-time parameters of a thread.
pub fn scheduling(tid: Pid) -> Result<Scheduling> {
    let mut attr = Scheduling::default();
    let size = size_of::<Scheduling>();
    // SAFETY: the kernel writes at most `size` bytes to attr.
    let ret = unsafe { libc::syscall(libc::SYS_sched_getattr, tid.as_raw(), &raw mut attr, size, 0) };
    check("sched_getattr", tid, ret)?;
    Ok(attr)
}

/// Sets policy, nice and real-time parameters of a thread; needs CAP_SYS_NICE for more than it has.
pub fn set_scheduling(tid: Pid, wanted: Scheduling) -> Result<()> {
    let attr = Scheduling { size: size_of::<Scheduling>() as u32, ..wanted };
    // SAFETY: attr outlives the call, which reads as many bytes as it says it has.
    let ret = unsafe { libc::syscall(libc::SYS_sched_setattr, tid.as_raw(), &raw const attr, 0) };
    check("sched_setattr", tid, ret).map(drop)
}

/// Sets the I/O priority of a thread (ioprio_set(2)).
pub fn set_io_priority(tid: Pid, priority: i32) -> Result<()> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    // SAFETY: numbers only.
    let ret = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, tid.as_raw(), priority) };
    check("ioprio_set", tid, ret).map(drop)
}

/// CPUs a thread may run on, as bits, 64 a word, without trailing zero words.
pub fn affinity(tid: Pid) -> Result<Vec<u64>> {
    let mut mask = vec![0u64; 128];
    let len = size_of_val(mask.as_slice());
    // SAFETY: the kernel writes at most `len` bytes to mask.
    let ret = unsafe { libc::syscall(libc::SYS_sched_getaffinity, tid.as_raw(), len, mask.as_mut_ptr()) };
    let written = check("sched_getaffinity", tid, ret)? as usize / 8;
    mask.truncate(written);
    while mask.len() > 1 && mask.last() == Some(&0) {
        mask.pop();
    }
    Ok(mask)
}

/// I/O priority of a thread, class and level together (ioprio_get(2)); 0 if none was set.
pub fn io_priority(tid: Pid) -> Result<i32> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    // SAFETY: numbers only.
    let ret = unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, tid.as_raw()) };
    Ok(check("ioprio_get", tid, ret)? as i32)
}

/// Lets this process keep its capabilities when its effective ids change (prctl(2), SECBIT_NO_SETUID_FIXUP). Needs CAP_SETPCAP.
pub fn keep_capabilities() -> std::result::Result<(), Errno> {
    const NO_SETUID_FIXUP: libc::c_ulong = 1 << 2;
    // SAFETY: numbers only.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_SECUREBITS, NO_SETUID_FIXUP, 0, 0, 0) }).map(drop)
}

/// The secure bits of this thread (capabilities(7)).
pub fn secure_bits() -> std::result::Result<u32, Errno> {
    // SAFETY: numbers only.
    Errno::result(unsafe { libc::prctl(libc::PR_GET_SECUREBITS) }).map(|bits| bits as u32)
}

/// Head and length of a thread's robust futex list (get_robust_list(2)); (0, 0) if none was set.
pub fn robust_list(tid: Pid) -> Result<(u64, u64)> {
    let (mut head, mut len) = (0u64, 0u64);
    // SAFETY: the kernel writes one word to each pointer.
    let ret = unsafe { libc::syscall(libc::SYS_get_robust_list, tid.as_raw(), &raw mut head, &raw mut len) };
    check("get_robust_list", tid, ret)?;
    Ok((head, if head == 0 { 0 } else { len }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_attributes_are_told() {
        let me = nix::unistd::gettid();
        assert_eq!(scheduling(me).unwrap().policy, 0);
        assert_ne!(affinity(me).unwrap()[0], 0);
        assert_eq!(robust_list(me).unwrap().1, 24);
        io_priority(me).unwrap();
        assert!(matches!(scheduling(Pid::from_raw(i32::MAX)), Err(Error::Gone(_))));
    }
}
