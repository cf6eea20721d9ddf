//! What only a member can do, or only when members exist: POSIX locks, who gets SIGIO, pidfds, files of /proc/PID.

use std::collections::{HashMap, HashSet};
use std::os::unix::ffi::OsStrExt;

use ckpt_image::records::{
    DescriptionId, DescriptionKind, DescriptionRecord, EpollItem, FdTableId, FdTableRecord, GroupImage, Pid,
    TerminalEnd, TerminalRecord, UnixState,
};
use ckpt_sys::descriptor::make;
use nix::libc;

/// A system call to be made in a member, when all members exist and have their ids (uid, gid), before their seccomp filters are in place.
/// Its descriptors are at their numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LateCall {
    /// The member.
    pub pid: Pid,
    /// System call number.
    pub nr: i64,
    /// Arguments.
    pub args: [u64; 6],
    /// Bytes to be put in the member's memory, and the argument that is to be their address.
    pub data: Option<(usize, Vec<u8>)>,
    /// The result is a new descriptor that is to be moved to these numbers (true: with FD_CLOEXEC), with dup3, and closed.
    pub moved_to: Vec<(i32, bool)>,
    /// A failure ends the restore; else it is a warning.
    pub must: bool,
    /// What it does, for messages.
    pub what: String,
}

const F_SETSIG: u64 = 10;
const F_SETOWN_EX: u64 = 15;

/// The calls for a whole group, in the order in which they are to be made (all of one member may be made as one batch; an epoll item
/// comes after the descriptor it is for).
pub fn calls(image: &GroupImage) -> Vec<LateCall> {
    let mut calls = Vec::new();
    let mut done: HashSet<FdTableId> = HashSet::new();
    let mut owned: HashSet<DescriptionId> = HashSet::new();
    let mut leased: HashSet<DescriptionId> = HashSet::new();
    let mut watched: HashSet<(DescriptionId, EpollItem)> = HashSet::new();
    for process in &image.processes {
        let Some(body) = &process.body else { continue };
        let Some(table) = image.fd_tables.get(body.fd_table.index()) else { continue };
        if !done.insert(table.id) {
            continue;
        }
        let member = Member { image, pid: process.pid, table };
        member.opens(&mut calls);
        member.watches(&mut calls, &mut watched);
        member.locks(&mut calls);
        member.leases(&mut calls, &mut leased);
        member.owners(&mut calls, &mut owned);
        member.listens(&mut calls);
    }
    calls.extend(registrations(image));
    calls
}

/// mq_notify(3) with SIGEV_NONE: the process tells nobody else to be told.
fn registrations(image: &GroupImage) -> impl Iterator<Item = LateCall> {
    image.queues.iter().enumerate().filter_map(|(index, queue)| {
        let pid = queue.registered?;
        let process = image.processes.iter().find(|process| process.pid == pid)?;
        let table = image.fd_tables.get(process.body.as_ref()?.fd_table.index())?;
        let is_it = |id: DescriptionId| {
            let kind = image.descriptions.get(id.index()).map(|record| &record.kind);
            matches!(kind, Some(DescriptionKind::MessageQueue { queue }) if queue.index() == index)
        };
        let fd = table.descriptors.iter().find(|d| is_it(d.description))?.fd;
        // struct sigevent: value, signal, method.
        let mut event = vec![0; 64];
        event[12..16].copy_from_slice(&libc::SIGEV_NONE.to_ne_bytes());
        let args = [fd as u64, 0, 0, 0, 0, 0];
        let (nr, what) = (libc::SYS_mq_notify, format!("mq_notify of fd {fd}"));
        Some(LateCall { pid, nr, args, data: Some((1, event)), moved_to: Vec::new(), must: true, what })
    })
}

struct Member<'i> {
    image: &'i GroupImage,
    pid: Pid,
    table: &'i FdTableRecord,
}

impl<'i> Member<'i> {
    /// Its descriptors with their descriptions, each description once, with its first number.
    fn descriptions(&self) -> impl Iterator<Item = (i32, &'i DescriptionRecord)> {
        let mut seen = HashSet::new();
        let first = self.table.descriptors.iter().filter(move |d| seen.insert(d.description));
        first.filter_map(|d| Some((d.fd, self.image.descriptions.get(d.description.index())?)))
    }

    fn number(&self, id: DescriptionId) -> Option<i32> {
        self.table.descriptors.iter().find(|d| d.description == id).map(|d| d.fd)
    }

    fn call(&self, nr: libc::c_long, args: [u64; 6], what: String) -> LateCall {
        LateCall { pid: self.pid, nr, args, data: None, moved_to: Vec::new(), must: true, what }
    }

    /// pidfds and files of /proc/PID.
    fn opens(&self, calls: &mut Vec<LateCall>) {
        for (_, record) in self.descriptions() {
            let numbers = self.table.descriptors.iter().filter(|d| d.description == record.id);
            let moved_to = numbers.map(|d| (d.fd, d.cloexec)).collect();
            let call = match &record.kind {
                DescriptionKind::Pidfd(pidfd) => {
                    // PIDFD_THREAD is O_EXCL (Linux 6.9).
                    let flags = record.flags & (libc::O_NONBLOCK | libc::O_EXCL) as u32;
                    let args = [pidfd.pid.0 as u64, flags.into(), 0, 0, 0, 0];
                    self.call(libc::SYS_pidfd_open, args, format!("pidfd of {}", pidfd.pid))
                }
                DescriptionKind::ProcFile { path, .. } => {
                    let args = [libc::AT_FDCWD as u64, 0, record.flags.into(), 0, 0, 0];
                    let mut name = path.as_os_str().as_bytes().to_vec();
                    name.push(0);
                    let call = self.call(libc::SYS_openat, args, format!("open {}", path.display()));
                    LateCall { data: Some((1, name)), ..call }
                }
                DescriptionKind::Terminal(TerminalRecord { end: TerminalEnd::Own, .. }) => {
                    let args = [libc::AT_FDCWD as u64, 0, record.flags.into(), 0, 0, 0];
                    let call = self.call(libc::SYS_openat, args, "open /dev/tty".to_owned());
                    LateCall { data: Some((1, b"/dev/tty\0".to_vec())), must: false, ..call }
                }
                _ => continue,
            };
            calls.push(LateCall { moved_to, ..call });
            let number = self.number(record.id).filter(|_| record.offset != 0);
            if let (Some(fd), DescriptionKind::ProcFile { path, .. }) = (number, &record.kind) {
                let args = [fd as u64, record.offset, libc::SEEK_SET as u64, 0, 0, 0];
                let call = self.call(libc::SYS_lseek, args, format!("go on in {}", path.display()));
                calls.push(LateCall { must: false, ..call });
            }
        }
    }

    /// A lease remembers the process that it was given to.
    fn leases(&self, calls: &mut Vec<LateCall>, leased: &mut HashSet<DescriptionId>) {
        for (fd, record) in self.descriptions() {
            let DescriptionKind::File { lease: Some(kind), .. } = record.kind else { continue };
            if leased.insert(record.id) {
                let args = [fd as u64, libc::F_SETLEASE as u64, kind as u64, 0, 0, 0];
                let call = self.call(libc::SYS_fcntl, args, format!("lease of fd {fd}"));
                calls.push(LateCall { must: false, ..call });
            }
        }
    }

    /// Items of epoll instances whose target was made late, and only is at its number here.
    fn watches(&self, calls: &mut Vec<LateCall>, watched: &mut HashSet<(DescriptionId, EpollItem)>) {
        let numbers: HashMap<i32, DescriptionId> =
            self.table.descriptors.iter().map(|d| (d.fd, d.description)).collect();
        for (fd, record) in self.descriptions() {
            let DescriptionKind::Epoll(epoll) = &record.kind else { continue };
            let here = |item: &&EpollItem| {
                is_late(self.image, item.target) && numbers.get(&item.fd) == Some(&item.target)
            };
            for item in epoll.items.iter().filter(here) {
                if !watched.insert((record.id, *item)) {
                    continue;
                }
                let args = [fd as u64, libc::EPOLL_CTL_ADD as u64, item.fd as u64, 0, 0, 0];
                let mut event = item.events.to_ne_bytes().to_vec();
                event.extend_from_slice(&item.data.to_ne_bytes());
                let call = self.call(libc::SYS_epoll_ctl, args, format!("epoll item {}", item.fd));
                calls.push(LateCall { data: Some((3, event)), ..call });
            }
        }
    }

    fn locks(&self, calls: &mut Vec<LateCall>) {
        for lock in &self.table.posix_locks {
            let Some(fd) = self.number(lock.description) else { continue };
            let args = [fd as u64, libc::F_SETLK as u64, 0, 0, 0, 0];
            let call = self.call(libc::SYS_fcntl, args, format!("lock on fd {fd}"));
            let bytes = make::flock_bytes(lock.kind, lock.start, lock.len).to_vec();
            calls.push(LateCall { data: Some((2, bytes)), ..call });
        }
    }

    /// F_SETOWN_EX remembers the ids of its caller, and O_ASYNC the descriptor's number, so the first member that has the description calls.
    fn owners(&self, calls: &mut Vec<LateCall>, owned: &mut HashSet<DescriptionId>) {
        for (fd, record) in self.descriptions().filter(|(_, record)| owned.insert(record.id)) {
            self.owner(calls, fd, record);
            if record.flags & libc::O_ASYNC as u32 != 0 && record.flags & libc::O_PATH as u32 == 0 {
                let args = [fd as u64, libc::F_SETFL as u64, record.flags.into(), 0, 0, 0];
                calls.push(self.call(libc::SYS_fcntl, args, format!("O_ASYNC of fd {fd}")));
            }
        }
    }

    fn owner(&self, calls: &mut Vec<LateCall>, fd: i32, record: &DescriptionRecord) {
        if let Some(owner) = record.owner {
            let args = [fd as u64, F_SETOWN_EX, 0, 0, 0, 0];
            let bytes = [owner.kind.to_ne_bytes(), owner.pid.0.to_ne_bytes()].concat();
            let call = self.call(libc::SYS_fcntl, args, format!("owner of fd {fd}"));
            calls.push(LateCall { data: Some((2, bytes)), must: false, ..call });
            if owner.signal != 0 {
                let args = [fd as u64, F_SETSIG, owner.signal as u64, 0, 0, 0];
                calls.push(self.call(libc::SYS_fcntl, args, format!("signal of fd {fd}")));
            }
        }
    }

    /// listen(2) once more tells later peers who listens (SO_PEERCRED): the member that did.
    fn listens(&self, calls: &mut Vec<LateCall>) {
        for (fd, record) in self.descriptions() {
            let DescriptionKind::Unix(unix) = &record.kind else { continue };
            let UnixState::Listening { backlog, activated: false } = unix.state else { continue };
            if unix.credentials.is_some_and(|(pid, ..)| pid == self.pid) {
                let args = [fd as u64, backlog as u64, 0, 0, 0, 0];
                let call = self.call(libc::SYS_listen, args, format!("listen on fd {fd}"));
                calls.push(LateCall { must: false, ..call });
            }
        }
    }
}

fn is_late(image: &GroupImage, id: DescriptionId) -> bool {
    let kind = image.descriptions.get(id.index()).map(|record| &record.kind);
    let own = TerminalEnd::Own;
    match kind {
        Some(DescriptionKind::Pidfd(_) | DescriptionKind::ProcFile { .. }) => true,
        Some(DescriptionKind::Terminal(terminal)) => terminal.end == own,
        _ => false,
    }
}
