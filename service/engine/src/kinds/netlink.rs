//! netlink(7): bound again to its port and groups; answers that were not read are lost, which the protocol allows for.

use std::os::fd::AsFd;

use ckpt_image::records::{DescriptionKind, DescriptionRecord, NetlinkRecord};
use ckpt_sys::descriptor::socket;
use nix::errno::Errno;
use nix::libc;

use super::collect::{DescriptorCapture, Found};
use super::rebuild::Rebuild;
use super::{Error, Refusal, options};

const SOL_NETLINK: i32 = 270;
const ADD_MEMBERSHIP: i32 = 1;
const LIST_MEMBERSHIPS: i32 = 9;

pub(super) fn capture(cx: &mut DescriptorCapture<'_>, found: &Found) -> Result<DescriptionKind, Refusal> {
    let fd = found.fd();
    let int = |name| socket::int_option(fd, libc::SOL_SOCKET, name);
    let kind = int(libc::SO_TYPE).map_err(Refusal::call("getsockopt(SO_TYPE)"))?;
    let protocol = int(libc::SO_PROTOCOL).map_err(Refusal::call("getsockopt(SO_PROTOCOL)"))?;
    let name = socket::name(fd).map_err(Refusal::call("getsockname"))?;
    let peer = socket::peer_name(fd).unwrap_or_default();
    let bits = socket::option(fd, SOL_NETLINK, LIST_MEMBERSHIPS, 64).unwrap_or_default();
    if socket::ready(fd, libc::POLLIN).unwrap_or(0) & libc::POLLIN != 0 {
        cx.warn(
            found,
            Refusal::new(
                "netlink-queue",
                "messages of the kernel that were not read yet are lost at a restore",
                "let the application read them before the checkpoint",
            ),
        );
    }
    Ok(DescriptionKind::Netlink(NetlinkRecord {
        kind,
        protocol,
        port: word(&name, 4),
        groups: groups(&bits),
        peer: (word(&peer, 4), word(&peer, 8)),
        options: options::read(fd, libc::AF_NETLINK, protocol).map_err(Refusal::call("getsockopt"))?,
    }))
}

/// A word of struct sockaddr_nl: family u16, pad u16, nl_pid u32, nl_groups u32.
fn word(address: &[u8], at: usize) -> u32 {
    address.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// The groups whose bits are set, from 1.
fn groups(bits: &[u8]) -> Vec<u32> {
    let bit = |n: &u32| bits[*n as usize / 8] & (1 << (n % 8)) != 0;
    (0..bits.len() as u32 * 8).filter(bit).map(|n| n + 1).collect()
}

fn address(port: u32, groups: u32) -> Vec<u8> {
    [(libc::AF_NETLINK as u32).to_ne_bytes(), port.to_ne_bytes(), groups.to_ne_bytes()].concat()
}

pub(super) fn create(
    cx: &mut Rebuild<'_>,
    record: &DescriptionRecord,
    netlink: &NetlinkRecord,
) -> Result<(), Error> {
    cx.enter(record.unit)?;
    let failed = |op| Error::call(op, cx.describe(record));
    let fd = socket::socket(libc::AF_NETLINK, netlink.kind, netlink.protocol).map_err(failed("socket"))?;
    if let Err((option, e)) = options::apply(fd.as_fd(), &netlink.options) {
        let object = format!("{}, option {}:{}", cx.describe(record), option.level, option.name);
        return Err(Error::call("setsockopt", object)(e));
    }
    options::apply_filter(fd.as_fd(), &netlink.options).map_err(failed("setsockopt(SO_ATTACH_FILTER)"))?;
    if netlink.port != 0 {
        match socket::bind(fd.as_fd(), &address(netlink.port, 0)) {
            // Somebody has the number: the kernel chooses another, as it did the first time.
            Err(Errno::EADDRINUSE) => socket::bind(fd.as_fd(), &address(0, 0)).map_err(failed("bind"))?,
            other => other.map_err(failed("bind"))?,
        }
    }
    for group in &netlink.groups {
        socket::set_int_option(fd.as_fd(), SOL_NETLINK, ADD_MEMBERSHIP, *group as i32)
            .map_err(failed("setsockopt(NETLINK_ADD_MEMBERSHIP)"))?;
    }
    if netlink.peer != (0, 0) {
        socket::connect(fd.as_fd(), &address(netlink.peer.0, netlink.peer.1)).map_err(failed("connect"))?;
    }
    cx.put(record.id, fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_counted_from_one() {
        assert_eq!(groups(&[0b0000_0101, 0, 0x80]), vec![1, 3, 24]);
        assert!(groups(&[]).is_empty());
    }
}
