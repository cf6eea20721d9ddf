//! Memory of another process: process_vm_readv(2), process_vm_writev(2) and /proc/PID/mem.

use std::fs::{File, OpenOptions};
use std::io::{IoSlice, IoSliceMut};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;

use crate::VirtAddr;
use crate::error::{Error, Result, Subject};

/// An error about a place in a member's memory.
fn memory(op: &'static str, pid: Pid, addr: VirtAddr, source: Errno) -> Error {
    Error::Kernel { op, subject: Subject::Memory(pid, addr), source }
}

/// Fills `buf` from the process's memory at `addr`. EFAULT where it is not readable there in full.
pub fn read(pid: Pid, addr: VirtAddr, buf: &mut [u8]) -> Result<()> {
    let mut done = 0;
    while done < buf.len() {
        let at = addr.add(done as u64);
        let remote = RemoteIoVec { base: at.0 as usize, len: buf.len() - done };
        let got = process_vm_readv(pid, &mut [IoSliceMut::new(&mut buf[done..])], &[remote])
            .map_err(|e| memory("process_vm_readv", pid, at, e))?;
        if got == 0 {
            return Err(memory("process_vm_readv", pid, at, Errno::EFAULT));
        }
        done += got;
    }
    Ok(())
}

/// The same for two places, by one call as a rule.
pub(crate) fn read_both(
    pid: Pid,
    (addr, buf): (VirtAddr, &mut [u8]),
    (other, rest): (VirtAddr, &mut [u8]),
) -> Result<()> {
    let place = |addr: VirtAddr, len| RemoteIoVec { base: addr.0 as usize, len };
    let places = [place(addr, buf.len()), place(other, rest.len())];
    let wanted = buf.len() + rest.len();
    match process_vm_readv(pid, &mut [IoSliceMut::new(buf), IoSliceMut::new(rest)], &places) {
        Ok(got) if got == wanted => Ok(()),
        // In part: the rest says what is wrong.
        _ => read(pid, addr, buf).and_then(|()| read(pid, other, rest)),
    }
}

/// Writes `buf` to the process's memory at `addr`. EFAULT where it is not writable there in full.
pub fn write(pid: Pid, addr: VirtAddr, buf: &[u8]) -> Result<()> {
    let mut done = 0;
    while done < buf.len() {
        let at = addr.add(done as u64);
        let remote = RemoteIoVec { base: at.0 as usize, len: buf.len() - done };
        let got = process_vm_writev(pid, &[IoSlice::new(&buf[done..])], &[remote])
            .map_err(|e| memory("process_vm_writev", pid, at, e))?;
        if got == 0 {
            return Err(memory("process_vm_writev", pid, at, Errno::EFAULT));
        }
        done += got;
    }
    Ok(())
}

/// Reads a 64-bit number.
pub fn read_u64(pid: Pid, addr: VirtAddr) -> Result<u64> {
    let mut bytes = [0; 8];
    read(pid, addr, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// /proc/PID/mem: reaches also pages that the process itself may not write (its own code); a private copy is made of those.
#[derive(Debug)]
pub struct Mem {
    pid: Pid,
    file: File,
}

impl Mem {
    /// Opens it for reading and writing. Needs what ptrace(2) needs.
    pub fn open(pid: Pid) -> Result<Self> {
        let path = format!("/proc/{pid}/mem");
        let file =
            OpenOptions::new().read(true).write(true).open(&path).map_err(|e| Error::io("open", path, &e))?;
        Ok(Self { pid, file })
    }

    /// Fills `buf` from `addr`.
    pub fn read(&self, addr: VirtAddr, buf: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(buf, addr.0).map_err(|e| self.error("read of /proc/PID/mem", addr, &e))
    }

    /// Writes `buf` to `addr`.
    pub fn write(&self, addr: VirtAddr, buf: &[u8]) -> Result<()> {
        self.file.write_all_at(buf, addr.0).map_err(|e| self.error("write of /proc/PID/mem", addr, &e))
    }

    fn error(&self, op: &'static str, addr: VirtAddr, e: &std::io::Error) -> Error {
        memory(op, self.pid, addr, Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_places_are_read_like_one_after_the_other() {
        let (one, other) = ([1u8; 100], [2u8; 50]);
        let at = |bytes: &[u8]| VirtAddr(bytes.as_ptr() as u64);
        let (mut first, mut second) = ([0; 100], [0; 50]);
        read_both(Pid::this(), (at(&one), &mut first), (at(&other), &mut second)).unwrap();
        assert_eq!((first, second), (one, other));
        let bad = read_both(Pid::this(), (at(&one), &mut first), (VirtAddr(8), &mut second)).unwrap_err();
        assert_eq!(bad.errno(), Some(Errno::EFAULT));
        read_both(Pid::this(), (at(&one), &mut first), (VirtAddr(8), &mut [])).unwrap();
    }
}
