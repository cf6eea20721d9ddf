//! Signal frames that the kernel made before the tracker was on: their masks are what the application believes, and the library must
//! know that when their handlers return. Those made later have masks without SIGSEGV and SIGSYS, whatever the application believes.

use ckpt_wire::protect::BELIEVED;
use nix::unistd::Pid;

use crate::error::Result;
use crate::maps::Mapping;
use crate::{VirtAddr, remote};

/// Frames of nested handlers that are looked for at most.
const NESTED: usize = 64;
/// How far a handler may have gone down its stack.
const DEPTH: u64 = 8 << 20;
/// struct rt_sigframe from its first word, the address that the handler returns to: places of uc_flags, uc_link, the stack pointer of what was
/// interrupted, the code segment; bytes of all that.
const FLAGS: usize = 8;
const LINK: usize = 16;
const STACK: usize = 8 + 40 + 15 * 8;
const SEGMENT: usize = 8 + 40 + 18 * 8;
const FRAME: usize = 8 + 304;
/// UC_FP_XSTATE, UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS: what the kernel sets.
const KNOWN: u64 = 7;
/// Code of 64-bit programs.
const USER_CODE: u16 = 0x33;

/// Marks the frames of a thread whose handlers return to one of these `restorers`, from its stack pointer on.
pub(super) fn mark(pid: Pid, stack: u64, mappings: &[Mapping], restorers: &[u64]) -> Result<()> {
    let mut at = stack.next_multiple_of(8);
    for _ in 0..NESTED {
        let Some(mapping) = mappings.iter().find(|mapping| mapping.range.contains(VirtAddr(at))) else {
            break;
        };
        let mut bytes = vec![0; DEPTH.min(mapping.range.end.0 - at) as usize];
        remote::read(pid, VirtAddr(at), &mut bytes)?;
        let Some(frame) = find(&bytes, restorers) else { break };
        let flags = word(&bytes, frame + FLAGS) | BELIEVED;
        remote::write(pid, VirtAddr(at + (frame + FLAGS) as u64), &flags.to_le_bytes())?;
        at = word(&bytes, frame + STACK).next_multiple_of(8);
    }
    Ok(())
}

/// Where the first frame lies.
fn find(bytes: &[u8], restorers: &[u64]) -> Option<usize> {
    (0..bytes.len().saturating_sub(FRAME - 1)).step_by(8).find(|at| {
        restorers.contains(&word(bytes, *at))
            && word(bytes, at + FLAGS) & !KNOWN == 0
            && word(bytes, at + LINK) == 0
            && word(bytes, at + SEGMENT) as u16 == USER_CODE
    })
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|word| word.try_into().ok()).map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    static SEEN: AtomicU64 = AtomicU64::new(0);

    extern "C" fn look(_: libc::c_int) {
        let here = 0u64;
        let at = (&raw const here as u64).next_multiple_of(8);
        let mut action = [0u64; 4];
        // SAFETY: action has room for a kernel_sigaction.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, libc::SIGUSR2, 0, action.as_mut_ptr(), 8) };
        let mut bytes = vec![0; 2048];
        remote::read(Pid::this(), VirtAddr(at), &mut bytes).unwrap();
        let found = find(&bytes, &[action[2]]);
        SEEN.store(found.map_or(0, |frame| word(&bytes, frame + STACK)), Ordering::SeqCst);
    }

    #[test]
    fn a_frame_of_the_kernel_is_found_with_what_it_interrupted() {
        // SAFETY: the handler reads its own stack and stores a number; the signal comes where nothing is half done.
        unsafe {
            libc::signal(libc::SIGUSR2, look as *const () as libc::sighandler_t);
            libc::raise(libc::SIGUSR2);
        }
        let here = 0u64;
        let distance = (&raw const here as u64).abs_diff(SEEN.load(Ordering::SeqCst));
        assert!(distance < 4096, "{distance} bytes from here");
        assert_eq!(find(&[0; 4096], &[1]), None);
    }
}
