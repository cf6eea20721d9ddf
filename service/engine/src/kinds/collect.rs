//! The capture of descriptor tables: which descriptors are one description, and what each description is.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;

use ckpt_image::records::{
    DescriptionId, DescriptionKind, DescriptionRecord, DescriptorRecord, FdTableId, FdTableRecord,
    PipeRecord, QueueRecord, UnitIndex,
};
use ckpt_sys::descriptor::fdinfo::{LockKind, LockLine};
use ckpt_sys::descriptor::{self, Place, fdinfo};
use nix::errno::Errno;
use nix::libc;
use nix::sys::stat::{FileStat, fstat};

use super::class::{Class, classify, unknown};
use super::message_queue::{self, OpenQueue};
use super::{
    Refusal, epoll, eventfd, fanotify, file, inet, inotify, io_uring, memfd, netlink, packet, pidfd, pipe,
    signalfd,
};
use super::{terminal, timerfd, unix_socket};
use crate::capture::{Files, Identities, Objects};
use crate::config::TcpChoice;
use crate::{Problem, Severity};

mod records;
mod table;

use table::{add_posix_locks, raise_descriptor_limit, sockets_of};
pub(crate) use table::{numbers, texts_of};

/// How deep to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// All, with the contents of pipes and queues. The group is frozen.
    Contents,
    /// Only what tells whether it could be captured; safe while the group runs.
    Surface,
}

/// What a capture of descriptors gives. Files and objects are in their registries.
#[derive(Debug, Default)]
pub struct Captured {
    /// The tables, in the order they were met.
    pub tables: Vec<FdTableRecord>,
    /// The descriptions. One that was refused is not among them and its descriptors are left out: look at `problems`.
    pub descriptions: Vec<DescriptionRecord>,
    /// The pipes.
    pub pipes: Vec<PipeRecord>,
    /// POSIX message queues, without their messages.
    pub queues: Vec<QueueRecord>,
    /// The same, open.
    pub open_queues: Vec<OpenQueue>,
    /// What cannot be captured (errors) and what will be different (warnings).
    pub problems: Vec<Problem>,
    /// The connections to outside, which stay as long as these do.
    pub outside: Vec<OwnedFd>,
    /// Rings of io_uring(7), by inode.
    pub rings: HashMap<u64, DescriptionId>,
    /// Tables with such rings.
    pub with_rings: HashSet<FdTableId>,
    /// Tables with descriptors through which devices write to memory unseen: rings, and files open with O_DIRECT.
    pub direct: HashSet<FdTableId>,
    /// Descriptions that have O_CLOEXEC themselves, so that fdinfo tells it of each of their descriptors.
    pub kept_cloexec: HashSet<DescriptionId>,
}

/// A description that was met.
#[derive(Debug)]
pub(crate) struct Found {
    pub id: DescriptionId,
    pub unit: UnitIndex,
    /// Where it was met first; for one in flight, our own duplicate.
    pub place: Place,
    /// Our duplicate.
    pub fd: OwnedFd,
    pub link: Vec<u8>,
    pub stat: FileStat,
    pub info: fdinfo::FdInfo,
    /// It was in a queue; `place` is our own.
    pub in_flight: bool,
}

impl Found {
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub fn ino(&self) -> u64 {
        self.stat.st_ino
    }

    pub fn flags(&self) -> u32 {
        self.info.flags & !(libc::O_CLOEXEC as u32)
    }
}

/// Descriptions that may be one: the same inode, opened with the same flags.
type Bucket = (u64, u64, u32);

/// The capture. Give it every process of the group, then [`finish`](Self::finish).
#[derive(Debug)]
pub struct DescriptorCapture<'a> {
    pub(super) depth: Depth,
    units: &'a [String],
    pub(super) files: &'a mut Files,
    pub(super) objects: &'a mut Objects,
    identities: Identities,
    tables: Vec<FdTableRecord>,
    tables_by_order: Vec<(i32, FdTableId)>,
    table_of: HashMap<i32, FdTableId>,
    found: Vec<Arc<Found>>,
    buckets: HashMap<Bucket, Vec<usize>>,
    by_ino: HashMap<u64, Vec<DescriptionId>>,
    /// What the process before had at a number: a child has mostly the same.
    hints: HashMap<RawFd, usize>,
    pub(super) pipes: pipe::Pipes,
    pub(super) queues: message_queue::Queues,
    pub(super) unix: unix_socket::Peers,
    pub(super) inet: inet::Ends,
    systemd_sockets: Option<HashSet<u64>>,
    /// What is to become of TCP connections to outside.
    pub(super) outside: TcpChoice,
    /// Rings in which nothing was under way before anything was captured, by inode.
    quiet_rings: HashSet<u64>,
    problems: Vec<Problem>,
}

impl<'a> DescriptorCapture<'a> {
    /// `units`: their names, in the order of [`UnitIndex`]. `members`: the pids of the group. Raises our own limit of descriptors to its
    /// maximum, since each description is held open until the end.
    pub fn new(
        depth: Depth,
        units: &'a [String],
        members: impl IntoIterator<Item = i32>,
        files: &'a mut Files,
        objects: &'a mut Objects,
    ) -> Self {
        raise_descriptor_limit();
        Self {
            depth,
            units,
            files,
            objects,
            identities: Identities::same(members),
            tables: Vec::new(),
            tables_by_order: Vec::new(),
            table_of: HashMap::new(),
            found: Vec::new(),
            buckets: HashMap::new(),
            by_ino: HashMap::new(),
            hints: HashMap::new(),
            pipes: pipe::Pipes::default(),
            queues: message_queue::Queues::default(),
            unix: unix_socket::Peers::default(),
            inet: inet::Ends::default(),
            systemd_sockets: None,
            outside: TcpChoice::Close,
            quiet_rings: HashSet::new(),
            problems: Vec::new(),
        }
    }

    /// Members that live in a PID namespace of their own know each other by other ids than we do.
    pub fn known_as(self, identities: Identities) -> Self {
        Self { identities, ..self }
    }

    /// What is to become of TCP connections to outside; else they are reset.
    pub fn to_outside(self, outside: TcpChoice) -> Self {
        Self { outside, ..self }
    }

    /// The rings in which nothing was under way when the window opened, by inode; others are refused.
    pub fn with_quiet(self, quiet_rings: HashSet<u64>) -> Self {
        Self { quiet_rings, ..self }
    }

    /// Whether a ring is one of those.
    pub(super) fn is_quiet(&self, ino: u64) -> bool {
        self.quiet_rings.contains(&ino)
    }

    /// Adds a living process: its table, which may be one that is known (CLONE_FILES). Errors: ESRCH and the like of /proc and pidfd_open.
    pub fn add_process(&mut self, pid: i32, unit: UnitIndex) -> Result<FdTableId, Errno> {
        self.add_descriptors(pid, unit, &numbers(pid)?)
    }

    /// The same with only some of its descriptors, ascending.
    pub fn add_descriptors(
        &mut self,
        pid: i32,
        unit: UnitIndex,
        numbers: &[RawFd],
    ) -> Result<FdTableId, Errno> {
        let place = match self.find_table(pid)? {
            Ok(id) => {
                self.table_of.insert(pid, id);
                return Ok(id);
            }
            Err(place) => place,
        };
        let id = self.add_table(pid, unit, &texts_of(pid, numbers)?)?;
        self.tables_by_order.insert(place, (pid, id));
        Ok(id)
    }

    /// A process whose table is none of those that are known, with what [`texts_of`] told of it.
    pub(crate) fn add_table(
        &mut self,
        pid: i32,
        unit: UnitIndex,
        texts: &[(RawFd, String)],
    ) -> Result<FdTableId, Errno> {
        let id = FdTableId(self.tables.len() as u32);
        let process = descriptor::open_process(pid)?;
        let mut table = FdTableRecord { id, descriptors: Vec::new(), posix_locks: Vec::new() };
        for (fd, text) in texts {
            let fd = *fd;
            let Some(info) = self.read_info(pid, unit, fd, text) else { continue };
            let index = self.find(process.as_fd(), Place { pid, fd }, unit, &info)?;
            let Some(index) = index else { continue };
            self.hints.insert(fd, index);
            let cloexec = info.flags & libc::O_CLOEXEC as u32 != 0;
            let description = self.found[index].id;
            table.descriptors.push(DescriptorRecord { fd, cloexec, description });
            add_posix_locks(&mut table.posix_locks, &self.found, index, &info);
        }
        self.tables.push(table);
        self.table_of.insert(pid, id);
        Ok(id)
    }

    /// Its table if it is known, else the place in the order where it belongs.
    fn find_table(&self, pid: i32) -> Result<Result<FdTableId, usize>, Errno> {
        let (mut low, mut high) = (0, self.tables_by_order.len());
        while low < high {
            let middle = (low + high) / 2;
            let (other, id) = self.tables_by_order[middle];
            match descriptor::compare_tables(pid, other)? {
                std::cmp::Ordering::Equal => return Ok(Ok(id)),
                std::cmp::Ordering::Less => high = middle,
                std::cmp::Ordering::Greater => low = middle + 1,
            }
        }
        Ok(Err(low))
    }

    /// fdinfo of a descriptor; `None` if it cannot be understood, which is a problem.
    fn read_info(&mut self, pid: i32, unit: UnitIndex, fd: RawFd, text: &str) -> Option<fdinfo::FdInfo> {
        match fdinfo::parse(text) {
            Ok(info) => Some(info),
            Err(line) => {
                let refusal = Refusal::new(
                    "descriptor-unreadable",
                    format!("the kernel tells of it {line:?}, which is not understood"),
                    "report it, with the version of the kernel",
                );
                self.problem(Severity::Error, unit, pid, format!("fd {fd}"), refusal);
                None
            }
        }
    }

    /// The description at a place: one that is known or a new one.
    fn find(
        &mut self,
        process: BorrowedFd<'_>,
        place: Place,
        unit: UnitIndex,
        info: &fdinfo::FdInfo,
    ) -> Result<Option<usize>, Errno> {
        if let Some(&hint) = self.hints.get(&place.fd)
            && descriptor::compare(place, self.found[hint].place).is_ok_and(std::cmp::Ordering::is_eq)
        {
            return Ok(Some(hint));
        }
        match descriptor::take(process, place.fd) {
            Ok(fd) => self.add(fd, place, unit, info.clone(), false).map(Some),
            Err(Errno::EBADF) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn add(
        &mut self,
        fd: OwnedFd,
        place: Place,
        unit: UnitIndex,
        info: fdinfo::FdInfo,
        in_flight: bool,
    ) -> Result<usize, Errno> {
        let stat = fstat(&fd)?;
        let bucket = (stat.st_dev, stat.st_ino, info.flags & !(libc::O_CLOEXEC as u32));
        let same = self.buckets.entry(bucket).or_default();
        let (mut low, mut high) = (0, same.len());
        while low < high {
            let middle = (low + high) / 2;
            match descriptor::compare(place, self.found[same[middle]].place)? {
                std::cmp::Ordering::Equal => return Ok(same[middle]),
                std::cmp::Ordering::Less => high = middle,
                std::cmp::Ordering::Greater => low = middle + 1,
            }
        }
        let link = nix::fcntl::readlink(format!("/proc/{}/fd/{}", place.pid, place.fd).as_str())?;
        let index = self.found.len();
        same.insert(low, index);
        let id = DescriptionId(index as u32);
        self.by_ino.entry(stat.st_ino).or_default().push(id);
        self.found.push(Arc::new(Found {
            id,
            unit,
            place,
            fd,
            link: link.into_vec(),
            stat,
            info,
            in_flight,
        }));
        Ok(index)
    }

    /// The description of a descriptor that a queue carries.
    pub(super) fn in_flight(&mut self, fd: OwnedFd, unit: UnitIndex) -> Result<DescriptionId, Refusal> {
        let place = Place { pid: std::process::id() as i32, fd: fd.as_raw_fd() };
        let text =
            ckpt_sys::proc_file::read_text(format!("/proc/self/fdinfo/{}", place.fd)).unwrap_or_default();
        let mut info = fdinfo::parse(&text).map_err(|line| {
            Refusal::new("descriptor-unreadable", format!("in flight: {line}"), "report it")
        })?;
        info.locks.retain(|lock| lock.kind != fdinfo::LockKind::Posix);
        let index = self.add(fd, place, unit, info, true).map_err(Refusal::call("kcmp"))?;
        Ok(self.found[index].id)
    }

    /// The descriptions with an inode number.
    pub(super) fn with_ino(&self, ino: u64) -> &[DescriptionId] {
        self.by_ino.get(&ino).map_or(&[], Vec::as_slice)
    }

    /// A description that was met.
    pub(super) fn found(&self, id: DescriptionId) -> &Arc<Found> {
        &self.found[id.index()]
    }

    /// What a process has at a number.
    pub(super) fn at(&self, place: Place) -> Option<DescriptionId> {
        let table = &self.tables[self.table_of.get(&place.pid)?.index()];
        let at = table.descriptors.binary_search_by_key(&place.fd, |d| d.fd).ok()?;
        Some(table.descriptors[at].description)
    }

    /// The numbers under which a description is open, in all tables.
    pub(super) fn numbers_of(&self, id: DescriptionId) -> impl Iterator<Item = RawFd> {
        let all = self.tables.iter().flat_map(|table| &table.descriptors);
        all.filter(move |d| d.description == id).map(|d| d.fd)
    }

    /// The ids of the members.
    pub(super) fn identities(&self) -> &Identities {
        &self.identities
    }

    /// Whether PID 1 holds this socket too: it was passed in by socket activation.
    pub(super) fn is_held_by_systemd(&mut self, ino: u64) -> bool {
        self.systemd_sockets.get_or_insert_with(|| sockets_of(1)).contains(&ino)
    }

    /// Notes something that will not be as it was.
    pub(super) fn warn(&mut self, found: &Found, refusal: Refusal) {
        let pid = if found.in_flight { 0 } else { found.place.pid };
        self.problem(Severity::Warning, found.unit, pid, object(found), refusal);
    }

    /// Notes what stands against a checkpoint.
    pub(super) fn refuse(&mut self, found: &Found, refusal: Refusal) {
        let pid = if found.in_flight { 0 } else { found.place.pid };
        self.problem(Severity::Error, found.unit, pid, object(found), refusal);
    }

    fn problem(&mut self, severity: Severity, unit: UnitIndex, pid: i32, object: String, why: Refusal) {
        self.problems.push(Problem {
            code: why.code.to_owned(),
            severity,
            unit: self.units.get(unit.index()).cloned().unwrap_or_default(),
            pid,
            object,
            text: why.text,
            remedy: why.remedy.to_owned(),
        });
    }

    /// Captures every description that was met, those in flight too.
    pub fn finish(mut self) -> Captured {
        let mut kinds: Vec<Option<DescriptionKind>> = Vec::new();
        while kinds.len() < self.found.len() {
            let found = Arc::clone(&self.found[kinds.len()]);
            kinds.push(match self.kind(&found) {
                Ok(kind) => Some(kind),
                Err(refusal) => {
                    self.refuse(&found, refusal);
                    None
                }
            });
        }
        unix_socket::resolve(&mut self, &mut kinds);
        inet::resolve(&mut self, &mut kinds);
        terminal::resolve(&mut self, &mut kinds);
        let pipes = pipe::resolve(&mut self, &mut kinds);
        self.records(kinds, pipes)
    }

    fn kind(&mut self, found: &Found) -> Result<DescriptionKind, Refusal> {
        let kind = self.kind_without_locks(found)?;
        let of_description = |lock: &LockLine| matches!(lock.kind, LockKind::Flock | LockKind::Ofd);
        match kind {
            DescriptionKind::File { .. } => Ok(kind),
            _ if found.info.locks.iter().any(of_description) => Err(Refusal::new(
                "file-lock",
                "it is locked (flock(2), F_OFD_SETLK), and is no ordinary file: whoever waits for the lock would have it at once",
                "lock a file",
            )),
            _ => Ok(kind),
        }
    }

    fn kind_without_locks(&mut self, found: &Found) -> Result<DescriptionKind, Refusal> {
        match classify(&found.link, found.stat.st_mode, found.info.flags) {
            Class::File => file::capture(self, found),
            Class::Pipe => pipe::capture(self, found),
            Class::Socket => self.socket(found),
            Class::Eventfd => eventfd::capture(self, found),
            Class::Epoll => epoll::capture(self, found),
            Class::Timerfd => timerfd::capture(found),
            Class::Signalfd => signalfd::capture(found),
            Class::Inotify => inotify::capture(self, found),
            Class::Fanotify => fanotify::capture(self, found),
            Class::Pidfd => pidfd::capture(self, found),
            Class::Memfd => memfd::capture(self, found),
            Class::IoUring => io_uring::capture(self, found),
            Class::Namespace(name) => file::namespace(self, found, name),
            Class::Unknown(name) => Err(unknown(name)),
        }
    }

    fn socket(&mut self, found: &Found) -> Result<DescriptionKind, Refusal> {
        let family = descriptor::socket::int_option(found.fd(), libc::SOL_SOCKET, libc::SO_DOMAIN)
            .map_err(Refusal::call("getsockopt(SO_DOMAIN)"))?;
        match family {
            libc::AF_UNIX => unix_socket::capture(self, found),
            libc::AF_INET | libc::AF_INET6 => inet::capture(self, found),
            libc::AF_NETLINK => netlink::capture(self, found),
            libc::AF_PACKET => packet::capture(self, found),
            other => Err(Refusal::new(
                "socket-family",
                format!("a socket of address family {other} cannot be captured"),
                "stop using it before the checkpoint",
            )),
        }
    }
}

fn object(found: &Found) -> String {
    let link = String::from_utf8_lossy(&found.link);
    if found.in_flight { format!("in flight ({link})") } else { format!("fd {} ({link})", found.place.fd) }
}
