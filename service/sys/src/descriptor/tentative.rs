//! IPv6 addresses that may not be used yet: duplicate address detection (RFC 4862, 5.4) takes a second or two, and even the loopback
//! address of a network namespace that was made just now is tentative for a moment. bind(2) says EADDRNOTAVAIL meanwhile.

use std::time::Duration;

/// How long an address is waited for: more than detection takes with the kernel's defaults (net.ipv6.conf.*.dad_transmits,
/// neigh.*.retrans_time_ms).
pub(super) const LONGEST: Duration = Duration::from_secs(5);
/// Between two attempts.
pub(super) const PAUSE: Duration = Duration::from_millis(2);

/// IFA_F_TENTATIVE and IFA_F_DADFAILED of linux/if_addr.h.
const TENTATIVE: u32 = 0x40;
const FAILED: u32 = 0x08;

/// Whether a raw struct sockaddr names an IPv6 address of the thread's network namespace that is being looked into.
pub(super) fn is_tentative(address: &[u8]) -> bool {
    let is_v6 = address.get(..2) == Some((libc::AF_INET6 as u16).to_ne_bytes().as_slice());
    let Some(ip) = address.get(8..24).filter(|_| is_v6) else { return false };
    let ip: String = ip.iter().map(|byte| format!("{byte:02x}")).collect();
    let all = crate::proc_file::read_text("/proc/thread-self/net/if_inet6").unwrap_or_default();
    all.lines().filter(|line| line.starts_with(&ip)).any(is_being_looked_into)
}

/// A line of if_inet6: address, index of the interface, length of the prefix, scope, flags (all hexadecimal), name of the interface.
fn is_being_looked_into(line: &str) -> bool {
    let flags = line.split_ascii_whitespace().nth(4).and_then(|flags| u32::from_str_radix(flags, 16).ok());
    flags.is_some_and(|flags| flags & TENTATIVE != 0 && flags & FAILED == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_tell_what_may_still_become_usable() {
        let line = |flags| format!("fd00000c000000000000000000000007 02 40 00 {flags}     eth0");
        assert!(is_being_looked_into(&line("c0")));
        assert!(!is_being_looked_into(&line("80")), "it can be used");
        assert!(!is_being_looked_into(&line("c8")), "another machine has it");
        assert!(!is_being_looked_into(""));
    }

    #[test]
    fn only_addresses_of_v6_are_looked_for() {
        assert!(!is_tentative(&[]));
        assert!(!is_tentative(&[0; 28]));
        let mut nobodys = [0u8; 28];
        nobodys[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
        assert!(!is_tentative(&nobodys));
    }
}
