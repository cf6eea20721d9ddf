//! packet(7): bound again to its interface and protocol; packets that were not read are lost, as packets may be.

use std::os::fd::AsFd;

use ckpt_image::records::{DescriptionKind, DescriptionRecord, PacketRecord};
use ckpt_sys::descriptor::socket;
use nix::libc;

use super::collect::{DescriptorCapture, Found};
use super::rebuild::Rebuild;
use super::{Error, Refusal, options};

/// PACKET_FANOUT, Linux 3.1.
const FANOUT: i32 = 18;
/// struct sockaddr_ll up to the interface: family u16, protocol u16 (network order), interface i32.
const INTERFACE: usize = 8;

pub(super) fn capture(cx: &mut DescriptorCapture<'_>, found: &Found) -> Result<DescriptionKind, Refusal> {
    let fd = found.fd();
    let kind = socket::int_option(fd, libc::SOL_SOCKET, libc::SO_TYPE)
        .map_err(Refusal::call("getsockopt(SO_TYPE)"))?;
    let name = socket::name(fd).map_err(Refusal::call("getsockname"))?;
    if socket::int_option(fd, libc::SOL_PACKET, FANOUT).unwrap_or(0) != 0 {
        let text = "it shares packets with other sockets (PACKET_FANOUT)";
        return Err(Refusal::new("packet-fanout", text, "stop using it before the checkpoint"));
    }
    if is_ring(fd) {
        let text = "it has a ring in memory (PACKET_RX_RING, PACKET_TX_RING)";
        return Err(Refusal::new("packet-ring", text, "configure the application not to use rings"));
    }
    if socket::ready(fd, libc::POLLIN).unwrap_or(0) & libc::POLLIN != 0 {
        let text = "packets that were not read yet are lost at a restore, as packets may be";
        cx.warn(found, Refusal::new("datagram-queue", text, "nothing: networks lose packets"));
    }
    let options = options::read(fd, libc::AF_PACKET, 0).map_err(Refusal::call("getsockopt"))?;
    let address = name.get(..INTERFACE).unwrap_or(&name).to_vec();
    Ok(DescriptionKind::Packet(PacketRecord { kind, address, options }))
}

/// PACKET_VERSION cannot be set, not even to what it is, where there is a ring (EBUSY).
fn is_ring(fd: std::os::fd::BorrowedFd<'_>) -> bool {
    const VERSION: i32 = 10;
    let version = socket::int_option(fd, libc::SOL_PACKET, VERSION);
    version.is_ok_and(|version| {
        socket::set_int_option(fd, libc::SOL_PACKET, VERSION, version) == Err(nix::errno::Errno::EBUSY)
    })
}

pub(super) fn create(
    cx: &mut Rebuild<'_>,
    record: &DescriptionRecord,
    packet: &PacketRecord,
) -> Result<(), Error> {
    cx.enter(record.unit)?;
    let failed = |op| Error::call(op, cx.describe(record));
    let fd = socket::socket(libc::AF_PACKET, packet.kind, 0).map_err(failed("socket"))?;
    if let Err((option, e)) = options::apply(fd.as_fd(), &packet.options) {
        let object = format!("{}, option {}:{}", cx.describe(record), option.level, option.name);
        return Err(Error::call("setsockopt", object)(e));
    }
    options::apply_filter(fd.as_fd(), &packet.options).map_err(failed("setsockopt(SO_ATTACH_FILTER)"))?;
    let mut address = packet.address.clone();
    address.resize(20, 0); // sizeof(struct sockaddr_ll)
    socket::bind(fd.as_fd(), &address).map_err(failed("bind"))?;
    cx.put(record.id, fd)
}
