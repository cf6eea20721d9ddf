//! Pseudo-terminals (pty(7), ioctl_tty(2)). What is asked of a master is told of the terminal.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use super::{Result, owned};

/// sizeof(struct termios2).
pub const SETTINGS: usize = 44;
/// Offset of c_cc.
const CHARACTERS: usize = 17;
const TIOCGDEV: libc::c_ulong = 0x8004_5432;
const TIOCGPKT: libc::c_ulong = 0x8004_5438;
const TIOCGPTLCK: libc::c_ulong = 0x8004_5439;
const TIOCGEXCL: libc::c_ulong = 0x8004_5440;
const TIOCSPTLCK: libc::c_ulong = 0x4004_5431;
const TIOCGPTN: libc::c_ulong = 0x8004_5430;
const TIOCGPTPEER: libc::c_ulong = 0x5441;
const TCGETS2: libc::c_ulong = 0x802c_542a;
const TCSETS2: libc::c_ulong = 0x402c_542b;

/// ioctl(2) with the address of a value that the kernel reads or writes.
fn pass<T>(fd: BorrowedFd<'_>, request: libc::c_ulong, value: &mut T) -> Result<()> {
    // SAFETY: every request of this module takes the address of a T as its callers give it, which outlives the call.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(value)) }).map(drop)
}

fn number(fd: BorrowedFd<'_>, request: libc::c_ulong) -> Result<i32> {
    let mut value = 0i32;
    pass(fd, request, &mut value).map(|()| value)
}

/// The number of a master's terminal.
pub fn index(master: BorrowedFd<'_>) -> Result<u32> {
    number(master, TIOCGPTN).map(|index| index as u32)
}

/// The device that a terminal's descriptor is of, whatever name it was opened by: major << 8 | minor, in the kernel's own form. Linux 2.6.39.
pub fn device(fd: BorrowedFd<'_>) -> Result<u32> {
    number(fd, TIOCGDEV).map(|device| device as u32)
}

/// struct termios2.
pub fn settings(fd: BorrowedFd<'_>) -> Result<[u8; SETTINGS]> {
    let mut settings = [0u8; SETTINGS];
    pass(fd, TCGETS2, &mut settings).map(|()| settings)
}

/// Sets them at once.
pub fn set_settings(fd: BorrowedFd<'_>, settings: &[u8; SETTINGS]) -> Result<()> {
    pass(fd, TCSETS2, &mut settings.clone())
}

/// The same without any treatment of what goes through: no echo, no signals, no lines. The first four words are the flags of input, output,
/// control and local modes.
pub fn raw(settings: &[u8; SETTINGS]) -> [u8; SETTINGS] {
    let mut raw = *settings;
    raw[..8].fill(0);
    raw[12..16].fill(0);
    (raw[CHARACTERS + libc::VMIN], raw[CHARACTERS + libc::VTIME]) = (0, 0);
    raw
}

/// The same, but lines, which end with a newline or, without it, with `end`; no other character means anything.
pub fn lines(settings: &[u8; SETTINGS], end: u8) -> [u8; SETTINGS] {
    let mut lines = raw(settings);
    lines[12] = libc::ICANON as u8;
    lines[CHARACTERS..CHARACTERS + 19].fill(0);
    lines[CHARACTERS + libc::VEOF] = end;
    lines
}

/// Whether a terminal gives whole lines.
pub fn is_canonical(settings: &[u8; SETTINGS]) -> bool {
    u32::from(settings[12]) & libc::ICANON != 0
}

/// Puts a byte into a terminal's input, at once, where a write to the master is looked at later (ioctl_tty(2), TIOCSTI). EPERM, EIO
/// without CAP_SYS_ADMIN.
pub fn type_in(terminal: BorrowedFd<'_>, byte: u8) -> Result<()> {
    pass(terminal, libc::TIOCSTI, &mut byte.clone())
}

/// struct winsize.
pub fn size(fd: BorrowedFd<'_>) -> Result<[u16; 4]> {
    let mut size = [0u16; 4];
    pass(fd, libc::TIOCGWINSZ, &mut size).map(|()| size)
}

/// Sets it; the foreground process group, if there is one, gets SIGWINCH.
pub fn set_size(fd: BorrowedFd<'_>, size: [u16; 4]) -> Result<()> {
    pass(fd, libc::TIOCSWINSZ, &mut size.clone())
}

/// Packet mode of a master. Linux 3.8.
pub fn packet(master: BorrowedFd<'_>) -> Result<bool> {
    number(master, TIOCGPKT).map(|on| on != 0)
}

/// Sets it.
pub fn set_packet(master: BorrowedFd<'_>, on: bool) -> Result<()> {
    pass(master, libc::TIOCPKT, &mut i32::from(on))
}

/// Whether a master's terminal cannot be opened. Linux 3.8.
pub fn locked(master: BorrowedFd<'_>) -> Result<bool> {
    number(master, TIOCGPTLCK).map(|on| on != 0)
}

/// Sets it.
pub fn set_locked(master: BorrowedFd<'_>, on: bool) -> Result<()> {
    pass(master, TIOCSPTLCK, &mut i32::from(on))
}

/// Exclusive mode. Linux 3.8.
pub fn exclusive(fd: BorrowedFd<'_>) -> Result<bool> {
    number(fd, TIOCGEXCL).map(|on| on != 0)
}

/// Sets it.
pub fn set_exclusive(fd: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: takes a descriptor.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCEXCL) }).map(drop)
}

/// Session and foreground process group of a master's terminal, 0 for none, in our PID namespace.
pub fn users(master: BorrowedFd<'_>) -> (i32, i32) {
    let of = |request| number(master, request).unwrap_or(0);
    (of(libc::TIOCGSID), of(libc::TIOCGPGRP))
}

/// Opens a master's terminal, not as a controlling terminal. Linux 4.13. FD_CLOEXEC comes after: O_CLOEXEC would be the description's for ever.
pub fn open_peer(master: BorrowedFd<'_>, flags: i32) -> Result<OwnedFd> {
    let flags = flags | libc::O_NOCTTY;
    // SAFETY: takes integers.
    let peer = owned(unsafe { libc::ioctl(master.as_raw_fd(), TIOCGPTPEER, flags) }.into())?;
    // SAFETY: takes integers.
    Errno::result(unsafe { libc::fcntl(peer.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) })?;
    Ok(peer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn what_is_set_is_told() {
        let Ok(master) = nix::pty::posix_openpt(nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_NOCTTY)
        else {
            println!("skipped: there are no pseudo-terminals here");
            return;
        };
        let master = master.as_fd();
        assert!(locked(master).unwrap());
        set_locked(master, false).unwrap();
        let slave = open_peer(master, libc::O_RDWR).unwrap();
        set_size(master, [1, 2, 3, 4]).unwrap();
        assert_eq!(size(slave.as_fd()).unwrap(), [1, 2, 3, 4]);
        let bare = raw(&settings(master).unwrap());
        set_settings(master, &bare).unwrap();
        assert_eq!(settings(slave.as_fd()).unwrap()[..8], [0; 8]);
        set_packet(master, true).unwrap();
        assert!(packet(master).unwrap());
        assert_eq!(device(slave.as_fd()).unwrap() & 0xff, index(master).unwrap() & 0xff);
        assert_eq!(users(master), (0, 0));
    }
}
