//! TCP and UDP sockets, v4 and v6. Connections inside the group are in [`tcp`](super::tcp).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use ckpt_image::records::{DescriptionId, DescriptionKind, DescriptionRecord, InetRecord, InetState};
use ckpt_sys::descriptor::tcp_diag::{TcpDiag, TcpEnd};
use ckpt_sys::descriptor::{self, lingering, message, socket};
use nix::errno::Errno;
use nix::libc;

use super::collect::{Depth, DescriptorCapture, Found};
use super::rebuild::Rebuild;
use super::{Error, Refusal, datagram, multicast, options, outside, tcp};
use crate::config::TcpChoice;

/// Protocols of datagram sockets that are told from one another by their number alone.
const DATAGRAMS: [i32; 4] =
    [libc::IPPROTO_UDP, libc::IPPROTO_UDPLITE, libc::IPPROTO_ICMP, libc::IPPROTO_ICMPV6];
const SO_NETNS_COOKIE: i32 = 71; // Linux 5.14

/// A connection as one end sees it: network namespace, local and remote address.
type End = (u64, SocketAddr, SocketAddr);

/// The ends of TCP connections met by a capture.
#[derive(Debug, Default)]
pub(super) struct Ends {
    met: HashMap<End, DescriptionId>,
    /// Multicast groups by network namespace.
    groups: HashMap<u64, Arc<Vec<multicast::Group>>>,
}

pub(super) fn capture(cx: &mut DescriptorCapture<'_>, found: &Found) -> Result<DescriptionKind, Refusal> {
    let fd = found.fd();
    let int = |name| socket::int_option(fd, libc::SOL_SOCKET, name).map_err(Refusal::call("getsockopt"));
    let (family, kind, protocol) = (int(libc::SO_DOMAIN)?, int(libc::SO_TYPE)?, int(libc::SO_PROTOCOL)?);
    let supported = match kind {
        libc::SOCK_STREAM => matches!(protocol, libc::IPPROTO_TCP | libc::IPPROTO_MPTCP),
        libc::SOCK_DGRAM => DATAGRAMS.contains(&protocol),
        libc::SOCK_RAW => true,
        _ => false,
    };
    if !supported {
        let text = format!("a socket of type {kind} with protocol {protocol} cannot be captured");
        return Err(Refusal::new("socket-protocol", text, "stop using it before the checkpoint"));
    }
    let name = socket::name(fd).map_err(Refusal::call("getsockname"))?;
    // Raw sockets are bound to addresses only; the port that is told is their protocol.
    let bound = |address: &SocketAddr| match kind {
        libc::SOCK_RAW => !address.ip().is_unspecified(),
        _ => address.port() != 0,
    };
    let local = parse(&name).filter(bound).map(|_| name);
    let remote = socket::peer_name(fd).ok();
    let mut options = options::read(fd, family, protocol).map_err(|e| match e {
        Errno::EACCES => Refusal::new("socket-filter", "it has an eBPF filter", "use a classic filter"),
        e => Refusal::call("getsockopt")(e),
    })?;
    if kind != libc::SOCK_STREAM {
        options.extend(multicast::joined(fd, family, &groups(cx, found))?);
    }
    let queue = match kind {
        libc::SOCK_STREAM => Vec::new(),
        _ => datagram::capture(cx, found, kind, protocol)?,
    };
    if kind == libc::SOCK_STREAM && message::urgent(fd) {
        return Err(super::urgent());
    }
    let listening = int(libc::SO_ACCEPTCONN)? != 0;
    let state = match (kind, remote) {
        _ if listening => {
            InetState::Listening { backlog: tcp::backlog(fd), activated: cx.is_held_by_systemd(found.ino()) }
        }
        (libc::SOCK_DGRAM | libc::SOCK_RAW, Some(remote)) => InetState::Connected { remote },
        (libc::SOCK_DGRAM | libc::SOCK_RAW, None) => InetState::Idle,
        (_, remote) if tcp::is_connection(fd) => {
            let remote = remote.unwrap_or_default();
            note_end(cx, found, local.as_deref(), &remote);
            InetState::Reset { remote }
        }
        // The application has not been told of its end yet.
        _ if tcp::is_reset(fd) => InetState::Reset { remote: Vec::new() },
        _ if tcp::is_over(fd) => {
            let received = if cx.depth == Depth::Contents { tcp::received(fd) } else { Ok(Vec::new()) };
            InetState::Over { received: received.map_err(Refusal::call("recvmsg(MSG_PEEK)"))? }
        }
        _ => InetState::Idle,
    };
    Ok(DescriptionKind::Inet(InetRecord { family, kind, protocol, local, state, queue, options }))
}

/// The multicast groups of its network namespace, looked at once.
fn groups(cx: &mut DescriptorCapture<'_>, found: &Found) -> Arc<Vec<multicast::Group>> {
    let cookie = cookie(found);
    let pid = found.place.pid;
    Arc::clone(cx.inet.groups.entry(cookie).or_insert_with(|| Arc::new(multicast::of_namespace(pid))))
}

/// The network namespace of a socket.
fn cookie(found: &Found) -> u64 {
    let cookie = socket::option(found.fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, 8).unwrap_or_default();
    u64::from_ne_bytes(cookie.try_into().unwrap_or_default())
}

fn note_end(cx: &mut DescriptorCapture<'_>, found: &Found, local: Option<&[u8]>, remote: &[u8]) {
    let cookie = cookie(found);
    if let (Some(local), Some(remote)) = (local.and_then(parse), parse(remote)) {
        cx.inet.met.insert((cookie, local, remote), found.id);
    }
}

/// Finds the connections that have both ends in the group, and captures them; then those whose other end nobody has.
pub(super) fn resolve(cx: &mut DescriptorCapture<'_>, kinds: &mut [Option<DescriptionKind>]) {
    let met = std::mem::take(&mut cx.inet.met);
    let mut connections: HashMap<u64, TcpDiag> = HashMap::new();
    let outside = cx.outside;
    let listeners: Vec<SocketAddr> = kinds.iter().flatten().filter_map(listens_at).collect();
    for (end, id) in &met {
        let (cookie, local, remote) = end;
        let found = cx.found(*id).clone();
        let Some(Some(DescriptionKind::Inet(record))) = kinds.get_mut(id.index()) else { continue };
        let InetState::Reset { remote: address } = &record.state else { continue };
        let (address, to_outside) = (address.clone(), record.protocol == libc::IPPROTO_TCP);
        let goes_on = || match outside {
            TcpChoice::Repair if to_outside && !found.in_flight => outside::conversation(found.fd())
                .map(|conversation| InetState::Outside { remote: address.clone(), conversation }),
            _ => Ok(InetState::Reset { remote: address.clone() }),
        };
        let peer = met.get(&(*cookie, *remote, *local)).filter(|peer| *peer != id);
        let encrypted =
            tcp::is_encrypted(found.fd()) || peer.is_some_and(|peer| tcp::is_encrypted(cx.found(*peer).fd()));
        let state = match peer {
            Some(_) if encrypted => Ok(encrypted_by_the_kernel(cx, &found, address)),
            Some(peer) => {
                let other = cx.found(*peer).clone();
                let inside = |tcp| InetState::Inside { peer: *peer, remote: address.clone(), tcp };
                tcp::capture(cx.depth, found.fd(), other.fd()).map(inside)
            }
            None if found.in_flight => continue,
            None => match other_end(&mut connections, &found, end) {
                Err(refusal) => {
                    cx.refuse(&found, refusal);
                    continue;
                }
                Ok(Other::Outside) => goes_on(),
                Ok(Other::Waiting(_)) if !listeners.iter().any(|at| leads_to(remote, at)) => goes_on(),
                Ok(Other::Waiting(_) | Other::Closing | Other::Gone) if encrypted => {
                    Ok(encrypted_by_the_kernel(cx, &found, address))
                }
                Ok(Other::Waiting(other)) => waiting(cx, &found, &address, other),
                Ok(Other::Closing) if !tcp::is_read_closed(found.fd()) => Ok(under_way(cx, &found, address)),
                Ok(Other::Closing) => gone(cx.depth, &found, address),
                Ok(Other::Gone) => gone(cx.depth, &found, address),
            },
        };
        match state {
            Ok(state) => record.state = state,
            Err(e) => cx.refuse(&found, Refusal::call("TCP_REPAIR")(e)),
        }
    }
}

/// Who has the other end of a connection that has one end in the group.
enum Other {
    /// A process outside the group, or another machine.
    Outside,
    /// Nobody yet: it waits to be accepted.
    Waiting(TcpEnd),
    /// Nobody any more; but what was written there is not all here.
    Closing,
    /// Nobody any more.
    Gone,
}

/// Looks for the other end in the socket's network namespace.
fn other_end(
    connections: &mut HashMap<u64, TcpDiag>,
    found: &Found,
    (cookie, local, remote): &End,
) -> Result<Other, Refusal> {
    let failed = Refusal::call("sock_diag");
    let open = || {
        let namespace = socket::net_namespace(found.fd())?;
        descriptor::in_net_namespace(namespace.as_fd(), TcpDiag::open)
    };
    let diag = match connections.entry(*cookie) {
        Entry::Occupied(known) => known.into_mut(),
        Entry::Vacant(new) => new.insert(open().map_err(&failed)?),
    };
    Ok(match diag.find(*remote, *local).map_err(&failed)? {
        Some(other) if other.inode != 0 => Other::Outside,
        Some(other) if UNACCEPTED.contains(&other.state) => Other::Waiting(other),
        // The end itself counts as one.
        Some(other) if other.unsent > 1 => Other::Closing,
        None if !diag.is_local(remote.ip()) => Other::Outside,
        _ => Other::Gone,
    })
}

/// Where a listening socket of the group listens.
fn listens_at(kind: &DescriptionKind) -> Option<SocketAddr> {
    match kind {
        DescriptionKind::Inet(InetRecord {
            state: InetState::Listening { .. }, local: Some(local), ..
        }) => parse(local),
        _ => None,
    }
}

/// Whether a connection to `remote` comes to who listens at `at`.
fn leads_to(remote: &SocketAddr, at: &SocketAddr) -> bool {
    remote.port() == at.port() && (at.ip().is_unspecified() || at.ip() == remote.ip())
}

/// ESTABLISHED, CLOSE_WAIT: a connection without a process is one that waits to be accepted; others are on their way out.
const UNACCEPTED: [u8; 2] = [1, 8];

/// A client whose connection nobody has accepted. What it has written lies where only accept(2) leads.
fn waiting(
    cx: &mut DescriptorCapture<'_>,
    found: &Found,
    remote: &[u8],
    other: TcpEnd,
) -> Result<InetState, Errno> {
    let remote = remote.to_vec();
    if other.unread == 0 && socket::unsent(found.fd())? == 0 {
        return Ok(InetState::Waiting { remote });
    }
    let text = "it was connected and written to, and has not been accepted yet: after a restore it is reset";
    cx.warn(found, Refusal::new("tcp-waiting", text, "take the checkpoint again"));
    Ok(InetState::Reset { remote })
}

/// A connection whose other end was closed.
fn gone(depth: Depth, found: &Found, remote: Vec<u8>) -> Result<InetState, Errno> {
    tcp::capture_last(depth, found.fd()).map(|tcp| InetState::PeerGone { remote, tcp })
}

/// The same where the rest of what was written to it waits in a socket that no process has, until there is room: nobody can read it
/// there, and the end must not come before it.
fn under_way(cx: &mut DescriptorCapture<'_>, found: &Found, remote: Vec<u8>) -> InetState {
    let text =
        "its other end was closed with more to be read than there is room for: after a restore it is reset";
    cx.warn(found, Refusal::new("tcp-under-way", text, "take the checkpoint again"));
    InetState::Reset { remote }
}

/// A connection of which the kernel encrypts what is written, or decrypts what is read: it tells neither the keys nor what waits as it came.
/// Made again without, one end would write in the clear what the other takes for records.
fn encrypted_by_the_kernel(cx: &mut DescriptorCapture<'_>, found: &Found, remote: Vec<u8>) -> InetState {
    let text = "the kernel encrypts or decrypts for it (TCP_ULP tls), with keys that cannot be kept: after a restore it is reset";
    cx.warn(
        found,
        Refusal::new("tcp-tls", text, "let the application's library encrypt: switch kernel TLS off"),
    );
    InetState::Reset { remote }
}

/// Reads a struct sockaddr_in or sockaddr_in6; a v4 address in v6 form is that v4 address.
pub(super) fn parse(bytes: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
    match i32::from(u16::from_ne_bytes(bytes.get(0..2)?.try_into().ok()?)) {
        libc::AF_INET => {
            let ip: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
            Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::from(ip)), port))
        }
        libc::AF_INET6 => {
            let ip: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
            Some(SocketAddr::new(IpAddr::V6(Ipv6Addr::from(ip)).to_canonical(), port))
        }
        _ => None,
    }
}

/// Pass 1: everything but TCP connections.
pub(super) fn create(
    cx: &mut Rebuild<'_>,
    record: &DescriptionRecord,
    inet: &InetRecord,
) -> Result<(), Error> {
    match &inet.state {
        InetState::Inside { .. }
        | InetState::Outside { .. }
        | InetState::Reset { .. }
        | InetState::Waiting { .. }
        | InetState::PeerGone { .. }
        | InetState::Over { .. } => Ok(()),
        InetState::Listening { activated: true, .. } if take_from_stub(cx, record, inet)? => Ok(()),
        InetState::Listening { backlog, .. } => {
            let fd = bound(cx, record, inet)?;
            socket::listen(fd.as_fd(), *backlog).map_err(Error::call("listen", cx.describe(record)))?;
            finish(cx, record, inet, fd)
        }
        InetState::Connected { remote } => {
            let fd = bound(cx, record, inet)?;
            socket::connect(fd.as_fd(), remote).map_err(Error::call("connect", cx.describe(record)))?;
            finish(cx, record, inet, fd)
        }
        InetState::Idle => {
            let fd = match bound(cx, record, inet) {
                // Closed, of a connection whose port another uses by now: it would not get it again by itself either.
                Err(Error::Call { op: "bind", source: Errno::EADDRINUSE, .. })
                    if inet.kind == libc::SOCK_STREAM =>
                {
                    let text = "its port is in use: it is not bound any more".to_owned();
                    cx.warn(record, "port-in-use", text, "the application gets a port when it connects");
                    bound(cx, record, &InetRecord { local: None, ..inet.clone() })?
                }
                other => other?,
            };
            finish(cx, record, inet, fd)
        }
    }
}

/// Pass 2: TCP connections, when the listening sockets have their ports.
pub(super) fn connect(
    cx: &mut Rebuild<'_>,
    record: &DescriptionRecord,
    inet: &InetRecord,
) -> Result<(), Error> {
    match &inet.state {
        InetState::Outside { conversation, remote } => {
            if let Some(fd) = cx.host.held(conversation) {
                return finish(cx, record, inet, fd);
            }
            let to = parse(remote).map_or_else(String::new, |address| format!(" to {address}"));
            let text = format!("the connection{to} is not there as it was: it is reset");
            cx.warn(record, "tcp-moved-on", text, "restore what --stop left: ckpt-group(5), tcp");
            reset(cx, record, inet)
        }
        InetState::Reset { .. } => reset(cx, record, inet),
        InetState::Waiting { remote } => {
            let fd = bound(cx, record, inet)?;
            socket::connect(fd.as_fd(), remote).map_err(Error::call("connect", cx.describe(record)))?;
            finish(cx, record, inet, fd)
        }
        InetState::PeerGone { .. } => {
            cx.enter(record.unit)?;
            let fd = tcp::last(inet).map_err(Error::call("TCP_REPAIR", cx.describe(record)))?;
            finish(cx, record, inet, fd)
        }
        InetState::Over { received } => {
            cx.enter(record.unit)?;
            let fd = tcp::over(inet.family, received)
                .map_err(Error::call("a closed connection", cx.describe(record)))?;
            finish(cx, record, inet, fd)
        }
        InetState::Inside { peer, .. } if !cx.has(record.id) => {
            let other = match cx.image.descriptions.get(peer.index()).map(|other| (other, &other.kind)) {
                Some((other, DescriptionKind::Inet(inet))) => (other, inet),
                _ => return Err(Error::Dangling(format!("TCP socket {peer}"))),
            };
            cx.enter(record.unit)?;
            let (a, b) = tcp::pair(inet, other.1).map_err(Error::call("TCP_REPAIR", cx.describe(record)))?;
            finish(cx, record, inet, a)?;
            finish(cx, other.0, other.1, b)
        }
        _ => Ok(()),
    }
}

/// A connection that the application finds reset.
fn reset(cx: &mut Rebuild<'_>, record: &DescriptionRecord, inet: &InetRecord) -> Result<(), Error> {
    cx.enter(record.unit)?;
    let fd = tcp::reset(inet.family).map_err(Error::call("a reset connection", cx.describe(record)))?;
    finish(cx, record, inet, fd)
}

/// A new socket at its address. SO_REUSEADDR while it is bound, since connections of its former life may linger.
fn bound(cx: &mut Rebuild<'_>, record: &DescriptionRecord, inet: &InetRecord) -> Result<OwnedFd, Error> {
    cx.enter(record.unit)?;
    let failed = |op| Error::call(op, cx.describe(record));
    let fd = socket::socket(inet.family, inet.kind, inet.protocol).map_err(failed("socket"))?;
    set_options(cx, record, inet, fd.as_fd())?;
    if !inet.queue.is_empty() {
        datagram::fill(cx, record, inet, fd.as_fd())?;
        set_options(cx, record, inet, fd.as_fd())?;
    }
    let failed = |op| Error::call(op, cx.describe(record));
    if let Some(local) = &inet.local {
        if inet.kind == libc::SOCK_STREAM {
            socket::set_int_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)
                .map_err(failed("setsockopt(SO_REUSEADDR)"))?;
        }
        let address = parse(local).map_or_else(String::new, |address| format!(" at {address}"));
        let bound = match bind(fd.as_fd(), inet.kind, local) {
            Err(Errno::EADDRINUSE) if inet.kind == libc::SOCK_DGRAM => {
                datagram::bind_beside(cx, fd.as_fd(), local)
            }
            bound => bound,
        };
        bound.map_err(Error::call("bind", format!("{}{address}", cx.describe(record))))?;
    }
    Ok(fd)
}

/// bind(2). Connections that linger from a former life without SO_REUSEADDR stand in the way: they end now.
fn bind(fd: BorrowedFd<'_>, kind: i32, local: &[u8]) -> Result<(), Errno> {
    match (socket::bind(fd, local), parse(local)) {
        (Err(Errno::EADDRINUSE), Some(at)) if kind == libc::SOCK_STREAM => {
            // Where the kernel cannot end them, bind tells again what is the matter.
            let _ = lingering::end(at);
            socket::bind(fd, local)
        }
        (bound, _) => bound,
    }
}

pub(super) fn set_options(
    cx: &Rebuild<'_>,
    record: &DescriptionRecord,
    inet: &InetRecord,
    fd: BorrowedFd<'_>,
) -> Result<(), Error> {
    options::apply(fd, &inet.options).map_err(|(option, e)| {
        let object = format!("{}, option {}:{}", cx.describe(record), option.level, option.name);
        Error::call("setsockopt", object)(e)
    })
}

fn finish(
    cx: &mut Rebuild<'_>,
    record: &DescriptionRecord,
    inet: &InetRecord,
    fd: OwnedFd,
) -> Result<(), Error> {
    set_options(cx, record, inet, fd.as_fd())?;
    options::apply_filter(fd.as_fd(), &inet.options)
        .map_err(Error::call("setsockopt(SO_ATTACH_FILTER)", cx.describe(record)))?;
    cx.put(record.id, fd)
}

fn take_from_stub(
    cx: &mut Rebuild<'_>,
    record: &DescriptionRecord,
    inet: &InetRecord,
) -> Result<bool, Error> {
    let is_it = |fd: BorrowedFd<'_>| {
        socket::name(fd).ok() == inet.local
            && socket::int_option(fd, libc::SOL_SOCKET, libc::SO_TYPE) == Ok(inet.kind)
    };
    match cx.find_in_stub(record.unit, is_it) {
        Some(fd) => cx.put(record.id, fd).map(|()| true),
        None => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_mapped_ones_are_v4() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(parse(&socket::name(listener.as_fd()).unwrap()), listener.local_addr().ok());
        let mut mapped = vec![0u8; 28];
        mapped[0..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
        mapped[2..4].copy_from_slice(&80u16.to_be_bytes());
        mapped[18..20].copy_from_slice(&[0xff, 0xff]);
        mapped[20..24].copy_from_slice(&[127, 0, 0, 1]);
        assert_eq!(parse(&mapped), Some("127.0.0.1:80".parse().unwrap()));
        assert_eq!(parse(&[1, 2, 3]), None);
    }
}
