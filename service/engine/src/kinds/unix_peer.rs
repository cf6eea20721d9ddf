//! Rebuild of unix sockets: pairs and connections are made among the group's own sockets, queues are sent into them again.
//!
//! ```text
//! both unnamed                 socketpair
//! one named (accepted)         the other connects to the listener's node, aside where only we know it, and is accepted
//! other end gone or outside    socketpair, what was queued is sent, the other end is closed
//! datagrams to outside         connected again by the peer's name
//! ```

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ckpt_image::records::{
    DescriptionId, DescriptionKind, DescriptionRecord, UnitIndex, UnixMessage, UnixName, UnixPeer,
    UnixRecord, UnixState,
};
use ckpt_sys::descriptor::{message, socket};
use nix::errno::Errno;
use nix::libc;

use super::rebuild::Rebuild;
use super::{Error, options, unix_name};

const ROOM: i32 = 64 << 20;

/// The unix socket with this number in the image.
fn unix_record<'i>(cx: &Rebuild<'i>, id: DescriptionId) -> Option<(&'i DescriptionRecord, &'i UnixRecord)> {
    let record = cx.image.descriptions.get(id.index())?;
    match &record.kind {
        DescriptionKind::Unix(unix) => Some((record, unix)),
        _ => None,
    }
}

fn is_datagram(unix: &UnixRecord) -> bool {
    unix.kind == libc::SOCK_DGRAM
}

/// The other end, where both are unnamed and each is connected to the other: made by socketpair.
fn pair_of_unnamed(cx: &Rebuild<'_>, id: DescriptionId, unix: &UnixRecord) -> Option<DescriptionId> {
    let UnixState::Connected(UnixPeer::Inside(peer)) = unix.state else { return None };
    let (_, other) = unix_record(cx, peer)?;
    let mutual = other.state == UnixState::Connected(UnixPeer::Inside(id));
    (mutual && unix.name.is_none() && other.name.is_none()).then_some(peer)
}

/// Pass 1: listening sockets, those that are not connected, and named datagram sockets.
pub(super) fn create(
    cx: &mut Rebuild<'_>,
    record: &DescriptionRecord,
    unix: &UnixRecord,
) -> Result<(), Error> {
    match &unix.state {
        UnixState::Listening { backlog, activated } => {
            if *activated && take_from_stub(cx, record, unix)? {
                return Ok(());
            }
            let fd = bound(cx, record, unix)?;
            cx.stand_ins
                .listen(unix.credentials, fd.as_fd(), *backlog)
                .map_err(Error::call("listen", cx.describe(record)))?;
            cx.put(record.id, fd)
        }
        UnixState::Connected(_) if !is_datagram(unix) => Ok(()),
        UnixState::Connected(_) if pair_of_unnamed(cx, record.id, unix).is_some() => Ok(()),
        UnixState::Idle | UnixState::Connected(_) => {
            let fd = bound(cx, record, unix)?;
            cx.put(record.id, fd)
        }
    }
}

/// A new socket with its name.
fn bound(cx: &mut Rebuild<'_>, record: &DescriptionRecord, unix: &UnixRecord) -> Result<OwnedFd, Error> {
    let fd =
        socket::socket(libc::AF_UNIX, unix.kind, 0).map_err(Error::call("socket", cx.describe(record)))?;
    if let Some(name) = &unix.name {
        let reach = unix_name::bind(cx, fd.as_fd(), record.unit, name)?;
        cx.reach.insert(record.id, reach);
    }
    Ok(fd)
}

fn take_from_stub(
    cx: &mut Rebuild<'_>,
    record: &DescriptionRecord,
    unix: &UnixRecord,
) -> Result<bool, Error> {
    let Some(name) = &unix.name else { return Ok(false) };
    let is_it = |fd: BorrowedFd<'_>| {
        socket::name(fd).is_ok_and(|address| socket::unix_path(&address) == name.bytes)
            && socket::int_option(fd, libc::SOL_SOCKET, libc::SO_TYPE) == Ok(unix.kind)
    };
    match cx.find_in_stub(record.unit, is_it) {
        Some(fd) => cx.put(record.id, fd).map(|()| true),
        None => Ok(false),
    }
}

/// Pass 2: connections.
pub(super) fn connect(
    cx: &mut Rebuild<'_>,
    record: &DescriptionRecord,
    unix: &UnixRecord,
) -> Result<(), Error> {
    let UnixState::Connected(peer) = &unix.state else { return Ok(()) };
    match peer {
        _ if is_datagram(unix) => connect_datagram(cx, record, unix, peer),
        UnixPeer::Inside(_) if cx.has(record.id) => Ok(()),
        UnixPeer::Inside(other) => pair(cx, record, unix, *other),
        UnixPeer::Gone | UnixPeer::Outside(_) => half(cx, record, unix),
        UnixPeer::Waiting(_) => Ok(()),
    }
}

/// Pass 2b, when every accepted connection has been accepted: those that wait to be.
pub(super) fn connect_waiting(
    cx: &mut Rebuild<'_>,
    record: &DescriptionRecord,
    unix: &UnixRecord,
) -> Result<(), Error> {
    let UnixState::Connected(UnixPeer::Waiting(listener)) = unix.state else { return Ok(()) };
    let fd = bound(cx, record, unix)?;
    let reach = cx.reach.get(&listener).ok_or_else(|| Error::Dangling(format!("listener {listener}")))?;
    cx.stand_ins
        .connect(unix.credentials, fd.as_fd(), reach)
        .map_err(Error::call("connect", cx.describe(record)))?;
    cx.put(record.id, fd)
}

fn connect_datagram(
    cx: &mut Rebuild<'_>,
    record: &DescriptionRecord,
    unix: &UnixRecord,
    peer: &UnixPeer,
) -> Result<(), Error> {
    if let Some(other) = pair_of_unnamed(cx, record.id, unix) {
        if !cx.has(record.id) {
            let (a, b) = cx
                .stand_ins
                .pair(unix.credentials, unix.kind)
                .map_err(Error::call("socketpair", cx.describe(record)))?;
            cx.put(record.id, a)?;
            cx.put(other, b)?;
        }
        return Ok(());
    }
    let address = match peer {
        UnixPeer::Inside(other) | UnixPeer::Waiting(other) => cx.reach.get(other).cloned(),
        UnixPeer::Outside(name) if !name.is_empty() => {
            Some(socket::unix_address(name).map_err(Error::call("connect", cx.describe(record)))?)
        }
        UnixPeer::Outside(_) => None,
        UnixPeer::Gone => return connect_to_nobody(cx, record, unix),
    };
    cx.enter(record.unit)?;
    let connected = match &address {
        Some(address) => socket::connect(cx.get(record.id)?, address),
        None => Err(Errno::ENOTCONN),
    };
    if let Err(e) = connected {
        let text = format!("it is not connected to its peer any more: {}", e.desc());
        cx.warn(record, "datagram-peer", text, "the application gets an error when it sends");
    }
    Ok(())
}

/// Connected to a socket that was closed.
fn connect_to_nobody(
    cx: &mut Rebuild<'_>,
    record: &DescriptionRecord,
    unix: &UnixRecord,
) -> Result<(), Error> {
    let failed = |op| Error::call(op, cx.describe(record));
    let nobody = socket::socket(libc::AF_UNIX, unix.kind, 0).map_err(failed("socket"))?;
    // An address of only the family: the kernel chooses an abstract name (unix(7), autobind).
    socket::bind(nobody.as_fd(), &(libc::AF_UNIX as u16).to_ne_bytes()).map_err(failed("bind"))?;
    let address = socket::name(nobody.as_fd()).map_err(failed("getsockname"))?;
    socket::connect(cx.get(record.id)?, &address).map_err(failed("connect"))
}

/// Both ends of a stream or seqpacket connection.
fn pair(
    cx: &mut Rebuild<'_>,
    record: &DescriptionRecord,
    unix: &UnixRecord,
    other: DescriptionId,
) -> Result<(), Error> {
    let (other_record, other_unix) =
        unix_record(cx, other).ok_or_else(|| Error::Dangling(format!("unix socket {other}")))?;
    if unix.name.is_none() && other_unix.name.is_none() {
        let (a, b) = cx
            .stand_ins
            .pair(unix.credentials, unix.kind)
            .map_err(Error::call("socketpair", cx.describe(record)))?;
        cx.put(record.id, a)?;
        return cx.put(other, b);
    }
    let ours = unix.name.as_ref().and_then(|name| listener(cx, record.unit, unix.kind, name));
    let accepted_is_ours = unix.name.is_some() && (other_unix.name.is_none() || ours.is_some());
    let (accepted, connecting) = if accepted_is_ours {
        ((record, unix), (other_record, other_unix))
    } else {
        ((other_record, other_unix), (record, unix))
    };
    let (server, client) = meet(cx, accepted, connecting)?;
    cx.put(accepted.0.id, server)?;
    cx.put(connecting.0.id, client)
}

/// The listening socket of the group that has a name.
fn listener(cx: &Rebuild<'_>, unit: UnitIndex, kind: i32, name: &UnixName) -> Option<DescriptionId> {
    let is_it = |record: &&DescriptionRecord| match &record.kind {
        DescriptionKind::Unix(unix) => {
            record.unit == unit
                && unix.kind == kind
                && matches!(unix.state, UnixState::Listening { .. })
                && unix.name.as_ref().is_some_and(|other| other.bytes == name.bytes)
        }
        _ => false,
    };
    cx.image.descriptions.iter().find(is_it).map(|record| record.id).filter(|id| cx.reach.contains_key(id))
}

type Side<'i> = (&'i DescriptionRecord, &'i UnixRecord);

/// Connects one end to the listener whose name the other has, and accepts it.
fn meet(cx: &mut Rebuild<'_>, accepted: Side<'_>, connecting: Side<'_>) -> Result<(OwnedFd, OwnedFd), Error> {
    let (record, unix) = accepted;
    let name = unix.name.as_ref().ok_or_else(|| Error::Dangling(cx.describe(record)))?;
    let client = bound(cx, connecting.0, connecting.1)?;
    let failed = |op| Error::call(op, cx.describe(record));
    if let Some(id) = listener(cx, record.unit, unix.kind, name) {
        let listener = cx.get(id)?;
        let caller = cx.stand_ins.connect(unix.credentials, client.as_fd(), &cx.reach[&id]);
        let caller = caller.map_err(failed("connect"))?;
        return Ok((accept_ours(listener, caller).map_err(failed("accept"))?, client));
    }
    // Its listener is closed: one with the same name for this moment.
    let gone = UnixName { node: None, ..name.clone() };
    let listener = socket::socket(libc::AF_UNIX, unix.kind, 0).map_err(failed("socket"))?;
    let reach = unix_name::bind(cx, listener.as_fd(), record.unit, &gone)?;
    let failed = |op| Error::call(op, cx.describe(record));
    cx.stand_ins.listen(connecting.1.credentials, listener.as_fd(), 1).map_err(failed("listen"))?;
    let caller = cx.stand_ins.connect(unix.credentials, client.as_fd(), &reach).map_err(failed("connect"))?;
    Ok((accept_ours(listener.as_fd(), caller).map_err(failed("accept"))?, client))
}

/// Accepts what was connected for us, by the process that has this pid here. Somebody outside may have been faster, at an abstract name: he
/// is hung up on, as by the service before it was restored.
fn accept_ours(listener: BorrowedFd<'_>, caller: i32) -> Result<OwnedFd, Errno> {
    loop {
        let accepted = socket::accept(listener)?;
        let peer = socket::credentials(accepted.as_fd())?;
        if peer.is_none_or(|(pid, ..)| pid == caller) {
            return Ok(accepted);
        }
    }
}

/// An end whose other end is not there: it will be closed when what it had sent is in the queue.
fn half(cx: &mut Rebuild<'_>, record: &DescriptionRecord, unix: &UnixRecord) -> Result<(), Error> {
    let (fd, end) = cx
        .stand_ins
        .pair(unix.credentials, unix.kind)
        .map_err(Error::call("socketpair", cx.describe(record)))?;
    if let Some(name) = &unix.name {
        // Its node, if there is one, is its listener's or nobody's.
        let gone = UnixName { node: None, ..name.clone() };
        if name.bytes.first() != Some(&0) {
            unix_name::bind(cx, fd.as_fd(), record.unit, &gone)?;
        }
    }
    cx.ends.insert(record.id, end);
    cx.put(record.id, fd)
}

/// Pass 3: what was received and not read.
pub(super) fn fill(cx: &mut Rebuild<'_>, record: &DescriptionRecord, unix: &UnixRecord) -> Result<(), Error> {
    for message in &unix.queue {
        let from = if is_datagram(unix) { sender_of_datagram(cx, record, unix, message)? } else { None };
        let sender = match (&from, &unix.state) {
            (Some(sender), _) => sender.fd(cx)?,
            (None, UnixState::Connected(UnixPeer::Inside(peer))) => cx.get(*peer)?,
            (None, _) => match cx.ends.get(&record.id) {
                Some(end) => end.as_fd(),
                None => return Err(Error::Dangling(format!("the sender to {}", cx.describe(record)))),
            },
        };
        let to: &[u8] = match &from {
            Some(_) => cx.reach.get(&record.id).map_or(&[], Vec::as_slice),
            None => &[],
        };
        send(cx, sender, message, to).map_err(Error::call("sendmsg", cx.describe(record)))?;
    }
    Ok(())
}

/// Who sends a datagram again.
enum Sender {
    Member(DescriptionId),
    Ours(OwnedFd),
}

impl Sender {
    fn fd<'a>(&'a self, cx: &'a Rebuild<'_>) -> Result<BorrowedFd<'a>, Error> {
        match self {
            Sender::Member(id) => cx.get(*id),
            Sender::Ours(fd) => Ok(fd.as_fd()),
        }
    }
}

/// The socket of the group with the sender's name, or one of ours with that name. `None` for the unnamed other end of a pair.
fn sender_of_datagram(
    cx: &mut Rebuild<'_>,
    record: &DescriptionRecord,
    unix: &UnixRecord,
    message: &UnixMessage,
) -> Result<Option<Sender>, Error> {
    if pair_of_unnamed(cx, record.id, unix).is_some() {
        return Ok(None);
    }
    let named = cx.image.descriptions.iter().find(|other| match &other.kind {
        DescriptionKind::Unix(other) => {
            is_datagram(other) && other.name.as_ref().is_some_and(|name| name.bytes == message.from)
        }
        _ => false,
    });
    if let Some(named) = named {
        return Ok(Some(Sender::Member(named.id)));
    }
    let ours =
        socket::socket(libc::AF_UNIX, unix.kind, 0).map_err(Error::call("socket", cx.describe(record)))?;
    if !message.from.is_empty() {
        let name = UnixName { bytes: message.from.clone(), directory: None, node: None };
        // The sender may be there again, outside, under its abstract name: then ours goes without.
        let _ = unix_name::bind(cx, ours.as_fd(), record.unit, &name);
    }
    Ok(Some(Sender::Ours(ours)))
}

fn send(cx: &Rebuild<'_>, sender: BorrowedFd<'_>, message: &UnixMessage, to: &[u8]) -> Result<(), Errno> {
    // Its own size comes back with its options.
    socket::set_int_option(sender, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, ROOM)?;
    let rights: Vec<_> = message.rights.iter().filter_map(|id| cx.get(*id).ok()).collect();
    if rights.len() != message.rights.len() {
        return Err(Errno::EBADF);
    }
    cx.stand_ins.send(sender, &message.data, to, &rights, message.credentials)
}

/// Pass 5: shut down ends and options.
pub(super) fn finish(
    cx: &mut Rebuild<'_>,
    record: &DescriptionRecord,
    unix: &UnixRecord,
) -> Result<(), Error> {
    let end = cx.ends.remove(&record.id);
    let fd = cx.get(record.id)?;
    if let Some(end) = end
        && unix.reset
    {
        // An end that is closed with something unread tells the other of it (ECONNRESET).
        message::send(fd, &[0], &[], &[], None).map_err(Error::call("sendmsg", cx.describe(record)))?;
        drop(end);
    }
    let failed = |op| Error::call(op, cx.describe(record));
    for (bit, how) in [(1, libc::SHUT_RD), (2, libc::SHUT_WR)] {
        if unix.shutdown & bit != 0 && !matches!(unix.state, UnixState::Listening { .. }) {
            match socket::shutdown(fd, how) {
                Ok(()) | Err(Errno::ENOTCONN) => {}
                Err(e) => return Err(failed("shutdown")(e)),
            }
        }
    }
    if let Err((option, e)) = options::apply(fd, &unix.options) {
        let object = format!("{}, option {}:{}", cx.describe(record), option.level, option.name);
        return Err(Error::call("setsockopt", object)(e));
    }
    options::apply_filter(fd, &unix.options).map_err(failed("setsockopt(SO_ATTACH_FILTER)"))
}
