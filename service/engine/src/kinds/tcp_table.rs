//! The TCP connections of a network namespace as /proc tells them (proc_pid_net(5)), also those that no process has.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A line of /proc/PID/net/tcp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TcpLine {
    pub(super) state: u8,
    pub(super) unread: u64,
    /// 0 where no process has it.
    pub(super) inode: u64,
}

pub(super) type TcpTable = HashMap<(SocketAddr, SocketAddr), TcpLine>;

/// The connections of a process's network namespace, by local and remote address (proc_pid_net(5)).
pub(super) fn tcp_table(pid: i32) -> TcpTable {
    let read = |name| ckpt_sys::proc_file::read_text(format!("/proc/{pid}/net/{name}")).unwrap_or_default();
    let mut table = parse_tcp(&read("tcp"));
    table.extend(parse_tcp(&read("tcp6")));
    table
}

fn parse_tcp(text: &str) -> TcpTable {
    let line = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let key = (parse_hex(words.get(1)?)?, parse_hex(words.get(2)?)?);
        let state = u8::from_str_radix(words.get(3)?, 16).ok()?;
        let (_, unread) = words.get(4)?.split_once(':')?;
        let unread = u64::from_str_radix(unread, 16).ok()?;
        Some((key, TcpLine { state, unread, inode: words.get(9)?.parse().ok()? }))
    };
    text.lines().skip(1).filter_map(line).collect()
}

/// `0100007F:1F90`: 32-bit words in the machine's order; a v4 address in v6 form is that v4 address.
fn parse_hex(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| u32::from_str_radix(ip.get(8 * at..8 * at + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let bytes = [word(0)?, word(1)?, word(2)?, word(3)?].concat();
            IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_read() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                    0: 0100007F:1F90 0100007F:C350 01 00000000:00000005 00:00000000 00000000     0        0 0 1 x\nbroken\n";
        let key = ("127.0.0.1:8080".parse().unwrap(), "127.0.0.1:50000".parse().unwrap());
        assert_eq!(parse_tcp(text)[&key], TcpLine { state: 1, unread: 5, inode: 0 });
        let mapped = parse_hex("0000000000000000FFFF00000100007F:0050").unwrap();
        assert_eq!(mapped, "127.0.0.1:80".parse().unwrap());
    }
}
