//! What belongs to a whole process besides memory and descriptors: handlers, directories, timers, limits, what prctl(2) keeps.

use ckpt_image::records::{FsRecord, GroupImage, ItimerRecord, PosixTimerRecord, ProcessBody, SighandRecord};
use ckpt_sys::batch::{Batch, Call, Outcome};
use nix::libc;
use nix::sys::resource::{Resource, getrlimit};

use super::{Failure, Member};
use crate::kinds::settings;

/// prctl(2) options that libc does not name.
/// PR_TIMER_CREATE_RESTORE_IDS, Linux 6.15: timer_create(2) takes the id it is to give.
const PR_TIMER_CREATE_RESTORE_IDS: u64 = 77;
/// How many timers may be made and deleted to reach a timer id on kernels before 6.15.
const MOST_TIMER_IDS: i32 = 20_000;

/// Descriptors, in the members, of what a process refers to by file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Directories {
    /// Of the working directory.
    pub cwd: i32,
    /// Of the root directory, where it is not that of the mount namespace.
    pub root: Option<i32>,
}

/// Sets the signal handlers; all others become SIG_DFL, also those that we ignore (CLONE_CLEAR_SIGHAND leaves these).
pub fn handlers(batch: &mut Batch, sighand: &SighandRecord) {
    let default = batch.data(&[0; 32]);
    for signal in (1..=64).filter(|s| ![libc::SIGKILL, libc::SIGSTOP].contains(s)) {
        batch.must(libc::SYS_rt_sigaction, [signal as u64, default.get(), 0, 8, 0, 0]);
    }
    for action in &sighand.actions {
        let mut raw = Vec::with_capacity(32);
        for word in [action.handler, action.flags, action.restorer, action.mask] {
            raw.extend(word.to_le_bytes());
        }
        let at = batch.data(&raw);
        batch.must(libc::SYS_rt_sigaction, [action.signal as u64, at.get(), 0, 8, 0, 0]);
    }
}

/// Sets root and working directory and umask.
pub fn directories(batch: &mut Batch, fs: &FsRecord, open: Directories) {
    if let Some(root) = open.root {
        let here = batch.c_str(b".");
        batch.must(libc::SYS_fchdir, [root as u64, 0, 0, 0, 0, 0]);
        batch.must(libc::SYS_chroot, [here.get(), 0, 0, 0, 0, 0]);
    }
    batch.must(libc::SYS_fchdir, [open.cwd as u64, 0, 0, 0, 0, 0]);
    batch.must(libc::SYS_umask, [u64::from(fs.umask), 0, 0, 0, 0, 0]);
}

/// Calls that set the limits of a process; what came of them tells which could not be set.
#[derive(Debug, Default)]
pub struct Limits(Vec<(Call, ckpt_sys::VirtAddr)>);

/// Sets what needs our privileges still: limits, personality, subreaper.
pub fn attributes(batch: &mut Batch, body: &ProcessBody) -> Limits {
    batch.must(libc::SYS_personality, [u64::from(body.personality), 0, 0, 0, 0, 0]);
    let subreaper = [libc::PR_SET_CHILD_SUBREAPER as u64, u64::from(body.child_subreaper), 0, 0, 0, 0];
    batch.must(libc::SYS_prctl, subreaper);
    settings::set_process(batch, &body.settings);
    let mut set = Vec::new();
    for (resource, (soft, hard)) in body.limits.iter().enumerate() {
        let old = batch.space(16);
        let _: Call = batch.must(libc::SYS_prlimit64, [0, resource as u64, 0, old.get(), 0, 0]);
        let at = match is_late(resource, *hard) {
            true => 0,
            false => batch.data(&limit(*soft, *hard)).get(),
        };
        let call = batch.push(libc::SYS_prlimit64, [0, resource as u64, at, 0, 0, 0]);
        set.push((call, old));
    }
    Limits(set)
}

/// Whether a limit is set when all that it limits is there: that of signals that wait, which is not enforced on what is there. It takes no
/// privilege where it is below our own.
fn is_late(resource: usize, hard: u64) -> bool {
    let ours = || getrlimit(Resource::RLIMIT_SIGPENDING).map_or(0, |(_, hard)| hard);
    resource == libc::RLIMIT_SIGPENDING as usize && hard <= ours()
}

/// Sets the limits that come last.
pub fn late_limits(batch: &mut Batch, body: &ProcessBody) {
    for (resource, (soft, hard)) in body.limits.iter().enumerate().filter(|(n, (_, hard))| is_late(*n, *hard))
    {
        let at = batch.data(&limit(*soft, *hard));
        batch.must(libc::SYS_prlimit64, [0, resource as u64, at.get(), 0, 0, 0]);
    }
}

/// Same, at once; gives what could not be set.
pub fn set_attributes(member: &mut Member, body: &ProcessBody) -> Result<Vec<String>, Failure> {
    let mut batch = member.batch();
    let limits = attributes(&mut batch, body);
    let outcome = member.run("set limits", &batch)?;
    let mut batch = member.batch();
    let problems = limits.failed(body, &outcome, &mut batch);
    if !batch.is_empty() {
        member.run("set soft limits", &batch)?;
    }
    Ok(problems)
}

impl Limits {
    /// What could not be set, since a hard limit above our own needs CAP_SYS_RESOURCE; then the soft limit at least is set by `batch`.
    pub fn failed(&self, body: &ProcessBody, outcome: &Outcome, batch: &mut Batch) -> Vec<String> {
        let mut problems = Vec::new();
        for (resource, ((soft, hard), (call, old))) in body.limits.iter().zip(&self.0).enumerate() {
            let Err(e) = outcome.result(*call) else { continue };
            let ours = outcome.u64_at(old.add(8));
            if *soft > ours {
                problems.push(format!("limit {resource} is {ours} and not {soft} ({e})"));
            } else {
                problems.push(format!("hard limit {resource} is {ours} and not {hard} ({e})"));
            }
            let at = batch.data(&limit((*soft).min(ours), ours));
            batch.must(libc::SYS_prlimit64, [0, resource as u64, at.get(), 0, 0, 0]);
        }
        problems
    }
}

/// struct rlimit64.
fn limit(soft: u64, hard: u64) -> Vec<u8> {
    [soft, hard].iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// struct timeval pairs or struct timespec pairs: `unit` is what a second has of the smaller one.
fn interval_and_value(setting: &ItimerRecord, unit: u64) -> Vec<u8> {
    let scale = 1_000_000_000 / unit;
    let mut raw = Vec::with_capacity(32);
    for ns in [setting.interval, setting.value] {
        // Rounded up, so that an armed timer stays armed.
        let small = ns.div_ceil(scale);
        raw.extend((small / unit).to_le_bytes());
        raw.extend((small % unit).to_le_bytes());
    }
    raw
}

/// What to set a timer to, or nothing for one that is not armed. The kernel arms the real-time timer again only when its SIGALRM is
/// taken (`dequeue_signal`), so one whose signal was pending has an interval and no value; it goes on an interval from now.
fn armed(timer: &ItimerRecord) -> Option<ItimerRecord> {
    let value = if timer.value == 0 { timer.interval } else { timer.value };
    (value != 0).then_some(ItimerRecord { interval: timer.interval, value })
}

/// Arms the interval timers. Every signal must be blocked in all threads.
pub fn itimers(batch: &mut Batch, timers: &[ItimerRecord; 3]) {
    for (which, timer) in timers.iter().enumerate().filter_map(|(which, t)| Some((which, armed(t)?))) {
        let at = batch.data(&interval_and_value(&timer, 1_000_000));
        batch.must(libc::SYS_setitimer, [which as u64, at.get(), 0, 0, 0, 0]);
    }
}

/// struct sigevent, 64 bytes.
fn sigevent(timer: &PosixTimerRecord) -> Vec<u8> {
    let mut raw = timer.value.to_le_bytes().to_vec();
    for word in [timer.signal, timer.notify, timer.tid] {
        raw.extend(word.to_le_bytes());
    }
    raw.resize(64, 0);
    raw
}

/// Makes the POSIX timers with the ids they had, and arms them. All threads must exist.
pub fn posix_timers(member: &mut Member, timers: &[PosixTimerRecord]) -> Result<(), Failure> {
    if timers.is_empty() {
        return Ok(());
    }
    let mut timers: Vec<_> = timers.iter().collect();
    timers.sort_by_key(|t| t.id);
    if !make_timers_by_id(member, &timers)? {
        make_timers_by_counting(member, &timers)?;
    }
    let mut batch = member.batch();
    for timer in timers.iter().filter(|t| t.setting.value != 0) {
        let at = batch.data(&interval_and_value(&timer.setting, 1_000_000_000));
        batch.must(libc::SYS_timer_settime, [timer.id as u64, 0, at.get(), 0, 0, 0]);
    }
    member.run("arm timers", &batch).map(drop)
}

/// Linux 6.15 and later. `false`: the kernel cannot.
fn make_timers_by_id(member: &mut Member, timers: &[&PosixTimerRecord]) -> Result<bool, Failure> {
    let mut batch = member.batch();
    let on = batch.push(libc::SYS_prctl, [PR_TIMER_CREATE_RESTORE_IDS, 1, 0, 0, 0, 0]);
    if member.run("ask for timer ids", &batch)?.result(on).is_err() {
        return Ok(false);
    }
    let mut batch = member.batch();
    for timer in timers {
        let event = batch.data(&sigevent(timer));
        let id = batch.data(&timer.id.to_le_bytes());
        let clock = timer.clock as u64;
        batch.must(libc::SYS_timer_create, [clock, event.get(), id.get(), 0, 0, 0]);
    }
    batch.must(libc::SYS_prctl, [PR_TIMER_CREATE_RESTORE_IDS, 0, 0, 0, 0, 0]);
    member.run("make timers", &batch)?;
    Ok(true)
}

/// Before that ids count up in each process: timers are made and deleted until the next id is the one.
fn make_timers_by_counting(member: &mut Member, timers: &[&PosixTimerRecord]) -> Result<(), Failure> {
    let mut next = 0;
    for timer in timers {
        if timer.id - next > MOST_TIMER_IDS {
            let text = format!("timer id {} cannot be reached on this kernel", timer.id);
            return Err(Failure::not_restorable(text).of_pid(member.pid.0));
        }
        while next <= timer.id {
            let mut batch = member.batch();
            let mut last = None;
            while next <= timer.id && batch.has_room(2, 128) {
                last = Some(count_one(&mut batch, timer, next));
                next += 1;
            }
            let outcome = member.run("make timers", &batch)?;
            let Some((at, want)) = last else { continue };
            if outcome.u32_at(at) != want as u32 {
                let text = format!("timer id {want} came out as {}", outcome.u32_at(at));
                return Err(Failure::not_restorable(text).of_pid(member.pid.0));
            }
        }
    }
    Ok(())
}

/// One timer made; deleted again unless it has the id wanted. Gives where the kernel writes the id, and what it must be.
fn count_one(batch: &mut Batch, timer: &PosixTimerRecord, next: i32) -> (ckpt_sys::VirtAddr, i32) {
    let event = batch.data(&sigevent(timer));
    let id = batch.space(4);
    let _: Call = batch.must(libc::SYS_timer_create, [timer.clock as u64, event.get(), id.get(), 0, 0, 0]);
    if next != timer.id {
        batch.must(libc::SYS_timer_delete, [next as u64, 0, 0, 0, 0, 0]);
    }
    (id, next)
}

/// What is written from outside: /proc/PID/oom_score_adj and coredump_filter, which members have from us.
#[derive(Debug)]
pub struct FromOutside {
    oom_score_adj: String,
    coredump_filter: Option<u32>,
}

impl FromOutside {
    /// As we have them, and so every member that is made.
    pub fn ours() -> Self {
        let read = |name: &str| {
            let text = std::fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
            text.trim().to_owned()
        };
        let coredump_filter = u32::from_str_radix(&read("coredump_filter"), 16).ok();
        Self { oom_score_adj: read("oom_score_adj"), coredump_filter }
    }

    /// Gives a process that was made what it is to have. Gives what could not be set.
    pub fn set(&self, member: &Member, body: &ProcessBody) -> Vec<String> {
        let mut problems = Vec::new();
        let nice = body.settings.autogroup_nice;
        if nice != 0
            && let Err(e) = std::fs::write(format!("/proc/{}/autogroup", member.tid()), nice.to_string())
        {
            problems.push(format!("the nice value of its session could not be set to {nice}: {e}"));
        }
        let score = body.oom_score_adj.to_string();
        for (name, value, same) in [
            ("oom_score_adj", score.clone(), self.oom_score_adj == score),
            (
                "coredump_filter",
                format!("{:#x}", body.coredump_filter),
                self.coredump_filter == Some(body.coredump_filter),
            ),
        ] {
            let path = format!("/proc/{}/{name}", member.tid());
            if !same && let Err(e) = std::fs::write(&path, &value) {
                problems.push(format!("{name} could not be set to {value}: {e}"));
            }
        }
        problems
    }
}

/// PR_SET_DUMPABLE, after the credentials are set, and PR_SET_MDWE. 2 cannot be set; 0 is as strict.
pub fn dumpable(batch: &mut Batch, body: &ProcessBody) {
    let value = u64::from(body.dumpable == 1);
    batch.must(libc::SYS_prctl, [libc::PR_SET_DUMPABLE as u64, value, 0, 0, 0, 0]);
    settings::set_process_last(batch, &body.settings);
}

/// A record by its number, or an error that names it.
pub fn lookup<'a, T>(records: &'a [T], index: usize, what: &str) -> Result<&'a T, Failure> {
    records.get(index).ok_or_else(|| Failure::corrupt(format!("the image has no {what} {index}")))
}

/// The living processes with their bodies.
pub fn living(
    image: &GroupImage,
) -> impl Iterator<Item = (&ckpt_image::records::ProcessRecord, &ProcessBody)> {
    image.processes.iter().filter_map(|p| p.body.as_ref().map(|b| (p, b)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_armed_timer_stays_armed() {
        let raw = interval_and_value(&ItimerRecord { value: 1, interval: 2_500_000_000 }, 1_000_000);
        let word = |i: usize| u64::from_le_bytes(raw[i * 8..i * 8 + 8].try_into().unwrap());
        assert_eq!((word(0), word(1), word(2), word(3)), (2, 500_000, 0, 1));
    }

    #[test]
    fn a_timer_whose_signal_is_pending_goes_on() {
        let expired = ItimerRecord { value: 0, interval: 10 };
        assert_eq!(armed(&expired), Some(ItimerRecord { value: 10, interval: 10 }));
        let once = ItimerRecord { value: 3, interval: 0 };
        assert_eq!(armed(&once), Some(once));
        assert_eq!(armed(&ItimerRecord::default()), None);
    }

    #[test]
    fn structures_have_the_size_the_kernel_expects() {
        let timer = PosixTimerRecord {
            id: 0,
            clock: 1,
            notify: 4,
            signal: 34,
            value: 5,
            tid: 77,
            setting: ItimerRecord::default(),
            overrun: 0,
        };
        let raw = sigevent(&timer);
        assert_eq!((raw.len(), raw[8], raw[12], raw[16]), (64, 34, 4, 77));
    }
}
