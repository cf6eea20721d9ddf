//! Messages of sockets with what travels beside them: sender, descriptors (SCM_RIGHTS), credentials (SCM_CREDENTIALS).

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use super::{Result, owned};

/// Most descriptors that one message carries (SCM_MAX_FD).
const MAX_RIGHTS: usize = 253;
/// Room for control messages: rights, credentials, a pidfd, a security label, time stamps; in words, so that it is aligned.
const CONTROL_WORDS: usize = (MAX_RIGHTS * 4 + 1024) / 8;

/// A message that was looked at, or is to be sent.
#[derive(Debug, Default)]
pub struct Message {
    /// The bytes.
    pub data: Vec<u8>,
    /// The sender's address, raw; empty if it has none.
    pub from: Vec<u8>,
    /// Duplicates of the descriptors it carries.
    pub rights: Vec<OwnedFd>,
    /// pid, uid, gid; only where SO_PASSCRED is set.
    pub credentials: Option<(i32, u32, u32)>,
    /// What else travels beside it (cmsg(3)): level, type, content.
    pub control: Vec<(i32, i32, Vec<u8>)>,
}

/// Looks at what lies at the socket's peek offset, at most `room` bytes, and leaves it (MSG_PEEK). `None` if nothing is there.
/// Errors: EMSGSIZE if a datagram or its control messages are larger.
pub fn peek(fd: BorrowedFd<'_>, room: usize) -> Result<Option<Message>> {
    receive(fd, room, false)
}

/// Whether a byte of urgent data waits to be read apart (recv(2), MSG_OOB); it is left there.
pub fn urgent(fd: BorrowedFd<'_>) -> bool {
    let mut byte = 0u8;
    let flags = libc::MSG_OOB | libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: byte has room for one and outlives the call.
    unsafe { libc::recv(fd.as_raw_fd(), (&raw mut byte).cast(), 1, flags) == 1 }
}

/// How many bytes are in the pieces of a unix stream that lie at the peek offset and are within `room` bytes as a whole, up to the first
/// that carries descriptors. A peek tells descriptors even of the piece behind its last byte; but the kernel copies a piece
/// or, where the buffer ends in a fault, nothing of it.
pub fn whole_pieces(fd: BorrowedFd<'_>, room: usize) -> Result<usize> {
    match receive(fd, room, true) {
        Ok(message) => Ok(message.map_or(0, |message| message.data.len())),
        Err(Errno::EFAULT) => Ok(0),
        Err(e) => Err(e),
    }
}

/// MSG_PEEK into `room` bytes, behind which there is nothing or, with `fault`, an address that faults.
fn receive(fd: BorrowedFd<'_>, room: usize, fault: bool) -> Result<Option<Message>> {
    let mut data = vec![0u8; room];
    let mut from = [0u8; size_of::<libc::sockaddr_storage>()];
    let mut control = [0u64; CONTROL_WORDS];
    let beyond = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: if fault { 1 << 20 } else { 0 } };
    let mut iov = [libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() }, beyond];
    // SAFETY: msghdr is plain data; every pointer set below is to a buffer of that length that outlives the call, but for a
    // null one, at which the kernel finds nothing mapped and stops.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = from.as_mut_ptr().cast();
    header.msg_namelen = from.len() as u32;
    header.msg_iov = iov.as_mut_ptr();
    header.msg_iovlen = if fault { 2 } else { 1 };
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control);
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: see above.
    let n = match Errno::result(unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut header, flags) }) {
        Ok(n) => n as usize,
        Err(Errno::EAGAIN) => return Ok(None),
        Err(e) => return Err(e),
    };
    data.truncate(n);
    let mut message = Message { data, ..Default::default() };
    // SAFETY: the kernel filled header's control buffer, which is alive.
    unsafe { read_control(&header, &mut message)? };
    if header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
        return Err(Errno::EMSGSIZE);
    }
    message.from = from[..(header.msg_namelen as usize).min(from.len())].to_vec();
    Ok(Some(message))
}

/// # Safety
/// `header` must be as recvmsg(2) left it, with its control buffer alive; each descriptor in it is taken over once.
unsafe fn read_control(header: &libc::msghdr, message: &mut Message) -> Result<()> {
    // SAFETY: the caller promises a valid header; CMSG_NXTHDR stays within msg_controllen, and each length is checked by it.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(header);
        while !at.is_null() {
            let len = (*at).cmsg_len.saturating_sub(libc::CMSG_LEN(0) as usize);
            let data = libc::CMSG_DATA(at);
            if (*at).cmsg_level == libc::SOL_SOCKET && (*at).cmsg_type == libc::SCM_RIGHTS {
                for i in 0..len / 4 {
                    let fd = data.cast::<i32>().add(i).read_unaligned();
                    message.rights.push(owned(fd.into())?);
                }
            } else if (*at).cmsg_level == libc::SOL_SOCKET
                && (*at).cmsg_type == libc::SCM_CREDENTIALS
                && len >= size_of::<libc::ucred>()
            {
                let cred = data.cast::<libc::ucred>().read_unaligned();
                message.credentials = Some((cred.pid, cred.uid, cred.gid));
            } else {
                let content = std::slice::from_raw_parts(data, len).to_vec();
                message.control.push(((*at).cmsg_level, (*at).cmsg_type, content));
            }
            at = libc::CMSG_NXTHDR(header, at);
        }
    }
    Ok(())
}

/// Takes away what lies in the queue (recv(2)): false if nothing does.
pub fn discard(fd: BorrowedFd<'_>) -> bool {
    let mut byte = 0u8;
    // SAFETY: byte has room for one and outlives the call.
    unsafe { libc::recv(fd.as_raw_fd(), (&raw mut byte).cast(), 1, libc::MSG_DONTWAIT) >= 0 }
}

fn push_control(control: &mut Vec<u8>, kind: i32, data: &[u8]) {
    // struct cmsghdr on x86_64: size_t len, int level, int type; the next one is aligned to 8.
    control.extend_from_slice(&(16 + data.len()).to_ne_bytes());
    control.extend_from_slice(&libc::SOL_SOCKET.to_ne_bytes());
    control.extend_from_slice(&kind.to_ne_bytes());
    control.extend_from_slice(data);
    control.resize(control.len().next_multiple_of(8), 0);
}

/// Sends a message without waiting (sendmsg(2)), to `to` (raw address) where it is not empty: how many bytes went.
/// Errors: EAGAIN if the queue is full; ESRCH if the pid of the credentials is not there.
pub fn send(
    fd: BorrowedFd<'_>,
    data: &[u8],
    to: &[u8],
    rights: &[BorrowedFd<'_>],
    credentials: Option<(i32, u32, u32)>,
) -> Result<usize> {
    let mut control = Vec::new();
    if !rights.is_empty() {
        let numbers: Vec<u8> = rights.iter().flat_map(|fd| fd.as_raw_fd().to_ne_bytes()).collect();
        push_control(&mut control, libc::SCM_RIGHTS, &numbers);
    }
    if let Some((pid, uid, gid)) = credentials {
        let bytes = [pid.to_ne_bytes(), uid.to_ne_bytes(), gid.to_ne_bytes()].concat();
        push_control(&mut control, libc::SCM_CREDENTIALS, &bytes);
    }
    let mut iov = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    // SAFETY: msghdr is plain data; every pointer set below is to a buffer of that length that outlives the call, and the
    // kernel only reads them.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    if !to.is_empty() {
        header.msg_name = to.as_ptr().cast_mut().cast();
        header.msg_namelen = to.len() as u32;
    }
    if !control.is_empty() {
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = control.len();
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: see above.
    Errno::result(unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const header, flags) }).map(|n| n as usize)
}

#[cfg(test)]
mod tests {
    use super::super::socket;
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn what_travels_beside_a_message_is_seen_and_stays() {
        let (a, b) = socket::pair(libc::SOCK_STREAM).unwrap();
        socket::set_int_option(b.as_fd(), libc::SOL_SOCKET, libc::SO_PASSCRED, 1).unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let me = (std::process::id() as i32, 0, 0);
        let uid = nix::unistd::getuid().as_raw();
        let gid = nix::unistd::getgid().as_raw();
        send(a.as_fd(), b"hello", &[], &[file.as_fd(), file.as_fd()], Some((me.0, uid, gid))).unwrap();
        for _ in 0..2 {
            let message = peek(b.as_fd(), 100).unwrap().unwrap();
            assert_eq!(message.data, b"hello");
            assert_eq!(message.rights.len(), 2);
            assert_eq!(message.credentials, Some((me.0, uid, gid)));
        }
        assert!(peek(a.as_fd(), 100).unwrap().is_none());
    }

    #[test]
    fn where_a_piece_with_descriptors_begins_can_be_found() {
        let (a, b) = socket::pair(libc::SOCK_STREAM).unwrap();
        send(a.as_fd(), b"one", &[], &[], None).unwrap();
        send(a.as_fd(), b"two", &[], &[], None).unwrap();
        send(a.as_fd(), b"with", &[], &[a.as_fd()], None).unwrap();
        send(a.as_fd(), b"after", &[], &[], None).unwrap();
        assert_eq!(peek(b.as_fd(), 100).unwrap().unwrap().data, b"onetwowith");
        let whole = [1, 3, 5, 9, 10, 100].map(|room| whole_pieces(b.as_fd(), room).unwrap());
        assert_eq!(whole, [0, 3, 3, 6, 10, 10]);
    }
}
