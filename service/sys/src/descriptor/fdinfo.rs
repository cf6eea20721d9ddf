//! /proc/PID/fdinfo/N (proc_pid_fdinfo(5)).
//!
//! ```text
//! pos:    1024                  lock:   1: FLOCK  ADVISORY  WRITE 359 00:13:11691 0 EOF
//! flags:  0100002   (octal)     tfd: 5 events: 1d data: ffffffff00000005  pos:0 ino:61af sdev:7
//! mnt_id: 15                    inotify wd:3 ino:9e7e sdev:800013 mask:800afce ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:7e9e0000640d1b6d
//! ino:    63107                 eventfd-count: 5a · sigmask: 0000000000000006 · clockid: 0 … · Pid: 4711
//! ```

/// What the kernel tells of one descriptor. Lines that are not known are left out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FdInfo {
    /// File offset.
    pub pos: u64,
    /// Access mode and status flags, with O_CLOEXEC where the descriptor has FD_CLOEXEC.
    pub flags: u32,
    /// Mount it was opened through (mountinfo).
    pub mnt_id: u64,
    /// Locks held through it, or on its file by its table.
    pub locks: Vec<LockLine>,
    /// eventfd: the counter.
    pub eventfd_count: Option<u64>,
    /// eventfd: EFD_SEMAPHORE; `None` where the kernel does not tell (before Linux 6.5).
    pub eventfd_semaphore: Option<bool>,
    /// epoll: the interest list.
    pub epoll: Vec<EpollLine>,
    /// timerfd.
    pub timer: Option<TimerLine>,
    /// signalfd: the mask.
    pub sigmask: Option<u64>,
    /// inotify: the watches.
    pub inotify: Vec<InotifyLine>,
    /// fanotify: flags of fanotify_init(2), and of the descriptors that come with events.
    pub fanotify: Option<(u32, u32)>,
    /// fanotify: the marks.
    pub fanotify_marks: Vec<FanotifyLine>,
    /// pidfd: the process in the reader's PID namespace; -1 when it has been waited for, 0 when it is not in it.
    pub pid: Option<i32>,
}

/// `tfd:`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpollLine {
    /// Number the target had.
    pub fd: i32,
    /// EPOLL* bits.
    pub events: u32,
    /// epoll_data.
    pub data: u64,
    /// Inode of the target, 0 before Linux 4.13.
    pub ino: u64,
}

/// timerfd lines; nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TimerLine {
    /// CLOCK_*.
    pub clock: i32,
    /// Expirations not read.
    pub ticks: u64,
    /// Flags of timerfd_settime(2).
    pub flags: u32,
    /// Time left.
    pub value: u64,
    /// Interval.
    pub interval: u64,
}

/// `inotify wd:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InotifyLine {
    /// Watch descriptor.
    pub wd: i32,
    /// Inode.
    pub ino: u64,
    /// Device in the kernel's own form (major << 20 | minor); on btrfs not that of stat(2).
    pub sdev: u64,
    /// IN_* bits, as the kernel keeps them.
    pub mask: u32,
    /// File handle: type and bytes (open_by_handle_at(2)).
    pub handle: (i32, Vec<u8>),
}

/// `fanotify …`: a mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FanotifyLine {
    /// What it is of.
    pub marked: Marked,
    /// FAN_MARK_* bits.
    pub flags: u32,
    /// Events.
    pub mask: u64,
    /// Events that are ignored.
    pub ignored: u64,
}

/// What a mark of fanotify is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Marked {
    /// A file, by number, device in the kernel's own form, and handle.
    Inode {
        /// Inode.
        ino: u64,
        /// Device.
        sdev: u64,
        /// File handle: type and bytes.
        handle: (i32, Vec<u8>),
    },
    /// A mount.
    Mount {
        /// Its id, as in mountinfo.
        id: u64,
    },
    /// A file system.
    FileSystem {
        /// Device.
        sdev: u64,
    },
    /// Something else.
    Other,
}

/// `lock:`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockLine {
    /// What kind.
    pub kind: LockKind,
    /// For writing, else for reading.
    pub write: bool,
    /// A lease that its holder is asked to give back.
    pub breaking: bool,
    /// First byte.
    pub start: u64,
    /// Last byte; `None` to the end of the file.
    pub end: Option<u64>,
}

/// Who owns a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockKind {
    /// fcntl(2) F_SETLK: the descriptor table.
    Posix,
    /// flock(2): the description.
    Flock,
    /// F_OFD_SETLK: the description.
    Ofd,
    /// F_SETLEASE: the description.
    Lease,
    /// Delegations and layouts, of a file server.
    Delegation,
}

/// Parses fdinfo. A line that is known but cannot be read is an error with that line.
pub fn parse(text: &str) -> Result<FdInfo, String> {
    let mut info = FdInfo::default();
    for line in text.lines() {
        parse_line(&mut info, line).ok_or_else(|| line.to_owned())?;
    }
    Ok(info)
}

fn parse_line(info: &mut FdInfo, line: &str) -> Option<()> {
    if line.starts_with("inotify wd:") {
        info.inotify.push(parse_inotify(line)?);
        return Some(());
    }
    if let Some(rest) = line.strip_prefix("fanotify ") {
        return parse_fanotify(info, rest);
    }
    let Some((key, value)) = line.split_once(':') else { return Some(()) };
    let value = value.trim();
    match key.trim() {
        "pos" => info.pos = value.parse::<i64>().ok()? as u64,
        "flags" => info.flags = u32::from_str_radix(value, 8).ok()?,
        "mnt_id" => info.mnt_id = value.parse().ok()?,
        "lock" => info.locks.push(parse_lock(value)?),
        "eventfd-count" => info.eventfd_count = Some(u64::from_str_radix(value, 16).ok()?),
        "eventfd-semaphore" => info.eventfd_semaphore = Some(value == "1"),
        "sigmask" => info.sigmask = Some(u64::from_str_radix(value, 16).ok()?),
        "Pid" => info.pid = Some(value.parse().ok()?),
        "tfd" => info.epoll.push(parse_epoll(value)?),
        "clockid" => timer(info).clock = value.parse().ok()?,
        "ticks" => timer(info).ticks = value.parse().ok()?,
        "settime flags" => timer(info).flags = u32::from_str_radix(value, 8).ok()?,
        "it_value" => timer(info).value = parse_time(value)?,
        "it_interval" => timer(info).interval = parse_time(value)?,
        _ => {}
    }
    Some(())
}

fn timer(info: &mut FdInfo) -> &mut TimerLine {
    info.timer.get_or_insert_default()
}

/// `(1, 49406829)` in nanoseconds.
fn parse_time(value: &str) -> Option<u64> {
    let (sec, nsec) = value.strip_prefix('(')?.strip_suffix(')')?.split_once(',')?;
    let sec: u64 = sec.trim().parse().ok()?;
    sec.checked_mul(1_000_000_000)?.checked_add(nsec.trim().parse().ok()?)
}

/// The words of a line after its first, with each `key: value` or `key:value` as a pair.
fn pairs(text: &str) -> Vec<(&str, &str)> {
    let mut pairs = Vec::new();
    let mut words = text.split_whitespace();
    while let Some(word) = words.next() {
        if let Some((key, value)) = word.split_once(':') {
            let value = if value.is_empty() { words.next().unwrap_or("") } else { value };
            pairs.push((key, value));
        }
    }
    pairs
}

fn hex(pairs: &[(&str, &str)], key: &str) -> Option<u64> {
    let (_, value) = pairs.iter().find(|(k, _)| *k == key)?;
    u64::from_str_radix(value, 16).ok()
}

fn parse_epoll(value: &str) -> Option<EpollLine> {
    let fd = value.split_whitespace().next()?.parse().ok()?;
    let pairs = pairs(value);
    Some(EpollLine {
        fd,
        events: u32::try_from(hex(&pairs, "events")?).ok()?,
        data: hex(&pairs, "data")?,
        ino: hex(&pairs, "ino").unwrap_or(0),
    })
}

fn parse_inotify(line: &str) -> Option<InotifyLine> {
    let pairs = pairs(line.strip_prefix("inotify ")?);
    Some(InotifyLine {
        wd: i32::try_from(hex(&pairs, "wd")?).ok()?,
        ino: hex(&pairs, "ino")?,
        sdev: hex(&pairs, "sdev")?,
        mask: u32::try_from(hex(&pairs, "mask")?).ok()?,
        handle: parse_handle(&pairs)?,
    })
}

fn parse_handle(pairs: &[(&str, &str)]) -> Option<(i32, Vec<u8>)> {
    let (_, handle) = pairs.iter().find(|(key, _)| *key == "f_handle").copied().unwrap_or(("", ""));
    let handle: Option<Vec<u8>> = (0..handle.len() / 2)
        .map(|i| handle.get(2 * i..2 * i + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok()))
        .collect();
    Some((i32::try_from(hex(pairs, "fhandle-type").unwrap_or(0)).ok()?, handle?))
}

/// `flags:3 event-flags:8000`; `mnt_id:12 mflags:40 mask:38 ignored_mask:40000003`; `sdev:800013 mflags:0 …`; `ino:4f969 sdev:800013 mflags:0 …
/// fhandle-bytes:8 fhandle-type:1 f_handle:69f90400c275b5b4`.
fn parse_fanotify(info: &mut FdInfo, text: &str) -> Option<()> {
    let pairs = pairs(text);
    let number = |key| hex(&pairs, key);
    if let (Some(flags), Some(event_flags)) = (number("flags"), number("event-flags")) {
        info.fanotify = Some((u32::try_from(flags).ok()?, u32::try_from(event_flags).ok()?));
        return Some(());
    }
    let marked = match (number("ino"), number("sdev"), number("mnt_id")) {
        (Some(ino), Some(sdev), _) => Marked::Inode { ino, sdev, handle: parse_handle(&pairs)? },
        (None, Some(sdev), _) => Marked::FileSystem { sdev },
        (None, None, Some(id)) => Marked::Mount { id },
        _ => Marked::Other,
    };
    info.fanotify_marks.push(FanotifyLine {
        marked,
        flags: u32::try_from(number("mflags")?).ok()?,
        mask: number("mask")?,
        ignored: number("ignored_mask")?,
    });
    Some(())
}

/// `1: FLOCK  ADVISORY  WRITE 359 00:13:11691 0 EOF`.
fn parse_lock(value: &str) -> Option<LockLine> {
    let words: Vec<&str> = value.split_whitespace().collect();
    let [_, kind, how, mode, .., start, end] = words.as_slice() else { return None };
    let kind = match *kind {
        "POSIX" => LockKind::Posix,
        "FLOCK" => LockKind::Flock,
        "OFDLCK" => LockKind::Ofd,
        "LEASE" => LockKind::Lease,
        "DELEG" | "LAYOUT" | "ACCESS" => LockKind::Delegation,
        _ => return None,
    };
    let end = if *end == "EOF" { None } else { Some(end.parse().ok()?) };
    let breaking = *how == "BREAKING" || *how == "BREAKER";
    Some(LockLine { kind, write: *mode == "WRITE", breaking, start: start.parse().ok()?, end })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_manual_is_read() {
        let table: &[(&str, FdInfo)] = &[
            (
                "pos:\t1024\nflags:\t02100002\nmnt_id:\t15\nino:\t63107\n",
                FdInfo { pos: 1024, flags: 0o2100002, mnt_id: 15, ..Default::default() },
            ),
            (
                "eventfd-count:               5a\neventfd-id: 1\neventfd-semaphore: 1\n",
                FdInfo { eventfd_count: Some(0x5a), eventfd_semaphore: Some(true), ..Default::default() },
            ),
            (
                "tfd:       10 events:       1d data:         ffffffff0000000a  pos:0 ino:61af sdev:7\n",
                FdInfo {
                    epoll: vec![EpollLine { fd: 10, events: 0x1d, data: 0xffffffff0000000a, ino: 0x61af }],
                    ..Default::default()
                },
            ),
            (
                "clockid: 1\nticks: 3\nsettime flags: 01\nit_value: (0, 49406829)\nit_interval: (1, 5)\n",
                FdInfo {
                    timer: Some(TimerLine {
                        clock: 1,
                        ticks: 3,
                        flags: 1,
                        value: 49406829,
                        interval: 1_000_000_005,
                    }),
                    ..Default::default()
                },
            ),
            (
                "inotify wd:3 ino:9e7e sdev:800013 mask:800afce ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:7e9e0000640d1b6d\n",
                FdInfo {
                    inotify: vec![InotifyLine {
                        wd: 3,
                        ino: 0x9e7e,
                        sdev: 0x800013,
                        mask: 0x800afce,
                        handle: (1, vec![0x7e, 0x9e, 0, 0, 0x64, 0x0d, 0x1b, 0x6d]),
                    }],
                    ..Default::default()
                },
            ),
            (
                "lock:\t1: FLOCK  ADVISORY  WRITE 359 00:13:11691 0 EOF\nlock:\t2: POSIX  ADVISORY  READ 359 00:13:11691 10 19\nlock:\t1: OFDLCK ADVISORY  WRITE -1 00:23:2 0 EOF\n",
                FdInfo {
                    locks: vec![
                        LockLine { kind: LockKind::Flock, write: true, breaking: false, start: 0, end: None },
                        LockLine {
                            kind: LockKind::Posix,
                            write: false,
                            breaking: false,
                            start: 10,
                            end: Some(19),
                        },
                        LockLine { kind: LockKind::Ofd, write: true, breaking: false, start: 0, end: None },
                    ],
                    ..Default::default()
                },
            ),
            (
                "sigmask:\t0000000000000006\nPid:\t-1\nNSpid:\t\nscm_fds: 0\n",
                FdInfo { sigmask: Some(6), pid: Some(-1), ..Default::default() },
            ),
        ];
        for (text, info) in table {
            assert_eq!(parse(text).as_ref(), Ok(info), "{text}");
        }
    }

    #[test]
    fn a_line_that_cannot_be_read_is_told() {
        for line in ["pos:\tx", "flags:\t9", "tfd: x events: 1", "lock:\t1: MOON A B 1 2 3 4"] {
            assert_eq!(parse(line), Err(line.to_owned()));
        }
    }
}
