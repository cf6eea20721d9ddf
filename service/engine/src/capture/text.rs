//! The texts of /proc that tell of processes and threads: parsing only (proc(5)).
//!
//! Everything here is hostile input: nothing panics, what is missing or malformed is `None` or zero.

use ckpt_image::records::{Credentials, LayoutRecord};

/// What /proc/PID/stat tells that nothing else does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stat {
    /// Name, at most 15 bytes (zombies have no other place to tell it).
    pub comm: Vec<u8>,
    /// State letter.
    pub state: char,
    /// Parent.
    pub ppid: i32,
    /// Process group.
    pub pgid: i32,
    /// Session.
    pub sid: i32,
    /// Controlling terminal's device number, 0 if none.
    pub tty: u64,
    /// Signal to the parent at the end.
    pub exit_signal: i32,
    /// Status for wait(2); of zombies.
    pub exit_code: i32,
    /// When it began, clock ticks since boot.
    pub start_time: u64,
    /// Addresses of the space; brk is not told here.
    pub layout: LayoutRecord,
}

/// Reads a text of /proc/PID/stat.
pub fn parse_stat(text: &[u8]) -> Option<Stat> {
    let open = text.iter().position(|b| *b == b'(')?;
    let close = text.iter().rposition(|b| *b == b')')?;
    let comm = text.get(open + 1..close)?.to_vec();
    let rest = std::str::from_utf8(text.get(close + 1..)?).ok()?;
    // The manual counts from 1 and the state is field 3.
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let field = |n: usize| fields.get(n - 3).copied();
    let signed = |n: usize| field(n)?.parse::<i64>().ok();
    let number = |n: usize| field(n).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
    Some(Stat {
        comm,
        state: field(3)?.chars().next()?,
        ppid: signed(4)? as i32,
        pgid: signed(5)? as i32,
        sid: signed(6)? as i32,
        tty: signed(7)? as u32 as u64,
        exit_signal: signed(38).unwrap_or(i64::from(nix::libc::SIGCHLD)) as i32,
        exit_code: signed(52).unwrap_or(0) as i32,
        start_time: number(22),
        layout: LayoutRecord {
            start_code: number(26),
            end_code: number(27),
            start_stack: number(28),
            start_data: number(45),
            end_data: number(46),
            start_brk: number(47),
            brk: 0,
            arg_start: number(48),
            arg_end: number(49),
            env_start: number(50),
            env_end: number(51),
        },
    })
}

/// What /proc/PID/status tells of a thread.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// Its name, any bytes.
    pub comm: Vec<u8>,
    /// Credentials without securebits.
    pub credentials: Credentials,
    /// umask(2).
    pub umask: u32,
    /// Its id, and those of its process, process group and session, in the innermost PID namespace it is in.
    pub inner: Ids,
    /// The same in ours.
    pub outer: Ids,
    /// How many PID namespaces it is in, ours included.
    pub pid_namespaces: usize,
    /// Ignored signals, bit n−1 is signal n.
    pub ignored: u64,
    /// Signals with handlers.
    pub caught: u64,
    /// PR_GET_NO_NEW_PRIVS.
    pub no_new_privs: bool,
    /// Seccomp mode.
    pub seccomp: u32,
    /// Number of seccomp filters. Linux 5.9.
    pub seccomp_filters: usize,
    /// PR_GET_THP_DISABLE. Linux 5.0.
    pub thp_disabled: bool,
}

/// The first line of a text of /proc/PID/status, in which line feeds and backslashes are escaped.
fn name(text: &[u8]) -> Vec<u8> {
    let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let mut rest = line.strip_prefix(b"Name:\t").unwrap_or_default();
    let mut name = Vec::with_capacity(rest.len());
    while let [first, after @ ..] = rest {
        let (byte, after) = match (first, after) {
            (b'\\', [b'n', after @ ..]) => (b'\n', after),
            (b'\\', [b'\\', after @ ..]) => (b'\\', after),
            _ => (*first, after),
        };
        name.push(byte);
        rest = after;
    }
    name
}

/// Ids of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct Ids {
    pub tid: i32,
    pub pid: i32,
    pub pgid: i32,
    pub sid: i32,
}

/// Reads a text of /proc/PID/status.
pub fn parse_status(text: &[u8]) -> Status {
    let mut status = Status { comm: name(text), ..Status::default() };
    let text = String::from_utf8_lossy(text);
    let set = &mut status.credentials;
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        let hex = || u64::from_str_radix(value, 16).unwrap_or(0);
        let number = || value.parse::<u32>().unwrap_or(0);
        match key {
            "Umask" => status.umask = u32::from_str_radix(value, 8).unwrap_or(0),
            "Uid" => set.uids = four(value),
            "Gid" => set.gids = four(value),
            "Groups" => set.groups = value.split_ascii_whitespace().filter_map(|g| g.parse().ok()).collect(),
            "NSpid" => {
                status.pid_namespaces = value.split_ascii_whitespace().count();
                (status.outer.tid, status.inner.tid) = ends(value);
            }
            "NStgid" => (status.outer.pid, status.inner.pid) = ends(value),
            "NSpgid" => (status.outer.pgid, status.inner.pgid) = ends(value),
            "NSsid" => (status.outer.sid, status.inner.sid) = ends(value),
            "SigIgn" => status.ignored = hex(),
            "SigCgt" => status.caught = hex(),
            "CapInh" => set.caps[0] = hex(),
            "CapPrm" => set.caps[1] = hex(),
            "CapEff" => set.caps[2] = hex(),
            "CapBnd" => set.caps[3] = hex(),
            "CapAmb" => set.caps[4] = hex(),
            "NoNewPrivs" => status.no_new_privs = number() != 0,
            "Seccomp" => status.seccomp = number(),
            "Seccomp_filters" => status.seccomp_filters = number() as usize,
            "THP_enabled" => status.thp_disabled = value == "0",
            _ => {}
        }
    }
    status
}

/// The four ids of a line `Uid:` or `Gid:`.
fn four(value: &str) -> [u32; 4] {
    let mut ids = [0; 4];
    for (id, word) in ids.iter_mut().zip(value.split_ascii_whitespace()) {
        *id = word.parse().unwrap_or(0);
    }
    ids
}

/// The last number of a line that tells one a namespace.
fn ends(value: &str) -> (i32, i32) {
    let number = |word: Option<&str>| word.and_then(|word| word.parse().ok()).unwrap_or(0);
    let mut words = value.split_ascii_whitespace();
    let first = words.next();
    (number(first), number(words.next_back().or(first)))
}

/// A POSIX timer as /proc/PID/timers tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timer {
    /// Kernel timer id.
    pub id: i32,
    /// sigev_signo.
    pub signal: i32,
    /// sigev_value.
    pub value: u64,
    /// sigev_notify: SIGEV_SIGNAL 0, SIGEV_NONE 1, SIGEV_THREAD 2, with SIGEV_THREAD_ID (4) in it where it is to a thread.
    pub notify: i32,
    /// The thread of SIGEV_THREAD_ID, or the process, in the reader's PID namespace.
    pub target: i32,
    /// Clock id.
    pub clock: i32,
}

/// Reads a text of /proc/PID/timers. `None` if a line is not understood: a timer must not be lost silently.
pub fn parse_timers(text: &str) -> Option<Vec<Timer>> {
    let mut timers: Vec<Timer> = Vec::new();
    for line in text.lines() {
        let (key, value) = line.split_once(':')?;
        let value = value.trim();
        if key == "ID" {
            timers.push(Timer { id: value.parse().ok()?, ..Timer::default() });
            continue;
        }
        let timer = timers.last_mut()?;
        match key {
            "signal" => {
                let (signal, pointer) = value.split_once('/')?;
                timer.signal = signal.parse().ok()?;
                let hex = pointer.trim_start_matches("0x");
                timer.value = if hex == "(null)" { 0 } else { u64::from_str_radix(hex, 16).ok()? };
            }
            "notify" => {
                let (how, target) = value.split_once('/')?;
                let (kind, id) = target.split_once('.')?;
                timer.notify = match how {
                    "signal" => 0,
                    "none" => 1,
                    "thread" => 2,
                    _ => return None,
                } | if kind == "tid" { 4 } else { 0 };
                timer.target = id.parse().ok()?;
            }
            "ClockID" => timer.clock = value.parse().ok()?,
            _ => {}
        }
    }
    Some(timers)
}

/// Reads a text of /proc/PID/limits: soft and hard by number (RLIMIT_CPU = 0 …), u64::MAX is unlimited. `None` if a line is missing or not
/// understood. (prlimit(2) would need CAP_SYS_RESOURCE for other users' processes.)
pub fn parse_limits(text: &str) -> Option<Vec<(u64, u64)>> {
    const NAMES: [&str; 16] = [
        "Max cpu time",
        "Max file size",
        "Max data size",
        "Max stack size",
        "Max core file size",
        "Max resident set",
        "Max processes",
        "Max open files",
        "Max locked memory",
        "Max address space",
        "Max file locks",
        "Max pending signals",
        "Max msgqueue size",
        "Max nice priority",
        "Max realtime priority",
        "Max realtime timeout",
    ];
    let number = |word: &str| if word == "unlimited" { Some(u64::MAX) } else { word.parse().ok() };
    let limit = |name: &&str| {
        let mut words = text.lines().find_map(|line| line.strip_prefix(name))?.split_ascii_whitespace();
        Some((number(words.next()?)?, number(words.next()?)?))
    };
    NAMES.iter().map(limit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_whatever_the_name() {
        let tail = " S 10 11 12 34816 -1 4194560 0 0 0 0 1 2 3 4 20 0 1 0 99 1 1 18446744073709551615 100 200 300 0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0 400 500 600 700 800 900 1000 256";
        for name in ["plain", "a) b (c", "", "two words"] {
            let text = format!("7 ({name}){tail}");
            let stat = parse_stat(text.as_bytes()).unwrap();
            assert_eq!(stat.comm, name.as_bytes());
            assert_eq!((stat.state, stat.ppid, stat.pgid, stat.sid, stat.tty), ('S', 10, 11, 12, 34816));
            assert_eq!((stat.exit_signal, stat.exit_code), (17, 256));
            let l = stat.layout;
            assert_eq!([l.start_code, l.end_code, l.start_stack], [100, 200, 300]);
            assert_eq!([l.start_data, l.end_data, l.start_brk], [400, 500, 600]);
            assert_eq!([l.arg_start, l.arg_end, l.env_start, l.env_end], [700, 800, 900, 1000]);
        }
        assert_eq!(parse_stat(b"7 (x"), None);
        assert_eq!(parse_stat(b")("), None);
        assert_eq!(parse_stat(b""), None);
    }

    #[test]
    fn own_stat_has_all_fields() {
        let stat = parse_stat(&std::fs::read("/proc/self/stat").unwrap()).unwrap();
        assert_eq!(stat.exit_signal, 17);
        assert!(
            stat.layout.start_stack > stat.layout.start_brk && stat.layout.env_end > stat.layout.arg_start
        );
    }

    #[test]
    fn status_is_read() {
        let text = b"Name:\ta\\\\n\\nz\xff\nUmask:\t0022\nNSpid:\t40\t2\nNStgid:\t39\t1\nNSpgid:\t39\t1\nNSsid:\t0\t0\n\
                    Uid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \nSigIgn:\t1000\nSigCgt:\t4002\n\
                    CapInh:\t1\nCapPrm:\t2\nCapEff:\t3\nCapBnd:\t1ff\nCapAmb:\t0\nNoNewPrivs:\t1\nSeccomp:\t2\n\
                    Seccomp_filters:\t15\nTHP_enabled:\t1\n";
        let status = parse_status(text);
        assert_eq!(status.comm, b"a\\n\nz\xff");
        let c = &status.credentials;
        assert_eq!((c.uids, c.gids, c.groups.as_slice()), ([1, 2, 3, 4], [5, 6, 7, 8], &[9, 10][..]));
        assert_eq!(c.caps, [1, 2, 3, 0x1ff, 0]);
        assert_eq!(
            (status.umask, status.no_new_privs, status.seccomp, status.seccomp_filters),
            (0o22, true, 2, 15)
        );
        assert_eq!(status.inner, Ids { tid: 2, pid: 1, pgid: 1, sid: 0 });
        assert_eq!(status.outer, Ids { tid: 40, pid: 39, pgid: 39, sid: 0 });
        assert_eq!((status.pid_namespaces, status.thp_disabled), (2, false));
        assert_eq!((status.ignored, status.caught), (0x1000, 0x4002));
    }

    #[test]
    fn limits_are_read_by_number() {
        let own = parse_limits(&std::fs::read_to_string("/proc/self/limits").unwrap()).unwrap();
        assert_eq!(own.len(), 16);
        assert!(own.iter().all(|(soft, hard)| soft <= hard));
        let (soft, _) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(own[7].0, soft);
        assert_eq!(parse_limits("Max cpu time   unlimited  unlimited  seconds\n"), None);
    }

    #[test]
    fn timers_are_read_or_refused() {
        let text = "ID: 2\nsignal: 10/00007f00deadbeef\nnotify: signal/pid.77\nClockID: 1\n\
                    ID: 5\nsignal: 34/0000000000000000\nnotify: signal/tid.78\nClockID: -6\n";
        let timers = parse_timers(text).unwrap();
        assert_eq!(
            timers[0],
            Timer { id: 2, signal: 10, value: 0x7f00_dead_beef, notify: 0, target: 77, clock: 1 }
        );
        assert_eq!((timers[1].notify, timers[1].target, timers[1].clock), (4, 78, -6));
        assert_eq!(parse_timers(""), Some(vec![]));
        assert_eq!(parse_timers("signal: 1/2\n"), None);
        assert_eq!(parse_timers("ID: 1\nnotify: bell/pid.1\n"), None);
    }
}
