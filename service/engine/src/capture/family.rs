//! How processes of a group belong together: units, namespaces, parents and children.

use std::collections::HashSet;
use std::sync::LazyLock;

use ckpt_image::records::{NamespaceRecord, ProcessRecord, UnitIndex, UnitRecord};
use nix::sys::stat::stat;

use super::member::refusal;
use super::sandbox::is_alike;
use crate::api::Problem;

/// The unit a cgroup lies in: the longest that it is or is below, and what is left.
pub fn unit_of<'c>(units: &[UnitRecord], cgroup: &'c str) -> Option<(UnitIndex, &'c str)> {
    let below = |unit: &UnitRecord| -> Option<&'c str> {
        let rest = cgroup.strip_prefix(unit.cgroup.as_str())?;
        (!unit.cgroup.is_empty() && (rest.is_empty() || rest.starts_with('/'))).then_some(rest)
    };
    units
        .iter()
        .enumerate()
        .filter_map(|(i, unit)| Some((UnitIndex(i as u32), below(unit)?)))
        .min_by_key(|(_, rest)| rest.len())
        .map(|(unit, rest)| (unit, rest.trim_start_matches('/')))
}

/// The namespaces of a process, by the inode numbers of /proc/PID/ns/*; 0 for our own user namespace.
pub fn namespaces(pid: i32) -> NamespaceRecord {
    /// The user namespace of this program, which it never leaves.
    static OURS: LazyLock<u64> = LazyLock::new(|| stat("/proc/self/ns/user").map_or(0, |s| s.st_ino));
    let ino = |name: &str| stat(format!("/proc/{pid}/ns/{name}").as_str()).map_or(0, |s| s.st_ino);
    NamespaceRecord {
        mnt: ino("mnt"),
        net: ino("net"),
        ipc: ino("ipc"),
        uts: ino("uts"),
        user: match ino("user") {
            own if own == *OURS => 0,
            other => other,
        },
        pid: ino("pid"),
        cgroup: ino("cgroup"),
        time: ino("time"),
    }
}

/// A process in a user namespace other than that which systemd made for its unit (`private`), or one where ids mean others than outside: no
/// restore can build it.
pub(super) fn user_namespace(of: &NamespaceRecord, pid: i32, unit: &str, private: bool) -> Option<Problem> {
    if of.user == 0 {
        return None;
    }
    let is_same = |name: &str| {
        ckpt_sys::proc_file::read_text(format!("/proc/{pid}/{name}")).is_ok_and(|map| is_identity(&map))
    };
    let text = match private {
        false => "it lives in a user namespace that the service made itself",
        true if is_same("uid_map") && is_same("gid_map") => return None,
        true => "it lives in a user namespace whose ids are others outside",
    };
    let remedy = "let it run in the host's user namespace, or in that of PrivateUsers=yes";
    Some(refusal("namespace", unit, pid, "ns/user", text, remedy))
}

/// Whether ids mean the same inside and outside (user_namespaces(7)): lines of first inside, first outside, count.
fn is_identity(map: &str) -> bool {
    let same = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        words.next().is_some_and(|inside| words.next() == Some(inside))
    };
    !map.is_empty() && map.lines().all(same)
}

/// Children of a thread (/proc/PID/task/TID/children), zombies too.
pub(super) fn children(pid: i32, tid: i32) -> Vec<i32> {
    let text = ckpt_sys::proc_file::read_text(format!("/proc/{pid}/task/{tid}/children")).unwrap_or_default();
    text.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// The processes that live in a PID namespace that a restore cannot make: neither in ours nor in one directly below it, the same for all,
/// whose PID 1 is not of the group. Given are pid, unit, inode number of the namespace, how many namespaces it is in, and the pid in
/// the innermost.
pub(super) fn pid_namespaces(processes: &[(i32, UnitIndex, u64, usize, i32)]) -> Vec<(i32, UnitIndex)> {
    let own_init: HashSet<u64> = processes.iter().filter(|p| p.4 == 1).map(|p| p.2).collect();
    let fits = |p: &&(i32, UnitIndex, u64, usize, i32)| p.3 == 2 && !own_init.contains(&p.2);
    let home = processes.iter().find(fits).map(|p| p.2);
    let away = processes.iter().filter(|p| p.3 > 1 && (home != Some(p.2) || !fits(p)));
    away.map(|p| (p.0, p.1)).collect()
}

/// A process that lives in other namespaces than its unit's main process, and not in such as systemd makes for each command of the unit.
pub(super) fn away(home: Resident<'_>, own: Resident<'_>, unit: &str) -> Option<Problem> {
    let kind = differences(home.1, own.1).find(|kind| !is_alike(kind, home.0, own.0))?;
    let text = format!("it lives in another {kind} namespace than its unit's main process");
    let remedy = "configure the service not to make namespaces of its own, which cannot be rebuilt, or stop it for the checkpoint";
    Some(refusal("namespace", unit, own.0, format!("ns/{kind}"), &text, remedy))
}

/// A process and where it lives.
pub(super) type Resident<'n> = (i32, &'n NamespaceRecord);

/// The kinds of namespaces in which two processes differ; of PID namespaces see [`pid_namespaces`].
fn differences(a: &NamespaceRecord, b: &NamespaceRecord) -> impl Iterator<Item = &'static str> {
    let kinds = [
        ("mnt", a.mnt, b.mnt),
        ("net", a.net, b.net),
        ("ipc", a.ipc, b.ipc),
        ("uts", a.uts, b.uts),
        ("user", a.user, b.user),
        ("cgroup", a.cgroup, b.cgroup),
        ("time", a.time, b.time),
    ];
    // A process that has ended meanwhile shows none.
    let over = |n: &NamespaceRecord| [n.mnt, n.net, n.ipc, n.uts, n.cgroup].contains(&0);
    let is_over = over(a) || over(b);
    kinds.into_iter().filter(move |(_, x, y)| x != y && !is_over).map(|(kind, ..)| kind)
}

/// Orders processes so that a parent comes before its children; the rest of the order is kept.
pub(super) fn parents_first(mut processes: Vec<ProcessRecord>) -> Vec<ProcessRecord> {
    let mut waiting: HashSet<i32> = processes.iter().map(|p| p.pid.0).collect();
    let mut ordered = Vec::with_capacity(processes.len());
    while !processes.is_empty() {
        let before = ordered.len();
        let (ready, later): (Vec<_>, Vec<_>) =
            processes.into_iter().partition(|p| !waiting.contains(&p.ppid.0) || p.ppid == p.pid);
        ready.iter().for_each(|p| {
            waiting.remove(&p.pid.0);
        });
        ordered.extend(ready);
        processes = later;
        if ordered.len() == before {
            ordered.append(&mut processes); // a circle cannot be; but nothing is lost if a text lied
        }
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;
    use ckpt_image::records::{Pid, ProcessState};

    fn unit(cgroup: &str) -> UnitRecord {
        UnitRecord {
            name: "u.service".into(),
            cgroup: cgroup.into(),
            main_pid: None,
            namespaces: NamespaceRecord::default(),
            clocks: Default::default(),
            ephemeral: vec![],
            private_users: false,
            mounts: Vec::new(),
        }
    }

    #[test]
    fn a_process_belongs_to_the_innermost_unit() {
        let units = [unit("/a.slice/u.service"), unit("/a.slice/u.service/inner.service"), unit("")];
        let of = |cgroup: &'static str| unit_of(&units, cgroup).map(|(u, rest)| (u.0, rest));
        assert_eq!(of("/a.slice/u.service"), Some((0, "")));
        assert_eq!(of("/a.slice/u.service/payload"), Some((0, "payload")));
        assert_eq!(of("/a.slice/u.service/inner.service/x"), Some((1, "x")));
        assert_eq!(of("/a.slice/u.service2"), None);
        assert_eq!(of("/"), None);
    }

    #[test]
    fn parents_come_first_and_nothing_is_lost() {
        let process = |pid, ppid| ProcessRecord {
            unit: UnitIndex(0),
            cgroup: String::new(),
            namespaces: NamespaceRecord::default(),
            pid: Pid(pid),
            ppid: Pid(ppid),
            pgid: Pid(pid),
            sid: Pid(pid),
            exit_signal: 17,
            state: ProcessState::Running,
            body: None,
        };
        let order = |pairs: &[(i32, i32)]| {
            let all = pairs.iter().map(|(pid, ppid)| process(*pid, *ppid)).collect();
            parents_first(all).iter().map(|p| p.pid.0).collect::<Vec<_>>()
        };
        assert_eq!(order(&[(5, 4), (4, 3), (3, 1), (9, 1)]), [3, 9, 4, 5]);
        assert_eq!(order(&[(5, 4), (4, 5)]), [5, 4]);
        assert!(order(&[]).is_empty());
    }
}
