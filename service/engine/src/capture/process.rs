//! What a process has besides its threads: signal handlers, timers, limits, addresses of its space.

use ckpt_image::records::{
    ItimerRecord, LayoutRecord, PosixTimerRecord, ProcessSettings, SighandRecord, SignalAction,
};
use ckpt_sys::proc_file;
use nix::libc;

use super::questions::{Answer, Question};
use super::text::{self, Timer};
use crate::kinds::settings::{self, PROCESS_QUESTIONS, Refused};

/// What only the process itself can tell; [`Told::read`] reads the answers.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    signals: Vec<i32>,
    timers: Vec<Timer>,
}

/// Answers to [`Asked::questions`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Told {
    /// Signal dispositions.
    pub sighand: SighandRecord,
    /// getitimer(2).
    pub itimers: [ItimerRecord; 3],
    /// POSIX timers.
    pub timers: Vec<PosixTimerRecord>,
    /// PR_GET_DUMPABLE.
    pub dumpable: u32,
    /// PR_GET_CHILD_SUBREAPER.
    pub child_subreaper: bool,
    /// brk(2).
    pub brk: u64,
    /// What prctl(2) and its like keep besides.
    pub settings: ProcessSettings,
    /// What cannot be kept.
    pub refused: Vec<Refused>,
}

impl Asked {
    /// Which questions a process with these signals and timers is to be asked. SIGCHLD is asked for its flags (SA_NOCLDWAIT), which
    /// count without a handler too.
    pub fn new(caught: u64, timers: Vec<Timer>) -> Self {
        let signals = (1..=64).filter(|s| caught & 1 << (s - 1) != 0 || *s == libc::SIGCHLD).collect();
        Self { signals, timers }
    }

    /// The questions.
    pub fn questions(&self) -> Vec<Question> {
        let prctl = |option: i32| [option as u64, 0, 0, 0, 0, 0];
        let mut questions = vec![
            Question::result(libc::SYS_brk, [0; 6]),
            Question::result(libc::SYS_prctl, prctl(libc::PR_GET_DUMPABLE)),
            Question::bytes(libc::SYS_prctl, prctl(libc::PR_GET_CHILD_SUBREAPER), 1, 4),
        ];
        let getitimer = |which| Question::bytes(libc::SYS_getitimer, [which, 0, 0, 0, 0, 0], 1, 32);
        questions.extend((0..3).map(getitimer));
        for signal in &self.signals {
            let args = [*signal as u64, 0, 0, 8, 0, 0];
            questions.push(Question::bytes(libc::SYS_rt_sigaction, args, 2, 32));
        }
        for timer in &self.timers {
            let args = [timer.id as u64, 0, 0, 0, 0, 0];
            questions.push(Question::bytes(libc::SYS_timer_gettime, args, 1, 32));
            questions.push(Question::result(libc::SYS_timer_getoverrun, args));
        }
        questions.extend(settings::of_process());
        questions
    }

    /// Reads the answers; `None` if one is missing. `ignored`: the signals with SIG_IGN, which need not be asked for.
    pub fn read(&self, answers: &[Answer], ignored: u64) -> Option<Told> {
        let (answers, others) = answers.split_at_checked(answers.len().checked_sub(PROCESS_QUESTIONS)?)?;
        let (settings, refused) = settings::read_process(others);
        let (fixed, rest) = answers.split_at_checked(6)?;
        let (actions, timers) = rest.split_at_checked(self.signals.len())?;
        if answers.iter().any(|a| a.result.is_err()) || timers.len() != 2 * self.timers.len() {
            return None;
        }
        let mut itimers = [ItimerRecord::default(); 3];
        for (itimer, answer) in itimers.iter_mut().zip(&fixed[3..]) {
            *itimer = interval_and_value(answer, 1_000);
        }
        Some(Told {
            sighand: self.read_actions(actions, ignored),
            itimers,
            timers: self.timers.iter().zip(timers.chunks_exact(2)).map(|(t, a)| posix_timer(t, a)).collect(),
            brk: fixed[0].result.ok()?,
            dumpable: fixed[1].result.ok()? as u32,
            child_subreaper: fixed[2].u32_at(0) != 0,
            settings,
            refused,
        })
    }

    /// struct kernel_sigaction: handler, flags, restorer, mask.
    fn read_actions(&self, answers: &[Answer], ignored: u64) -> SighandRecord {
        let asked = self.signals.iter().zip(answers).map(|(signal, a)| SignalAction {
            signal: *signal,
            handler: a.u64_at(0),
            flags: a.u64_at(8),
            restorer: a.u64_at(16),
            mask: a.u64_at(24),
        });
        let plain = (1..=64).filter(|s| ignored & 1 << (s - 1) != 0 && !self.signals.contains(s));
        let plain = plain.map(|signal| SignalAction { signal, handler: 1, flags: 0, restorer: 0, mask: 0 });
        let mut actions: Vec<_> = asked.filter(|a| a.handler != 0 || a.flags != 0).chain(plain).collect();
        actions.sort_by_key(|action| action.signal);
        SighandRecord { actions }
    }
}

/// Two pairs of seconds and parts of a second, interval first (struct itimerval, struct itimerspec).
fn interval_and_value(answer: &Answer, nanoseconds: u64) -> ItimerRecord {
    let time = |at: usize| {
        let seconds = answer.u64_at(at).saturating_mul(1_000_000_000);
        seconds.saturating_add(answer.u64_at(at + 8).saturating_mul(nanoseconds))
    };
    ItimerRecord { interval: time(0), value: time(16) }
}

/// A timer from what /proc tells of it and its answers.
fn posix_timer(timer: &Timer, answers: &[Answer]) -> PosixTimerRecord {
    PosixTimerRecord {
        id: timer.id,
        clock: timer.clock,
        notify: timer.notify,
        signal: timer.signal,
        value: timer.value,
        tid: if timer.notify & libc::SIGEV_THREAD_ID != 0 { timer.target } else { 0 },
        setting: interval_and_value(&answers[0], 1),
        overrun: answers[1].result.unwrap_or(0) as i32,
    }
}

/// What /proc tells of a living process in files of their own.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Files {
    /// Addresses of the space; brk is to be asked for.
    pub layout: LayoutRecord,
    /// The auxiliary vector.
    pub auxv: Vec<u8>,
    /// POSIX timers; `None` if they could not be understood.
    pub timers: Option<Vec<Timer>>,
    /// personality(2).
    pub personality: u32,
    /// Resource limits; `None` if they could not be understood.
    pub limits: Option<Vec<(u64, u64)>>,
    /// oom_score_adj.
    pub oom_score_adj: i32,
    /// coredump_filter.
    pub coredump_filter: u32,
    /// Nice value of its session's automatic group.
    pub autogroup_nice: i32,
}

impl Files {
    /// Reads them. What this kernel does not have stays at its default.
    pub fn read(pid: i32, stat: &text::Stat) -> Self {
        let path = |name: &str| format!("/proc/{pid}/{name}");
        let word = |name: &str| proc_file::read_text(path(name)).unwrap_or_default();
        let hex = |name: &str| u32::from_str_radix(word(name).trim(), 16).unwrap_or(0);
        Self {
            layout: stat.layout,
            auxv: proc_file::read(path("auxv")).unwrap_or_default(),
            timers: text::parse_timers(&word("timers")),
            limits: text::parse_limits(&word("limits")),
            personality: hex("personality"),
            oom_score_adj: word("oom_score_adj").trim().parse().unwrap_or(0),
            coredump_filter: hex("coredump_filter"),
            autogroup_nice: settings::parse_autogroup(&word("autogroup")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(words: &[u64]) -> Answer {
        Answer { result: Ok(0), bytes: words.iter().flat_map(|w| w.to_le_bytes()).collect() }
    }

    #[test]
    fn answers_become_records() {
        let timer = Timer { id: 3, signal: 34, notify: 4, target: 77, clock: 1, value: 5 };
        let asked = Asked::new(1 << 9, vec![timer]); // SIGUSR1 (10)
        assert_eq!(asked.questions().len(), 6 + 2 + 2 + PROCESS_QUESTIONS);
        let mut answers = vec![
            Answer { result: Ok(0x5000), bytes: vec![] },
            Answer { result: Ok(1), bytes: vec![] },
            answer(&[1]),
            answer(&[1, 5, 2, 7]), // itimer: interval 1 s 5 µs, value 2 s 7 µs
            answer(&[0, 0, 0, 0]),
            answer(&[0, 0, 0, 0]),
            answer(&[0x1234, 0x0400_0004, 0x99, 0x10]),
            answer(&[0, 2, 0, 0]), // SIGCHLD: SIG_DFL with SA_NOCLDWAIT
            answer(&[0, 8, 4, 9]),
            Answer { result: Ok(6), bytes: vec![] },
        ];
        answers.extend(settings::of_process().map(|_| Answer { result: Ok(0), bytes: vec![] }));
        let told = asked.read(&answers, 1 << 12).unwrap();
        assert_eq!((told.brk, told.dumpable, told.child_subreaper), (0x5000, 1, true));
        assert_eq!(told.itimers[0], ItimerRecord { interval: 1_000_005_000, value: 2_000_007_000 });
        let signals: Vec<_> = told.sighand.actions.iter().map(|a| (a.signal, a.handler, a.flags)).collect();
        assert_eq!(signals, [(10, 0x1234, 0x0400_0004), (13, 1, 0), (17, 0, 2)]);
        let timer = told.timers[0];
        assert_eq!(timer.setting, ItimerRecord { interval: 8, value: 4_000_000_009 });
        assert_eq!((timer.overrun, timer.tid), (6, 77));
        assert_eq!(asked.read(&answers[1..], 0), None);
    }
}
