//! TCP connections that nobody has any more and that linger at a port: told and ended by sock_diag(7), SOCK_DESTROY (Linux 4.5).
//!
//! ```text
//! request   nlmsghdr 16 │ family u8 protocol u8 ext u8 pad u8 │ states u32 │ id 48
//! answer    nlmsghdr 16 │ family u8 state u8 timer u8 retrans u8 │ id 48 │ expires, rqueue, wqueue, uid, inode: u32
//! id        local port u16, remote port u16 (network order) │ local 16 │ remote 16 │ interface u32 │ cookie 2×u32
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;

use super::{Result, socket};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NETLINK_SOCK_DIAG: i32 = 4;
const ID: usize = 48;
/// FIN_WAIT1, FIN_WAIT2, TIME_WAIT, LAST_ACK, CLOSING.
const STATES: u32 = 1 << 4 | 1 << 5 | 1 << 6 | 1 << 9 | 1 << 11;

/// Ends the connections at a local address of the calling thread's network namespace that no process has and that are on their way out: how
/// many. Other ends that have not closed find them reset. Errors: EPERM without CAP_NET_ADMIN, EOPNOTSUPP where the kernel has no
/// SOCK_DESTROY.
pub fn end(at: SocketAddr) -> Result<usize> {
    let netlink = socket::socket(libc::AF_NETLINK, libc::SOCK_RAW, NETLINK_SOCK_DIAG)?;
    let mut ended = 0;
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        for id in told(&netlink, family)?.into_iter().filter(|id| is_at(id, family, at)) {
            match destroy(&netlink, family, &id) {
                Ok(()) => ended += 1,
                Err(Errno::ENOENT) => {} // it has ended by itself
                Err(e) => return Err(e),
            }
        }
    }
    Ok(ended)
}

/// Whether a connection is at this address, or one that this address covers.
fn is_at(id: &[u8; ID], family: u8, at: SocketAddr) -> bool {
    let word = |n: usize| [id[n], id[n + 1], id[n + 2], id[n + 3]];
    let ip: IpAddr = match i32::from(family) {
        libc::AF_INET => Ipv4Addr::from(word(4)).into(),
        _ => Ipv6Addr::from(u128::from_be_bytes(std::array::from_fn(|n| id[4 + n]))).to_canonical(),
    };
    id[..2] == at.port().to_be_bytes() && (at.ip().is_unspecified() || at.ip() == ip)
}

fn send(netlink: &OwnedFd, kind: u16, flags: i32, family: u8, id: &[u8; ID]) -> Result<()> {
    let mut bytes = Vec::with_capacity(72);
    bytes.extend_from_slice(&72u32.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&((libc::NLM_F_REQUEST | flags) as u16).to_ne_bytes());
    bytes.extend_from_slice(&[0; 8]); // sequence, port
    bytes.extend_from_slice(&[family, libc::IPPROTO_TCP as u8, 0, 0]);
    bytes.extend_from_slice(&STATES.to_ne_bytes());
    bytes.extend_from_slice(id);
    // SAFETY: bytes has that length and outlives the call.
    let sent = unsafe { libc::send(netlink.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
    Errno::result(sent).map(drop)
}

/// The lingering connections that no process has.
fn told(netlink: &OwnedFd, family: u8) -> Result<Vec<[u8; ID]>> {
    send(netlink, SOCK_DIAG_BY_FAMILY, libc::NLM_F_DUMP, family, &[0; ID])?;
    let mut ids = Vec::new();
    let mut buffer = vec![0u8; 64 << 10];
    loop {
        let n = nix::unistd::read(netlink.as_fd(), &mut buffer)?;
        if collect(&buffer[..n], &mut ids)? {
            return Ok(ids);
        }
    }
}

/// Reads the messages of one datagram; true at the end of the dump or of an answer.
fn collect(mut bytes: &[u8], ids: &mut Vec<[u8; ID]>) -> Result<bool> {
    let word = |bytes: &[u8], at: usize| {
        bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes).ok_or(Errno::EBADMSG)
    };
    while bytes.len() >= 16 {
        let len = word(bytes, 0)? as usize;
        let payload = bytes.get(16..len).ok_or(Errno::EBADMSG)?;
        match i32::from(u16::from_ne_bytes([bytes[4], bytes[5]])) {
            libc::NLMSG_DONE => return Ok(true),
            libc::NLMSG_ERROR => {
                return match word(payload, 0)? as i32 {
                    0 => Ok(true),
                    error => Err(Errno::from_raw(-error)),
                };
            }
            _ if word(payload, 68)? == 0 => {
                let id = payload.get(4..4 + ID).and_then(|id| id.try_into().ok());
                ids.push(id.ok_or(Errno::EBADMSG)?);
            }
            _ => {}
        }
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn destroy(netlink: &OwnedFd, family: u8, id: &[u8; ID]) -> Result<()> {
    send(netlink, SOCK_DESTROY, libc::NLM_F_ACK, family, id)?;
    let mut buffer = [0u8; 4096];
    let n = nix::unistd::read(netlink.as_fd(), &mut buffer)?;
    collect(&buffer[..n], &mut Vec::new()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_port_is_free_again_when_what_lingers_there_has_ended() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        // Connections take SO_REUSEADDR, which the standard library sets, from their listener.
        socket::set_int_option(listener.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 0).unwrap();
        let _open = TcpStream::connect(at).unwrap();
        let closed = TcpStream::connect(at).unwrap();
        let (first, second) = (listener.accept().unwrap(), listener.accept().unwrap());
        drop((first, second, listener));
        drop(closed);
        assert!(TcpListener::bind(at).is_err());
        match end(at) {
            Err(e) => println!("skipped: needs CAP_NET_ADMIN and SOCK_DESTROY: {e}"),
            Ok(ended) => {
                assert!(ended >= 2);
                TcpListener::bind(at).unwrap();
            }
        }
    }
}
