//! Namespaces of one making. systemd makes a mount namespace, and those of host name and users, anew for each command of a unit that asks for
//! them: what ExecStartPost= or ExecReload= started and left running lives in others than the main process, which show it the same.
//! A restore puts it into those of the unit.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use ckpt_sys::namespace::aside;
use ckpt_sys::proc_file::read_text;
use nix::sched::CloneFlags;
use nix::sys::utsname::uname;

use crate::storage::mounts::{Mount, parse_line};

/// File systems that the kernel makes anew at each mount, and that show the same everywhere.
const OF_THE_KERNEL: [&str; 2] = ["proc", "sysfs"];
/// What PrivateDevices= makes, with the same nodes in it.
const DEVICES: (&str, &str) = ("tmpfs", "/dev");

/// Whether the namespaces of one kind (as in /proc/PID/ns) of two processes of a unit show the same, so that either process may as well live in
/// the other's.
pub(super) fn is_alike(kind: &str, one: i32, other: i32) -> bool {
    let same_text = |name: &str| {
        let read = |pid| read_text(format!("/proc/{pid}/{name}")).ok();
        read(one).is_some_and(|text| read(other) == Some(text))
    };
    match kind {
        "mnt" => mounts(one).is_some_and(|all| mounts(other) == Some(all)),
        "uts" => host_name(one).is_some_and(|name| host_name(other) == Some(name)),
        "user" => ["uid_map", "gid_map", "setgroups"].into_iter().all(same_text),
        _ => false,
    }
}

/// What is mounted where a process lives, told without the numbers that the kernel gives out.
fn mounts(pid: i32) -> Option<Vec<Mount>> {
    shapes(&read_text(format!("/proc/{pid}/mountinfo")).ok()?)
}

/// In some order; left out are the ids of mounts and of peer groups and, where each mount has its own, the device. `None`: not understood.
fn shapes(mountinfo: &str) -> Option<Vec<Mount>> {
    let mut all = mountinfo.lines().map(|line| parse_line(line).map(shape)).collect::<Option<Vec<_>>>()?;
    all.sort_unstable();
    (!all.is_empty()).then_some(all)
}

fn shape(mount: Mount) -> Mount {
    let fs_type = mount.fs_type.as_str();
    let is_made_anew = OF_THE_KERNEL.contains(&fs_type)
        || (fs_type, mount.point.as_path()) == (DEVICES.0, Path::new(DEVICES.1));
    Mount { id: 0, device: if is_made_anew { 0 } else { mount.device }, ..mount }
}

/// Host and domain name where a process lives.
fn host_name(pid: i32) -> Option<[std::ffi::OsString; 2]> {
    let namespace = File::open(format!("/proc/{pid}/ns/uts")).ok()?;
    let names = aside(namespace.as_fd(), CloneFlags::CLONE_NEWUTS, uname).ok()?.ok()?;
    Some([names.nodename().to_owned(), names.domainname().to_owned()])
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAIN: &str = "500 400 0:30 / / ro,relatime shared:20 master:1 - overlay overlay rw\n\
                        501 500 0:31 / /proc rw - proc proc rw\n\
                        502 500 0:40 / /dev ro shared:21 - tmpfs tmpfs rw,mode=755\n\
                        503 500 0:50 /t /tmp rw shared:22 master:3 - tmpfs tmpfs rw\n";

    #[test]
    fn another_command_sees_the_same() {
        let other = "630 600 0:60 / /dev ro shared:51 - tmpfs tmpfs rw,mode=755\n\
                     600 510 0:30 / / ro,relatime shared:50 master:1 - overlay overlay rw\n\
                     610 600 0:61 / /proc rw - proc proc rw\n\
                     640 600 0:50 /t /tmp rw shared:52 master:3 - tmpfs tmpfs rw\n";
        assert_eq!(shapes(MAIN), shapes(other));
    }

    #[test]
    fn what_is_another_is_told_from_it() {
        let others = [
            ("0:50 /t /tmp", "0:51 /t /tmp"),
            ("0:50 /t /tmp", "0:50 /u /tmp"),
            ("/ / ro", "/ / rw"),
            ("shared:22 master:3", "master:3"),
            ("503 500 0:50 /t /tmp rw shared:22 master:3 - tmpfs tmpfs rw\n", ""),
        ];
        for (was, is) in others {
            assert_ne!(shapes(MAIN), shapes(&MAIN.replace(was, is)), "{is}");
        }
        assert_eq!(shapes(""), None);
        assert_eq!(shapes("nonsense"), None);
    }

    #[test]
    fn namespaces_are_like_themselves() {
        let own = std::process::id() as i32;
        assert!(is_alike("mnt", own, own) && is_alike("user", own, own));
        assert!(!is_alike("net", own, own), "what is in it counts");
    }
}
