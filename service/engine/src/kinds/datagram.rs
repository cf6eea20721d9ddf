//! Datagrams that wait in a UDP or UDP-Lite socket (udp(7)).
//!
//! ```text
//! capture   MSG_PEEK at SO_PEEK_OFF 0, then at the sum of the lengths so far, …: one after another, nothing is taken
//! rebuild   bind to a port that nobody knows ─► a raw socket sends each as an IP packet of its true sender, over lo
//!           (first to a probe: is it as it was?) ─► the port is given up (AF_UNSPEC), the queue stays ─► bind to its own port
//! ```
//!
//! A packet that is sent to an address of this machine keeps its route over the loopback interface, so that no check of its source
//! (rp_filter) meets it. An empty datagram is told once only: the kernel marks it as seen.

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use ckpt_image::records::{ControlMessage, DescriptionKind, DescriptionRecord, InetDatagram, InetRecord};
use ckpt_sys::descriptor::{message, socket};
use nix::errno::Errno;
use nix::libc;

use super::collect::{Depth, DescriptorCapture, Found};
use super::inet::{self, parse};
use super::peek::PeekOffset;
use super::rebuild::Rebuild;
use super::{Error, Refusal};

mod packet;

use packet::Envelope;

/// Larger than any datagram.
const ROOM: usize = 64 << 10;
/// Room for a queue while it is filled.
const QUEUE: i32 = 64 << 20;
/// How long the loopback interface may take for a packet.
const PATIENCE: Duration = Duration::from_millis(200);
const SO_MEMINFO: i32 = 55; // Linux 4.12

/// Whether datagrams can be looked at one after another.
fn has_peek_offset(kind: i32, protocol: i32) -> bool {
    kind == libc::SOCK_DGRAM && matches!(protocol, libc::IPPROTO_UDP | libc::IPPROTO_UDPLITE)
}

/// The datagrams that wait, or a warning that they will be lost.
pub(super) fn capture(
    cx: &mut DescriptorCapture<'_>,
    found: &Found,
    kind: i32,
    protocol: i32,
) -> Result<Vec<InetDatagram>, Refusal> {
    let ready = socket::ready(found.fd(), libc::POLLIN).unwrap_or(0);
    if ready & libc::POLLERR != 0 {
        let text =
            "an error or a message of its error queue (MSG_ERRQUEUE) waits in it, which is lost at a restore";
        cx.warn(found, Refusal::new("socket-error", text, "nothing, as a rule: the next one comes"));
    }
    if ready & libc::POLLIN == 0 {
        return Ok(Vec::new());
    }
    // Looking would take the error away from the application.
    if !has_peek_offset(kind, protocol) || ready & libc::POLLERR != 0 {
        let text = "packets that were not read yet are lost at a restore, as packets may be";
        let remedy = "nothing, where the application's protocol repeats them";
        cx.warn(found, Refusal::new("datagram-queue", text, remedy));
        return Ok(Vec::new());
    }
    match cx.depth {
        Depth::Surface => Ok(Vec::new()),
        Depth::Contents => queued(found.fd()).map_err(Refusal::call("recvmsg(MSG_PEEK)")),
    }
}

fn queued(fd: BorrowedFd<'_>) -> Result<Vec<InetDatagram>, Errno> {
    let offset = PeekOffset::begin(fd)?;
    let mut queue = Vec::new();
    let mut at = 0;
    while let Some(message) = offset.peek(at, ROOM)? {
        at += message.data.len();
        queue.extend(apart(recorded(message)));
    }
    Ok(queue)
}

fn recorded(message: message::Message) -> InetDatagram {
    let control =
        message.control.into_iter().map(|(level, kind, data)| ControlMessage { level, kind, data }).collect();
    InetDatagram { data: message.data, from: message.from, control }
}

/// What the kernel had put together (UDP_GRO) as the datagrams that it was made of.
fn apart(mut datagram: InetDatagram) -> Vec<InetDatagram> {
    let is_size = |c: &ControlMessage| (c.level, c.kind) == (libc::IPPROTO_UDP, libc::UDP_GRO);
    let size = datagram.control.iter().find(|c| is_size(c)).and_then(|c| c.data.get(..4)?.try_into().ok());
    datagram.control.retain(|c| !is_size(c));
    match size.map(i32::from_ne_bytes) {
        Some(size) if size > 0 && datagram.data.len() > size as usize => {
            let piece = |data: &[u8]| InetDatagram { data: data.to_vec(), ..datagram.clone() };
            datagram.data.chunks(size as usize).map(piece).collect()
        }
        _ => vec![datagram],
    }
}

/// Fills a new socket that has its options and is not bound yet, and leaves it unbound.
pub(super) fn fill(
    cx: &mut Rebuild<'_>,
    record: &DescriptionRecord,
    inet: &InetRecord,
    fd: BorrowedFd<'_>,
) -> Result<(), Error> {
    let failed = |op| Error::call(op, cx.describe(record));
    let probe = socket::socket(inet.family, inet.kind, inet.protocol).map_err(failed("socket"))?;
    inet::set_options(cx, record, inet, probe.as_fd())?;
    for socket in [fd, probe.as_fd()] {
        bind_aside(socket, inet).map_err(failed("bind"))?;
    }
    let filling = Filling::new(fd, probe, inet.protocol).map_err(failed("socket"))?;
    let came = inet.queue.iter().filter(|datagram| filling.put(datagram).is_ok()).count();
    let all = inet.queue.len();
    if came < all {
        let text = format!(
            "{} of {all} datagrams that were not read yet cannot be made again as they were",
            all - came
        );
        cx.warn(record, "datagram-queue", text, "nothing, where the application's protocol repeats them");
    }
    let nowhere = any(libc::AF_UNSPEC);
    socket::connect(fd, &nowhere).map_err(Error::call("connect(AF_UNSPEC)", cx.describe(record)))
}

/// Binds to the address, at a port that nobody knows. They come by the loopback interface: device and size come back with the options.
fn bind_aside(fd: BorrowedFd<'_>, inet: &InetRecord) -> Result<(), Errno> {
    socket::set_option(fd, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, &[])?;
    socket::set_int_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, QUEUE)?;
    let mut aside = inet.local.clone().unwrap_or_else(|| any(inet.family));
    aside.get_mut(2..4).ok_or(Errno::EINVAL)?.fill(0);
    socket::bind(fd, &aside)
}

/// struct sockaddr_in or sockaddr_in6 of every address.
fn any(family: i32) -> Vec<u8> {
    let mut bytes = vec![0; if family == libc::AF_INET6 { 28 } else { 16 }];
    bytes[..2].copy_from_slice(&(family as u16).to_ne_bytes());
    bytes
}

/// A queue that is being filled. Each datagram is sent to a probe first, a socket like the one it is for: what would be otherwise than it
/// was is better lost, as datagrams may be.
struct Filling<'a> {
    fd: BorrowedFd<'a>,
    probe: OwnedFd,
    protocol: i32,
    /// Raw sockets for v4 and v6.
    raw: [Option<OwnedFd>; 2],
}

impl<'a> Filling<'a> {
    fn new(fd: BorrowedFd<'a>, probe: OwnedFd, protocol: i32) -> Result<Self, Errno> {
        socket::set_int_option(probe.as_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF, -1)?;
        let raw = [libc::AF_INET, libc::AF_INET6]
            .map(|family| socket::socket(family, libc::SOCK_RAW, libc::IPPROTO_RAW).ok());
        Ok(Self { fd, probe, protocol, raw })
    }

    fn put(&self, datagram: &InetDatagram) -> Result<(), Errno> {
        let probe = self.probe.as_fd();
        self.send(datagram, probe)?;
        let came = message::peek(probe, ROOM)?.map(recorded).ok_or(Errno::ENOMSG)?;
        message::discard(probe);
        if (&came.data, &came.from, of_ip(&came)) != (&datagram.data, &datagram.from, of_ip(datagram)) {
            return Err(Errno::EBADMSG);
        }
        self.send(datagram, self.fd)
    }

    /// Sends it to one of the two, and waits until it is there.
    fn send(&self, datagram: &InetDatagram, to: BorrowedFd<'_>) -> Result<(), Errno> {
        let at = parse(&socket::name(to)?).ok_or(Errno::EINVAL)?;
        let envelope = Envelope::of(datagram, at, self.protocol).ok_or(Errno::EINVAL)?;
        let packet = envelope.seal(&datagram.data).ok_or(Errno::EMSGSIZE)?;
        if !is_here(envelope.to.ip()) {
            return Err(Errno::EADDRNOTAVAIL); // it would leave this machine
        }
        let raw = self.raw[usize::from(envelope.to.is_ipv6())].as_ref().ok_or(Errno::EAFNOSUPPORT)?;
        let before = held(to)?;
        message::send(raw.as_fd(), &packet, &raw_address(envelope.to.ip()), &[], None)?;
        let since = Instant::now();
        while held(to)? == before {
            if since.elapsed() > PATIENCE {
                return Err(Errno::ETIMEDOUT);
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        Ok(())
    }
}

/// All that the kernel tells of the way it came.
fn of_ip(datagram: &InetDatagram) -> Vec<&ControlMessage> {
    let is_ip = |c: &&ControlMessage| matches!(c.level, libc::IPPROTO_IP | libc::IPPROTO_IPV6);
    datagram.control.iter().filter(is_ip).collect()
}

/// Memory that the queue of a socket takes: the first word of SO_MEMINFO.
fn held(fd: BorrowedFd<'_>) -> Result<u32, Errno> {
    let words = socket::option(fd, libc::SOL_SOCKET, SO_MEMINFO, 36)?;
    words.get(..4).and_then(|word| word.try_into().ok()).map(u32::from_ne_bytes).ok_or(Errno::EINVAL)
}

/// Whether an address is one of this network namespace, for one receiver.
fn is_here(ip: IpAddr) -> bool {
    let family = if ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let bound = || {
        let socket = socket::socket(family, libc::SOCK_DGRAM, libc::IPPROTO_UDP)?;
        socket::bind(socket.as_fd(), &raw_address(ip))
    };
    !ip.is_multicast() && !ip.is_unspecified() && bound().is_ok()
}

/// struct sockaddr_in or sockaddr_in6, port 0.
fn raw_address(ip: IpAddr) -> Vec<u8> {
    let mut bytes = any(if ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 });
    match ip {
        IpAddr::V4(ip) => bytes[4..8].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => bytes[8..24].copy_from_slice(&ip.octets()),
    }
    bytes
}

/// bind(2) to a port that others of the group have: each had SO_REUSEADDR while it was bound, and has not kept it (ntpd(8)).
pub(super) fn bind_beside(cx: &Rebuild<'_>, fd: BorrowedFd<'_>, local: &[u8]) -> Result<(), Errno> {
    let port = |address: &[u8]| parse(address).map(|address| address.port());
    let is_beside = |inet: &InetRecord| {
        inet.kind == libc::SOCK_DGRAM && inet.local.as_deref().and_then(port) == port(local)
    };
    let others = cx.image.descriptions.iter().filter_map(|record| match &record.kind {
        DescriptionKind::Inet(inet) if is_beside(inet) => cx.get(record.id).ok(),
        _ => None,
    });
    let reuse = |fd: BorrowedFd<'_>, to| {
        let before = socket::int_option(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR)?;
        socket::set_int_option(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, to).map(|()| before)
    };
    let all: Vec<_> =
        others.chain([fd]).map(|fd| reuse(fd, 1).map(|before| (fd, before))).collect::<Result<_, _>>()?;
    let bound = socket::bind(fd, local);
    for (fd, before) in all {
        reuse(fd, before)?;
    }
    bound
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_together_comes_apart() {
        let size = ControlMessage {
            level: libc::IPPROTO_UDP,
            kind: libc::UDP_GRO,
            data: 4i32.to_ne_bytes().to_vec(),
        };
        let datagram = InetDatagram { data: b"onestwos3".to_vec(), from: vec![], control: vec![size] };
        let pieces: Vec<_> = apart(datagram).into_iter().map(|d| (d.data, d.control)).collect();
        assert_eq!(pieces, [(b"ones".to_vec(), vec![]), (b"twos".to_vec(), vec![]), (b"3".to_vec(), vec![])]);
    }
}
