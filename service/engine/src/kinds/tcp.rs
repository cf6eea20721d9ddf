//! TCP connections: those inside the group are made again as they were (TCP_REPAIR, Linux 3.5), those to outside are reset.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ckpt_image::records::{InetRecord, InetState, TcpRecord};
use ckpt_sys::descriptor::{message, socket};
use nix::errno::Errno;
use nix::libc;

use super::collect::Depth;

const TCP_MAXSEG: i32 = 2;
const TCP_INFO: i32 = 11;
const TCP_REPAIR: i32 = 19;
const TCP_REPAIR_QUEUE: i32 = 20;
const TCP_QUEUE_SEQ: i32 = 21;
const TCP_REPAIR_OPTIONS: i32 = 22;

const REPAIR_ON: i32 = 1;
const REPAIR_OFF: i32 = 0;
/// Leaves repair without a window probe: nothing is sent (Linux 4.19).
const REPAIR_OFF_QUIETLY: i32 = -1;
const RECEIVE_QUEUE: i32 = 1;
const SEND_QUEUE: i32 = 2;

/// States of struct tcp_info.
const CLOSED: u8 = 7;
const LISTENING: u8 = 10;
/// FIN_WAIT1, FIN_WAIT2, LAST_ACK, CLOSING: this end has sent its FIN.
const WRITE_CLOSED: [u8; 4] = [4, 5, 9, 11];

/// ESTABLISHED, FIN_WAIT1, FIN_WAIT2: the other end has not sent its FIN.
const OPEN_TO_READ: [u8; 3] = [1, 4, 5];

/// What TCP_MAXSEG can be set to. More than that no application has asked for: it comes from the interface.
const SEGMENT_SET: std::ops::RangeInclusive<u32> = 88..=32767;

/// Sequence number that the rebuilt ends start from.
const FIRST: u32 = 0x1000_0000;
const PIECE: usize = 32 << 10;

fn info(fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    let info = socket::option(fd, libc::IPPROTO_TCP, TCP_INFO, 104)?;
    if info.len() < 32 { Err(Errno::EINVAL) } else { Ok(info) }
}

/// The largest segment that an end has told the other it takes: tcpi_advmss, of which the kernel takes the header's timestamps off. What TCP_MAXSEG
/// tells of a connection is without them too, and bound by what window there was, so what is made of that would be less each time.
fn segment(info: &[u8]) -> Result<u32, Errno> {
    let told = info.get(84..88).and_then(|bytes| bytes.try_into().ok());
    told.map(|told| u32::from_ne_bytes(told) + timestamps(info[5])).ok_or(Errno::EINVAL)
}

/// How many bytes of each segment are its timestamps.
fn timestamps(options: u8) -> u32 {
    if options & 1 != 0 { 12 } else { 0 }
}

/// The backlog of a listening socket: tcpi_sacked of struct tcp_info.
pub(super) fn backlog(fd: BorrowedFd<'_>) -> i32 {
    let told = info(fd).ok().and_then(|info| info[28..32].try_into().ok()).map(i32::from_ne_bytes);
    told.unwrap_or(libc::SOMAXCONN)
}

/// Whether it is connected, or on the way to or from that.
pub(super) fn is_connection(fd: BorrowedFd<'_>) -> bool {
    info(fd).is_ok_and(|info| ![CLOSED, LISTENING].contains(&info[0]))
}

/// Whether the kernel has been asked to encrypt or decrypt for it (Documentation/networking/tls.rst); one of MPTCP says "mptcp".
pub(super) fn is_encrypted(fd: BorrowedFd<'_>) -> bool {
    socket::option(fd, libc::IPPROTO_TCP, libc::TCP_ULP, 16).is_ok_and(|name| name.starts_with(b"tls"))
}

/// Whether nothing more can be read, be it that the other end or this one has ended that.
pub(super) fn is_read_closed(fd: BorrowedFd<'_>) -> bool {
    socket::ready(fd, libc::POLLRDHUP).unwrap_or(0) & libc::POLLRDHUP != 0
}

/// Whether it was connected and both ends have closed it; a socket that never was has not been told of an end.
pub(super) fn is_over(fd: BorrowedFd<'_>) -> bool {
    info(fd).is_ok_and(|info| info[0] == CLOSED) && is_read_closed(fd)
}

/// Whether it ended by an error that nobody has read, and there is nothing to be read before it.
pub(super) fn is_reset(fd: BorrowedFd<'_>) -> bool {
    let failed = || socket::ready(fd, libc::POLLERR).unwrap_or(0) & libc::POLLERR != 0;
    is_over(fd) && failed() && socket::readable(fd) == Ok(0)
}

fn set(fd: BorrowedFd<'_>, name: i32, value: i32) -> Result<(), Errno> {
    socket::set_int_option(fd, libc::IPPROTO_TCP, name, value)
}

fn sequence(fd: BorrowedFd<'_>, queue: i32) -> Result<u32, Errno> {
    set(fd, TCP_REPAIR_QUEUE, queue)?;
    socket::int_option(fd, libc::IPPROTO_TCP, TCP_QUEUE_SEQ).map(|seq| seq as u32)
}

/// A socket in repair mode; leaves it quietly. The kernel takes SO_REUSEADDR away with that mode (tcp_setsockopt), and the
/// port of a listener is then in use as long as the connection lingers: it is put back.
struct Repair<'a> {
    fd: BorrowedFd<'a>,
    reuse: i32,
}

impl<'a> Repair<'a> {
    fn begin(fd: BorrowedFd<'a>) -> Result<Self, Errno> {
        let reuse = socket::int_option(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR)?;
        set(fd, TCP_REPAIR, REPAIR_ON).map(|()| Self { fd, reuse })
    }
}

impl Drop for Repair<'_> {
    fn drop(&mut self) {
        // Both fail only for a socket that is closed, which then is in no mode.
        let _ = set(self.fd, TCP_REPAIR, REPAIR_OFF_QUIETLY);
        let _ = socket::set_int_option(self.fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, self.reuse);
    }
}

/// One end of a connection whose other end is `peer`. Repair mode is entered, for microseconds, only where data is under way.
pub(super) fn capture(depth: Depth, fd: BorrowedFd<'_>, peer: BorrowedFd<'_>) -> Result<TcpRecord, Errno> {
    let info = info(fd)?;
    let write_closed = WRITE_CLOSED.contains(&info[0]);
    let mut record = TcpRecord {
        received: Vec::new(),
        unsent: Vec::new(),
        write_closed,
        read_closed: is_read_closed(fd) && OPEN_TO_READ.contains(&info[0]),
        mss: segment(&info)?.min(segment(&self::info(peer)?)?),
        options: info[5],
        scale: (info[6] & 0xf, info[6] >> 4),
    };
    if depth == Depth::Contents {
        record.received = received(fd)?;
        record.unsent = unsent(fd, peer, write_closed)?;
    }
    Ok(record)
}

pub(super) fn received(fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    let bytes = socket::readable(fd)?;
    if bytes == 0 {
        return Ok(Vec::new());
    }
    let data = message::peek(fd, bytes)?.map(|message| message.data).unwrap_or_default();
    if data.len() == bytes { Ok(data) } else { Err(Errno::EIO) }
}

/// One end of a connection whose other end was closed: what it had written to that is lost in any case.
pub(super) fn capture_last(depth: Depth, fd: BorrowedFd<'_>) -> Result<TcpRecord, Errno> {
    let info = info(fd)?;
    Ok(TcpRecord {
        received: if depth == Depth::Contents { received(fd)? } else { Vec::new() },
        unsent: Vec::new(),
        write_closed: WRITE_CLOSED.contains(&info[0]),
        read_closed: false,
        mss: segment(&info)?,
        options: info[5],
        scale: (info[6] & 0xf, info[6] >> 4),
    })
}

/// What was written and has not arrived: the end of the send queue past what the peer has received.
fn unsent(fd: BorrowedFd<'_>, peer: BorrowedFd<'_>, write_closed: bool) -> Result<Vec<u8>, Errno> {
    let queued = socket::unsent(fd)?;
    if queued == 0 {
        return Ok(Vec::new());
    }
    let (ours, theirs) = (Repair::begin(fd)?, Repair::begin(peer)?);
    let end = sequence(ours.fd, SEND_QUEUE)?.wrapping_sub(u32::from(write_closed));
    let arrived = sequence(theirs.fd, RECEIVE_QUEUE)?;
    let missing = (end.wrapping_sub(arrived) as i32).max(0) as usize;
    if missing == 0 {
        return Ok(Vec::new());
    }
    let queue = message::peek(ours.fd, queued)?.map(|message| message.data).unwrap_or_default();
    queue.len().checked_sub(missing).map(|from| queue[from..].to_vec()).ok_or(Errno::EIO)
}

/// The connection of a record, and where its other end is.
fn connection(inet: &InetRecord) -> Result<(&[u8], &TcpRecord), Errno> {
    match &inet.state {
        InetState::Inside { remote, tcp, .. } | InetState::PeerGone { remote, tcp } => Ok((remote, tcp)),
        _ => Err(Errno::EINVAL),
    }
}

/// One end, whose other end is made only to be closed.
pub(super) fn last(inet: &InetRecord) -> Result<OwnedFd, Errno> {
    let (remote, tcp) = connection(inet)?;
    let closed = TcpRecord {
        received: Vec::new(),
        unsent: Vec::new(),
        write_closed: true,
        read_closed: false,
        scale: (tcp.scale.1, tcp.scale.0),
        ..*tcp
    };
    let other = InetRecord {
        local: Some(remote.to_vec()),
        state: InetState::PeerGone { remote: inet.local.clone().ok_or(Errno::EINVAL)?, tcp: closed },
        queue: Vec::new(),
        options: Vec::new(),
        ..*inet
    };
    pair(inet, &other).map(|(fd, _closed)| fd)
}

/// A socket whose connection is over: what was received can be read still, then comes the end.
pub(super) fn over(family: i32, received: &[u8]) -> Result<OwnedFd, Errno> {
    let loopback = loopbacks(family).into_iter().find_map(|address| connected(&address, family).ok());
    let (client, server) = loopback.ok_or(Errno::ENETUNREACH)?;
    for fd in [&client, &server] {
        for name in [libc::SO_RCVBUFFORCE, libc::SO_SNDBUFFORCE] {
            socket::set_int_option(
                fd.as_fd(),
                libc::SOL_SOCKET,
                name,
                (received.len() * 4).max(1 << 20) as i32,
            )?;
        }
    }
    let mut sent = 0;
    while sent < received.len() {
        sent += message::send(server.as_fd(), &received[sent..], &[], &[], None)?;
    }
    socket::shutdown(server.as_fd(), libc::SHUT_WR)?;
    socket::shutdown(client.as_fd(), libc::SHUT_WR)?;
    Ok(client)
}

/// Both ends of a connection inside the group.
pub(super) fn pair(a: &InetRecord, b: &InetRecord) -> Result<(OwnedFd, OwnedFd), Errno> {
    let ((_, tcp_a), (_, tcp_b)) = (connection(a)?, connection(b)?);
    // What an end has received is put in its queue and raises its number; the other end goes on sending from there.
    let fd_a = end(a, tcp_a, FIRST.wrapping_add(tcp_b.received.len() as u32))?;
    let fd_b = end(b, tcp_b, FIRST.wrapping_add(tcp_a.received.len() as u32))?;
    for fd in [&fd_a, &fd_b] {
        set(fd.as_fd(), TCP_REPAIR, REPAIR_OFF)?;
    }
    for (fd, tcp) in [(&fd_a, tcp_a), (&fd_b, tcp_b)] {
        let mut sent = 0;
        while sent < tcp.unsent.len() {
            sent += message::send(fd.as_fd(), &tcp.unsent[sent..], &[], &[], None)?;
        }
        if tcp.write_closed {
            socket::shutdown(fd.as_fd(), libc::SHUT_WR)?;
        }
        if tcp.read_closed {
            socket::shutdown(fd.as_fd(), libc::SHUT_RD)?;
        }
    }
    Ok((fd_a, fd_b))
}

/// One end in repair mode: connected without a packet, its receive queue filled.
fn end(inet: &InetRecord, tcp: &TcpRecord, send_from: u32) -> Result<OwnedFd, Errno> {
    let (remote, _) = connection(inet)?;
    let local = inet.local.as_ref().ok_or(Errno::EINVAL)?;
    let owned = socket::socket(inet.family, inet.kind, inet.protocol)?;
    let fd = owned.as_fd();
    for (name, bytes) in
        [(libc::SO_RCVBUFFORCE, tcp.received.len()), (libc::SO_SNDBUFFORCE, tcp.unsent.len())]
    {
        // Sizes come back with the options; until then there is room for everything.
        socket::set_int_option(fd, libc::SOL_SOCKET, name, (bytes * 4).max(1 << 20) as i32)?;
    }
    let told = tcp.mss.saturating_sub(timestamps(tcp.options));
    if SEGMENT_SET.contains(&told) {
        set(fd, TCP_MAXSEG, told as i32)?;
    }
    set(fd, TCP_REPAIR, REPAIR_ON)?;
    socket::bind(fd, local)?;
    for (queue, first) in [(RECEIVE_QUEUE, FIRST), (SEND_QUEUE, send_from)] {
        set(fd, TCP_REPAIR_QUEUE, queue)?;
        set(fd, TCP_QUEUE_SEQ, first as i32)?;
    }
    socket::connect(fd, remote)?;
    socket::set_option(fd, libc::IPPROTO_TCP, TCP_REPAIR_OPTIONS, &negotiated(tcp))?;
    set(fd, TCP_REPAIR_QUEUE, RECEIVE_QUEUE)?;
    for piece in tcp.received.chunks(PIECE) {
        let mut sent = 0;
        while sent < piece.len() {
            sent += message::send(fd, &piece[sent..], &[], &[], None)?;
        }
    }
    set(fd, TCP_REPAIR_QUEUE, 0)?;
    Ok(owned)
}

/// struct tcp_repair_opt's of what the ends had agreed on: option of the header, value.
fn negotiated(tcp: &TcpRecord) -> Vec<u8> {
    // TCPI_OPT_* of struct tcp_info.
    let (timestamps, sack, window_scale) = (1, 2, 4);
    let mut options = vec![(2, tcp.mss)];
    if tcp.options & window_scale != 0 {
        options.push((3, u32::from(tcp.scale.0) | u32::from(tcp.scale.1) << 16));
    }
    if tcp.options & sack != 0 {
        options.push((4, 0));
    }
    if tcp.options & timestamps != 0 {
        options.push((8, 0));
    }
    options
        .into_iter()
        .flat_map(|(code, value): (u32, u32)| [code.to_ne_bytes(), value.to_ne_bytes()].concat())
        .collect()
}

/// A socket whose connection was reset: its next call tells ECONNRESET, poll(2) tells POLLHUP and POLLERR. Where the loopback interface is
/// down, one that was never connected, which tells POLLHUP and ENOTCONN.
pub(super) fn reset(family: i32) -> Result<OwnedFd, Errno> {
    for loopback in loopbacks(family) {
        if let Ok(fd) = reset_at(family, &loopback) {
            return Ok(fd);
        }
    }
    socket::socket(family, libc::SOCK_STREAM, 0)
}

fn reset_at(family: i32, loopback: &[u8]) -> Result<OwnedFd, Errno> {
    let (client, server) = connected(loopback, family)?;
    let at_once = [1i32.to_ne_bytes(), 0i32.to_ne_bytes()].concat();
    socket::set_option(server.as_fd(), libc::SOL_SOCKET, libc::SO_LINGER, &at_once)?;
    drop(server);
    Ok(client)
}

/// Two ends of a connection over the loopback interface: client and server.
fn connected(loopback: &[u8], family: i32) -> Result<(OwnedFd, OwnedFd), Errno> {
    let new = || socket::socket(family, libc::SOCK_STREAM, libc::IPPROTO_TCP);
    let (listener, client) = (new()?, new()?);
    socket::bind(listener.as_fd(), loopback)?;
    socket::listen(listener.as_fd(), 1)?;
    socket::connect(client.as_fd(), &socket::name(listener.as_fd())?)?;
    let server = socket::accept(listener.as_fd())?;
    Ok((client, server))
}

/// struct sockaddr_in and sockaddr_in6 of loopback, port 0; for v6 also the v4 one in v6 form.
fn loopbacks(family: i32) -> Vec<Vec<u8>> {
    let v6 = |ip: Ipv6Addr| {
        let mut bytes = (libc::AF_INET6 as u16).to_ne_bytes().to_vec();
        bytes.extend_from_slice(&[0; 6]);
        bytes.extend_from_slice(&ip.octets());
        bytes.extend_from_slice(&[0; 4]);
        bytes
    };
    if family == libc::AF_INET6 {
        return vec![v6(Ipv6Addr::LOCALHOST), v6(Ipv4Addr::LOCALHOST.to_ipv6_mapped())];
    }
    let mut bytes = (libc::AF_INET as u16).to_ne_bytes().to_vec();
    bytes.extend_from_slice(&[0; 2]);
    bytes.extend_from_slice(&Ipv4Addr::LOCALHOST.octets());
    bytes.extend_from_slice(&[0; 8]);
    vec![bytes]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_way_is_read_without_a_trace() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        socket::set_int_option(server.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).unwrap();
        let Ok(repair) = Repair::begin(server.as_fd()) else {
            println!("skipped: needs CAP_NET_ADMIN");
            return;
        };
        drop(repair);
        let reuse = |fd| socket::int_option(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR);
        assert_eq!(reuse(server.as_fd()), Ok(1));
        Repair::begin(client.as_fd()).map(drop).unwrap();
        assert_eq!(reuse(client.as_fd()), Ok(0));
    }
}
