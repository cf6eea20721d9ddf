//! Socket options: read all that can be read and set again, and set again what a new socket has otherwise.

use std::os::fd::BorrowedFd;

use ckpt_image::records::SocketOption;
use ckpt_sys::descriptor::socket;
use nix::errno::Errno;
use nix::libc;

/// An option by level and name, with the size of its value.
type Entry = (i32, i32, usize);

const SOL_NETLINK: i32 = 270;
const SO_BUF_LOCK: i32 = 72; // Linux 5.15
const SO_PASSPIDFD: i32 = 76; // Linux 6.5
const SO_PASSRIGHTS: i32 = 83; // Linux 6.16
/// Room for options of packets: of IPv4 the header has place for so many, of IPv6 their length is a byte, in units of 8.
const IP_OPTIONS_ROOM: usize = 40;
const IPV6_OPTIONS_ROOM: usize = 2048;

/// socket(7).
const SOCKET: &[Entry] = &[
    (libc::SOL_SOCKET, libc::SO_REUSEADDR, 4),
    (libc::SOL_SOCKET, libc::SO_REUSEPORT, 4),
    (libc::SOL_SOCKET, libc::SO_BINDTODEVICE, 16),
    (libc::SOL_SOCKET, libc::SO_BROADCAST, 4),
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 4),
    (libc::SOL_SOCKET, libc::SO_OOBINLINE, 4),
    (libc::SOL_SOCKET, libc::SO_DONTROUTE, 4),
    (libc::SOL_SOCKET, libc::SO_DEBUG, 4),
    (libc::SOL_SOCKET, libc::SO_NO_CHECK, 4),
    (libc::SOL_SOCKET, libc::SO_PRIORITY, 4),
    (libc::SOL_SOCKET, libc::SO_MARK, 4),
    (libc::SOL_SOCKET, libc::SO_LINGER, 8),
    (libc::SOL_SOCKET, libc::SO_RCVLOWAT, 4),
    (libc::SOL_SOCKET, libc::SO_RCVTIMEO, 16),
    (libc::SOL_SOCKET, libc::SO_SNDTIMEO, 16),
    (libc::SOL_SOCKET, libc::SO_TIMESTAMP, 4),
    (libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 4),
    (libc::SOL_SOCKET, libc::SO_TIMESTAMPING, 4),
    (libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 4),
    (libc::SOL_SOCKET, libc::SO_PEEK_OFF, 4),
    (libc::SOL_SOCKET, libc::SO_BUSY_POLL, 4),
    (libc::SOL_SOCKET, libc::SO_ZEROCOPY, 4),
    // Of a new size of times, those of above with another name: set after them.
    (libc::SOL_SOCKET, 63, 4), // SO_TIMESTAMP_NEW
    (libc::SOL_SOCKET, 64, 4), // SO_TIMESTAMPNS_NEW
    (libc::SOL_SOCKET, 65, 8), // SO_TIMESTAMPING_NEW; whole, for setting it changes the others
    (libc::SOL_SOCKET, libc::SO_WIFI_STATUS, 4),
    (libc::SOL_SOCKET, libc::SO_NOFCS, 4),
    (libc::SOL_SOCKET, libc::SO_SELECT_ERR_QUEUE, 4),
    (libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE, 8),
    (libc::SOL_SOCKET, libc::SO_TXTIME, 8),
    (libc::SOL_SOCKET, 69, 4), // SO_PREFER_BUSY_POLL
    (libc::SOL_SOCKET, 74, 4), // SO_TXREHASH
    (libc::SOL_SOCKET, 75, 4), // SO_RCVMARK
    (libc::SOL_SOCKET, 82, 4), // SO_RCVPRIORITY, Linux 6.14
    (libc::SOL_SOCKET, libc::SO_SNDBUF, 4),
    (libc::SOL_SOCKET, libc::SO_RCVBUF, 4),
    (libc::SOL_SOCKET, SO_BUF_LOCK, 4), // after the sizes, whose setting changes it
    (libc::SOL_SOCKET, 73, 4),          // SO_RESERVE_MEM
    (libc::SOL_SOCKET, libc::SO_LOCK_FILTER, 4),
];

/// unix(7).
const UNIX: &[Entry] = &[
    (libc::SOL_SOCKET, libc::SO_PASSCRED, 4),
    (libc::SOL_SOCKET, libc::SO_PASSSEC, 4),
    (libc::SOL_SOCKET, SO_PASSPIDFD, 4),
    (libc::SOL_SOCKET, SO_PASSRIGHTS, 4),
];

/// ip(7).
const IP: &[Entry] = &[
    (libc::IPPROTO_IP, libc::IP_TOS, 4),
    (libc::IPPROTO_IP, libc::IP_TTL, 4),
    (libc::IPPROTO_IP, libc::IP_PKTINFO, 4),
    (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, 4),
    (libc::IPPROTO_IP, libc::IP_RECVERR, 4),
    (libc::IPPROTO_IP, libc::IP_RECVTTL, 4),
    (libc::IPPROTO_IP, libc::IP_RECVTOS, 4),
    (libc::IPPROTO_IP, libc::IP_FREEBIND, 4),
    (libc::IPPROTO_IP, libc::IP_TRANSPARENT, 4),
    (libc::IPPROTO_IP, libc::IP_RECVORIGDSTADDR, 4),
    (libc::IPPROTO_IP, libc::IP_MINTTL, 4),
    (libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 4),
    (libc::IPPROTO_IP, libc::IP_OPTIONS, IP_OPTIONS_ROOM),
    (libc::IPPROTO_IP, libc::IP_RECVOPTS, 4),
    (libc::IPPROTO_IP, libc::IP_RETOPTS, 4),
    (libc::IPPROTO_IP, libc::IP_PASSSEC, 4),
    (libc::IPPROTO_IP, libc::IP_CHECKSUM, 4),
    (libc::IPPROTO_IP, 25, 4), // IP_RECVFRAGSIZE
    (libc::IPPROTO_IP, 26, 4), // IP_RECVERR_RFC4884
    (libc::IPPROTO_IP, 51, 4), // IP_LOCAL_PORT_RANGE
];

/// ipv6(7).
const IPV6: &[Entry] = &[
    (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_TCLASS, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_FREEBIND, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVHOPOPTS, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVRTHDR, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVDSTOPTS, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVPATHMTU, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_2292PKTINFO, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_2292HOPOPTS, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_2292DSTOPTS, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_2292RTHDR, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_2292HOPLIMIT, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_HOPOPTS, IPV6_OPTIONS_ROOM),
    (libc::IPPROTO_IPV6, libc::IPV6_RTHDRDSTOPTS, IPV6_OPTIONS_ROOM),
    (libc::IPPROTO_IPV6, libc::IPV6_RTHDR, IPV6_OPTIONS_ROOM),
    (libc::IPPROTO_IPV6, libc::IPV6_DSTOPTS, IPV6_OPTIONS_ROOM),
    (libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_AUTOFLOWLABEL, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_ADDR_PREFERENCES, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_MINHOPCOUNT, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVORIGDSTADDR, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVFRAGSIZE, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_FLOWINFO, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_FLOWINFO_SEND, 4),
    (libc::IPPROTO_IPV6, 29, 4), // IPV6_MULTICAST_ALL
    (libc::IPPROTO_IPV6, 30, 4), // IPV6_ROUTER_ALERT_ISOLATE
    (libc::IPPROTO_IPV6, 31, 4), // IPV6_RECVERR_RFC4884
];

/// tcp(7).
const TCP: &[Entry] = &[
    (libc::IPPROTO_TCP, libc::TCP_NODELAY, 4),
    (libc::IPPROTO_TCP, libc::TCP_CORK, 4),
    (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 4),
    (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, 4),
    (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, 4),
    (libc::IPPROTO_TCP, libc::TCP_SYNCNT, 4),
    (libc::IPPROTO_TCP, libc::TCP_LINGER2, 4),
    (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 4),
    (libc::IPPROTO_TCP, libc::TCP_CONGESTION, 16),
    (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 4),
    (libc::IPPROTO_TCP, libc::TCP_FASTOPEN, 4),
    (libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, 4),
    (libc::IPPROTO_TCP, libc::TCP_THIN_LINEAR_TIMEOUTS, 4),
    (libc::IPPROTO_TCP, libc::TCP_SAVE_SYN, 4),
    (libc::IPPROTO_TCP, libc::TCP_FASTOPEN_KEY, 32),
    (libc::IPPROTO_TCP, libc::TCP_FASTOPEN_NO_COOKIE, 4),
    (libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 4),
    (libc::IPPROTO_TCP, libc::TCP_INQ, 4),
    (libc::IPPROTO_TCP, 37, 4), // TCP_TX_DELAY
    (libc::IPPROTO_TCP, 44, 4), // TCP_RTO_MAX_MS, Linux 6.15
    (libc::IPPROTO_TCP, 45, 4), // TCP_RTO_MIN_US, Linux 6.16
    (libc::IPPROTO_TCP, 46, 4), // TCP_DELACK_MAX_US, Linux 6.16
];

/// Of a socket that has not been connected; of a connection they are what both ends made of them.
const TCP_UNCONNECTED: &[Entry] =
    &[(libc::IPPROTO_TCP, libc::TCP_MAXSEG, 4), (libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, 4)];

/// udp(7), with UDP_SEGMENT, UDP_GRO, UDP_NO_CHECK6_TX and _RX, UDP_ENCAP, and what streams have no use for of ip(7) and ipv6(7).
const UDP: &[Entry] = &[
    (libc::IPPROTO_UDP, libc::UDP_CORK, 4),
    (libc::IPPROTO_UDP, 103, 4),
    (libc::IPPROTO_UDP, 104, 4),
    (libc::IPPROTO_UDP, 101, 4),
    (libc::IPPROTO_UDP, 102, 4),
    (libc::IPPROTO_UDP, 100, 4),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_IF, 4),
    (libc::IPPROTO_IP, 50, 4), // IP_UNICAST_IF
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_IF, 4),
    (libc::IPPROTO_IPV6, 76, 4), // IPV6_UNICAST_IF
    (libc::IPPROTO_IP, libc::IP_MULTICAST_TTL, 4),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_LOOP, 4),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_ALL, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS, 4),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP, 4),
];

/// udplite(7): UDPLITE_SEND_CSCOV, UDPLITE_RECV_CSCOV.
const UDPLITE: &[Entry] = &[(libc::IPPROTO_UDPLITE, 10, 4), (libc::IPPROTO_UDPLITE, 11, 4)];

/// raw(7): IP_HDRINCL, ICMP_FILTER, IP_NODEFRAG, IP_ROUTER_ALERT; IPV6_HDRINCL, IPV6_CHECKSUM, and ICMP6_FILTER of IPPROTO_ICMPV6.
const RAW: &[Entry] = &[
    (libc::IPPROTO_IP, libc::IP_HDRINCL, 4),
    (libc::SOL_RAW, 1, 4),
    (libc::IPPROTO_IP, libc::IP_NODEFRAG, 4),
    (libc::IPPROTO_IP, libc::IP_ROUTER_ALERT, 4),
    (libc::IPPROTO_IPV6, 36, 4),
    (libc::SOL_RAW, 7, 4), // of the other level ICMPv6 refuses to set it
    (libc::IPPROTO_ICMPV6, 1, 32),
];

/// packet(7): AUXDATA, COPY_THRESH, LOSS, ORIGDEV, VERSION, RESERVE, TIMESTAMP, VNET_HDR, TX_HAS_OFF, QDISC_BYPASS, IGNORE_OUTGOING.
const PACKET: &[Entry] = &[
    (libc::SOL_PACKET, 8, 4),
    (libc::SOL_PACKET, 7, 4),
    (libc::SOL_PACKET, 14, 4),
    (libc::SOL_PACKET, 9, 4),
    (libc::SOL_PACKET, 10, 4),
    (libc::SOL_PACKET, 12, 4),
    (libc::SOL_PACKET, 17, 4),
    (libc::SOL_PACKET, 15, 4),
    (libc::SOL_PACKET, 19, 4),
    (libc::SOL_PACKET, 20, 4),
    (libc::SOL_PACKET, 23, 4),
];

/// netlink(7): credentials, PKTINFO, BROADCAST_ERROR, NO_ENOBUFS, LISTEN_ALL_NSID, CAP_ACK, EXT_ACK, GET_STRICT_CHK.
const NETLINK: &[Entry] = &[
    (libc::SOL_SOCKET, libc::SO_PASSCRED, 4),
    (libc::SOL_SOCKET, libc::SO_PASSSEC, 4),
    (SOL_NETLINK, 3, 4),
    (SOL_NETLINK, 4, 4),
    (SOL_NETLINK, 5, 4),
    (SOL_NETLINK, 8, 4),
    (SOL_NETLINK, 10, 4),
    (SOL_NETLINK, 11, 4),
    (SOL_NETLINK, 12, 4),
];

/// The options that sockets of this family and protocol have.
fn entries(family: i32, protocol: i32, is_raw: bool) -> Vec<&'static [Entry]> {
    let mut lists = vec![SOCKET];
    match family {
        libc::AF_UNIX => lists.push(UNIX),
        libc::AF_NETLINK => lists.push(NETLINK),
        libc::AF_PACKET => lists.push(PACKET),
        libc::AF_INET => lists.push(IP),
        libc::AF_INET6 => lists.extend([IP, IPV6]),
        _ => {}
    }
    match protocol {
        // A raw socket has the number of any protocol, and options of its own.
        _ if is_raw => lists.extend([UDP, RAW]),
        libc::IPPROTO_TCP | libc::IPPROTO_MPTCP => lists.push(TCP),
        libc::IPPROTO_UDPLITE => lists.extend([UDP, UDPLITE]),
        libc::IPPROTO_UDP | libc::IPPROTO_ICMP | libc::IPPROTO_ICMPV6 => lists.push(UDP),
        _ => {}
    }
    lists
}

/// All options of a socket that it has; the classic filter last. Errors: EACCES where it has an eBPF filter.
pub(super) fn read(fd: BorrowedFd<'_>, family: i32, protocol: i32) -> Result<Vec<SocketOption>, Errno> {
    // protocol numbers are those of the internet only there (unix and netlink use others)
    let protocol = if matches!(family, libc::AF_INET | libc::AF_INET6) { protocol } else { -1 };
    let mut options = Vec::new();
    let kind = socket::int_option(fd, libc::SOL_SOCKET, libc::SO_TYPE)?;
    let is_raw = kind == libc::SOCK_RAW && protocol != -1;
    let mut lists = entries(family, protocol, is_raw);
    if protocol == libc::IPPROTO_TCP && !is_raw && is_unconnected(fd) {
        lists.push(TCP_UNCONNECTED);
    }
    for &(level, name, room) in lists.into_iter().flatten() {
        match socket::option(fd, level, name, room) {
            Ok(value) => options.push(SocketOption { level, name, value }),
            Err(Errno::ENOPROTOOPT | Errno::EOPNOTSUPP | Errno::EINVAL) => {}
            Err(e) => return Err(e),
        }
    }
    let filter = socket::filter(fd)?;
    if !filter.is_empty() {
        options.push(SocketOption { level: libc::SOL_SOCKET, name: libc::SO_ATTACH_FILTER, value: filter });
    }
    Ok(options)
}

/// Whether a TCP socket is closed or listens, which is the first byte of struct tcp_info.
fn is_unconnected(fd: BorrowedFd<'_>) -> bool {
    const CLOSED: u8 = 7;
    const LISTENING: u8 = 10;
    let state = socket::option(fd, libc::IPPROTO_TCP, libc::TCP_INFO, 1);
    state.is_ok_and(|state| matches!(state[..], [CLOSED | LISTENING]))
}

fn is_filter(option: &SocketOption) -> bool {
    (option.level, option.name) == (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER)
}

/// What forbids to change the filter.
fn is_lock(option: &SocketOption) -> bool {
    (option.level, option.name) == (libc::SOL_SOCKET, libc::SO_LOCK_FILTER)
}

/// Sets what differs, but not the filter. Errors with the option they are of.
pub(super) fn apply(fd: BorrowedFd<'_>, options: &[SocketOption]) -> Result<(), (SocketOption, Errno)> {
    // The numbers of options are those of their level only: IPV6_V6ONLY is SO_ATTACH_FILTER of another.
    // An empty value is that of an option that the socket did not have, and cannot always be set.
    let at_once = |option: &&SocketOption| !is_filter(option) && !is_lock(option) && !option.value.is_empty();
    for option in options.iter().filter(at_once) {
        let now = socket::option(fd, option.level, option.name, option.value.len().max(16));
        if now.as_ref() == Ok(&option.value) {
            continue;
        }
        set(fd, option).map_err(|e| (option.clone(), e))?;
    }
    Ok(())
}

/// Sets the filter, once all data is in place, and what locks it.
pub(super) fn apply_filter(fd: BorrowedFd<'_>, options: &[SocketOption]) -> Result<(), Errno> {
    let filter = options.iter().find(|option| is_filter(option));
    filter.map_or(Ok(()), |option| socket::set_filter(fd, &option.value))?;
    let lock = options.iter().find(|option| is_lock(option) && option.value.iter().any(|byte| *byte != 0));
    lock.map_or(Ok(()), |option| set(fd, option))
}

fn set(fd: BorrowedFd<'_>, option: &SocketOption) -> Result<(), Errno> {
    // The kernel tells twice the size of buffers that was asked for.
    let half = || i32::from_ne_bytes(option.value.as_slice().try_into().unwrap_or_default()) / 2;
    match (option.level, option.name) {
        (libc::SOL_SOCKET, libc::SO_SNDBUF) => {
            socket::set_int_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, half())
        }
        (libc::SOL_SOCKET, libc::SO_RCVBUF) => {
            socket::set_int_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, half())
        }
        (libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP) | (libc::IPPROTO_IPV6, libc::IPV6_ADD_MEMBERSHIP) => {
            match socket::set_option(fd, option.level, option.name, &option.value) {
                Err(Errno::EADDRINUSE) => Ok(()), // a member already
                other => other,
            }
        }
        (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY) => {
            match socket::set_option(fd, option.level, option.name, &option.value) {
                Err(Errno::EINVAL) => Ok(()), // it has a port, and with it what the option says
                other => other,
            }
        }
        (level, name) => socket::set_option(fd, level, name, &option.value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn options_of_one_socket_are_those_of_another_after_apply() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: needs root for SO_SNDBUFFORCE");
            return;
        }
        for (family, kind, protocol) in [
            (libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_TCP),
            (libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_TCP),
            (libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_UDP),
            (libc::AF_UNIX, libc::SOCK_SEQPACKET, 0),
            (libc::AF_NETLINK, libc::SOCK_RAW, 0),
        ] {
            let old = socket::socket(family, kind, protocol).unwrap();
            let new = socket::socket(family, kind, protocol).unwrap();
            socket::set_int_option(old.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).unwrap();
            socket::set_int_option(old.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, 100_000).unwrap();
            socket::set_int_option(old.as_fd(), libc::SOL_SOCKET, libc::SO_PRIORITY, 3).unwrap();
            if family == libc::AF_INET6 {
                socket::set_int_option(old.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1).unwrap();
                socket::set_int_option(old.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 1).unwrap();
                let padding = [0, 0, 1, 4, 0, 0, 0, 0];
                socket::set_option(old.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_HOPOPTS, &padding).unwrap();
            }
            if protocol == libc::IPPROTO_TCP {
                socket::set_int_option(old.as_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY, 1).unwrap();
                socket::set_int_option(old.as_fd(), libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 77).unwrap();
                let key = libc::TCP_FASTOPEN_KEY;
                socket::set_option(old.as_fd(), libc::IPPROTO_TCP, key, b"a key of 16 byte").unwrap();
            }
            let pass_all = [6u8, 0, 0, 0, 0xff, 0xff, 0, 0];
            socket::set_filter(old.as_fd(), &pass_all).unwrap();
            let options = read(old.as_fd(), family, protocol).unwrap();
            assert!(options.len() > 20);
            apply(new.as_fd(), &options).unwrap();
            apply_filter(new.as_fd(), &options).unwrap();
            assert_eq!(read(new.as_fd(), family, protocol).unwrap(), options);
        }
    }
}
