//! Multicast groups of internet sockets (ip(7), ipv6(7)). No call tells those of a socket, but each can be asked for by name
//! (MCAST_MSFILTER), and /proc tells which groups there are on which interface.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;

use ckpt_image::records::SocketOption;
use ckpt_sys::descriptor::socket;
use nix::libc;

use super::Refusal;

/// MCAST_MSFILTER, Linux 2.6.
const MSFILTER: i32 = 48;
/// struct group_filter without sources: u32 interface, struct sockaddr_storage from 8 on, u32 mode, u32 number of sources.
const FILTER: usize = 144;
const MODE: usize = 136;
const EXCLUDE: u32 = 0;

/// A group on an interface, by its index.
pub(super) type Group = (u32, IpAddr);

/// The groups that the network namespace of a process has.
pub(super) fn of_namespace(pid: i32) -> Vec<Group> {
    let read = |name| ckpt_sys::proc_file::read_text(format!("/proc/{pid}/net/{name}")).unwrap_or_default();
    let mut groups = parse_igmp(&read("igmp"));
    groups.extend(parse_igmp6(&read("igmp6")));
    groups
}

/// `2\teth0 : 1 V3`, then for each group `\t\t\t\t010000E0 1 0:00000000 0`.
fn parse_igmp(text: &str) -> Vec<Group> {
    let mut interface = 0;
    let mut groups = Vec::new();
    for line in text.lines().skip(1) {
        let first = line.split_ascii_whitespace().next().unwrap_or("");
        match line.starts_with('\t') {
            true => groups.extend(
                u32::from_str_radix(first, 16)
                    .ok()
                    .map(|group| (interface, IpAddr::V4(Ipv4Addr::from(group.to_ne_bytes())))),
            ),
            false => interface = first.parse().unwrap_or(0),
        }
    }
    groups
}

/// `1    lo              ff020000000000000000000000000001     1 0000000C 0`.
fn parse_igmp6(text: &str) -> Vec<Group> {
    let line = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let interface = words.next()?.parse().ok()?;
        let group = u128::from_str_radix(words.nth(1)?, 16).ok()?;
        Some((interface, IpAddr::V6(Ipv6Addr::from(group))))
    };
    text.lines().filter_map(line).collect()
}

/// Those of them that a socket has joined, each as the option that joins it.
pub(super) fn joined(
    fd: BorrowedFd<'_>,
    family: i32,
    groups: &[Group],
) -> Result<Vec<SocketOption>, Refusal> {
    let mut options = Vec::new();
    for (interface, group) in groups {
        let mut filter = [0u8; FILTER];
        filter[..4].copy_from_slice(&interface.to_ne_bytes());
        let level = match group {
            IpAddr::V4(ip) => {
                filter[8..10].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
                filter[12..16].copy_from_slice(&ip.octets());
                libc::IPPROTO_IP
            }
            IpAddr::V6(_) if family != libc::AF_INET6 => continue,
            IpAddr::V6(ip) => {
                filter[8..10].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
                filter[16..32].copy_from_slice(&ip.octets());
                libc::IPPROTO_IPV6
            }
        };
        if socket::query(fd, level, MSFILTER, &mut filter).is_err() {
            continue; // EADDRNOTAVAIL: it has not joined
        }
        let word = |at: usize| filter[at..at + 4].try_into().map_or(0, u32::from_ne_bytes);
        if (word(MODE), word(MODE + 4)) != (EXCLUDE, 0) {
            let text = format!("it takes datagrams to the group {group} from certain sources only");
            return Err(Refusal::new("multicast-sources", text, "let it join the group without sources"));
        }
        options.push(join(*interface, group));
    }
    Ok(options)
}

/// struct ip_mreqn: group, address, interface; struct ipv6_mreq: group, interface.
fn join(interface: u32, group: &IpAddr) -> SocketOption {
    match group {
        IpAddr::V4(ip) => SocketOption {
            level: libc::IPPROTO_IP,
            name: libc::IP_ADD_MEMBERSHIP,
            value: [ip.octets(), [0; 4], interface.to_ne_bytes()].concat(),
        },
        IpAddr::V6(ip) => SocketOption {
            level: libc::IPPROTO_IPV6,
            name: libc::IPV6_ADD_MEMBERSHIP,
            value: [&ip.octets()[..], &interface.to_ne_bytes()].concat(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_read() {
        let text = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n1\tlo        :     1      V3\n\
                    \t\t\t\t010000E0     1 0:00000000\t\t0\n";
        assert_eq!(parse_igmp(text), [(1, "224.0.0.1".parse().unwrap())]);
        let text = "1    lo              ff020000000000000000000000000001     1 0000000C 0\n";
        assert_eq!(parse_igmp6(text), [(1, "ff02::1".parse().unwrap())]);
    }
}
