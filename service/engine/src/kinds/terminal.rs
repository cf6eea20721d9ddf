//! Pseudo-terminals (pty(7)): those whose master the group has. Any other terminal belongs to somebody outside.
//!
//! The kernel gives a new master the lowest number that is free, so numbers in between are taken for a moment. What waits in a terminal can
//! only be read; it is read and written again, without echo and signals, while nobody runs.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;

use ckpt_image::records::{
    DescriptionId, DescriptionKind, DescriptionRecord, Pid, TerminalEnd, TerminalRecord, TerminalState,
};
use ckpt_sys::descriptor::{socket, terminal};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sys::stat::Mode;

use super::collect::{Depth, DescriptorCapture, Found};
use super::rebuild::Rebuild;
use super::{Error, Refusal, unix_name};

const TTY: (u64, u64) = (5, 0);
const PTMX: (u64, u64) = (5, 2);
/// Major numbers of terminals with a master, 256 of them each.
const SLAVES: std::ops::RangeInclusive<u64> = 136..=143;

/// Whether a character device is a terminal, by its numbers.
pub(super) fn is_terminal(rdev: (u64, u64)) -> bool {
    matches!(rdev.0, 4 | 5) || SLAVES.contains(&rdev.0)
}

fn index_of(rdev: (u64, u64)) -> Option<u32> {
    SLAVES.contains(&rdev.0).then(|| ((rdev.0 - SLAVES.start()) << 8 | rdev.1) as u32)
}

fn outside() -> Refusal {
    let text = "it is a terminal of somebody outside the group";
    Refusal::new("terminal", text, "run the service without one (StandardInput=null)")
}

pub(super) fn capture(
    cx: &mut DescriptorCapture<'_>,
    found: &Found,
    rdev: (u64, u64),
) -> Result<DescriptionKind, Refusal> {
    let (index, end) = match rdev {
        PTMX => {
            let index = terminal::index(found.fd()).map_err(Refusal::call("ioctl(TIOCGPTN)"))?;
            (index, TerminalEnd::Master(Box::new(state(cx, found, index)?)))
        }
        TTY => {
            let device = terminal::device(found.fd()).map_err(Refusal::call("ioctl(TIOCGDEV)"))?;
            let index = index_of((u64::from(device >> 8), u64::from(device & 0xff))).ok_or_else(outside)?;
            (index, TerminalEnd::Own)
        }
        other => {
            let hung_up = socket::ready(found.fd(), 0).unwrap_or(0) & libc::POLLHUP != 0;
            let end = if hung_up { TerminalEnd::HungUp } else { TerminalEnd::Slave };
            (index_of(other).ok_or_else(outside)?, end)
        }
    };
    Ok(DescriptionKind::Terminal(TerminalRecord { index, end }))
}

fn state(cx: &DescriptorCapture<'_>, found: &Found, index: u32) -> Result<TerminalState, Refusal> {
    let fd = found.fd();
    let failed = Refusal::call("ioctl_tty");
    let (session, foreground) = terminal::users(fd);
    let known = |id: i32| if id > 0 { cx.identities().known(id) } else { Pid(0) };
    let node = unix_name::lookup(found.place.pid, &PathBuf::from(format!("/dev/pts/{index}"))).ok();
    Ok(TerminalState {
        settings: terminal::settings(fd).map_err(&failed)?.to_vec(),
        size: terminal::size(fd).map_err(&failed)?,
        packet: terminal::packet(fd).map_err(&failed)?,
        locked: terminal::locked(fd).map_err(&failed)?,
        exclusive: terminal::exclusive(fd).unwrap_or(false),
        slave_closed: socket::ready(fd, 0).unwrap_or(0) & libc::POLLHUP != 0,
        session: known(session),
        foreground: known(foreground),
        node: node.map(|stat| (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid)),
        output: Vec::new(),
        lines: Vec::new(),
        input: Vec::new(),
    })
}

/// Refuses terminals whose master is outside, and takes what waits in the others.
pub(super) fn resolve(cx: &mut DescriptorCapture<'_>, kinds: &mut [Option<DescriptionKind>]) {
    let mut ends: BTreeMap<u32, (Option<usize>, Option<usize>)> = BTreeMap::new();
    for (at, kind) in kinds.iter().enumerate() {
        let Some(DescriptionKind::Terminal(record)) = kind else { continue };
        let (master, slave) = ends.entry(record.index).or_default();
        match record.end {
            TerminalEnd::Master(_) => *master = Some(at),
            TerminalEnd::Slave | TerminalEnd::Own => *slave = Some(at),
            TerminalEnd::HungUp => {}
        }
    }
    for (master, slave) in ends.into_values() {
        let found = |at: usize| cx.found(DescriptionId(at as u32)).clone();
        match (master.map(|at| (at, found(at))), slave.map(found)) {
            (None, Some(slave)) => cx.refuse(&slave, outside()),
            (Some((at, master)), Some(slave)) if cx.depth == Depth::Contents => {
                let Some(Some(DescriptionKind::Terminal(record))) = kinds.get_mut(at) else { continue };
                let TerminalEnd::Master(state) = &mut record.end else { continue };
                if let Err(e) = take_waiting(state, master.fd(), slave.fd()) {
                    cx.refuse(&master, Refusal::call("read of what waits in it")(e));
                }
            }
            _ => {}
        }
    }
}

/// Reads what waits on both sides and writes it again.
fn take_waiting(
    state: &mut TerminalState,
    master: BorrowedFd<'_>,
    slave: BorrowedFd<'_>,
) -> Result<(), Errno> {
    let settings = terminal::settings(master)?;
    let canonical = terminal::is_canonical(&settings);
    if !canonical && socket::readable(master)? == 0 && socket::readable(slave)? == 0 {
        return Ok(());
    }
    terminal::set_packet(master, false)?;
    // A line without an end shows itself only in a terminal that gives no lines.
    let lines = if canonical { read_lines(slave) } else { Ok(Vec::new()) };
    let taken = lines.and_then(|lines| {
        state.lines = lines;
        terminal::set_settings(master, &terminal::raw(&settings))?;
        state.output = read_all(master)?;
        state.input = read_all(slave)?;
        put_waiting(state, &settings, master, slave)
    });
    // What was changed comes back, whatever became of the rest.
    terminal::set_settings(master, &settings)?;
    terminal::set_packet(master, state.packet)?;
    taken
}

/// Lines of a canonical terminal, as they are read.
fn read_lines(slave: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, Errno> {
    let mut lines = Vec::new();
    // Its buffer has 4,096 bytes, so there are no more lines, nor longer ones.
    while lines.len() < 4096
        && socket::ready(slave, libc::POLLIN)? & (libc::POLLIN | libc::POLLHUP) == libc::POLLIN
    {
        let mut line = vec![0; 4096];
        let read = nix::unistd::read(slave, &mut line)?;
        line.truncate(read);
        lines.push(line);
    }
    Ok(lines)
}

/// Writes what is to wait on both sides. Leaves a terminal of lines with settings that have ICANON, since a change of that would make one line
/// of all that waits.
fn put_waiting(
    state: &TerminalState,
    settings: &[u8; terminal::SETTINGS],
    master: BorrowedFd<'_>,
    slave: BorrowedFd<'_>,
) -> Result<(), Errno> {
    terminal::set_settings(master, &terminal::raw(settings))?;
    write_all(slave, &state.output)?;
    let all = || state.lines.iter().flatten().chain(&state.input);
    let end = (1..=u8::MAX).find(|end| *end != b'\n' && !all().any(|byte| byte == end)).unwrap_or(4);
    if terminal::is_canonical(settings) {
        terminal::set_settings(master, &terminal::lines(settings, end))?;
    }
    for line in &state.lines {
        type_in(line, master, slave)?;
        if line.last() != Some(&b'\n') {
            type_in(&[end], master, slave)?;
        }
    }
    type_in(&state.input, master, slave)
}

fn type_in(bytes: &[u8], master: BorrowedFd<'_>, slave: BorrowedFd<'_>) -> Result<(), Errno> {
    for (at, byte) in bytes.iter().enumerate() {
        match terminal::type_in(slave, *byte) {
            Ok(()) => {}
            Err(Errno::EPERM | Errno::EIO) => return write_all(master, &bytes[at..]),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn read_all(fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    let mut all = Vec::new();
    loop {
        let waiting = socket::readable(fd)?;
        if waiting == 0 {
            return Ok(all);
        }
        let mut part = vec![0; waiting];
        let read = nix::unistd::read(fd, &mut part)?;
        all.extend_from_slice(&part[..read]);
    }
}

fn write_all(fd: BorrowedFd<'_>, mut rest: &[u8]) -> Result<(), Errno> {
    while !rest.is_empty() {
        // A member's descriptor may wait: no more than what a terminal always takes at once.
        let written = nix::unistd::write(fd, &rest[..rest.len().min(1024)])?;
        rest = &rest[written..];
    }
    Ok(())
}

/// The terminals of a group, made.
#[derive(Debug, Default)]
pub(super) struct Terminals {
    /// Master, and a descriptor of the terminal that keeps it open until all of it is made.
    made: BTreeMap<u32, (OwnedFd, Option<OwnedFd>)>,
}

/// A terminal that controls a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Controlling {
    /// The session.
    pub session: Pid,
    /// The process group in the foreground.
    pub foreground: Pid,
    /// A descriptor of it.
    pub fd: RawFd,
}

impl Terminals {
    /// Those that control sessions.
    pub(super) fn controlling(&self, image: &ckpt_image::records::GroupImage) -> Vec<Controlling> {
        let states = masters(image).filter(|(_, state)| state.session.0 > 0);
        states
            .filter_map(|(index, state)| {
                let fd = self.made.get(&index)?.1.as_ref()?.as_raw_fd();
                Some(Controlling { session: state.session, foreground: state.foreground, fd })
            })
            .collect()
    }
}

/// The masters of an image.
fn masters(image: &ckpt_image::records::GroupImage) -> impl Iterator<Item = (u32, &TerminalState)> {
    image.descriptions.iter().filter_map(|record| match &record.kind {
        DescriptionKind::Terminal(TerminalRecord { index, end: TerminalEnd::Master(state) }) => {
            Some((*index, &**state))
        }
        _ => None,
    })
}

pub(super) fn create(
    cx: &mut Rebuild<'_>,
    record: &DescriptionRecord,
    terminal: &TerminalRecord,
) -> Result<(), Error> {
    cx.enter(record.unit)?;
    if cx.terminals.made.is_empty() {
        make_all(cx, record)?;
    }
    let failed = |op| Error::call(op, cx.describe(record));
    let access = record.flags as i32 & (libc::O_ACCMODE | libc::O_NONBLOCK);
    let fd = match &terminal.end {
        TerminalEnd::Own => return Ok(()),
        TerminalEnd::Master(_) => {
            let (master, _) = made(cx, terminal.index)?;
            ckpt_sys::descriptor::duplicate_above(master.as_fd(), 0).map_err(failed("dup"))?
        }
        TerminalEnd::Slave => {
            let (master, _) = made(cx, terminal.index)?;
            terminal::open_peer(master.as_fd(), access).map_err(failed("ioctl(TIOCGPTPEER)"))?
        }
        TerminalEnd::HungUp => {
            let master = new_master().map_err(failed("open(/dev/ptmx)"))?;
            terminal::set_locked(master.as_fd(), false).map_err(failed("ioctl(TIOCSPTLCK)"))?;
            terminal::open_peer(master.as_fd(), access).map_err(failed("ioctl(TIOCGPTPEER)"))?
        }
    };
    cx.put(record.id, fd)
}

fn made<'a>(cx: &'a Rebuild<'_>, index: u32) -> Result<&'a (OwnedFd, Option<OwnedFd>), Error> {
    cx.terminals.made.get(&index).ok_or_else(|| Error::Dangling(format!("terminal {index}")))
}

fn new_master() -> Result<OwnedFd, Errno> {
    open("/dev/ptmx", OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC, Mode::empty())
}

/// Makes every terminal of the group, with its number where that is free.
fn make_all(cx: &mut Rebuild<'_>, record: &DescriptionRecord) -> Result<(), Error> {
    let failed = |op| Error::call(op, "a terminal");
    let image = cx.image;
    let mut wanted: BTreeSet<u32> = masters(image).map(|(index, _)| index).collect();
    let (mut got, mut others) = (BTreeMap::new(), Vec::new());
    while let Some(last) = wanted.last().copied() {
        let master = new_master().map_err(failed("open(/dev/ptmx)"))?;
        let index = terminal::index(master.as_fd()).map_err(failed("ioctl(TIOCGPTN)"))?;
        if wanted.remove(&index) {
            got.insert(index, master);
        } else {
            others.push(master);
        }
        if index >= last {
            break;
        }
    }
    for index in wanted {
        let master = others.pop().map_or_else(new_master, Ok).map_err(failed("open(/dev/ptmx)"))?;
        let now = terminal::index(master.as_fd()).map_err(failed("ioctl(TIOCGPTN)"))?;
        let text = format!("/dev/pts/{index} is in use: it is /dev/pts/{now} now");
        cx.warn(record, "terminal-number", text, "nothing, if the application does not open it by its name");
        got.insert(index, master);
    }
    for (index, state) in masters(image) {
        let Some(master) = got.remove(&index) else { continue };
        let slave = furnish(master.as_fd(), state).map_err(failed("ioctl_tty"))?;
        let floor = cx.floor();
        let high =
            |fd: OwnedFd| ckpt_sys::descriptor::duplicate_above(fd.as_fd(), floor).map_err(failed("dup"));
        let slave = slave.map(high).transpose()?;
        cx.terminals.made.insert(index, (high(master)?, slave));
    }
    Ok(())
}

/// Gives a new terminal all but its users. A descriptor of it, unless it could not be opened or all were closed.
fn furnish(master: BorrowedFd<'_>, state: &TerminalState) -> Result<Option<OwnedFd>, Errno> {
    let settings = state.settings.as_slice().try_into().map_err(|_| Errno::EINVAL)?;
    terminal::set_size(master, state.size)?;
    if state.locked {
        terminal::set_settings(master, &settings)?;
        return Ok(None);
    }
    terminal::set_locked(master, false)?;
    let slave = terminal::open_peer(master, libc::O_RDWR)?;
    put_waiting(state, &settings, master, slave.as_fd())?;
    terminal::set_settings(master, &settings)?;
    if let Some((mode, uid, gid)) = state.node {
        nix::unistd::fchown(&slave, Some(uid.into()), Some(gid.into()))?;
        nix::sys::stat::fchmod(&slave, Mode::from_bits_retain(mode))?;
    }
    terminal::set_packet(master, state.packet)?;
    if state.exclusive {
        terminal::set_exclusive(slave.as_fd())?;
    }
    Ok((!state.slave_closed).then_some(slave))
}
