//! A datagram as the IP packet it came in.
//!
//! ```text
//! v4   45 │ class │ length 2 │ id 2, flags 2: 0 │ hops │ protocol │ checksum: the kernel's │ from 4 │ to 4
//! v6   6, class, flow: 4 │ length 2 │ protocol │ hops │ from 16 │ to 16
//! UDP  port 2 │ port 2 │ length 2 │ checksum 2 │ data          (UDP-Lite: the length is what the checksum covers)
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ckpt_image::records::InetDatagram;
use nix::libc;

use crate::kinds::inet::parse;

/// What stands on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Envelope {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    protocol: u8,
    hops: u8,
    class: u8,
    flow: u32,
}

impl Envelope {
    /// That of a datagram to who is bound `at`. `None` where it cannot be told.
    pub(super) fn of(datagram: &InetDatagram, at: SocketAddr, protocol: i32) -> Option<Self> {
        let from = parse(&datagram.from)?;
        let control = |level, kind| {
            datagram.control.iter().find(|c| (c.level, c.kind) == (level, kind)).map(|c| c.data.as_slice())
        };
        let byte = |v4, v6| {
            let found = control(libc::IPPROTO_IP, v4).or_else(|| control(libc::IPPROTO_IPV6, v6));
            found.and_then(|data| data.first().copied())
        };
        let v4 = control(libc::IPPROTO_IP, libc::IP_PKTINFO).and_then(|info| info.get(8..12));
        let v6 = control(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO).and_then(|info| info.get(..16));
        let ip = match (v6, v4) {
            (Some(ip), _) => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(ip).ok()?)).to_canonical(),
            (_, Some(ip)) => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(ip).ok()?)),
            _ if !at.ip().is_unspecified() => at.ip(),
            _ if from.is_ipv4() => Ipv4Addr::LOCALHOST.into(),
            _ => Ipv6Addr::LOCALHOST.into(),
        };
        let flow = control(libc::IPPROTO_IPV6, libc::IPV6_FLOWINFO).and_then(|data| data.get(..4));
        Some(Self {
            from,
            to: SocketAddr::new(ip, at.port()),
            protocol: u8::try_from(protocol).ok()?,
            hops: byte(libc::IP_TTL, libc::IPV6_HOPLIMIT).unwrap_or(64),
            class: byte(libc::IP_TOS, libc::IPV6_TCLASS).unwrap_or(0),
            flow: flow.and_then(|data| data.try_into().ok()).map_or(0, u32::from_be_bytes) & 0x000f_ffff,
        })
    }

    /// The packet. `None` if its addresses are of two kinds, or it is too large for one.
    pub(super) fn seal(&self, data: &[u8]) -> Option<Vec<u8>> {
        let length = u16::try_from(8 + data.len()).ok()?;
        let (head, addresses) = match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let total = length.checked_add(20)?.to_be_bytes();
                let head = [&[0x45, self.class][..], &total, &[0; 4], &[self.hops, self.protocol, 0, 0]];
                (head.concat(), [from.octets(), to.octets()].concat())
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let first = 6 << 28 | u32::from(self.class) << 20 | self.flow;
                let head = [&first.to_be_bytes()[..], &length.to_be_bytes(), &[self.protocol, self.hops]];
                (head.concat(), [from.octets(), to.octets()].concat())
            }
            _ => return None,
        };
        let ports = [self.from.port().to_be_bytes(), self.to.port().to_be_bytes()].concat();
        let pseudo = [&addresses[..], &u32::from(length).to_be_bytes(), &[0, 0, 0, self.protocol]].concat();
        let sum = checksum(&[&pseudo, &ports, &length.to_be_bytes(), data]);
        let body = [&ports[..], &length.to_be_bytes(), &sum.to_be_bytes(), data].concat();
        Some([head, addresses, body].concat())
    }
}

/// That of the internet (RFC 1071); all parts but the last are of even length. 0 says that there is none, so it is its other form.
fn checksum(parts: &[&[u8]]) -> u16 {
    let word = |pair: &[u8]| u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u64::from(*low));
    let mut sum: u64 = parts.iter().flat_map(|part| part.chunks(2)).map(word).sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    match !(sum as u16) {
        0 => 0xffff,
        sum => sum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(from: &str, to: &str, data: &[u8]) -> Option<Vec<u8>> {
        let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
        Envelope { from, to, protocol: 17, hops: 7, class: 0x10, flow: 0 }.seal(data)
    }

    /// A sum over all of it and the sum itself is 0, which is told as 0xffff.
    #[test]
    fn packets_are_as_drawn() {
        let v4 = sealed("203.0.113.9:4242", "127.0.0.1:53", b"odd").unwrap();
        assert_eq!(v4[..12], [0x45, 0x10, 0, 31, 0, 0, 0, 0, 7, 17, 0, 0]);
        assert_eq!(checksum(&[&v4[12..20], &[0, 17, 0, 11], &v4[20..]]), 0xffff);
        let v6 = sealed("[2001:db8::9]:4242", "[::1]:53", b"even").unwrap();
        assert_eq!(v6[..8], [0x61, 0, 0, 0, 0, 12, 17, 7]);
        assert_eq!(checksum(&[&v6[8..40], &[0, 0, 0, 12, 0, 0, 0, 17], &v6[40..]]), 0xffff);
        assert_eq!(sealed("203.0.113.9:1", "[::1]:1", b""), None);
        assert_eq!(sealed("203.0.113.9:1", "127.0.0.1:1", &vec![0; 65508]), None);
        assert!(sealed("203.0.113.9:1", "127.0.0.1:1", &vec![0; 65507]).is_some());
    }
}
