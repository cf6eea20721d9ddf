//! Capture of unix sockets (unix(7)): who is connected to whom (sock_diag), what is queued (MSG_PEEK), with descriptors in flight.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use ckpt_image::records::{DescriptionId, DescriptionKind, UnixMessage, UnixPeer, UnixRecord, UnixState};
use ckpt_sys::descriptor::diag::{UnixDiag, UnixSocket};
use ckpt_sys::descriptor::{self, message, socket};
use nix::errno::Errno;
use nix::libc;

use super::collect::{Depth, DescriptorCapture, Found};
use super::peek::PeekOffset;
use super::{Refusal, options, unix_name};

const SO_NETNS_COOKIE: i32 = 71; // Linux 5.14
const JOURNAL: &[u8] = b"/run/systemd/journal/stdout";
const LISTENING: u8 = 10; // TCP_LISTEN

type Sockets = Arc<HashMap<u32, UnixSocket>>;

/// What sock_diag told: by network namespace, and of each socket met.
#[derive(Debug, Default)]
pub(super) struct Peers {
    namespaces: HashMap<u64, Sockets>,
    met: HashMap<DescriptionId, (UnixSocket, Sockets)>,
    /// There are queues that were not looked into, since the group is running.
    pub unseen: bool,
}

pub(super) fn capture(cx: &mut DescriptorCapture<'_>, found: &Found) -> Result<DescriptionKind, Refusal> {
    let fd = found.fd();
    let kind = socket::int_option(fd, libc::SOL_SOCKET, libc::SO_TYPE)
        .map_err(Refusal::call("getsockopt(SO_TYPE)"))?;
    let peer_name = socket::peer_name(fd).unwrap_or_default();
    if kind == libc::SOCK_STREAM && socket::unix_path(&peer_name) == JOURNAL {
        let mut numbers = cx.numbers_of(found.id);
        let stderr = numbers.any(|fd| fd == 2) && !cx.numbers_of(found.id).any(|fd| fd == 1);
        return Ok(DescriptionKind::Journal { stderr });
    }
    let told = sock_diag(cx, found)?;
    let state = match (&told.state, told.peer) {
        (&LISTENING, _) => UnixState::Listening {
            backlog: told.queue.1 as i32,
            activated: cx.is_held_by_systemd(found.ino()),
        },
        (_, Some(_)) => UnixState::Connected(UnixPeer::Gone), // until `resolve`
        (_, None) => UnixState::Idle,
    };
    let queue = if told.state == LISTENING { Vec::new() } else { queue(cx, found, kind)? };
    let options = options::read(fd, libc::AF_UNIX, 0).map_err(|e| match e {
        Errno::EACCES => Refusal::new("socket-filter", "it has an eBPF filter", "use a classic filter"),
        e => Refusal::call("getsockopt")(e),
    })?;
    let credentials = socket::credentials(fd).map_err(Refusal::call("getsockopt(SO_PEERCRED)"))?;
    Ok(DescriptionKind::Unix(UnixRecord {
        kind,
        name: unix_name::capture(found, told.node.map(|(ino, _)| ino))?,
        state,
        shutdown: told.shutdown,
        reset: socket::ready(fd, 0).unwrap_or(0) & libc::POLLERR != 0,
        queue,
        credentials: credentials.map(|(pid, uid, gid)| (cx.identities().known(pid), uid, gid)),
        options,
    }))
}

/// What sock_diag tells of a socket; one dump a network namespace.
fn sock_diag(cx: &mut DescriptorCapture<'_>, found: &Found) -> Result<UnixSocket, Refusal> {
    let failed = Refusal::call("sock_diag");
    let cookie = socket::option(found.fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, 8).map_err(&failed)?;
    let cookie = u64::from_ne_bytes(cookie.try_into().unwrap_or_default());
    let sockets = match cx.unix.namespaces.get(&cookie) {
        Some(sockets) => sockets.clone(),
        None => {
            let namespace = socket::net_namespace(found.fd()).map_err(&failed)?;
            let all = descriptor::in_net_namespace(namespace.as_fd(), || UnixDiag::open()?.all());
            let sockets = Arc::new(all.map_err(&failed)?);
            cx.unix.namespaces.insert(cookie, Arc::clone(&sockets));
            sockets
        }
    };
    let told = match sockets.get(&(found.ino() as u32)) {
        Some(told) => told.clone(),
        // Made since the dump, so the group is running.
        None if cx.depth == Depth::Surface => UnixSocket::default(),
        None => return Err(failed(Errno::ENOENT)),
    };
    cx.unix.met.insert(found.id, (told.clone(), sockets));
    Ok(told)
}

fn queue(cx: &mut DescriptorCapture<'_>, found: &Found, kind: i32) -> Result<Vec<UnixMessage>, Refusal> {
    let fd = found.fd();
    let failed = Refusal::call("recvmsg(MSG_PEEK)");
    if message::urgent(fd) {
        return Err(super::urgent());
    }
    let nothing = socket::ready(fd, libc::POLLIN).map_err(&failed)? & libc::POLLIN == 0;
    if cx.depth == Depth::Surface || nothing {
        cx.unix.unseen |= !nothing;
        return Ok(Vec::new());
    }
    let mut queue = Vec::new();
    let offset = PeekOffset::begin(fd).map_err(&failed)?;
    let mut at = 0;
    // Looking behind the end would take a pending error away from the application.
    let all = match kind {
        libc::SOCK_DGRAM => usize::MAX,
        _ => socket::readable(fd).map_err(&failed)?,
    };
    let ends = kind != libc::SOCK_DGRAM && is_at_end(fd);
    while (at < all || (kind == libc::SOCK_SEQPACKET && !ends))
        && let Some(message) = offset.piece(at, kind).map_err(&failed)?
    {
        at += message.data.len();
        let rights = message.rights.into_iter().map(|fd| cx.in_flight(fd, found.unit));
        queue.push(UnixMessage {
            data: message.data,
            from: if kind == libc::SOCK_DGRAM {
                socket::unix_path(&message.from).to_vec()
            } else {
                Vec::new()
            },
            rights: rights.collect::<Result<_, _>>()?,
            credentials: message.credentials.map(|(pid, uid, gid)| (cx.identities().known(pid), uid, gid)),
        });
    }
    Ok(queue)
}

/// Whether nothing more can come: then no bytes may be an empty message or the end.
fn is_at_end(fd: BorrowedFd<'_>) -> bool {
    let gone = libc::POLLHUP | libc::POLLRDHUP | libc::POLLERR;
    socket::ready(fd, libc::POLLRDHUP).unwrap_or(gone) & gone != 0
}

/// Fills in the other ends, when every socket of the group is known.
pub(super) fn resolve(cx: &mut DescriptorCapture<'_>, kinds: &mut [Option<DescriptionKind>]) {
    for (index, kind) in kinds.iter_mut().enumerate() {
        let Some(DescriptionKind::Unix(record)) = kind else { continue };
        if !matches!(record.state, UnixState::Connected(_)) {
            continue;
        }
        let found = cx.found(DescriptionId(index as u32)).clone();
        let peer = peer(cx, &found);
        if matches!(peer, UnixPeer::Waiting(_)) && socket::unsent(found.fd()).unwrap_or(0) > 0 {
            let text = "it was connected and written to, and the other end has not been accepted yet";
            cx.refuse(&found, Refusal::new("unix-waiting", text, "try again"));
        }
        record.state = UnixState::Connected(peer);
    }
}

fn peer(cx: &DescriptorCapture<'_>, found: &Found) -> UnixPeer {
    let Some((told, sockets)) = cx.unix.met.get(&found.id) else { return UnixPeer::Gone };
    let socket_with =
        |ino: u32| cx.with_ino(ino.into()).iter().copied().find(|id| cx.unix.met.contains_key(id));
    let name = || {
        let address = socket::peer_name(found.fd()).unwrap_or_default();
        UnixPeer::Outside(socket::unix_path(&address).to_vec())
    };
    match told.peer {
        None => UnixPeer::Gone,
        Some(0) => {
            let listener = sockets.values().find(|socket| socket.waiting.contains(&told.ino));
            match listener {
                None => UnixPeer::Gone,
                Some(listener) => socket_with(listener.ino).map_or_else(name, UnixPeer::Waiting),
            }
        }
        Some(ino) => socket_with(ino).map_or_else(name, UnixPeer::Inside),
    }
}
