//! Making every open file description of a group again, in ckpt-restore, before its members exist.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use ckpt_image::records::{
    Conversation, DescriptionId, DescriptionKind, DescriptionRecord, FileId, FileRecord, GroupImage,
    ObjectId, Pid, PipeId, QueueId, UnitIndex,
};
use ckpt_sys::descriptor::{self, make};
use nix::libc;

use super::stand_in::StandIns;
use super::terminal::{Controlling, Terminals};
use super::unix_name::Aside;
use super::{
    Error, epoll, eventfd, fanotify, file, inet, inotify, io_uring, memfd, message_queue, netlink, packet,
    pipe, signalfd, terminal, timerfd, unix_name, unix_peer,
};
use crate::{Problem, Severity};

mod files;

pub use files::OpenFiles;

/// What the rebuild needs of ckpt-restore. Errors are sentences.
pub trait Host {
    /// Moves the calling thread to the namespaces (mnt, net, ipc, uts) and root of a unit.
    fn enter(&mut self, unit: UnitIndex) -> Result<(), String>;
    /// The pid of the stub that systemd started for a unit.
    fn stub(&self, unit: UnitIndex) -> Option<i32>;
    /// A descriptor, open for reading and writing, of a shared memory object with its content in it.
    fn object(&mut self, object: ObjectId) -> Result<OwnedFd, String>;
    /// A connection to outside the group that was held through the restore.
    fn held(&mut self, conversation: &Conversation) -> Option<OwnedFd>;
    /// An executable or a library as the checkpoint kept it, if it did.
    fn pinned(&self, file: &FileRecord) -> Option<OwnedFd>;
    /// Writes the content that the image has of a file into a new, empty file; its size is set by the caller.
    fn content(&mut self, file: FileId, into: BorrowedFd<'_>) -> Result<(), String>;
}

/// The descriptions of a group, made.
#[derive(Debug)]
pub struct Descriptions {
    fds: Vec<Option<OwnedFd>>,
    /// Files that were opened on the way; opens more.
    pub files: OpenFiles,
    /// What is not as it was; nothing here ends the restore.
    pub warnings: Vec<Problem>,
    terminals: Terminals,
    /// By pid of a member in a PID namespace of its own, the one in ours that sockets know it by, once it has it.
    pub outer: BTreeMap<Pid, i32>,
}

impl Descriptions {
    /// Makes all descriptions of the image. Each gets a number not below `floor`, which must be above every number that a member uses; what
    /// is at numbers below it is put aside for moments, so no other thread may use them. Leaves the caller in whatever unit's namespaces came last.
    pub fn rebuild(image: &GroupImage, host: &mut dyn Host, floor: RawFd) -> Result<Self, Error> {
        let mut cx = Rebuild::new(image, host, floor)?;
        match cx.run() {
            Ok(()) => Ok(Self {
                fds: cx.fds,
                files: cx.files,
                warnings: cx.warnings,
                terminals: cx.terminals,
                outer: cx.stand_ins.into_outer(),
            }),
            Err(e) => {
                unix_name::abandon(&mut cx);
                Err(e)
            }
        }
    }

    /// The descriptor of a description. `None` for those that only a member can make: [`late`](super::late) has calls for them.
    pub fn get(&self, id: DescriptionId) -> Option<BorrowedFd<'_>> {
        self.fds.get(id.index())?.as_ref().map(AsFd::as_fd)
    }

    /// What opens more files, and the descriptors, by [`DescriptionId`].
    pub fn parts(&mut self) -> (&mut OpenFiles, &[Option<OwnedFd>]) {
        (&mut self.files, &self.fds)
    }

    /// The terminals that control sessions, to be made so by the leader of each, before it has children.
    pub fn controlling(&self, image: &GroupImage) -> Vec<Controlling> {
        self.terminals.controlling(image)
    }

    /// Takes away what the rebuild itself has made inotify and fanotify instances tell. To be called last.
    pub fn quiet(&self, image: &GroupImage) {
        let is_fanotify = |record: &&DescriptionRecord| matches!(record.kind, DescriptionKind::Fanotify(_));
        for fd in image.descriptions.iter().filter(is_fanotify).filter_map(|record| self.get(record.id)) {
            let _ = make::fanotify_drain(fd);
        }
        let is_inotify = |record: &&DescriptionRecord| matches!(record.kind, DescriptionKind::Inotify(_));
        for fd in image.descriptions.iter().filter(is_inotify).filter_map(|record| self.get(record.id)) {
            // Events too many are less bad than no restore.
            let _ = inotify::drain(fd);
        }
    }

    /// The largest number in use, to raise RLIMIT_NOFILE by and to know where free ones are.
    pub fn highest(&self) -> RawFd {
        self.fds.iter().flatten().map(AsRawFd::as_raw_fd).max().unwrap_or(0)
    }
}

/// The rebuild under way: what the kinds work with.
pub(super) struct Rebuild<'i> {
    pub image: &'i GroupImage,
    pub host: &'i mut dyn Host,
    floor: RawFd,
    unit: Option<UnitIndex>,
    /// The first number of each description, for messages.
    numbers: HashMap<DescriptionId, RawFd>,
    fds: Vec<Option<OwnedFd>>,
    pub files: OpenFiles,
    /// Each pipe while its ends are made.
    pub pipes: HashMap<PipeId, pipe::Held>,
    /// Each POSIX message queue while it is opened.
    pub queues: HashMap<QueueId, OwnedFd>,
    /// Addresses at which unix sockets can be connected to before they are published.
    pub reach: HashMap<DescriptionId, Vec<u8>>,
    /// Other ends that will be closed.
    pub ends: HashMap<DescriptionId, OwnedFd>,
    pub terminals: Terminals,
    /// Who has called for members while unix sockets are made.
    pub stand_ins: StandIns,
    /// Memory files whose first description is made.
    pub memfds: HashSet<ObjectId>,
    pub aside: Vec<Aside>,
    pub asides: u32,
    warnings: Vec<Problem>,
}

type Step<'i> = fn(&mut Rebuild<'i>, &'i DescriptionRecord) -> Result<(), Error>;

impl<'i> Rebuild<'i> {
    fn new(image: &'i GroupImage, host: &'i mut dyn Host, floor: RawFd) -> Result<Self, Error> {
        Ok(Self {
            image,
            host,
            floor,
            unit: None,
            numbers: first_numbers(image),
            fds: (0..image.descriptions.len()).map(|_| None).collect(),
            files: OpenFiles::new(floor)?,
            pipes: HashMap::new(),
            queues: HashMap::new(),
            reach: HashMap::new(),
            ends: HashMap::new(),
            terminals: Terminals::default(),
            stand_ins: StandIns::default(),
            memfds: HashSet::new(),
            aside: Vec::new(),
            asides: 0,
            warnings: Vec::new(),
        })
    }

    fn run(&mut self) -> Result<(), Error> {
        self.each(create)?;
        self.each(connect)?;
        self.each(connect_waiting)?;
        self.pipes.clear();
        self.each(pipe::forget_writer)?;
        self.queues.clear();
        self.each(fill)?;
        self.each(finish)?;
        self.ends.clear();
        unix_name::publish(self)?;
        self.each(open_nodes)?;
        self.each(watch)?;
        self.each(status)
    }

    fn each(&mut self, step: Step<'i>) -> Result<(), Error> {
        self.image.descriptions.iter().try_for_each(|record| step(self, record))
    }

    /// Moves to a unit's namespaces, if we are not there.
    pub fn enter(&mut self, unit: UnitIndex) -> Result<(), Error> {
        if self.unit != Some(unit) {
            self.host.enter(unit).map_err(Error::Host)?;
            self.unit = Some(unit);
        }
        Ok(())
    }

    /// The first number that what is made may have.
    pub fn floor(&self) -> RawFd {
        self.floor
    }

    /// Takes over what was made, at a number of its own.
    pub fn put(&mut self, id: DescriptionId, fd: OwnedFd) -> Result<(), Error> {
        let fd = if fd.as_raw_fd() < self.floor {
            descriptor::duplicate_above(fd.as_fd(), self.floor)
                .map_err(Error::call("dup", format!("description {id}")))?
        } else {
            fd
        };
        match self.fds.get_mut(id.index()) {
            Some(place) => *place = Some(fd),
            None => return Err(Error::Dangling(format!("description {id}"))),
        }
        Ok(())
    }

    pub fn has(&self, id: DescriptionId) -> bool {
        self.fds.get(id.index()).is_some_and(Option::is_some)
    }

    pub fn get(&self, id: DescriptionId) -> Result<BorrowedFd<'_>, Error> {
        let fd = self.fds.get(id.index()).and_then(Option::as_ref);
        fd.map(AsFd::as_fd).ok_or_else(|| Error::Dangling(format!("description {id}")))
    }

    pub fn open_file(&mut self, file: FileId, flags: i32) -> Result<OwnedFd, Error> {
        if let Some(record) = self.image.files.get(file.index()) {
            self.enter(record.unit)?;
        }
        let fd = self.files.open_here(self.image, self.host, file, flags)?;
        self.warnings.append(&mut self.files.warnings);
        Ok(fd)
    }

    /// The first of the stub's descriptors that is the one looked for.
    pub fn find_in_stub(&self, unit: UnitIndex, is_it: impl Fn(BorrowedFd<'_>) -> bool) -> Option<OwnedFd> {
        let stub = descriptor::open_process(self.host.stub(unit)?).ok()?;
        // SD_LISTEN_FDS_START is 3; a unit with thousands of sockets is not met.
        (3..1024).map_while(|fd| descriptor::take(stub.as_fd(), fd).ok()).find(|fd| is_it(fd.as_fd()))
    }

    /// What a description is, for messages: `fd 7 (unix socket)`.
    pub fn describe(&self, record: &DescriptionRecord) -> String {
        let place =
            self.numbers.get(&record.id).map_or_else(|| "in flight".to_owned(), |fd| format!("fd {fd}"));
        format!("{place} ({})", kind_name(self.image, &record.kind))
    }

    pub fn warn(&mut self, record: &DescriptionRecord, code: &str, text: String, remedy: &str) {
        self.warnings.push(Problem {
            code: code.to_owned(),
            severity: Severity::Warning,
            unit: self.image.units.get(record.unit.index()).map(|u| u.name.clone()).unwrap_or_default(),
            pid: 0,
            object: self.describe(record),
            text,
            remedy: remedy.to_owned(),
        });
    }
}

/// The first number that each description has in any table.
fn first_numbers(image: &GroupImage) -> HashMap<DescriptionId, RawFd> {
    let mut numbers = HashMap::new();
    for descriptor in image.fd_tables.iter().flat_map(|table| &table.descriptors) {
        numbers.entry(descriptor.description).or_insert(descriptor.fd);
    }
    numbers
}

fn kind_name(image: &GroupImage, kind: &DescriptionKind) -> String {
    let name = match kind {
        DescriptionKind::File { file, .. } => {
            return image.files.get(file.index()).map_or_else(String::new, |f| f.path.display().to_string());
        }
        DescriptionKind::ProcFile { path, .. } => return path.display().to_string(),
        DescriptionKind::Pipe { .. } => "pipe",
        DescriptionKind::Eventfd(_) => "eventfd",
        DescriptionKind::Epoll(_) => "epoll",
        DescriptionKind::Timerfd(_) => "timerfd",
        DescriptionKind::Signalfd(_) => "signalfd",
        DescriptionKind::Inotify(_) => "inotify",
        DescriptionKind::Fanotify(_) => "fanotify",
        DescriptionKind::Pidfd(_) | DescriptionKind::PidfdGone => "pidfd",
        DescriptionKind::Memfd { .. } => "memfd",
        DescriptionKind::Journal { .. } => "journal",
        DescriptionKind::Unix(_) => "unix socket",
        DescriptionKind::Inet(_) => "internet socket",
        DescriptionKind::Netlink(_) => "netlink socket",
        DescriptionKind::Packet(_) => "packet socket",
        DescriptionKind::IoUring(_) => "io_uring",
        DescriptionKind::Terminal(_) => "terminal",
        DescriptionKind::MessageQueue { .. } => "message queue",
    };
    name.to_owned()
}

fn create<'i>(cx: &mut Rebuild<'i>, record: &'i DescriptionRecord) -> Result<(), Error> {
    match &record.kind {
        DescriptionKind::File { file, .. } if is_socket_node(cx.image, *file) => Ok(()),
        DescriptionKind::File { file, .. } => file::create(cx, record, *file),
        DescriptionKind::Pipe { pipe, .. } => pipe::create(cx, record, *pipe),
        DescriptionKind::Eventfd(eventfd) => eventfd::create(cx, record, eventfd),
        DescriptionKind::Epoll(_) => epoll::create(cx, record),
        DescriptionKind::Timerfd(timer) => timerfd::create(cx, record, timer),
        DescriptionKind::Signalfd(signalfd) => signalfd::create(cx, record, signalfd),
        DescriptionKind::Inotify(inotify) => {
            cx.enter(record.unit)?;
            inotify::create(cx, record, inotify)
        }
        DescriptionKind::Fanotify(fanotify) => {
            cx.enter(record.unit)?;
            fanotify::create(cx, record, fanotify)
        }
        DescriptionKind::Memfd { object } => memfd::create(cx, record, *object),
        DescriptionKind::Journal { stderr } => journal(cx, record, *stderr),
        DescriptionKind::Unix(unix) => {
            cx.enter(record.unit)?;
            unix_peer::create(cx, record, unix)
        }
        DescriptionKind::Inet(inet) => inet::create(cx, record, inet),
        DescriptionKind::Netlink(netlink) => netlink::create(cx, record, netlink),
        DescriptionKind::Packet(packet) => packet::create(cx, record, packet),
        DescriptionKind::IoUring(ring) => io_uring::create(cx, record, ring),
        DescriptionKind::MessageQueue { queue } => message_queue::create(cx, record, *queue),
        DescriptionKind::Terminal(terminal) => terminal::create(cx, record, terminal),
        DescriptionKind::PidfdGone => {
            let fd = make::pidfd_gone().map_err(Error::call("clone3", cx.describe(record)))?;
            cx.put(record.id, fd)
        }
        DescriptionKind::Pidfd(_) | DescriptionKind::ProcFile { .. } => Ok(()),
    }
}

/// The stream to the journal that systemd made for the stub is the unit's.
fn journal(cx: &mut Rebuild<'_>, record: &DescriptionRecord, stderr: bool) -> Result<(), Error> {
    let unit = record.unit;
    let stub = cx.host.stub(unit).ok_or_else(|| Error::Host(format!("unit {unit} has no stub")))?;
    let process =
        descriptor::open_process(stub).map_err(Error::call("pidfd_open", format!("stub {stub}")))?;
    let fd = descriptor::take(process.as_fd(), if stderr { 2 } else { 1 })
        .map_err(Error::call("pidfd_getfd", format!("the journal stream of stub {stub}")))?;
    cx.put(record.id, fd)
}

fn connect<'i>(cx: &mut Rebuild<'i>, record: &'i DescriptionRecord) -> Result<(), Error> {
    match &record.kind {
        DescriptionKind::Unix(unix) => {
            cx.enter(record.unit)?;
            unix_peer::connect(cx, record, unix)
        }
        DescriptionKind::Inet(inet) => inet::connect(cx, record, inet),
        _ => Ok(()),
    }
}

fn connect_waiting<'i>(cx: &mut Rebuild<'i>, record: &'i DescriptionRecord) -> Result<(), Error> {
    match &record.kind {
        DescriptionKind::Unix(unix) => {
            cx.enter(record.unit)?;
            unix_peer::connect_waiting(cx, record, unix)
        }
        _ => Ok(()),
    }
}

/// The name of a unix socket (O_PATH), which may be that of a socket that is made here: there when all of them are published.
fn is_socket_node(image: &GroupImage, file: FileId) -> bool {
    image.files.get(file.index()).is_some_and(|file| file.mode & libc::S_IFMT == libc::S_IFSOCK)
}

fn open_nodes<'i>(cx: &mut Rebuild<'i>, record: &'i DescriptionRecord) -> Result<(), Error> {
    match &record.kind {
        DescriptionKind::File { file, .. } if is_socket_node(cx.image, *file) => {
            file::create(cx, record, *file)
        }
        _ => Ok(()),
    }
}

fn fill<'i>(cx: &mut Rebuild<'i>, record: &'i DescriptionRecord) -> Result<(), Error> {
    match &record.kind {
        DescriptionKind::Unix(unix) => {
            cx.enter(record.unit)?;
            unix_peer::fill(cx, record, unix)
        }
        _ => Ok(()),
    }
}

fn finish<'i>(cx: &mut Rebuild<'i>, record: &'i DescriptionRecord) -> Result<(), Error> {
    match &record.kind {
        DescriptionKind::Unix(unix) => unix_peer::finish(cx, record, unix),
        // The name of a socket has no locks, and is not opened yet.
        DescriptionKind::File { file, .. } if is_socket_node(cx.image, *file) => Ok(()),
        DescriptionKind::File { flock, ofd_locks, .. } => file::finish(cx, record, *flock, ofd_locks),
        _ => Ok(()),
    }
}

fn watch<'i>(cx: &mut Rebuild<'i>, record: &'i DescriptionRecord) -> Result<(), Error> {
    match &record.kind {
        DescriptionKind::Epoll(epoll) => epoll::watch(cx, record, epoll),
        _ => Ok(()),
    }
}

/// Status flags that fcntl(2) F_SETFL sets: O_NONBLOCK as a rule; O_APPEND, O_DIRECT and O_NOATIME are as they were opened. O_ASYNC comes late.
fn status<'i>(cx: &mut Rebuild<'i>, record: &'i DescriptionRecord) -> Result<(), Error> {
    let settable = (libc::O_NONBLOCK | libc::O_APPEND | libc::O_DIRECT) as u32;
    // The journal stream is shared with the stub, which is about to end; O_PATH has no flags to set.
    if !cx.has(record.id) || record.flags & libc::O_PATH as u32 != 0 {
        return Ok(());
    }
    let fd = cx.get(record.id)?;
    let failed = |op| Error::call(op, cx.describe(record));
    let now = make::status(fd).map_err(failed("fcntl(F_GETFL)"))?;
    let flags = now & !settable | record.flags & settable;
    if flags == now {
        return Ok(());
    }
    make::set_status(fd, flags).map_err(failed("fcntl(F_SETFL)"))
}
