use serde::{Deserialize, Serialize};

use super::SocketOption;
use crate::records::DescriptionId;

/// A TCP or UDP socket, v4 or v6. Addresses are struct sockaddr_in or sockaddr_in6, raw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InetRecord {
    /// AF_INET or AF_INET6.
    pub family: i32,
    /// SOCK_STREAM or SOCK_DGRAM.
    pub kind: i32,
    /// IPPROTO_TCP, IPPROTO_UDP, …
    pub protocol: i32,
    /// Where it is bound; `None` if it has no port.
    pub local: Option<Vec<u8>>,
    /// What it is doing.
    pub state: InetState,
    /// Datagrams (UDP, UDP-Lite) that it has received and not read, oldest first.
    pub queue: Vec<InetDatagram>,
    /// Options.
    pub options: Vec<SocketOption>,
}

/// A datagram as recvmsg(2) tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InetDatagram {
    /// The bytes.
    pub data: Vec<u8>,
    /// The sender: struct sockaddr_in or sockaddr_in6, raw.
    pub from: Vec<u8>,
    /// What the socket's options ask for beside it.
    pub control: Vec<ControlMessage>,
}

/// A control message (cmsg(3)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlMessage {
    /// IPPROTO_IP, SOL_SOCKET, …
    pub level: i32,
    /// IP_PKTINFO, IP_TTL, …
    pub kind: i32,
    /// Its content.
    pub data: Vec<u8>,
}

/// What an internet socket is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum InetState {
    /// Neither listening nor connected.
    Idle,
    /// listen(2).
    Listening {
        /// Its backlog.
        backlog: i32,
        /// Passed in by systemd (socket activation): taken from the stub.
        activated: bool,
    },
    /// A datagram socket with a default destination.
    Connected {
        /// The destination.
        remote: Vec<u8>,
    },
    /// A TCP connection whose other end is of the group too.
    Inside {
        /// The other end.
        peer: DescriptionId,
        /// Its address.
        remote: Vec<u8>,
        /// The connection.
        tcp: TcpRecord,
    },
    /// A TCP connection that no member has accepted yet: connected again to the listening socket, to which nothing had been written.
    Waiting {
        /// The listening socket's address, as the client knows it.
        remote: Vec<u8>,
    },
    /// A TCP connection whose other end, on this machine, was closed.
    PeerGone {
        /// Its address.
        remote: Vec<u8>,
        /// This end.
        tcp: TcpRecord,
    },
    /// A TCP connection that both ends have closed, while a member has its socket still.
    Over {
        /// Received and not read.
        received: Vec<u8>,
    },
    /// A TCP connection to outside the group that goes on where its kernel object is still there and no member has read or written since.
    Outside {
        /// The other end's address.
        remote: Vec<u8>,
        /// How far it was.
        conversation: Conversation,
    },
    /// A TCP connection to outside the group: at its next call the application finds it reset.
    Reset {
        /// The other end's address.
        remote: Vec<u8>,
    },
}

/// A TCP connection to outside and how far the application was in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conversation {
    /// SO_COOKIE: no two sockets of one boot have the same.
    pub cookie: u64,
    /// Bytes that the application has read.
    pub read: u64,
    /// Bytes that it has written, as the kernel counts them.
    pub written: u64,
}

/// One end of a TCP connection (tcp(7), TCP_REPAIR).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpRecord {
    /// Received and not read.
    pub received: Vec<u8>,
    /// Written and not received by the other end.
    pub unsent: Vec<u8>,
    /// This end will send no more (FIN sent or to be sent after `unsent`).
    pub write_closed: bool,
    /// This end will read no more (shutdown(2), SHUT_RD).
    pub read_closed: bool,
    /// Largest segment.
    pub mss: u32,
    /// TCPI_OPT_* in use.
    pub options: u8,
    /// Window scale of the other end and of this one.
    pub scale: (u8, u8),
}
