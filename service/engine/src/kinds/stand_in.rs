//! Processes that stand in for a member while unix sockets are made: SO_PEERCRED and SCM_CREDENTIALS tell who connected, listened, made a
//! pair or sent (unix(7)), and the kernel takes that from whoever calls.
//!
//! A stand-in is a fork of this process with the member's pid and our own descriptor table; it makes one call and ends. The members are
//! made later and get these pids then. Where the pid is taken, or is one that no process can have here, we call ourselves. Of a group that gets a
//! PID namespace of its own (`rebuild/pidspace.rs`) the stand-in is in that: it has the member's pid there, and another one here. The member gets
//! that as well: what a socket keeps is told to the next checkpoint by it, and that knows only those of processes that live.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};

use ckpt_image::records::Pid;
use ckpt_sys::clone::{CloneArgs, fork_with};
use ckpt_sys::descriptor::{message, socket};
use nix::errno::Errno;
use nix::libc;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Gid, Uid, setegid, seteuid};

/// What SO_PEERCRED told: pid, uid, gid.
pub(super) type Credentials = Option<(Pid, u32, u32)>;

/// Who has stood in so far.
#[derive(Debug, Default)]
pub(super) struct StandIns {
    /// By pid of a member, that of its stand-ins in our PID namespace, where that is another.
    outer: RefCell<BTreeMap<Pid, i32>>,
}

impl StandIns {
    /// By pid of a member in a PID namespace of its own, the pid in ours by which what stood in for it goes on being known.
    pub(super) fn into_outer(self) -> BTreeMap<Pid, i32> {
        self.outer.into_inner()
    }

    /// Makes a call whose only trace is in descriptors, as these credentials. Gives the pid, here, of who has made it.
    fn call_as(
        &self,
        credentials: Credentials,
        mut call: impl FnMut() -> Result<(), Errno>,
    ) -> Result<i32, Errno> {
        let ours = std::process::id() as i32;
        let Some((pid, uid, gid)) = credentials.filter(|(pid, ..)| pid.0 > 1) else {
            return as_ids(credentials, call).map(|()| ours);
        };
        let outer = self.outer.borrow().get(&pid).copied();
        let flags = libc::CLONE_FILES as u64;
        let mut stand_in = |outer| {
            fork_with(&CloneArgs { flags, pid: Some(pid.0), outer, ..Default::default() }, || {
                // Without it the ids would lose the right to go where the socket's node is; then the call itself tells.
                let _ = ckpt_sys::attributes::keep_capabilities();
                as_ids(Some((pid, uid, gid)), &mut call).map_or_else(|e| e as i32, |()| 0)
            })
        };
        let child = stand_in(outer).or_else(|e| if outer.is_some() { stand_in(None) } else { Err(e) });
        let ended = child.ok().and_then(|child| waitpid(child, Some(WaitPidFlag::__WALL)).ok());
        match ended {
            Some(WaitStatus::Exited(child, 0)) => {
                if child.as_raw() != pid.0 {
                    self.outer.borrow_mut().entry(pid).or_insert(child.as_raw());
                }
                Ok(child.as_raw())
            }
            Some(WaitStatus::Exited(_, code)) => Err(Errno::from_raw(code)),
            _ => as_ids(credentials, call).map(|()| ours),
        }
    }

    /// socketpair(2).
    pub(super) fn pair(&self, credentials: Credentials, kind: i32) -> Result<(OwnedFd, OwnedFd), Errno> {
        // Their numbers are where a stand-in puts its own.
        let (mut a, mut b) = socket::pair(kind)?;
        self.call_as(credentials, || {
            let (made_a, made_b) = socket::pair(kind)?;
            nix::unistd::dup3(&made_a, &mut a, nix::fcntl::OFlag::O_CLOEXEC)?;
            nix::unistd::dup3(&made_b, &mut b, nix::fcntl::OFlag::O_CLOEXEC)
        })?;
        Ok((a, b))
    }

    /// connect(2); as ourselves where these ids may not go there (a peer that had its socket passed in). Gives the pid, here, of who has
    /// connected: what we are told of the peer that accepts it.
    pub(super) fn connect(
        &self,
        credentials: Credentials,
        fd: BorrowedFd<'_>,
        address: &[u8],
    ) -> Result<i32, Errno> {
        match self.call_as(credentials, || socket::connect(fd, address)) {
            Err(Errno::EACCES) => socket::connect(fd, address).map(|()| std::process::id() as i32),
            other => other,
        }
    }

    /// listen(2).
    pub(super) fn listen(
        &self,
        credentials: Credentials,
        fd: BorrowedFd<'_>,
        backlog: i32,
    ) -> Result<(), Errno> {
        self.call_as(credentials, || socket::listen(fd, backlog)).map(drop)
    }

    /// Sends a whole message, credentials beside it. Only a process that is there can be named as the sender; and by us, only one whose pid is
    /// the same for us and for the members.
    pub(super) fn send(
        &self,
        fd: BorrowedFd<'_>,
        data: &[u8],
        to: &[u8],
        rights: &[BorrowedFd<'_>],
        credentials: Credentials,
    ) -> Result<(), Errno> {
        let beside = credentials.map(|(pid, uid, gid)| (pid.0, uid, gid));
        let whole = |beside| -> Result<(), Errno> {
            let mut sent = message::send(fd, data, to, rights, beside)?;
            while sent < data.len() {
                sent += message::send(fd, &data[sent..], to, &[], beside)?;
            }
            Ok(())
        };
        if !are_elsewhere() {
            match whole(beside) {
                Err(Errno::ESRCH) => {}
                other => return other,
            }
        }
        let ours = std::process::id() as i32;
        self.call_as(credentials, || {
            let is_it = beside.is_some_and(|(pid, ..)| pid == std::process::id() as i32);
            whole(if is_it { beside } else { beside.map(|(_, uid, gid)| (ours, uid, gid)) })
        })
        .map(drop)
    }
}

/// Whether our children are in another PID namespace than we, where the members' pids are what they are (setns(2), CLONE_NEWPID).
fn are_elsewhere() -> bool {
    let link = |name: &str| std::fs::read_link(format!("/proc/self/ns/{name}")).ok();
    link("pid") != link("pid_for_children")
}

/// Runs a call of our own with these effective ids.
fn as_ids<T>(credentials: Credentials, call: impl FnOnce() -> T) -> T {
    let Some((_, uid, gid)) = credentials.filter(|(_, uid, gid)| (*uid, *gid) != (0, 0)) else {
        return call();
    };
    // Being refused these ids (no CAP_SETUID) only means that the peer is told ours.
    let _ = setegid(Gid::from_raw(gid)).and_then(|()| seteuid(Uid::from_raw(uid)));
    let result = call();
    let _ = seteuid(Uid::from_raw(0)).and_then(|()| setegid(Gid::from_raw(0)));
    result
}
