//! Sockets: addresses and options as raw bytes, queues.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use std::time::Instant;

use nix::errno::Errno;

use super::{Result, owned, tentative};

/// Room for any address.
const ADDRESS: usize = size_of::<libc::sockaddr_storage>();

/// socket(2) with SOCK_CLOEXEC.
pub fn socket(family: i32, kind: i32, protocol: i32) -> Result<OwnedFd> {
    // SAFETY: takes integers.
    owned(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) }.into())
}

/// socketpair(2) of unix sockets, with SOCK_CLOEXEC.
pub fn pair(kind: i32) -> Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    let kind = kind | libc::SOCK_CLOEXEC;
    // SAFETY: room for two descriptors, which outlives the call.
    Errno::result(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) })?;
    Ok((owned(fds[0].into())?, owned(fds[1].into())?))
}

/// getsockopt(2): at most `room` bytes. Errors: ENOPROTOOPT where the socket has no such option.
pub fn option(fd: BorrowedFd<'_>, level: i32, name: i32, room: usize) -> Result<Vec<u8>> {
    let mut value = vec![0u8; room];
    let mut len = room as libc::socklen_t;
    // SAFETY: value has len bytes and both outlive the call.
    let result =
        unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut len) };
    Errno::result(result)?;
    value.truncate(len as usize);
    Ok(value)
}

/// getsockopt(2) of an option that asks with what it is given: `value` is read and written.
pub fn query(fd: BorrowedFd<'_>, level: i32, name: i32, value: &mut [u8]) -> Result<()> {
    let mut len = value.len() as libc::socklen_t;
    // SAFETY: value has len bytes and both outlive the call.
    let result =
        unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut len) };
    Errno::result(result).map(drop)
}

/// getsockopt(2) of an int. Errors: EINVAL if the option is not one.
pub fn int_option(fd: BorrowedFd<'_>, level: i32, name: i32) -> Result<i32> {
    let value = option(fd, level, name, 4)?;
    value.try_into().map(i32::from_ne_bytes).map_err(|_| Errno::EINVAL)
}

/// setsockopt(2).
pub fn set_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> Result<()> {
    // SAFETY: value has that many bytes and outlives the call.
    let result = unsafe {
        libc::setsockopt(fd.as_raw_fd(), level, name, value.as_ptr().cast(), value.len() as libc::socklen_t)
    };
    Errno::result(result).map(drop)
}

/// setsockopt(2) of an int.
pub fn set_int_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> Result<()> {
    set_option(fd, level, name, &value.to_ne_bytes())
}

/// The classic filter of a socket (SO_GET_FILTER, Linux 3.8): struct sock_filter's, 8 bytes each; empty if it has none.
/// Errors: EACCES if it is an eBPF program.
pub fn filter(fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
    let mut count: libc::socklen_t = 0;
    let name = libc::SO_ATTACH_FILTER; // SO_GET_FILTER is the same number
    // SAFETY: a length of 0 asks for the number of instructions only.
    let result = unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, std::ptr::null_mut(), &raw mut count)
    };
    Errno::result(result)?;
    if count == 0 {
        return Ok(Vec::new());
    }
    let mut program = vec![0u8; count as usize * 8];
    // SAFETY: the length of this option is in instructions; program has 8 bytes for each.
    let result = unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, program.as_mut_ptr().cast(), &raw mut count)
    };
    Errno::result(result)?;
    Ok(program)
}

/// Attaches a classic filter (SO_ATTACH_FILTER): struct sock_filter's, 8 bytes each.
pub fn set_filter(fd: BorrowedFd<'_>, program: &[u8]) -> Result<()> {
    let filters: Vec<libc::sock_filter> = program
        .chunks_exact(8)
        .map(|b| libc::sock_filter {
            code: u16::from_ne_bytes([b[0], b[1]]),
            jt: b[2],
            jf: b[3],
            k: u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
        })
        .collect();
    let len = u16::try_from(filters.len()).map_err(|_| Errno::E2BIG)?;
    let program = libc::sock_fprog { len, filter: filters.as_ptr().cast_mut() };
    // SAFETY: program points to len instructions that outlive the call; the kernel only reads them.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    Errno::result(result).map(drop)
}

type AddressCall =
    unsafe extern "C" fn(libc::c_int, *mut libc::sockaddr, *mut libc::socklen_t) -> libc::c_int;

fn address(fd: BorrowedFd<'_>, call: AddressCall) -> Result<Vec<u8>> {
    let mut bytes = vec![0u8; ADDRESS];
    let mut len = ADDRESS as libc::socklen_t;
    // SAFETY: bytes has len bytes and both outlive the call; the kernel does not ask for alignment.
    Errno::result(unsafe { call(fd.as_raw_fd(), bytes.as_mut_ptr().cast(), &raw mut len) })?;
    bytes.truncate(len as usize);
    Ok(bytes)
}

/// getsockname(2), struct sockaddr, raw.
pub fn name(fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
    address(fd, libc::getsockname)
}

/// getpeername(2), struct sockaddr, raw. Errors: ENOTCONN.
pub fn peer_name(fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
    address(fd, libc::getpeername)
}

/// sun_path of a struct sockaddr_un: empty if unnamed, an abstract name with its leading zero, a path without the trailing one.
pub fn unix_path(address: &[u8]) -> &[u8] {
    let path = address.get(2..).unwrap_or_default();
    match path.first() {
        None | Some(0) => path,
        Some(_) => path.split(|b| *b == 0).next().unwrap_or_default(),
    }
}

/// struct sockaddr_un of a path or an abstract name (with its leading zero). Errors: ENAMETOOLONG past 108 bytes.
pub fn unix_address(path: &[u8]) -> Result<Vec<u8>> {
    if path.len() > 108 {
        return Err(Errno::ENAMETOOLONG);
    }
    let mut bytes = (libc::AF_UNIX as u16).to_ne_bytes().to_vec();
    bytes.extend_from_slice(path);
    if !path.is_empty() && path[0] != 0 && path.len() < 108 {
        bytes.push(0);
    }
    Ok(bytes)
}

/// bind(2) to a raw struct sockaddr. An IPv6 address that this machine has only just got is waited for: [`tentative`].
pub fn bind(fd: BorrowedFd<'_>, address: &[u8]) -> Result<()> {
    let begun = Instant::now();
    loop {
        match bind_once(fd, address) {
            Err(Errno::EADDRNOTAVAIL)
                if tentative::is_tentative(address) && begun.elapsed() < tentative::LONGEST =>
            {
                std::thread::sleep(tentative::PAUSE);
            }
            bound => return bound,
        }
    }
}

fn bind_once(fd: BorrowedFd<'_>, address: &[u8]) -> Result<()> {
    // SAFETY: address has that many bytes and outlives the call.
    let result =
        unsafe { libc::bind(fd.as_raw_fd(), address.as_ptr().cast(), address.len() as libc::socklen_t) };
    Errno::result(result).map(drop)
}

/// connect(2) to a raw struct sockaddr.
pub fn connect(fd: BorrowedFd<'_>, address: &[u8]) -> Result<()> {
    // SAFETY: address has that many bytes and outlives the call.
    let result =
        unsafe { libc::connect(fd.as_raw_fd(), address.as_ptr().cast(), address.len() as libc::socklen_t) };
    Errno::result(result).map(drop)
}

/// listen(2).
pub fn listen(fd: BorrowedFd<'_>, backlog: i32) -> Result<()> {
    // SAFETY: takes integers.
    Errno::result(unsafe { libc::listen(fd.as_raw_fd(), backlog) }).map(drop)
}

/// accept4(2) with SOCK_CLOEXEC.
pub fn accept(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    // SAFETY: no address is asked for.
    owned(
        unsafe {
            libc::accept4(fd.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC)
        }
        .into(),
    )
}

/// shutdown(2): SHUT_RD, SHUT_WR or SHUT_RDWR.
pub fn shutdown(fd: BorrowedFd<'_>, how: i32) -> Result<()> {
    // SAFETY: takes integers.
    Errno::result(unsafe { libc::shutdown(fd.as_raw_fd(), how) }).map(drop)
}

fn queue(fd: BorrowedFd<'_>, request: libc::c_ulong) -> Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the ioctl writes one int, which outlives the call.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw mut bytes) })?;
    Ok(bytes.max(0) as usize)
}

/// The network namespace a socket is in (SIOCGSKNS, Linux 4.10). Errors: EPERM without CAP_NET_ADMIN there.
pub fn net_namespace(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    const SIOCGSKNS: libc::c_ulong = 0x894c;
    // SAFETY: the ioctl takes no argument.
    owned(unsafe { libc::ioctl(fd.as_raw_fd(), SIOCGSKNS) }.into())
}

/// The node of a unix socket, wherever it is by now (SIOCUNIXFILE, Linux 4.12). Errors: EPERM without CAP_NET_ADMIN; ENOENT without a node.
pub fn unix_file(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    const SIOCUNIXFILE: libc::c_ulong = 0x89e0;
    // SAFETY: the ioctl takes no argument.
    owned(unsafe { libc::ioctl(fd.as_raw_fd(), SIOCUNIXFILE) }.into())
}

/// SO_PEERCRED of a unix socket: pid, uid, gid; `None` where there is none yet.
pub fn credentials(fd: BorrowedFd<'_>) -> Result<Option<(i32, u32, u32)>> {
    let bytes = option(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, 12)?;
    let word = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
    let (Some(pid), Some(uid), Some(gid)) = (word(0), word(4), word(8)) else { return Err(Errno::EINVAL) };
    Ok((uid != u32::MAX).then_some((pid as i32, uid, gid)))
}

/// Bytes to read (FIONREAD); of a datagram socket those of the first datagram.
pub fn readable(fd: BorrowedFd<'_>) -> Result<usize> {
    queue(fd, libc::FIONREAD)
}

/// Bytes sent and not acknowledged (TCP) or not read (unix) by the other end (SIOCOUTQ).
pub fn unsent(fd: BorrowedFd<'_>) -> Result<usize> {
    queue(fd, libc::TIOCOUTQ)
}

/// Events that poll(2) tells at once, without waiting.
pub fn ready(fd: BorrowedFd<'_>, events: i16) -> Result<i16> {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    // SAFETY: one pollfd, which outlives the call.
    Errno::result(unsafe { libc::poll(&raw mut poll, 1, 0) })?;
    Ok(poll.revents)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn unix_names_go_there_and_back() {
        for path in [&b""[..], b"/run/x.sock", b"rel", b"\0abstract", b"\0with\0zero"] {
            assert_eq!(unix_path(&unix_address(path).unwrap()), path);
        }
        assert_eq!(unix_address(&[b'x'; 109]), Err(Errno::ENAMETOOLONG));
        assert_eq!(unix_path(&unix_address(&[b'x'; 108]).unwrap()), [b'x'; 108]);
    }

    #[test]
    fn a_filter_is_read_back() {
        let (a, _b) = pair(libc::SOCK_DGRAM).unwrap();
        assert!(filter(a.as_fd()).unwrap().is_empty());
        let pass_all = [6u8, 0, 0, 0, 0xff, 0xff, 0, 0];
        set_filter(a.as_fd(), &pass_all).unwrap();
        assert_eq!(filter(a.as_fd()).unwrap(), pass_all);
    }
}
