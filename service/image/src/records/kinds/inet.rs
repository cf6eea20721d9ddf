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
    /// Options.
    pub options: Vec<SocketOption>,
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
    /// A TCP connection to outside the group: at its next call the application finds it reset.
    Reset {
        /// The other end's address.
        remote: Vec<u8>,
    },
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
