//! Unix connections that wait to be accepted and were written to. What was written lies where only accept(2) leads, so a window that meets one
//! is given up before anything is captured: a moment later the server has accepted.
//!
//! ```text
//! before the window   listeners of the group, and the network namespaces they are in       none: nothing is asked in the window
//! cgroup frozen       sock_diag: who waits at them ► written to, by a member? ─yes─► thaw, wait until they are accepted, again
//! ```
//! Where clients ask faster than servers accept, something waits at any moment. After a few attempts those who wait are held: they stand still from
//! before the freeze on, while the servers come to the end of what waits.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use ckpt_sys::descriptor::{self, diag::UnixDiag};
use ckpt_sys::seize::{Process, seize_processes};
use ckpt_sys::thread::Deadline;
use nix::unistd::Pid;

use crate::api::{Problem, Severity};
use crate::kinds;
use crate::members::Member;

const LISTENING: u8 = 10; // TCP_LISTEN
const CODE: &str = "unix-waiting";
/// How often the window is opened, and from which attempt on clients are held.
const ATTEMPTS: u32 = 8;
const HOLDING: u32 = 3;
/// How long servers get to accept what waits while clients run on.
const PATIENCE: Duration = Duration::from_millis(50);
/// Between two looks at a group that runs.
const PAUSE: Duration = Duration::from_millis(1);

/// The unix sockets of a group at which connections may wait.
#[derive(Debug, Default)]
pub struct Listeners {
    inodes: HashSet<u32>,
    namespaces: Vec<File>,
}

/// A connection that waits: the listener, and the end of who has connected.
type Waiting = (u32, u32);

impl Listeners {
    /// Looks at running members. What cannot be read is left out: the capture itself refuses what it meets.
    pub fn look(members: &[Member]) -> Self {
        let mut spaces = BTreeMap::new();
        let mut sockets = HashSet::new();
        for Member { task: pid, .. } in members {
            sockets.extend(sockets_of(*pid).into_iter().map(|(_, inode)| inode));
            let Ok(space) = File::open(format!("/proc/{pid}/ns/net")) else { continue };
            let Ok(told) = space.metadata() else { continue };
            spaces.entry(told.ino()).or_insert(space);
        }
        let mut listeners = Self::default();
        for space in spaces.into_values() {
            let Ok(all) = descriptor::in_net_namespace(space.as_fd(), || UnixDiag::open()?.all()) else {
                continue;
            };
            let ours =
                all.values().filter(|s| s.state == LISTENING && sockets.contains(&s.ino)).map(|s| s.ino);
            let before = listeners.inodes.len();
            listeners.inodes.extend(ours);
            if listeners.inodes.len() > before {
                listeners.namespaces.push(space);
            }
        }
        listeners
    }

    /// The connections that wait at them and were written to, whoever has made them.
    fn waiting(&self) -> Vec<Waiting> {
        let mut waiting = Vec::new();
        for space in &self.namespaces {
            let Ok(all) = descriptor::in_net_namespace(space.as_fd(), || UnixDiag::open()?.all()) else {
                continue;
            };
            let busy = all.values().filter(|s| !s.waiting.is_empty() && self.inodes.contains(&s.ino));
            for listener in busy {
                let written = |end: &&u32| all.get(*end).is_some_and(|end| end.queue.1 > 0);
                waiting.extend(listener.waiting.iter().filter(written).map(|end| (listener.ino, *end)));
            }
        }
        waiting
    }

    /// Those that members have made, as problems. `members`: their ids and units, which are asked for only where something waits.
    pub fn problems<E>(
        &self,
        members: impl FnOnce() -> Result<Vec<(i32, String)>, E>,
    ) -> Result<Vec<Problem>, E> {
        let waiting = self.waiting();
        if waiting.is_empty() {
            return Ok(Vec::new());
        }
        let is_it = |inode: u32| waiting.iter().any(|(_, end)| *end == inode);
        let of_member = |(pid, unit): (i32, String)| {
            let ends = sockets_of(pid).into_iter().filter(|(_, inode)| is_it(*inode));
            ends.map(move |end| problem(unit.clone(), pid, end))
        };
        Ok(members()?.into_iter().flat_map(of_member).collect())
    }

    /// Waits until none waits while the group runs, for at most `patience`.
    fn settle(&self, patience: Duration) {
        let begin = Instant::now();
        std::thread::sleep(PAUSE);
        while begin.elapsed() < patience && !self.waiting().is_empty() {
            std::thread::sleep(PAUSE);
        }
    }
}

/// Those whose connections have waited.
#[derive(Debug, Default)]
pub struct Clients {
    attempts: u32,
    pids: BTreeSet<i32>,
    held: Vec<Process>,
    /// Since when they are.
    since: Option<Instant>,
}

impl Clients {
    /// Notes those of a window that was given up. Whether another is worth it.
    pub fn note(&mut self, problems: &[Problem]) -> bool {
        self.attempts += 1;
        self.pids.extend(problems.iter().map(|p| p.pid));
        self.attempts < ATTEMPTS
    }

    /// Lets servers accept what waits. If time alone did not help, those who wait stand still from here on, for at most `patience` until the
    /// window is opened.
    pub fn wait(&mut self, listeners: &Listeners, patience: Duration) {
        if self.attempts < HOLDING {
            return listeners.settle(PATIENCE);
        }
        let pids: Vec<_> = self.pids.iter().map(|pid| Pid::from_raw(*pid)).collect();
        self.since = Some(Instant::now());
        // Who cannot be held runs on: the window tells what came of it.
        self.held = seize_processes(&pids, Deadline::after(PATIENCE)).unwrap_or_default();
        listeners.settle(patience);
    }

    /// Those that are held, and since when.
    pub fn take(&mut self) -> (Vec<Process>, Option<Instant>) {
        (std::mem::take(&mut self.held), self.since.take())
    }
}

/// Whether this is why a window was given up, or would be.
pub fn is_why(problem: &Problem) -> bool {
    problem.code == CODE
}

fn problem(unit: String, pid: i32, (fd, inode): (i32, u32)) -> Problem {
    Problem {
        code: CODE.into(),
        severity: Severity::Error,
        unit,
        pid,
        object: format!("fd {fd} (socket:[{inode}])"),
        text: "it was connected and written to, and the other end has not been accepted yet".into(),
        remedy: "try again when the server accepts it; give a server that is slow to accept more workers"
            .into(),
    }
}

/// The sockets of a process: number and inode.
fn sockets_of(pid: i32) -> Vec<(i32, u32)> {
    let inode = |fd: i32| {
        let link = fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok()?;
        link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    };
    let numbers = kinds::numbers(pid).unwrap_or_default();
    numbers.into_iter().filter_map(|fd| Some((fd, inode(fd)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ckpt_image::records::UnitIndex;
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

    fn member(pid: i32) -> Member {
        Member { pid, task: pid, unit: UnitIndex(0), cgroup: String::new() }
    }

    #[test]
    fn a_connection_counts_while_it_is_written_to_and_not_accepted() {
        let own = std::process::id() as i32;
        let address = SocketAddr::from_abstract_name(format!("ckpt-waiting-{own}")).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        let listeners = Listeners::look(&[member(own)]);
        let inode = |fd: &dyn AsRawFd| {
            nix::sys::stat::stat(&*format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap().st_ino
        };
        assert!(listeners.inodes.contains(&(inode(&listener) as u32)));
        // Other tests of this process may have their own.
        let fds = || {
            let found = listeners.problems(|| Ok::<_, ()>(vec![(own, "a.service".into())]));
            found.unwrap().into_iter().map(|p| p.object).collect::<Vec<_>>()
        };
        let mut client = UnixStream::connect_addr(&address).unwrap();
        let object = format!("fd {} (socket:[{}])", client.as_raw_fd(), inode(&client));
        assert!(!fds().contains(&object));
        client.write_all(b"asked").unwrap();
        assert!(fds().contains(&object));
        // Not a member's.
        assert!(listeners.problems(|| Ok::<_, ()>(Vec::new())).unwrap().is_empty());
        let accepted = listener.accept().unwrap();
        assert!(!fds().contains(&object));
        drop(accepted);
    }

    #[test]
    fn a_group_without_listeners_is_not_asked_in_the_window() {
        assert!(Listeners::look(&[]).namespaces.is_empty());
    }
}
