//! What the kernel knows of unix sockets beyond getsockopt(2): the peer's inode, the queue of connections (sock_diag(7)).
//!
//! ```text
//! request   nlmsghdr 16 │ family u8 protocol u8 pad u16 │ states u32 │ ino u32 │ show u32 │ cookie 2×u32
//! answer    nlmsghdr 16 │ family u8 type u8 state u8 pad u8 │ ino u32 │ cookie 2×u32 │ attributes (len u16, type u16, data, pad to 4) …
//! ```
//! Read here, unlike what `tcp_diag` asks for: of a socket's node in the file system netlink-packet-sock-diag (0.5) gives neither number out.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;

use super::{Result, socket};

/// A unix socket as sock_diag tells it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UnixSocket {
    /// SOCK_*.
    pub kind: u8,
    /// 1 established, 10 listening, 7 neither (TCP_ESTABLISHED, TCP_LISTEN, TCP_CLOSE).
    pub state: u8,
    /// Inode number.
    pub ino: u32,
    /// sun_path, an abstract name with its leading zero; empty if it has none.
    pub name: Vec<u8>,
    /// Inode and device (the kernel's form) of its node in the file system.
    pub node: Option<(u32, u32)>,
    /// Inode of the other end.
    pub peer: Option<u32>,
    /// Listening: inodes of the connecting ends that wait to be accepted; 0 for one that is closed. Their `peer` is 0, as it is for an end whose
    /// peer is closed.
    pub waiting: Vec<u32>,
    /// Listening: connections waiting and backlog. Else: bytes received, bytes sent and not read.
    pub queue: (u32, u32),
    /// 1 receiving, 2 sending is shut down.
    pub shutdown: u8,
}

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SHOW: u32 = 0x01 | 0x02 | 0x04 | 0x08 | 0x10; // NAME, VFS, PEER, ICONS, RQLEN

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

/// Reads the payload of one answer. `None` if it is too short.
pub fn parse(payload: &[u8]) -> Option<UnixSocket> {
    let mut socket = UnixSocket {
        kind: *payload.get(1)?,
        state: *payload.get(2)?,
        ino: u32_at(payload, 4)?,
        ..Default::default()
    };
    let mut rest = payload.get(16..)?;
    while rest.len() >= 4 {
        let len = usize::from(u16_at(rest, 0)?);
        let data = rest.get(4..len)?;
        match u16_at(rest, 2)? & 0x3fff {
            0 => socket.name = data.to_vec(),
            1 => socket.node = Some((u32_at(data, 0)?, u32_at(data, 4)?)),
            2 => socket.peer = Some(u32_at(data, 0)?),
            3 => socket.waiting = data.chunks_exact(4).filter_map(|b| u32_at(b, 0)).collect(),
            4 => socket.queue = (u32_at(data, 0)?, u32_at(data, 4)?),
            6 => socket.shutdown = *data.first()?,
            _ => {}
        }
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(socket)
}

/// Asks about the unix sockets of the network namespace it was opened in.
#[derive(Debug)]
pub struct UnixDiag {
    netlink: OwnedFd,
}

impl UnixDiag {
    /// Opens it in the calling thread's network namespace; it stays there.
    pub fn open() -> Result<Self> {
        const NETLINK_SOCK_DIAG: i32 = 4;
        Ok(Self { netlink: socket::socket(libc::AF_NETLINK, libc::SOCK_RAW, NETLINK_SOCK_DIAG)? })
    }

    /// All unix sockets by inode number. Takes about a microsecond for each.
    pub fn all(&self) -> Result<HashMap<u32, UnixSocket>> {
        let request = request(u32::MAX, 0);
        // SAFETY: request has that many bytes and outlives the call.
        let sent = unsafe { libc::send(self.netlink.as_raw_fd(), request.as_ptr().cast(), request.len(), 0) };
        Errno::result(sent)?;
        let mut sockets = HashMap::new();
        let mut buffer = vec![0u8; 64 << 10];
        loop {
            let n = nix::unistd::read(self.netlink.as_fd(), &mut buffer)?;
            if collect(&buffer[..n], &mut sockets)? {
                return Ok(sockets);
            }
        }
    }
}

fn request(states: u32, ino: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(40);
    bytes.extend_from_slice(&40u32.to_ne_bytes());
    bytes.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend_from_slice(&((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
    bytes.extend_from_slice(&[0; 8]); // sequence, port
    bytes.extend_from_slice(&[libc::AF_UNIX as u8, 0, 0, 0]);
    for word in [states, ino, SHOW, u32::MAX, u32::MAX] {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    bytes
}

/// Reads the messages of one datagram; true at the end of the dump.
fn collect(mut bytes: &[u8], sockets: &mut HashMap<u32, UnixSocket>) -> Result<bool> {
    while bytes.len() >= 16 {
        let len = u32_at(bytes, 0).ok_or(Errno::EBADMSG)? as usize;
        let payload = bytes.get(16..len).ok_or(Errno::EBADMSG)?;
        match u16_at(bytes, 4).map(i32::from) {
            Some(libc::NLMSG_DONE) => return Ok(true),
            Some(libc::NLMSG_ERROR) => {
                let error = u32_at(payload, 0).ok_or(Errno::EBADMSG)? as i32;
                return Err(Errno::from_raw(-error));
            }
            _ => {
                let socket = parse(payload).ok_or(Errno::EBADMSG)?;
                sockets.insert(socket.ino, socket);
            }
        }
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_as_drawn() {
        let mut bytes = vec![1, 5, 10, 0];
        bytes.extend_from_slice(&4711u32.to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        for (kind, data) in [
            (0u16, b"/run/x\0".to_vec()),
            (1, [7u32.to_ne_bytes(), 9u32.to_ne_bytes()].concat()),
            (3, [1u32.to_ne_bytes(), 0u32.to_ne_bytes()].concat()),
            (4, [2u32.to_ne_bytes(), 128u32.to_ne_bytes()].concat()),
            (6, vec![3]),
        ] {
            bytes.extend_from_slice(&(data.len() as u16 + 4).to_ne_bytes());
            bytes.extend_from_slice(&kind.to_ne_bytes());
            bytes.extend_from_slice(&data);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        let socket = parse(&bytes).unwrap();
        assert_eq!(
            socket,
            UnixSocket {
                kind: 5,
                state: 10,
                ino: 4711,
                name: b"/run/x\0".to_vec(),
                node: Some((7, 9)),
                peer: None,
                waiting: vec![1, 0],
                queue: (2, 128),
                shutdown: 3,
            }
        );
        for cut in 0..16 {
            assert_eq!(parse(&bytes[..cut]), None);
        }
    }

    #[test]
    fn the_ends_of_a_pair_name_each_other() {
        let (a, b) = socket::pair(libc::SOCK_STREAM).unwrap();
        let ino = |fd: &OwnedFd| nix::sys::stat::fstat(fd).unwrap().st_ino as u32;
        let all = UnixDiag::open().unwrap().all().unwrap();
        assert_eq!(all[&ino(&a)].peer, Some(ino(&b)));
        assert_eq!(all[&ino(&b)].peer, Some(ino(&a)));
    }
}
