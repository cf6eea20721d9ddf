//! The machine a checkpoint is taken or restored on: its kernel and its clocks.

use std::sync::OnceLock;

use ckpt_image::records::{ClockRecord, KernelRecord, UnitClocks};
use ckpt_sys::nursery;
use ckpt_sys::time_namespace::Offsets;
use nix::sys::utsname::uname;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use crate::error::{Error, with_sources};

/// The kernel that runs. `xcr0` is left 0: it is that of a member's extended state. It stays the same for as long as we run.
pub fn kernel() -> Result<KernelRecord, Error> {
    static KERNEL: OnceLock<KernelRecord> = OnceLock::new();
    match KERNEL.get() {
        Some(kernel) => Ok(kernel.clone()),
        None => look().map(|kernel| KERNEL.get_or_init(|| kernel).clone()),
    }
}

fn look() -> Result<KernelRecord, Error> {
    let name = uname().map_err(|e| Error::io("uname", e))?;
    let boot_id = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(boot_id).map_err(|e| Error::io(format!("read {boot_id}"), e))?;
    let (vdso, _) = nursery::vdso().map_err(|e| Error::Failed(with_sources(&e)))?;
    Ok(KernelRecord {
        release: name.release().to_string_lossy().into_owned(),
        machine: name.machine().to_string_lossy().into_owned(),
        boot_id: text.trim().to_owned(),
        vdso: blake3::hash(&vdso).into(),
        xcr0: 0,
    })
}

/// The clocks now.
pub fn clocks() -> Result<ClockRecord, Error> {
    let read = |clock| -> Result<i64, Error> {
        let time = clock_gettime(clock).map_err(|e| Error::io("clock_gettime", e))?;
        Ok(time.tv_sec() * 1_000_000_000 + time.tv_nsec())
    };
    Ok(ClockRecord {
        realtime: read(ClockId::CLOCK_REALTIME)?,
        monotonic: read(ClockId::CLOCK_MONOTONIC)?,
        boottime: read(ClockId::CLOCK_BOOTTIME)?,
    })
}

/// What a process reads of clocks that read thus for us.
pub fn clocks_of(pid: Pid, ours: &ClockRecord) -> UnitClocks {
    let (own, theirs) = (Offsets::of(Pid::this()), Offsets::of(pid));
    UnitClocks {
        monotonic: ours.monotonic - own.monotonic + theirs.monotonic,
        boottime: ours.boottime - own.boottime + theirs.boottime,
    }
}

/// XCR0 as an extended state tells it (the software-reserved bytes of the XSAVE area, ptrace(2) NT_X86_XSTATE); 0 if it is too short.
pub fn xcr0(xstate: &[u8]) -> u64 {
    xstate.get(464..472).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}
