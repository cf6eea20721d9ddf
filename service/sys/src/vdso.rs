//! The vDSO of a member (vdso(7)) as a place for our code: it is executable, never saved, and its last page has room behind the image.
//!
//! Writing there through /proc/PID/mem gives the member a private copy of that one page, with the same image. No mapping
//! has to be made executable, so this works under MemoryDenyWriteExecute= too.
//!
//! ```text
//!  image of the kernel │ 64-aligned: header 64 B │ code of the runner │ … end of the page
//!                      │ 0 magic [16]   16 area start   24 area length   32 threads that fit   40 busy │
//! ```

use nix::unistd::Pid;

use crate::error::{Error, Result};
use crate::remote::Mem;
use crate::{AddrRange, VirtAddr, runner};

/// What the header begins with; the last byte is the version of code and layout.
const MAGIC: &[u8; 16] = b"ckpt-runner\0\0\0\0\x01";
/// Bytes of the header.
const HEADER: u64 = 64;
/// AT_SYSINFO_EHDR of getauxval(3).
const AT_SYSINFO_EHDR: u64 = 33;
const PAGE: u64 = 4096;

/// Reads one number of a raw auxiliary vector.
#[must_use]
pub fn auxv_value(auxv: &[u8], key: u64) -> Option<u64> {
    let word = |b: &[u8]| b.try_into().ok().map(u64::from_le_bytes);
    auxv.chunks_exact(16).find(|pair| word(&pair[..8]) == Some(key)).and_then(|pair| word(&pair[8..]))
}

/// Length of an ELF image whose section headers come last, as the kernel's vDSO has them.
fn image_len(header: &[u8; 64]) -> Option<u64> {
    let half = |at: usize| u64::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let offset = u64::from_le_bytes(header[0x28..0x30].try_into().ok()?);
    let is_elf64 = header[..5] == *b"\x7fELF\x02";
    let len = offset.checked_add(half(0x3a) * half(0x3c))?;
    (is_elf64 && (1..16 * PAGE).contains(&len)).then_some(len)
}

/// What the header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Header {
    /// The pages of slots; empty if there are none.
    pub(crate) area: (u64, u64),
    /// Threads for which it has slots.
    pub(crate) threads: u64,
    /// A checkpoint uses it, or died using it.
    pub(crate) busy: bool,
}

/// The place of the runner in one process.
#[derive(Debug)]
pub(crate) struct Place {
    pid: Pid,
    mem: Mem,
    header: VirtAddr,
}

impl Place {
    /// Finds it, by the process's raw auxiliary vector. [`Error::NoRunner`] where it has no vDSO or no room in it.
    pub(crate) fn find(pid: Pid, auxv: &[u8]) -> Result<Self> {
        let no = |why| Error::NoRunner { pid, why };
        let base = auxv_value(auxv, AT_SYSINFO_EHDR).ok_or(no("it has no vDSO"))?;
        let mem = Mem::open(pid)?;
        let mut elf = [0; 64];
        mem.read(VirtAddr(base), &mut elf).map_err(|_| no("its vDSO is not mapped"))?;
        let len = image_len(&elf).ok_or(no("its vDSO is no 64-bit ELF image"))?;
        let from = len.next_multiple_of(64);
        let needed = HEADER + runner::code().len() as u64;
        if from + needed > len.next_multiple_of(PAGE) {
            return Err(no("the kernel's vDSO leaves no room"));
        }
        Ok(Self { pid, mem, header: VirtAddr(base + from) })
    }

    /// The runner's code.
    pub(crate) fn code(&self) -> AddrRange {
        AddrRange::new(self.header.add(HEADER), runner::code().len() as u64)
    }

    /// /proc/PID/mem of the process.
    pub(crate) fn mem(&self) -> &Mem {
        &self.mem
    }

    /// The header, if the runner is there: this version of it, whole.
    pub(crate) fn installed(&self) -> Result<Option<Header>> {
        let mut found = vec![0; HEADER as usize + runner::code().len()];
        self.mem.read(self.header, &mut found)?;
        let words = HEADER as usize + runner::offsets().words as usize;
        let same = found[..16] == *MAGIC
            && found[HEADER as usize..words] == runner::code()[..words - HEADER as usize];
        if !same {
            let empty = found.iter().all(|b| *b == 0);
            let ours = found[..11] == MAGIC[..11];
            let why = "the room behind its vDSO is in use";
            return if empty || ours { Ok(None) } else { Err(Error::NoRunner { pid: self.pid, why }) };
        }
        let word = |at: usize| found[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
        Ok(Some(Header { area: (word(16), word(24)), threads: word(32), busy: word(40) != 0 }))
    }

    /// Writes the code, with a header that says that there are no slots yet.
    pub(crate) fn install(&self) -> Result<()> {
        self.mem.write(self.header.add(HEADER), runner::code())?;
        self.set(Header::default())
    }

    /// Writes the header.
    pub(crate) fn set(&self, header: Header) -> Result<()> {
        let mut bytes = MAGIC.to_vec();
        for word in [header.area.0, header.area.1, header.threads, u64::from(header.busy)] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        self.mem.write(self.header, &bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runner_fits_behind_this_kernels_vdso() {
        let auxv = crate::proc_file::read("/proc/self/auxv").unwrap();
        let place = Place::find(Pid::this(), &auxv).unwrap();
        assert_eq!(place.installed().unwrap(), None);
    }

    #[test]
    fn hostile_images_have_no_length() {
        let mut header = [0u8; 64];
        assert_eq!(image_len(&header), None);
        header[..5].copy_from_slice(b"\x7fELF\x02");
        header[0x28..0x30].copy_from_slice(&u64::MAX.to_le_bytes());
        header[0x3a..0x3e].copy_from_slice(&[64, 0, 17, 0]);
        assert_eq!(image_len(&header), None);
        header[0x28..0x30].copy_from_slice(&5600u64.to_le_bytes());
        assert_eq!(image_len(&header), Some(6688));
        assert_eq!(auxv_value(&[33, 0, 0], AT_SYSINFO_EHDR), None);
    }
}
