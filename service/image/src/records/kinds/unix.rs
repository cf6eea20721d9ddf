use serde::{Deserialize, Serialize};
use std::path::PathBuf;

use super::SocketOption;
use crate::records::{DescriptionId, Pid};

/// unix(7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnixRecord {
    /// SOCK_STREAM, SOCK_DGRAM or SOCK_SEQPACKET.
    pub kind: i32,
    /// What getsockname(2) tells; accepted sockets have the name of their listener.
    pub name: Option<UnixName>,
    /// Listening, connected, or neither.
    pub state: UnixState,
    /// Ends that are shut down: 1 receiving, 2 sending.
    pub shutdown: u8,
    /// The other end was closed with something unread: the next call tells ECONNRESET.
    pub reset: bool,
    /// What it has received and not read, oldest first.
    pub queue: Vec<UnixMessage>,
    /// SO_PEERCRED: pid, uid and gid of the other end, of a listening socket its own.
    pub credentials: Option<(Pid, u32, u32)>,
    /// Options.
    pub options: Vec<SocketOption>,
}

/// A name in the file system or an abstract one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct UnixName {
    /// sun_path as given to bind(2), without the trailing zero; an abstract name begins with one.
    pub bytes: Vec<u8>,
    /// What the path begins at: the working directory of who has bound it, or its root where that is not the unit's own.
    #[serde(with = "crate::records::path::option")]
    pub directory: Option<PathBuf>,
    /// The socket's node in the file system; `None` if it is gone or was never there.
    pub node: Option<UnixNode>,
}

/// A socket in the file system.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct UnixNode {
    /// What it is called in the directory of the name that it was bound to: the same, or what it was renamed to or linked as since.
    #[serde(with = "crate::records::path::list")]
    pub names: Vec<PathBuf>,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Owning group.
    pub gid: u32,
}

/// What a unix socket is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum UnixState {
    /// Neither.
    Idle,
    /// listen(2).
    Listening {
        /// Its backlog.
        backlog: i32,
        /// Passed in by systemd (socket activation): taken from the stub.
        activated: bool,
    },
    /// connect(2), accept(2) or socketpair(2).
    Connected(UnixPeer),
}

/// The other end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum UnixPeer {
    /// A socket of the group.
    Inside(DescriptionId),
    /// Not accepted yet by this listening socket of the group.
    Waiting(DescriptionId),
    /// It is closed.
    Gone,
    /// A socket outside the group with this name (empty if it has none): datagram sockets are connected to it again by the
    /// name, others find it hung up.
    Outside(Vec<u8>),
}

/// One message, or a piece of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnixMessage {
    /// The bytes.
    pub data: Vec<u8>,
    /// Name of the sender (datagrams), empty if it has none.
    pub from: Vec<u8>,
    /// Descriptions in flight (SCM_RIGHTS).
    pub rights: Vec<DescriptionId>,
    /// SCM_CREDENTIALS: pid, uid, gid; kept where the receiver asks for it (SO_PASSCRED).
    pub credentials: Option<(Pid, u32, u32)>,
}
