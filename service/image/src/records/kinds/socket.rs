use serde::{Deserialize, Serialize};

/// A socket option that getsockopt(2) told; set again where a new socket's differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketOption {
    /// SOL_SOCKET, IPPROTO_TCP, …
    pub level: i32,
    /// SO_REUSEADDR, TCP_NODELAY, …
    pub name: i32,
    /// The value, as the kernel gave it.
    pub value: Vec<u8>,
}

/// packet(7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketRecord {
    /// SOCK_RAW or SOCK_DGRAM.
    pub kind: i32,
    /// Where it is bound: the beginning of struct sockaddr_ll, with protocol and interface.
    pub address: Vec<u8>,
    /// Options.
    pub options: Vec<SocketOption>,
}

/// netlink(7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetlinkRecord {
    /// SOCK_RAW or SOCK_DGRAM.
    pub kind: i32,
    /// NETLINK_ROUTE, …
    pub protocol: i32,
    /// nl_pid it is bound to, 0 if it is not bound.
    pub port: u32,
    /// Multicast groups it is a member of, ascending, from 1.
    pub groups: Vec<u32>,
    /// Destination of connect(2): nl_pid and nl_groups.
    pub peer: (u32, u32),
    /// Options.
    pub options: Vec<SocketOption>,
}
