//! A TCP connection of a network namespace, looked up by its addresses, also one that no process has (sock_diag(7)).
//!
//! /proc/PID/net/tcp tells the same, but for each read of it the kernel goes through its whole table of connections: 2 ms where that is
//! the table of a machine with 24 GiB, and there are four reads.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use nix::errno::Errno;
use nix::sys::socket::SockaddrStorage;

use super::Result;

const LISTENS: u8 = 10;
/// That of loopback is 1 in every network namespace; a socket that is bound to a device is not found without it.
const INTERFACES: [u32; 2] = [0, 1];

/// A connection, as the kernel has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpEnd {
    /// TCP_ESTABLISHED (1) and so on.
    pub state: u8,
    /// Bytes that it has received and nobody has read.
    pub unread: u32,
    /// Bytes that the other end has not acknowledged; its end counts as one.
    pub unsent: u32,
    /// 0 where no process has it.
    pub inode: u32,
}

/// Asks about the TCP connections of the network namespace it was opened in.
pub struct TcpDiag {
    netlink: Socket,
    /// Addresses of its interfaces.
    local: HashSet<IpAddr>,
}

impl TcpDiag {
    /// Opens it in the calling thread's network namespace; it stays there.
    ///
    /// Errors: ENOENT where the kernel cannot tell (CONFIG_INET_TCP_DIAG, module `tcp_diag`).
    pub fn open() -> Result<Self> {
        let netlink = Socket::new(NETLINK_SOCK_DIAG).map_err(|e| errno(&e))?;
        let address = |a: nix::ifaddrs::InterfaceAddress| a.address.and_then(|address| ip(&address));
        let local = nix::ifaddrs::getifaddrs()?.filter_map(address).collect();
        let this = Self { netlink, local };
        // Who cannot tell at all answers ENOENT, too: a list of no state says which it is.
        this.ask(&request(libc::AF_INET, StateFlags::empty(), SocketId::new_v4()), NLM_F_DUMP)?;
        Ok(this)
    }

    /// Whether an address is of this machine.
    #[must_use]
    pub fn is_local(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.local.contains(&address)
    }

    /// The connection that has these addresses; `None` if there is none.
    pub fn find(&self, local: SocketAddr, remote: SocketAddr) -> Result<Option<TcpEnd>> {
        let family = if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        for interface_id in INTERFACES {
            let id = SocketId {
                source_port: local.port(),
                destination_port: remote.port(),
                source_address: local.ip(),
                destination_address: remote.ip(),
                interface_id,
                cookie: [0xff; 8],
            };
            // Where there is no connection the kernel answers with who listens at its address.
            match self.ask(&request(family, StateFlags::all(), id), 0) {
                Ok(Some(end)) if end.state != LISTENS => return Ok(Some(end)),
                Ok(_) | Err(Errno::ENOENT) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(None)
    }

    /// Sends a request, and reads one answer; `None`: there is nothing to tell.
    fn ask(&self, request: &InetRequest, flags: u16) -> Result<Option<TcpEnd>> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request.clone()).into());
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.netlink.send(&bytes, 0).map_err(|e| errno(&e))?;
        let (answer, _) = self.netlink.recv_from_full().map_err(|e| errno(&e))?;
        let answer = NetlinkMessage::<SockDiagMessage>::deserialize(&answer).map_err(|_| Errno::EBADMSG)?;
        match answer.payload {
            NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(told)) => {
                let header = told.header;
                Ok(Some(TcpEnd {
                    state: header.state,
                    unread: header.recv_queue,
                    unsent: header.send_queue,
                    inode: header.inode,
                }))
            }
            NetlinkPayload::Error(error) => Err(Errno::from_raw(-error.raw_code())),
            NetlinkPayload::Done(_) => Ok(None),
            _ => Err(Errno::EBADMSG),
        }
    }
}

fn request(family: i32, states: StateFlags, socket_id: SocketId) -> InetRequest {
    let (family, protocol) = (family as u8, libc::IPPROTO_TCP as u8);
    InetRequest { family, protocol, extensions: ExtensionFlags::empty(), states, socket_id }
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
}

fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    fn round(address: &str) {
        let listener = TcpListener::bind(address).unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.write_all(b"hello").unwrap();
        let (local, remote) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        let diag = TcpDiag::open().unwrap();
        assert!(diag.is_local(local.ip()));
        // Nobody has accepted it.
        assert_eq!(
            diag.find(remote, local).unwrap(),
            Some(TcpEnd { state: 1, unread: 5, unsent: 0, inode: 0 })
        );
        let (server, _) = listener.accept().unwrap();
        let inode = |fd: &dyn AsFd| nix::sys::stat::fstat(fd.as_fd()).unwrap().st_ino as u32;
        assert_eq!(diag.find(remote, local).unwrap().map(|end| end.inode), Some(inode(&server)));
        assert_eq!(diag.find(local, remote).unwrap().map(|end| end.inode), Some(inode(&client)));
        // Who listens there is no connection.
        let mut other = local;
        other.set_port(1);
        assert_eq!(diag.find(remote, other).unwrap(), None);
    }

    #[test]
    fn connections_are_found_by_their_addresses() {
        round("127.0.0.1:0");
        round("[::1]:0");
    }

    #[test]
    fn one_bound_to_loopback_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = nix::sys::socket::setsockopt(
            &listener,
            nix::sys::socket::sockopt::BindToDevice,
            &std::ffi::OsString::from("lo"),
        );
        if socket.is_err() {
            eprintln!("skipped: SO_BINDTODEVICE needs CAP_NET_RAW");
            return;
        }
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (_server, _) = listener.accept().unwrap();
        let (local, remote) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        assert!(TcpDiag::open().unwrap().find(remote, local).unwrap().is_some());
    }

    #[test]
    fn an_address_of_nobody_is_not_local() {
        assert!(!TcpDiag::open().unwrap().is_local("192.0.2.1".parse().unwrap()));
    }
}
