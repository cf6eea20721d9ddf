//! What this process prepares in itself before it makes copies of itself that become members.
//!
//! ```text
//!  runner area   ├ code, one page, r-x ┤ slot, rw- … ┤      at an address that no member needs
//! ```

use std::ffi::c_void;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};

use crate::addr::{AddrRange, VirtAddr};
use crate::batch::Slot;
use crate::error::{Error, Result, Subject};
use crate::runner::{self, RestoreRunner};

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Bytes of the slot.
pub const SLOT: u64 = 1 << 20;
/// Bytes of the whole runner area.
pub const AREA: u64 = PAGE + SLOT;

/// Maps the runner area at `at`, which nothing else may use. Errors: EEXIST where something of ours lies there, ENOMEM.
pub fn map_runner(at: VirtAddr) -> Result<RestoreRunner> {
    let fail = |op| Error::Kernel { op, subject: Subject::Here, source: Errno::last() };
    let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let code = runner::code();
    if code.len() as u64 > PAGE {
        return Err(Error::Kernel { op: "map the runner", subject: Subject::Here, source: Errno::E2BIG });
    }
    let base = at.get() as *mut c_void;
    // SAFETY: MAP_FIXED_NOREPLACE maps only where nothing is; the copy goes into the page just mapped, which is large enough; then
    // that page loses the right to be written.
    unsafe {
        let got = libc::mmap(base, AREA as usize, libc::PROT_READ | libc::PROT_WRITE, kind, -1, 0);
        if got == libc::MAP_FAILED || got != base {
            return Err(fail("mmap of the runner area"));
        }
        std::ptr::copy_nonoverlapping(code.as_ptr(), base.cast(), code.len());
        if libc::mprotect(base, PAGE as usize, libc::PROT_READ | libc::PROT_EXEC) != 0 {
            return Err(fail("mprotect of the runner area"));
        }
    }
    Ok(RestoreRunner { code: at, slot: Slot { base: at.add(PAGE), len: SLOT } })
}

/// The range that [`map_runner`] mapped.
#[must_use]
pub fn area(runner: &RestoreRunner) -> AddrRange {
    AddrRange::new(runner.code, AREA)
}

/// Blocks every signal that can be blocked, for this thread and all copies of it.
pub fn block_signals() -> Result<()> {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None).map_err(|source| Error::Kernel {
        op: "sigprocmask",
        subject: Subject::Here,
        source,
    })
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
