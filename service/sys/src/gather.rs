//! Many places of a process's memory into one buffer: process_vm_readv(2), and /proc/PID/mem for what the process itself may not read.

use std::io::IoSliceMut;

use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

use crate::error::{Error, Result, Subject};
use crate::remote::Mem;
use crate::{AddrRange, VirtAddr};

/// IOV_MAX.
const MAX_PARTS: usize = 1024;

/// Fills `buf` with the ranges, one behind the other; their lengths must add up to its length (else EINVAL).
///
/// Errors: ESRCH if the process is gone, EFAULT or EIO where there is no memory.
pub fn gather(tid: Pid, ranges: &[AddrRange], buf: &mut [u8]) -> Result<()> {
    if ranges.iter().map(AddrRange::len).sum::<u64>() != buf.len() as u64 {
        return Err(Error::Kernel { op: "gather", subject: Subject::Task(tid), source: Errno::EINVAL });
    }
    let mut mem = None;
    let mut next = 0; // the range, and the bytes of it that are done
    let mut inside = 0;
    let mut buf = buf;
    while next < ranges.len() {
        let end = ranges.len().min(next + MAX_PARTS);
        let parts: Vec<RemoteIoVec> = ranges[next..end]
            .iter()
            .enumerate()
            .map(|(n, range)| part(*range, if n == 0 { inside } else { 0 }))
            .collect();
        let wanted: usize = parts.iter().map(|part| part.len).sum();
        let got = match process_vm_readv(tid, &mut [IoSliceMut::new(&mut buf[..wanted])], &parts) {
            Ok(got) if got > 0 || wanted == 0 => got,
            Ok(_) | Err(Errno::EFAULT) => forced(tid, &mut mem, &parts[0], buf)?,
            Err(source) => {
                let subject = Subject::Memory(tid, VirtAddr(parts[0].base as u64));
                return Err(Error::Kernel { op: "process_vm_readv", subject, source });
            }
        };
        buf = &mut buf[got..];
        inside += got as u64;
        while next < ranges.len() && inside >= ranges[next].len() {
            inside -= ranges[next].len();
            next += 1;
        }
    }
    Ok(())
}

fn part(range: AddrRange, done: u64) -> RemoteIoVec {
    RemoteIoVec { base: range.start.add(done).0 as usize, len: (range.len() - done) as usize }
}

/// The whole of one part through /proc/PID/mem, which reads PROT_NONE too.
fn forced(tid: Pid, mem: &mut Option<Mem>, part: &RemoteIoVec, buf: &mut [u8]) -> Result<usize> {
    let mem = match mem {
        Some(mem) => mem,
        None => mem.insert(Mem::open(tid)?),
    };
    mem.read(VirtAddr(part.base as u64), &mut buf[..part.len])?;
    Ok(part.len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, mprotect};
    use std::num::NonZeroUsize;

    const PAGE: u64 = 4096;

    #[test]
    fn ranges_are_read_in_order_whatever_their_protection() {
        let pages = 6;
        let len = NonZeroUsize::new(pages * PAGE as usize).unwrap();
        let both = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new private mapping at an address that the kernel chooses.
        let base = unsafe { mmap_anonymous(None, len, both, MapFlags::MAP_PRIVATE).unwrap() };
        for page in 0..pages {
            // SAFETY: the page lies in the mapping just made, which nothing else uses.
            unsafe { base.cast::<u8>().add(page * PAGE as usize).write_bytes(page as u8 + 1, PAGE as usize) };
        }
        // SAFETY: the third page of the mapping just made; it is not touched by us after this.
        unsafe { mprotect(base.byte_add(2 * PAGE as usize), PAGE as usize, ProtFlags::PROT_NONE).unwrap() };
        let first = VirtAddr(base.as_ptr() as u64);
        let range = |from: u64, count: u64| AddrRange::new(first.add(from * PAGE), count * PAGE);
        let mut buf = vec![0; 6 * PAGE as usize];
        gather(Pid::this(), &[range(5, 1), range(1, 3), range(0, 1), range(2, 1)], &mut buf).unwrap();
        let seen: Vec<u8> = buf.chunks(PAGE as usize).map(|page| page[77]).collect();
        assert_eq!(seen, [6, 2, 3, 4, 1, 3]);
        assert!(gather(Pid::this(), &[range(0, 1)], &mut buf).is_err());
        let hole = AddrRange::new(VirtAddr(PAGE), PAGE);
        assert!(gather(Pid::this(), &[hole], &mut buf[..PAGE as usize]).is_err());
    }
}
