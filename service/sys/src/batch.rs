//! A batch: an array of system calls that the runner ([`crate::runner`]) executes inside a member, and its results.
//!
//! A slot is memory of the member that holds one batch; the tracer writes it whole and reads it back whole:
//!
//! ```text
//!  base                                     base+len/4                 base+len/2 … base+len
//!  ├ header 64 B ┬ call 64 B ┬ call 64 B ┬ … ┼ data (arguments, results) ┼ … runner's own ─┤
//!  │ 0 count     │ 0 nr  u32 │
//!  │ 8 done      │ 4 how  u32│   how = 1: the batch ends here if the call fails; 2: it makes the helper of a copy (inject/copy.rs)
//!  │ 16 mode     │ 8 args[6] │   mode = 0: live member, 1: restore
//!  │ 24 signal   │ 56 result │
//!  │ 32 registers│           │   address of the registers that the runner puts back by itself
//!  │ 40 mask     │           │   signal mask that it puts back
//!  │ 48 copy     │           │   what clone(2) told the helper of a copy
//!  │ 56 selector │           │   address of the thread's selector byte of Syscall User Dispatch, if it dispatches; else 0
//! ```

use crate::VirtAddr;
use crate::error::{Error, Result};
use crate::ptrace::Registers;
use nix::errno::Errno;

/// Bytes of the header, and of one call.
pub(crate) const WORD_LINE: u64 = 64;
/// The batch ends where this call fails.
const MUST: u32 = 1;
/// The call makes the helper of a copy.
const COPY: u32 = 2;

/// Memory of a member that holds one batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slot {
    /// Its first byte, 64-byte aligned.
    pub base: VirtAddr,
    /// Bytes, a multiple of 4,096.
    pub len: u64,
}

impl Slot {
    /// Where the data area begins.
    #[must_use]
    pub const fn data(&self) -> VirtAddr {
        self.base.add(self.len / 4)
    }

    /// Where the registers lie that the runner puts back.
    #[must_use]
    pub(crate) const fn registers(&self) -> VirtAddr {
        self.base.add(self.len / 2)
    }

    /// How many calls fit.
    #[must_use]
    pub const fn calls(&self) -> usize {
        ((self.len / 4 - WORD_LINE) / WORD_LINE) as usize
    }

    /// How many bytes of data fit.
    #[must_use]
    pub const fn data_len(&self) -> usize {
        (self.len / 4) as usize
    }
}

/// Who runs the batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    /// A member that goes on afterwards, whatever happens to us.
    Live {
        /// The ignored signal that is the sign.
        signal: i32,
        /// Where the registers to put back lie.
        registers: VirtAddr,
        /// The mask to put back.
        mask: u64,
        /// The selector byte to set and put back, 0 if there is none.
        selector: u64,
    },
    /// A process that is being rebuilt: ends in a trap.
    Restore,
}

/// One call of a batch, by its place.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord, Hash)]
pub struct Call(pub usize);

/// System calls to be made inside a member, in order.
#[derive(Debug, Clone)]
pub struct Batch {
    slot: Slot,
    calls: Vec<(u32, u32, [u64; 6])>,
    data: Vec<u8>,
}

impl Batch {
    /// An empty batch for this slot.
    #[must_use]
    pub fn new(slot: Slot) -> Self {
        Self { slot, calls: Vec::new(), data: Vec::new() }
    }

    /// Adds a call that may fail.
    pub fn push(&mut self, nr: libc::c_long, args: [u64; 6]) -> Call {
        self.calls.push((nr as u32, 0, args));
        Call(self.calls.len() - 1)
    }

    /// Adds a call without which the rest makes no sense: the batch ends where it fails.
    pub fn must(&mut self, nr: libc::c_long, args: [u64; 6]) -> Call {
        self.calls.push((nr as u32, MUST, args));
        Call(self.calls.len() - 1)
    }

    /// Adds the call that makes a helper, which makes a copy of the process's memory and ends; the member waits for that.
    pub(crate) fn copy(&mut self, flags: u64) -> Call {
        self.calls.push((libc::SYS_clone as u32, COPY, [flags, 0, 0, 0, 0, 0]));
        Call(self.calls.len() - 1)
    }

    /// Puts bytes into the data area, 16-byte aligned; their address in the member is an argument for calls.
    pub fn data(&mut self, bytes: &[u8]) -> VirtAddr {
        let at = self.data.len().next_multiple_of(16);
        self.data.resize(at, 0);
        self.data.extend_from_slice(bytes);
        self.slot.data().add(at as u64)
    }

    /// Puts a string and its terminating zero into the data area.
    pub fn c_str(&mut self, bytes: &[u8]) -> VirtAddr {
        let addr = self.data(bytes);
        self.data.push(0);
        addr
    }

    /// Reserves zeroed bytes in the data area, for a call to write to.
    pub fn space(&mut self, len: usize) -> VirtAddr {
        let at = self.data.len().next_multiple_of(16);
        self.data.resize(at + len, 0);
        self.slot.data().add(at as u64)
    }

    /// How many calls it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// Whether it holds no call.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Whether a further `calls` calls and `data` bytes still fit.
    #[must_use]
    pub fn has_room(&self, calls: usize, data: usize) -> bool {
        self.calls.len() + calls <= self.slot.calls()
            && self.data.len() + data + 16 * calls <= self.slot.data_len()
    }

    /// The slot it is for.
    #[must_use]
    pub fn slot(&self) -> Slot {
        self.slot
    }

    /// Bytes of header and calls, and of the data area, as they lie in the slot.
    pub(crate) fn lengths(&self) -> (usize, usize) {
        ((self.calls.len() + 1) * WORD_LINE as usize, self.data.len())
    }

    /// Header and calls, and the data area, as they lie in the slot. Error: it does not fit.
    pub(crate) fn encode(&self, mode: Mode) -> Result<(Vec<u8>, &[u8])> {
        if self.calls.len() > self.slot.calls() || self.data.len() > self.slot.data_len() {
            return Err(Error::BatchTooLarge { entries: self.calls.len(), data: self.data.len() });
        }
        let (kind, signal, registers, mask, selector) = match mode {
            Mode::Live { signal, registers, mask, selector } => {
                (0, signal as u64, registers.0, mask, selector)
            }
            Mode::Restore => (1, 0, 0, 0, 0),
        };
        let mut out = Vec::with_capacity((self.calls.len() + 1) * WORD_LINE as usize);
        for word in [self.calls.len() as u64, 0, kind, signal, registers, mask, 0, selector] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        for (nr, how, args) in &self.calls {
            let words = [u64::from(*nr) | u64::from(*how) << 32];
            for word in words.iter().chain(args).chain(&[0]) {
                out.extend_from_slice(&word.to_le_bytes());
            }
        }
        Ok((out, &self.data))
    }

    /// The whole slot as a live member needs it: header, calls, data and the registers it puts back by itself.
    pub(crate) fn encode_live(
        &self,
        signal: i32,
        mask: u64,
        selector: u64,
        back: &Registers,
    ) -> Result<Vec<u8>> {
        let registers = self.slot.registers();
        let (mut out, data) = self.encode(Mode::Live { signal, registers, mask, selector })?;
        out.resize((self.slot.len / 4) as usize, 0);
        out.extend_from_slice(data);
        out.resize((self.slot.len / 2) as usize, 0);
        for word in words(back) {
            out.extend_from_slice(&word.to_le_bytes());
        }
        Ok(out)
    }

    /// Reads the results out of the slot's header and calls, and its data area.
    pub(crate) fn decode(&self, head: &[u8], data: Vec<u8>) -> Outcome {
        let word =
            |at: usize| head.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
        let done = (word(8) as usize).min(self.calls.len());
        let line = WORD_LINE as usize;
        let results: Vec<i64> = (0..done).map(|i| word(line * (i + 1) + 56) as i64).collect();
        let failed = results
            .last()
            .filter(|_| done > 0 && self.calls[done - 1].1 == MUST)
            .and_then(|ret| errno_of(*ret))
            .map(|errno| Failure { index: done - 1, nr: self.calls[done - 1].0, errno });
        Outcome { results, data, data_base: self.slot.data(), failed }
    }
}

/// struct user_regs_struct as its 27 words, in the kernel's order.
#[must_use]
pub fn words(r: &Registers) -> [u64; 27] {
    [
        r.r15, r.r14, r.r13, r.r12, r.rbp, r.rbx, r.r11, r.r10, r.r9, r.r8, r.rax, r.rcx, r.rdx, r.rsi,
        r.rdi, r.orig_rax, r.rip, r.cs, r.eflags, r.rsp, r.ss, r.fs_base, r.gs_base, r.ds, r.es, r.fs, r.gs,
    ]
}

/// The error in a raw result.
fn errno_of(ret: i64) -> Option<Errno> {
    (-4095..0).contains(&ret).then(|| Errno::from_raw(-ret as i32))
}

/// The call that ended a batch early.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("call {index} of the batch (system call {nr}): {errno}")]
pub struct Failure {
    /// Its place in the batch.
    pub index: usize,
    /// The system call's number.
    pub nr: u32,
    /// Its error.
    pub errno: Errno,
}

/// What a batch gave.
#[derive(Debug, Clone)]
pub struct Outcome {
    results: Vec<i64>,
    data: Vec<u8>,
    data_base: VirtAddr,
    /// The call that ended it early, if one did.
    pub failed: Option<Failure>,
}

impl Outcome {
    /// The result of a call; its error if it failed, ECANCELED if it was not reached.
    pub fn result(&self, call: Call) -> std::result::Result<u64, Errno> {
        match self.results.get(call.0) {
            None => Err(Errno::ECANCELED),
            Some(ret) => errno_of(*ret).map_or(Ok(*ret as u64), Err),
        }
    }

    /// `len` bytes of the data area from an address that [`Batch::data`] or [`Batch::space`] gave; shorter past its end.
    #[must_use]
    pub fn bytes(&self, addr: VirtAddr, len: usize) -> &[u8] {
        let from = (addr.0.wrapping_sub(self.data_base.0) as usize).min(self.data.len());
        &self.data[from..(from + len).min(self.data.len())]
    }

    /// A 64-bit number of the data area, 0 past its end.
    #[must_use]
    pub fn u64_at(&self, addr: VirtAddr) -> u64 {
        self.bytes(addr, 8).try_into().map_or(0, u64::from_le_bytes)
    }

    /// A 32-bit number of the data area, 0 past its end.
    #[must_use]
    pub fn u32_at(&self, addr: VirtAddr) -> u32 {
        self.bytes(addr, 4).try_into().map_or(0, u32::from_le_bytes)
    }

    /// The failure as an error, for batches all of whose calls must succeed.
    pub fn ok(self) -> std::result::Result<Self, Failure> {
        match self.failed {
            Some(failed) => Err(failed),
            None => Ok(self),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT: Slot = Slot { base: VirtAddr(0x10000), len: 4096 };

    #[test]
    fn calls_lie_as_the_drawing_says() {
        let mut batch = Batch::new(SLOT);
        let text = batch.c_str(b"x");
        batch.must(libc::SYS_getpid, [1, 2, 3, 4, 5, text.0]);
        let (head, data) = batch.encode(Mode::Restore).unwrap();
        assert_eq!(head.len(), 128);
        assert_eq!(head[0], 1);
        assert_eq!(head[16], 1);
        assert_eq!(head[64..72], (libc::SYS_getpid as u64 | 1 << 32).to_le_bytes());
        assert_eq!(head[64 + 48..64 + 56], text.0.to_le_bytes());
        assert_eq!((text, data), (VirtAddr(0x10400), &b"x\0"[..]));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut batch = Batch::new(SLOT);
        for _ in 0..SLOT.calls() {
            batch.push(libc::SYS_getpid, [0; 6]);
        }
        assert!(batch.encode(Mode::Restore).is_ok());
        batch.push(libc::SYS_getpid, [0; 6]);
        assert!(matches!(batch.encode(Mode::Restore), Err(Error::BatchTooLarge { entries: 16, .. })));
    }

    #[test]
    fn a_failing_must_is_named_and_what_follows_was_not_reached() {
        let mut batch = Batch::new(SLOT);
        let first = batch.push(libc::SYS_close, [0; 6]);
        let second = batch.must(libc::SYS_open, [0; 6]);
        let third = batch.push(libc::SYS_close, [0; 6]);
        let (mut head, _) = batch.encode(Mode::Restore).unwrap();
        head[8] = 2;
        head[64 + 56..128].copy_from_slice(&(-9i64).to_le_bytes());
        head[128 + 56..192].copy_from_slice(&(-2i64).to_le_bytes());
        let outcome = batch.decode(&head, Vec::new());
        assert_eq!(outcome.result(first), Err(Errno::EBADF));
        assert_eq!(outcome.result(second), Err(Errno::ENOENT));
        assert_eq!(outcome.result(third), Err(Errno::ECANCELED));
        assert_eq!(outcome.failed.map(|f| (f.index, f.errno)), Some((1, Errno::ENOENT)));
    }
}
