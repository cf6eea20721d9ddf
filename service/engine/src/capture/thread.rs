//! The record of a thread.

use ckpt_image::records::{
    AltStack, Credentials, DispatchRecord, InterruptedCall, Pid, QueuedSignal, RseqRecord, SchedRecord,
    ThreadRecord, ThreadSettings,
};
use ckpt_sys::attributes::{self, Scheduling};
use ckpt_sys::batch;
use ckpt_sys::inject::Live;
use nix::libc;

use super::questions::{Answer, Question};
use super::shown::ThreadShown;
use crate::kinds::settings::{self, Refused};

const PR_GET_TID_ADDRESS: u64 = 40;
/// PR_MCE_KILL_DEFAULT.
const MCE_KILL_DEFAULT: u32 = 2;

/// What only the thread itself can tell; [`Told::read`] reads the answers.
pub fn questions() -> Vec<Question> {
    let prctl = |option: i32| [option as u64, 0, 0, 0, 0, 0];
    let mut questions = vec![
        Question::bytes(libc::SYS_sigaltstack, [0; 6], 1, 24),
        Question::bytes(libc::SYS_prctl, [PR_GET_TID_ADDRESS, 0, 0, 0, 0, 0], 1, 8),
        Question::bytes(libc::SYS_prctl, prctl(libc::PR_GET_PDEATHSIG), 1, 4),
        Question::result(libc::SYS_prctl, prctl(libc::PR_GET_TIMERSLACK)),
        Question::result(libc::SYS_prctl, prctl(libc::PR_GET_SECUREBITS)),
        Question::result(libc::SYS_prctl, prctl(libc::PR_MCE_KILL_GET)),
        Question::bytes(libc::SYS_prctl, prctl(libc::PR_GET_TSC), 1, 4),
    ];
    questions.extend(settings::of_thread());
    questions
}

/// Answers to [`questions`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Told {
    altstack: AltStack,
    tid_address: u64,
    pdeathsig: i32,
    timer_slack: u64,
    securebits: u32,
    mce_kill: u32,
    tsc: u32,
    settings: ThreadSettings,
    /// What cannot be kept.
    pub refused: Option<Refused>,
}

impl Told {
    /// Reads the answers; `None` if one is missing.
    pub fn read(answers: &[Answer]) -> Option<Self> {
        let [altstack, tid_address, pdeathsig, timer_slack, securebits, mce_kill, tsc, others @ ..] = answers
        else {
            return None;
        };
        let (settings, refused) = settings::read_thread(others);
        Some(Self {
            altstack: read_altstack(altstack)?,
            tid_address: tid_address.result.ok().map(|_| tid_address.u64_at(0))?,
            pdeathsig: pdeathsig.result.ok().map(|_| pdeathsig.u32_at(0) as i32)?,
            timer_slack: timer_slack.result.ok()?,
            securebits: securebits.result.ok()? as u32,
            // A kernel without machine check recovery has no such setting.
            mce_kill: mce_kill.result.map_or(MCE_KILL_DEFAULT, |policy| policy as u32),
            tsc: tsc.result.map_or(libc::PR_TSC_ENABLE as u32, |_| tsc.u32_at(0)),
            settings,
            refused,
        })
    }
}

/// stack_t. SS_ONSTACK tells where the thread is, not what it set: that is in its registers.
fn read_altstack(answer: &Answer) -> Option<AltStack> {
    answer.result.ok()?;
    let flags = answer.u32_at(8) as i32 & !libc::SS_ONSTACK;
    Some(AltStack { sp: answer.u64_at(0), flags, size: answer.u64_at(16) })
}

/// The record of the thread at this place of a process.
pub(super) fn record(
    live: &Live,
    place: usize,
    shown: &ThreadShown,
    told: &Told,
) -> Result<ThreadRecord, ckpt_sys::Error> {
    let thread = live.stopped(place)?;
    let status = &shown.status;
    let signals = thread.pending_signals(false)?;
    let credentials = Credentials { securebits: told.securebits, ..status.credentials.clone() };
    Ok(ThreadRecord {
        tid: Pid(status.inner.tid),
        comm: status.comm.clone(),
        registers: batch::words(&live.saved_registers(place)?).to_vec(),
        xstate: thread.extended_state()?,
        interrupted: live.interrupted(place).map(|call| InterruptedCall {
            nr: call.nr,
            args: call.args,
            result: call.result,
        }),
        sigmask: live.mask(place),
        altstack: match told.altstack {
            own if live.protection().is_own_stack(own.sp) => {
                AltStack { sp: 0, flags: libc::SS_DISABLE, size: 0 }
            }
            made => made,
        },
        pending: signals.into_iter().map(|info| QueuedSignal { siginfo: info.to_vec() }).collect(),
        robust_list: shown.robust_list,
        tid_address: told.tid_address,
        rseq: live.rseq(place)?.map_or_else(RseqRecord::default, |rseq| RseqRecord {
            address: rseq.address,
            length: rseq.size,
            signature: rseq.signature,
            flags: rseq.flags,
        }),
        credentials,
        seccomp_mode: status.seccomp,
        seccomp_filters: Vec::new(),
        no_new_privs: status.no_new_privs,
        pdeathsig: told.pdeathsig,
        timer_slack: told.timer_slack,
        sched: scheduling(&shown.scheduling),
        affinity: shown.affinity.clone(),
        io_priority: shown.io_priority,
        mce_kill: told.mce_kill,
        tsc: told.tsc,
        settings: told.settings.clone(),
        dispatch: live
            .dispatch(place)
            .filter(|own| !live.protection().is_own_selector(own.selector))
            .map(|own| DispatchRecord { selector: own.selector, offset: own.offset, len: own.len }),
    })
}

/// sched_getattr(2). Of a fair policy the kernel tells the length of its slice as the run time (Linux 6.12): recorded only where it is
/// another than ours, which nobody set.
fn scheduling(s: &Scheduling) -> SchedRecord {
    static OURS: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    let ours =
        *OURS.get_or_init(|| attributes::scheduling(nix::unistd::Pid::this()).map_or(0, |s| s.runtime));
    let usual = s.policy != libc::SCHED_DEADLINE as u32 && s.runtime == ours;
    SchedRecord {
        policy: s.policy,
        flags: s.flags,
        nice: s.nice,
        priority: s.priority,
        runtime: if usual { 0 } else { s.runtime },
        deadline: s.deadline,
        period: s.period,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ok(result: u64, bytes: &[u8]) -> Answer {
        Answer { result: Ok(result), bytes: bytes.to_vec() }
    }

    #[test]
    fn answers_are_read_in_the_order_of_the_questions() {
        let mut stack = vec![0; 24];
        stack[..8].copy_from_slice(&0x7000u64.to_le_bytes());
        stack[8] = libc::SS_ONSTACK as u8;
        stack[16..].copy_from_slice(&8192u64.to_le_bytes());
        let mut answers = vec![
            ok(0, &stack),
            ok(0, &0x99u64.to_le_bytes()),
            ok(0, &9u32.to_le_bytes()),
            ok(50_000, &[]),
            ok(0x2f, &[]),
            ok(1, &[]),
            ok(0, &2u32.to_le_bytes()),
        ];
        answers.extend(settings::of_thread().map(|_| ok(0, &[])));
        assert_eq!(answers.len(), questions().len());
        let told = Told::read(&answers).unwrap();
        assert_eq!(told.altstack, AltStack { sp: 0x7000, flags: 0, size: 8192 });
        assert_eq!(
            (told.tid_address, told.pdeathsig, told.timer_slack, told.securebits),
            (0x99, 9, 50_000, 0x2f)
        );
        assert_eq!((told.mce_kill, told.tsc), (1, 2));
    }

    #[test]
    fn a_missing_answer_is_not_made_up() {
        let refused = Answer { result: Err(nix::errno::Errno::EACCES), bytes: vec![] };
        assert_eq!(Told::read(&vec![refused; 7]), None);
        assert_eq!(Told::read(&[]), None);
    }
}
