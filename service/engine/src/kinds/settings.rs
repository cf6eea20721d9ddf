//! What prctl(2) and its like keep of threads and processes besides what has a place of its own: speculation, memory policy, what may be
//! executed, barriers, permission for AMX, core scheduling, keyrings. Asked in the members, set again in them.

use ckpt_image::records::{ProcessSettings, ThreadSettings};
use ckpt_sys::batch::Batch;
use nix::libc;

use crate::capture::questions::{Answer, Question};

/// prctl(2) options that libc does not name.
const PR_GET_SPECULATION_CTRL: u64 = 52;
const PR_SET_SPECULATION_CTRL: u64 = 53;
const PR_SET_IO_FLUSHER: u64 = 57;
const PR_GET_IO_FLUSHER: u64 = 58;
const PR_SCHED_CORE: u64 = 62;
const PR_SET_MDWE: u64 = 65;
const PR_GET_MDWE: u64 = 66;
const PR_SET_MEMORY_MERGE: u64 = 67;
const PR_GET_MEMORY_MERGE: u64 = 68;
const PR_SET_THP_DISABLE: u64 = 41;
const PR_GET_THP_DISABLE: u64 = 42;
const PR_THP_DISABLE_EXCEPT_ADVISED: u64 = 2;
const PR_TIMER_CREATE_RESTORE_IDS: u64 = 77;
/// Of PR_TIMER_CREATE_RESTORE_IDS: on, tell.
const IDS_ON: u64 = 1;
const IDS_GET: u64 = 2;
/// arch_prctl(2).
const ARCH_GET_CPUID: u64 = 0x1011;
const ARCH_SET_CPUID: u64 = 0x1012;
const ARCH_GET_XCOMP_PERM: u64 = 0x1022;
const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
/// The tiles of AMX, for which a process must ask.
const XCOMP_TILE: u64 = 18;
/// membarrier(2), Linux 6.3.
const MEMBARRIER_GET_REGISTRATIONS: u64 = 512;
/// keyctl(2).
const KEYCTL_GET_KEYRING_ID: u64 = 0;
const THREAD_KEYRING: u64 = -1i32 as u32 as u64;
const PROCESS_KEYRING: u64 = -2i32 as u32 as u64;
/// PR_SPEC_DISABLE, PR_SPEC_FORCE_DISABLE, PR_SPEC_DISABLE_NOEXEC; of L1D_FLUSH PR_SPEC_ENABLE is what is set.
const SPEC_ENABLE: u32 = 2;
const SPEC_DISABLE: u32 = 4 | 8 | 16;
/// PR_SPEC_L1D_FLUSH.
const L1D_FLUSH: usize = 2;
/// Bits of a node mask that we ask for: more than any kernel has.
const NODES: usize = 1024;

/// What stands against a checkpoint: code, object, why.
pub type Refused = (&'static str, &'static str, &'static str);

/// How many questions [`of_thread`] has.
pub const THREAD_QUESTIONS: usize = 8;

/// What each thread is asked.
pub fn of_thread() -> [Question; THREAD_QUESTIONS] {
    let prctl =
        |args: [u64; 5]| Question::result(libc::SYS_prctl, [args[0], args[1], args[2], args[3], args[4], 0]);
    let speculation = |which| prctl([PR_GET_SPECULATION_CTRL, which, 0, 0, 0]);
    [
        speculation(0),
        speculation(1),
        speculation(2),
        prctl([PR_GET_IO_FLUSHER, 0, 0, 0, 0]),
        Question::bytes(libc::SYS_get_mempolicy, [0; 6], 0, 4),
        Question::bytes(libc::SYS_get_mempolicy, [0, 0, NODES as u64, 0, 0, 0], 1, NODES / 8),
        Question::result(libc::SYS_arch_prctl, [ARCH_GET_CPUID, 0, 0, 0, 0, 0]),
        Question::result(libc::SYS_keyctl, [KEYCTL_GET_KEYRING_ID, THREAD_KEYRING, 0, 0, 0, 0]),
    ]
}

/// Reads the answers. What the kernel does not have, or the thread may not ask, is as it is for everybody.
pub fn read_thread(answers: &[Answer]) -> (ThreadSettings, Option<Refused>) {
    let result = |at: usize| answers.get(at).and_then(|a| a.result.ok());
    let mut speculation = [0; 3];
    for (which, setting) in speculation.iter_mut().enumerate() {
        let set = if which == L1D_FLUSH { SPEC_ENABLE } else { SPEC_DISABLE };
        *setting = result(which).unwrap_or(0) as u32 & set;
    }
    let mode = answers.get(4).map_or(0, |a| a.u32_at(0));
    let mut nodes: Vec<u64> =
        (0..NODES / 64).map(|word| answers.get(5).map_or(0, |a| a.u64_at(word * 8))).collect();
    nodes.truncate(nodes.iter().rposition(|word| *word != 0).map_or(0, |last| last + 1));
    let settings = ThreadSettings {
        speculation,
        io_flusher: result(3) == Some(1),
        memory_policy: mode,
        memory_nodes: if mode == 0 { Vec::new() } else { nodes },
        cpuid_faults: result(6) == Some(0),
    };
    let keyring = result(7)
        .map(|_| ("keyring", "thread keyring", "a thread of it has a keyring of its own (keyrings(7))"));
    (settings, keyring)
}

/// Sets them again in the thread.
pub fn set_thread(batch: &mut Batch, settings: &ThreadSettings) {
    for (which, setting) in settings.speculation.iter().enumerate().filter(|(_, setting)| **setting != 0) {
        // EPERM where it is so for everybody here (spec_store_bypass_disable= of the kernel).
        batch.push(libc::SYS_prctl, [PR_SET_SPECULATION_CTRL, which as u64, u64::from(*setting), 0, 0, 0]);
    }
    if settings.io_flusher {
        batch.must(libc::SYS_prctl, [PR_SET_IO_FLUSHER, 1, 0, 0, 0, 0]);
    }
    if settings.memory_policy != 0 {
        let mask: Vec<u8> = settings.memory_nodes.iter().flat_map(|word| word.to_le_bytes()).collect();
        let (at, bits) = match mask.len() {
            0 => (0, 0),
            bytes => (batch.data(&mask).get(), bytes as u64 * 8 + 1),
        };
        batch.must(libc::SYS_set_mempolicy, [u64::from(settings.memory_policy), at, bits, 0, 0, 0]);
    }
    if settings.cpuid_faults {
        batch.must(libc::SYS_arch_prctl, [ARCH_SET_CPUID, 0, 0, 0, 0, 0]);
    }
}

/// How many questions [`of_process`] has.
pub const PROCESS_QUESTIONS: usize = 9;

/// What each process is asked.
pub fn of_process() -> [Question; PROCESS_QUESTIONS] {
    [
        Question::result(libc::SYS_prctl, [PR_GET_MDWE, 0, 0, 0, 0, 0]),
        Question::result(libc::SYS_prctl, [PR_GET_MEMORY_MERGE, 0, 0, 0, 0, 0]),
        Question::result(libc::SYS_membarrier, [MEMBARRIER_GET_REGISTRATIONS, 0, 0, 0, 0, 0]),
        Question::bytes(libc::SYS_arch_prctl, [ARCH_GET_XCOMP_PERM, 0, 0, 0, 0, 0], 1, 8),
        Question::result(libc::SYS_keyctl, [KEYCTL_GET_KEYRING_ID, PROCESS_KEYRING, 0, 0, 0, 0]),
        Question::bytes(libc::SYS_modify_ldt, [0, 0, 16, 0, 0, 0], 1, 16),
        Question::bytes(libc::SYS_prctl, [PR_SCHED_CORE, 0, 0, 0, 0, 0], 4, 8),
        Question::result(libc::SYS_prctl, [PR_GET_THP_DISABLE, 0, 0, 0, 0, 0]),
        Question::result(libc::SYS_prctl, [PR_TIMER_CREATE_RESTORE_IDS, IDS_GET, 0, 0, 0, 0]),
    ]
}

/// Reads the answers.
pub fn read_process(answers: &[Answer]) -> (ProcessSettings, Vec<Refused>) {
    let result = |at: usize| answers.get(at).and_then(|a| a.result.ok());
    let word = |at: usize| answers.get(at).map_or(0, |a| a.u64_at(0));
    let settings = ProcessSettings {
        deny_write_execute: result(0).unwrap_or(0) as u32,
        memory_merge: result(1) == Some(1),
        membarrier: result(2).unwrap_or(0) as u32,
        tiles: word(3) & (1 << XCOMP_TILE) != 0,
        huge_pages_if_advised: result(7).is_some_and(|set| set & PR_THP_DISABLE_EXCEPT_ADVISED != 0),
        chooses_timer_ids: result(8) == Some(1),
        autogroup_nice: 0,
    };
    let mut refused = Vec::new();
    if result(4).is_some() {
        refused.push(("keyring", "process keyring", "it has a keyring of its own (keyrings(7))"));
    }
    if result(5).is_some_and(|bytes| bytes != 0) {
        refused.push(("ldt", "modify_ldt", "it has segments of its own (modify_ldt(2))"));
    }
    if word(6) != 0 {
        refused.push((
            "core-scheduling",
            "PR_SCHED_CORE",
            "it is scheduled by a core scheduling cookie (prctl(2))",
        ));
    }
    (settings, refused)
}

/// Sets what takes our privileges, or none.
pub fn set_process(batch: &mut Batch, settings: &ProcessSettings) {
    if settings.memory_merge {
        batch.must(libc::SYS_prctl, [PR_SET_MEMORY_MERGE, 1, 0, 0, 0, 0]);
    }
    for command in (0..31).map(|bit| 1u64 << bit).filter(|bit| u64::from(settings.membarrier) & bit != 0) {
        batch.must(libc::SYS_membarrier, [command, 0, 0, 0, 0, 0]);
    }
    if settings.huge_pages_if_advised {
        batch.must(libc::SYS_prctl, [PR_SET_THP_DISABLE, 1, PR_THP_DISABLE_EXCEPT_ADVISED, 0, 0, 0]);
    }
    if settings.chooses_timer_ids {
        batch.must(libc::SYS_prctl, [PR_TIMER_CREATE_RESTORE_IDS, IDS_ON, 0, 0, 0, 0]);
    }
    if settings.tiles {
        batch.must(libc::SYS_arch_prctl, [ARCH_REQ_XCOMP_PERM, XCOMP_TILE, 0, 0, 0, 0]);
    }
}

/// Sets what would be in the way of a rebuild that goes on.
pub fn set_process_last(batch: &mut Batch, settings: &ProcessSettings) {
    if settings.deny_write_execute != 0 {
        batch.must(libc::SYS_prctl, [PR_SET_MDWE, u64::from(settings.deny_write_execute), 0, 0, 0, 0]);
    }
}

/// The nice value of a session's automatic group (sched(7)): of /proc/PID/autogroup, as `/autogroup-55 nice 3`.
pub fn parse_autogroup(text: &str) -> i32 {
    text.rsplit(' ').next().and_then(|word| word.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;

    #[test]
    fn what_the_kernel_does_not_tell_is_not_set() {
        let none = Answer { result: Err(Errno::EINVAL), bytes: vec![] };
        let (thread, refused) = read_thread(&vec![none.clone(); THREAD_QUESTIONS]);
        assert_eq!((thread, refused), (ThreadSettings::default(), None));
        let (process, refused) = read_process(&vec![none; PROCESS_QUESTIONS]);
        assert_eq!((process, refused), (ProcessSettings::default(), vec![]));
    }

    #[test]
    fn a_session_has_a_nice_value() {
        assert_eq!(parse_autogroup("/autogroup-55 nice -3\n"), -3);
        assert_eq!(parse_autogroup(""), 0);
    }
}
