//! The requests of ptrace(2), one function each, with no state of their own.
//!
//! All of them must be called by the thread that traces; [`crate::thread`] sees to that with handles that cannot be
//! sent to another thread.

use std::mem::{self, MaybeUninit};
use std::ops::BitOr;
use std::ptr;

use libc::{c_long, c_uint, c_void, iovec};
use nix::errno::Errno;
use nix::unistd::Pid;

/// General registers as NT_PRSTATUS gives them (struct user_regs_struct).
pub type Registers = libc::user_regs_struct;

/// PTRACE_GETREGSET's name of the general registers.
const NT_PRSTATUS: c_long = 1;
/// PTRACE_GETREGSET's name of the extended state (x87, SSE, AVX, AVX-512, PKRU, AMX), in XSAVE's standard format.
const NT_X86_XSTATE: c_long = 0x202;
/// Enough for every component the architecture defines today (AMX tile data ends at 11,008).
const XSTATE_MAX: usize = 16 << 10;

/// Options of PTRACE_SEIZE and PTRACE_SETOPTIONS.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Options(i32);

impl Options {
    /// None.
    pub const NONE: Self = Self(0);
    /// Report fork(2), vfork(2) and clone(2), and trace what they make.
    pub const TRACE_CHILDREN: Self =
        Self(libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACEVFORK | libc::PTRACE_O_TRACECLONE);
    /// Report execve(2) by an event instead of a SIGTRAP.
    pub const TRACE_EXEC: Self = Self(libc::PTRACE_O_TRACEEXEC);
    /// The kernel kills the thread if the tracer ends.
    pub const EXITKILL: Self = Self(libc::PTRACE_O_EXITKILL);
    /// The thread's seccomp filters do not act while it is traced. Needs CAP_SYS_ADMIN. Linux 4.3.
    pub const SUSPEND_SECCOMP: Self = Self(1 << 21);
}

impl BitOr for Options {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// One request. `addr` and `data` are as the request defines.
///
/// # Safety
/// Pointers among `addr` and `data` must be valid for what the request reads or writes.
unsafe fn request(req: c_uint, tid: Pid, addr: c_long, data: *mut c_void) -> Result<c_long, Errno> {
    // SAFETY: the caller answers for the pointers; the rest are numbers.
    Errno::result(unsafe { libc::ptrace(req, tid.as_raw(), addr, data) })
}

/// A request whose arguments are plain numbers.
fn plain(req: c_uint, tid: Pid, addr: c_long, data: i64) -> Result<(), Errno> {
    // SAFETY: requests that come here take numbers only.
    unsafe { request(req, tid, addr, data as *mut c_void) }.map(drop)
}

/// PTRACE_SEIZE: trace without stopping. Errors: EPERM if it is traced already or not ours to trace; ESRCH if it is gone or a zombie.
pub fn seize(tid: Pid, options: Options) -> Result<(), Errno> {
    plain(libc::PTRACE_SEIZE, tid, 0, i64::from(options.0))
}

/// PTRACE_INTERRUPT: stop a seized thread. The stop is an event stop with SIGTRAP.
pub fn interrupt(tid: Pid) -> Result<(), Errno> {
    plain(libc::PTRACE_INTERRUPT, tid, 0, 0)
}

/// PTRACE_LISTEN: keep a group-stopped thread stopped for job control while it can report events.
pub fn listen(tid: Pid) -> Result<(), Errno> {
    plain(libc::PTRACE_LISTEN, tid, 0, 0)
}

/// PTRACE_CONT with a signal (0: none).
pub fn cont(tid: Pid, signal: i32) -> Result<(), Errno> {
    plain(libc::PTRACE_CONT, tid, 0, i64::from(signal))
}

/// PTRACE_SINGLESTEP with a signal (0: none): one instruction, then a SIGTRAP stop.
pub fn single_step(tid: Pid, signal: i32) -> Result<(), Errno> {
    plain(libc::PTRACE_SINGLESTEP, tid, 0, i64::from(signal))
}

/// PTRACE_SYSCALL: to the entry of the next system call, or from there to its end.
pub fn to_call(tid: Pid) -> Result<(), Errno> {
    plain(libc::PTRACE_SYSCALL, tid, 0, 0)
}

/// PTRACE_DETACH with a signal (0: none). The thread must be stopped.
pub fn detach(tid: Pid, signal: i32) -> Result<(), Errno> {
    plain(libc::PTRACE_DETACH, tid, 0, i64::from(signal))
}

/// PTRACE_SETOPTIONS.
pub fn set_options(tid: Pid, options: Options) -> Result<(), Errno> {
    plain(libc::PTRACE_SETOPTIONS, tid, 0, i64::from(options.0))
}

/// PTRACE_GETEVENTMSG: the new thread's id after a fork event (in our PID namespace), the status before an exit.
pub fn event_message(tid: Pid) -> Result<u64, Errno> {
    let mut message: libc::c_ulong = 0;
    // SAFETY: the kernel writes one unsigned long.
    unsafe { request(libc::PTRACE_GETEVENTMSG, tid, 0, (&raw mut message).cast()) }?;
    Ok(message)
}

/// PTRACE_GETSIGINFO of a signal-delivery stop, raw.
pub fn siginfo(tid: Pid) -> Result<[u8; 128], Errno> {
    let mut info = [0u8; 128];
    // SAFETY: the kernel writes one siginfo_t of 128 bytes.
    unsafe { request(libc::PTRACE_GETSIGINFO, tid, 0, info.as_mut_ptr().cast()) }?;
    Ok(info)
}

/// PTRACE_GETREGSET NT_PRSTATUS: the general registers of a stopped thread.
pub fn registers(tid: Pid) -> Result<Registers, Errno> {
    let mut regs = MaybeUninit::<Registers>::uninit();
    let mut iov = iovec { iov_base: regs.as_mut_ptr().cast(), iov_len: size_of::<Registers>() };
    // SAFETY: iov describes regs, which is large enough for the set.
    unsafe { request(libc::PTRACE_GETREGSET, tid, NT_PRSTATUS, (&raw mut iov).cast()) }?;
    if iov.iov_len != size_of::<Registers>() {
        return Err(Errno::ENOTSUP); // a 32-bit thread
    }
    // SAFETY: the kernel filled the whole structure, as its length says.
    Ok(unsafe { regs.assume_init() })
}

/// PTRACE_SETREGSET NT_PRSTATUS: sets all general registers of a stopped thread.
pub fn set_registers(tid: Pid, regs: &Registers) -> Result<(), Errno> {
    let mut iov = iovec { iov_base: ptr::from_ref(regs).cast_mut().cast(), iov_len: size_of::<Registers>() };
    // SAFETY: iov describes regs, which the kernel only reads.
    unsafe { request(libc::PTRACE_SETREGSET, tid, NT_PRSTATUS, (&raw mut iov).cast()) }.map(drop)
}

/// PTRACE_GETREGSET NT_X86_XSTATE: all extended state of a stopped thread, in XSAVE's standard format.
pub fn extended_state(tid: Pid) -> Result<Vec<u8>, Errno> {
    // Kept in full for each of many threads, the room would be megabytes of new pages.
    let mut state = [0u8; XSTATE_MAX];
    let mut iov = iovec { iov_base: state.as_mut_ptr().cast(), iov_len: state.len() };
    // SAFETY: iov describes the array.
    unsafe { request(libc::PTRACE_GETREGSET, tid, NT_X86_XSTATE, (&raw mut iov).cast()) }?;
    if iov.iov_len == state.len() {
        return Err(Errno::E2BIG);
    }
    Ok(state[..iov.iov_len].to_vec())
}

/// PTRACE_SETREGSET NT_X86_XSTATE, with what [`extended_state`] gave. EINVAL if the CPU lacks a component that is in use.
pub fn set_extended_state(tid: Pid, state: &[u8]) -> Result<(), Errno> {
    let mut iov = iovec { iov_base: state.as_ptr().cast_mut().cast(), iov_len: state.len() };
    // SAFETY: iov describes the slice, which the kernel only reads.
    unsafe { request(libc::PTRACE_SETREGSET, tid, NT_X86_XSTATE, (&raw mut iov).cast()) }.map(drop)
}

/// PTRACE_GETSIGMASK: the mask that user mode will have (bit n−1 is signal n), also in the midst of sigsuspend(2). Linux 3.11.
pub fn signal_mask(tid: Pid) -> Result<u64, Errno> {
    let mut mask = 0u64;
    // SAFETY: addr is the size of the kernel's sigset_t, 8 bytes, which the kernel writes to data.
    unsafe { request(libc::PTRACE_GETSIGMASK as c_uint, tid, 8, (&raw mut mask).cast()) }?;
    Ok(mask)
}

/// PTRACE_SETSIGMASK. Forgets the mask that sigsuspend(2) or ppoll(2) would put back: only where that mask is known. Linux 3.11.
pub fn set_signal_mask(tid: Pid, mask: u64) -> Result<(), Errno> {
    let mut mask = mask;
    // SAFETY: addr is the size of the kernel's sigset_t, 8 bytes, which the kernel reads from data.
    unsafe { request(libc::PTRACE_SETSIGMASK as c_uint, tid, 8, (&raw mut mask).cast()) }.map(drop)
}

/// PTRACE_PEEKSIGINFO: pending signals, oldest first, of the thread or (`shared`) of its process; raw siginfo_t. Linux 3.10.
pub fn pending_signals(tid: Pid, shared: bool) -> Result<Vec<[u8; 128]>, Errno> {
    const CHUNK: usize = 32;
    let mut all = Vec::new();
    loop {
        let mut chunk = [[0u8; 128]; CHUNK];
        let args = libc::ptrace_peeksiginfo_args {
            off: all.len() as u64,
            flags: u32::from(shared), // PTRACE_PEEKSIGINFO_SHARED
            nr: CHUNK as i32,
        };
        // SAFETY: args is read by the kernel; chunk has room for the `nr` structures it writes.
        let got = unsafe {
            request(
                libc::PTRACE_PEEKSIGINFO as c_uint,
                tid,
                ptr::from_ref(&args) as c_long,
                chunk.as_mut_ptr().cast(),
            )
        }?;
        all.extend_from_slice(&chunk[..got as usize]);
        if (got as usize) < CHUNK {
            return Ok(all);
        }
    }
}

/// struct ptrace_rseq_configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct RseqConfiguration {
    /// Address of struct rseq, 0 if none is registered.
    pub address: u64,
    /// Length it was registered with.
    pub size: u32,
    /// Signature before abort handlers.
    pub signature: u32,
    /// Flags of rseq(2).
    pub flags: u32,
    /// Not used.
    pub pad: u32,
}

/// PTRACE_GET_RSEQ_CONFIGURATION. Linux 5.13.
pub fn rseq_configuration(tid: Pid) -> Result<RseqConfiguration, Errno> {
    const PTRACE_GET_RSEQ_CONFIGURATION: c_uint = 0x420f;
    let mut conf = RseqConfiguration::default();
    let size = size_of::<RseqConfiguration>() as c_long;
    // SAFETY: addr is the size of the structure that data points to.
    unsafe { request(PTRACE_GET_RSEQ_CONFIGURATION, tid, size, (&raw mut conf).cast()) }?;
    Ok(conf)
}

/// struct ptrace_sud_config.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct DispatchConfiguration {
    /// PR_SYS_DISPATCH_ON (1) or PR_SYS_DISPATCH_OFF (0).
    pub mode: u64,
    /// Address of the selector byte, 0 if there is none.
    pub selector: u64,
    /// First address from which calls always pass.
    pub offset: u64,
    /// How many bytes from there.
    pub len: u64,
}

/// PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG. EIO before Linux 6.4.
pub fn dispatch_configuration(tid: Pid) -> Result<DispatchConfiguration, Errno> {
    const PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG: c_uint = 0x4211;
    let mut conf = DispatchConfiguration::default();
    let size = size_of::<DispatchConfiguration>() as c_long;
    // SAFETY: addr is the size of the structure that data points to.
    unsafe { request(PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG, tid, size, (&raw mut conf).cast()) }?;
    Ok(conf)
}

/// PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG. EIO before Linux 6.4.
pub fn set_dispatch_configuration(tid: Pid, conf: DispatchConfiguration) -> Result<(), Errno> {
    const PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG: c_uint = 0x4210;
    let size = size_of::<DispatchConfiguration>() as c_long;
    // SAFETY: addr is the size of the structure that data points to, which is only read.
    unsafe {
        request(PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG, tid, size, (&raw const conf).cast_mut().cast())
    }
    .map(drop)
}

/// PTRACE_SECCOMP_GET_FILTER: the `index`-th filter, newest first, as raw struct sock_filter; `None` past the last.
/// Errors: EACCES without CAP_SYS_ADMIN or under a seccomp filter of our own; EMEDIUMTYPE for an eBPF filter. Linux 4.4.
pub fn seccomp_filter(tid: Pid, index: usize) -> Result<Option<Vec<u8>>, Errno> {
    const PTRACE_SECCOMP_GET_FILTER: c_uint = 0x420c;
    // SAFETY: with a null pointer the kernel only counts the instructions.
    let len = match unsafe { request(PTRACE_SECCOMP_GET_FILTER, tid, index as c_long, ptr::null_mut()) } {
        Ok(len) => len as usize,
        Err(Errno::ENOENT | Errno::EINVAL) => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut program = vec![0u8; len * 8];
    // SAFETY: the program of a filter never changes, so it is as long as it was just told.
    unsafe { request(PTRACE_SECCOMP_GET_FILTER, tid, index as c_long, program.as_mut_ptr().cast()) }?;
    Ok(Some(program))
}

/// The system call a thread stopped in (PTRACE_GET_SYSCALL_INFO), raw op byte first. Linux 5.3.
pub fn syscall_info(tid: Pid) -> Result<[u8; 88], Errno> {
    const PTRACE_GET_SYSCALL_INFO: c_uint = 0x420e;
    let mut info = [0u8; 88];
    // SAFETY: addr is the size of the buffer that data points to.
    unsafe {
        request(PTRACE_GET_SYSCALL_INFO, tid, mem::size_of_val(&info) as c_long, info.as_mut_ptr().cast())
    }?;
    Ok(info)
}
