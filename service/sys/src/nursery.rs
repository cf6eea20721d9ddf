//! What this process prepares in itself before it makes copies of itself that become members.
//!
//! ```text
//!  runner area   ├ code, one page, r-x ┤ slot, rw-, shared ┤ slot ┤ … ┤      at an address that no member needs
//! ```

use std::ffi::c_void;
use std::sync::OnceLock;

use nix::errno::Errno;

use crate::addr::{AddrRange, VirtAddr};
use crate::batch::Slot;
use crate::error::{Error, Result, Subject};
use crate::runner::{self, RestoreRunner};

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Bytes of a slot: of four parts, each with room for the most supplementary groups that a process can have.
pub const SLOT: u64 = (1 << 20) + (1 << 14);
/// Slots: batches of as many members run at once, each in a slot of its own.
pub const SLOTS: u64 = 128;
/// Bytes of the whole runner area; but for the code it costs memory only where a slot was used.
pub const AREA: u64 = PAGE + SLOTS * SLOT;

/// The slots that this process shares with its copies.
static SLOTS_AT: OnceLock<VirtAddr> = OnceLock::new();

/// Maps the runner area at `at`, which nothing else may use. The code is a private copy of each member, the slots are shared by all, so that
/// a batch is written and read here. Only once. Errors: EEXIST where something of ours lies there, ENOMEM.
pub fn map_runner(at: VirtAddr) -> Result<RestoreRunner> {
    let fail = |op| Error::Kernel { op, subject: Subject::Here, source: Errno::last() };
    let code = runner::code();
    if code.len() as u64 > PAGE {
        return Err(Error::Kernel { op: "map the runner", subject: Subject::Here, source: Errno::E2BIG });
    }
    let first = at.add(PAGE);
    map(at, PAGE, libc::MAP_PRIVATE)?;
    map(first, SLOTS * SLOT, libc::MAP_SHARED | libc::MAP_NORESERVE)?;
    // SAFETY: the copy goes into the page just mapped, which is large enough; then that page loses the right to be written.
    unsafe {
        let base = at.get() as *mut c_void;
        std::ptr::copy_nonoverlapping(code.as_ptr(), base.cast(), code.len());
        if libc::mprotect(base, PAGE as usize, libc::PROT_READ | libc::PROT_EXEC) != 0 {
            return Err(fail("mprotect of the runner area"));
        }
    }
    if SLOTS_AT.set(first).is_err() {
        return Err(Error::Kernel { op: "map the runner", subject: Subject::Here, source: Errno::EEXIST });
    }
    Ok(RestoreRunner::shared(at, Slot { base: first, len: SLOT }))
}

fn map(at: VirtAddr, len: u64, kind: i32) -> Result<()> {
    let (flags, rights) =
        (kind | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE, libc::PROT_READ | libc::PROT_WRITE);
    // SAFETY: MAP_FIXED_NOREPLACE maps only where nothing is.
    let got = unsafe { libc::mmap(at.get() as *mut c_void, len as usize, rights, flags, -1, 0) };
    if got == libc::MAP_FAILED || got as u64 != at.get() {
        let source = Errno::last();
        return Err(Error::Kernel { op: "mmap of the runner area", subject: Subject::Here, source });
    }
    Ok(())
}

/// The slot of this number; 0 is the runner's own. `None` past the last.
#[must_use]
pub fn slot(runner: &RestoreRunner, number: usize) -> Option<Slot> {
    let number = u64::try_from(number).ok().filter(|n| *n < SLOTS)?;
    Some(Slot { base: runner.code().add(PAGE + number * SLOT), len: SLOT })
}

/// Where `len` bytes of the slots lie here. EFAULT: not in them.
fn within(at: VirtAddr, len: usize) -> Result<*mut u8> {
    let outside = Error::Kernel { op: "use a slot", subject: Subject::Here, source: Errno::EFAULT };
    let first = SLOTS_AT.get().map_or(u64::MAX, |first| first.get());
    let end = at.get().checked_add(len as u64);
    match end.is_some_and(|end| at.get() >= first && end <= first + SLOTS * SLOT) {
        true => Ok(at.get() as *mut u8),
        false => Err(outside),
    }
}

/// Writes to a slot, whose members are stopped.
pub(crate) fn write(at: VirtAddr, bytes: &[u8]) -> Result<()> {
    let to = within(at, bytes.len())?;
    // SAFETY: `within` says that it lies in the slots, which are mapped for as long as this process lives; no reference to them exists, and
    // the member that shares this one is stopped.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    Ok(())
}

/// Reads from a slot, whose members are stopped.
pub(crate) fn read(at: VirtAddr, bytes: &mut [u8]) -> Result<()> {
    let from = within(at, bytes.len())?;
    // SAFETY: as in `write`.
    unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
    Ok(())
}

/// The range that [`map_runner`] mapped.
#[must_use]
pub fn area(runner: &RestoreRunner) -> AddrRange {
    AddrRange::new(runner.code(), AREA)
}

/// Blocks every signal that can be blocked, for this thread, which must be the only one, and all copies of it; SIGCHLD then ends waits for
/// traced threads.
pub fn block_signals() -> Result<()> {
    // The C library's function leaves out the two signals that it uses itself, of which one is that of SIGEV_THREAD.
    let all = u64::MAX;
    // SAFETY: the kernel reads eight bytes of `all`, which outlives the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const all,
            std::ptr::null_mut::<u64>(),
            8,
        )
    };
    let failed = |source| Error::Kernel { op: "rt_sigprocmask", subject: Subject::Here, source };
    Errno::result(done).map_err(failed)?;
    crate::thread::wait_by_signal();
    Ok(())
}

/// The distance of a `syscall` instruction from the start of this process's vDSO, and the vDSO's bytes. Copies have the same.
/// Error: ENOENT where there is no vDSO or no such instruction in it.
pub fn vdso() -> Result<(Vec<u8>, u64)> {
    let none =
        || Error::Kernel { op: "find syscall in the vDSO", subject: Subject::Here, source: Errno::ENOENT };
    let maps =
        std::fs::read_to_string("/proc/self/maps").map_err(|e| Error::io("read", "/proc/self/maps", &e))?;
    let line = maps.lines().find(|l| l.ends_with("[vdso]")).ok_or_else(none)?;
    let (start, end) = line.split(' ').next().and_then(|r| r.split_once('-')).ok_or_else(none)?;
    let parse = |text| u64::from_str_radix(text, 16).map_err(|_| none());
    let (start, end) = (parse(start)?, parse(end)?);
    let mut bytes = vec![0; (end - start) as usize];
    crate::remote::read(nix::unistd::Pid::this(), VirtAddr(start), &mut bytes)?;
    let at = bytes.windows(2).position(|w| w == [0x0f, 0x05]).ok_or_else(none)?;
    Ok((bytes, at as u64))
}

/// Raises the limit of open descriptors as far as it goes; gives it.
pub fn raise_descriptor_limit() -> Result<u64> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let fail = |source| Error::Kernel { op: "setrlimit RLIMIT_NOFILE", subject: Subject::Here, source };
    let most = std::fs::read_to_string("/proc/sys/fs/nr_open")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(1 << 20);
    if setrlimit(Resource::RLIMIT_NOFILE, most, most).is_ok() {
        return Ok(most);
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(fail)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(fail)?;
    Ok(hard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runner_area_is_mapped_where_it_is_wanted_and_only_once() {
        let at = VirtAddr(0x7_0000_0000);
        let runner = map_runner(at).unwrap();
        assert_eq!(area(&runner).len(), AREA);
        assert!(map_runner(at).is_err());
    }

    #[test]
    fn the_vdso_has_a_system_call_instruction() {
        let (bytes, at) = vdso().unwrap();
        assert_eq!(&bytes[at as usize..at as usize + 2], [0x0f, 0x05]);
        assert_eq!(&bytes[..4], b"\x7fELF");
    }
}
