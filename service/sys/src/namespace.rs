//! Namespaces (namespaces(7)): going into those of another process and back.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::unistd::Pid;

use crate::error::{Error, Result, Subject};

/// CLONE_NEWTIME, Linux 5.6; nix has no name for it.
pub const NEW_TIME: CloneFlags = CloneFlags::from_bits_retain(0x80);

/// The kinds that [`Entered`] switches, with their names in /proc/PID/ns.
const KINDS: [(CloneFlags, &str); 7] = [
    (CloneFlags::CLONE_NEWPID, "pid"),
    (CloneFlags::CLONE_NEWNS, "mnt"),
    (CloneFlags::CLONE_NEWNET, "net"),
    (CloneFlags::CLONE_NEWIPC, "ipc"),
    (CloneFlags::CLONE_NEWUTS, "uts"),
    (CloneFlags::CLONE_NEWCGROUP, "cgroup"),
    // That which children are born in; of a process that has not unshared it, its own.
    (NEW_TIME, "time_for_children"),
];

/// The namespaces of a process, held open: PID, mount, network, IPC, host name, cgroup and time. They live as long as this does. The PID
/// namespace is that which children are born in.
#[derive(Debug)]
pub struct Namespaces {
    files: Vec<(CloneFlags, File, u64)>,
}

impl Namespaces {
    /// Those of a process; ENOENT if it is gone.
    pub fn of(pid: Pid) -> Result<Self> {
        let mut files = Vec::new();
        for (kind, name) in KINDS {
            let path = format!("/proc/{pid}/ns/{name}");
            let file = match File::open(&path) {
                // A kernel without this kind.
                Err(e) if kind == NEW_TIME && e.kind() == std::io::ErrorKind::NotFound => continue,
                file => file.map_err(|e| Error::io("open", &path, &e))?,
            };
            let ino = file.metadata().map_err(|e| Error::io("stat", &path, &e))?.ino();
            files.push((kind, file, ino));
        }
        Ok(Self { files })
    }

    /// Those of this process.
    pub fn own() -> Result<Self> {
        Self::of(Pid::this())
    }

    /// Moves this process into those of `self` that differ from `now`, the ones it is in. With the mount namespace, the root and
    /// working directory become the root of that namespace. Needs CAP_SYS_ADMIN and CAP_SYS_CHROOT, and one thread only.
    pub fn enter(&self, now: &Namespaces) -> Result<()> {
        // The mount namespace comes first here, but each is held by a descriptor, so that the order does not matter.
        for ((kind, file, ino), (_, _, ours)) in self.files.iter().zip(&now.files) {
            if ino != ours {
                join(file.as_fd(), *kind)?;
            }
        }
        Ok(())
    }

    /// Takes the namespace of one kind from those of another process instead.
    pub fn take(&mut self, kind: CloneFlags, other: Namespaces) {
        let Some(theirs) = other.files.into_iter().find(|f| f.0 == kind) else { return };
        if let Some(ours) = self.files.iter_mut().find(|f| f.0 == kind) {
            *ours = theirs;
        }
    }

    /// The inode number of the mount namespace, which tells it from others.
    #[must_use]
    pub fn mounts(&self) -> u64 {
        self.files.iter().find(|f| f.0 == CloneFlags::CLONE_NEWNS).map_or(0, |f| f.2)
    }

    /// Whether the mount namespaces are the same.
    #[must_use]
    pub fn same_mounts(&self, other: &Namespaces) -> bool {
        self.mounts() == other.mounts()
    }

    /// Whether all are the same.
    #[must_use]
    pub fn same(&self, other: &Namespaces) -> bool {
        self.files.iter().zip(&other.files).all(|(a, b)| a.2 == b.2)
    }
}

/// The user namespace of a process, where it is another than ours.
pub fn other_users(pid: Pid) -> Result<Option<File>> {
    let open = |path: String| {
        let file = File::open(&path).map_err(|e| Error::io("open", &path, &e))?;
        let ino = file.metadata().map_err(|e| Error::io("stat", &path, &e))?.ino();
        Ok((file, ino))
    };
    let (theirs, number) = open(format!("/proc/{pid}/ns/user"))?;
    let (_, ours) = open("/proc/self/ns/user".into())?;
    Ok((number != ours).then_some(theirs))
}

/// setns(2).
pub fn join(namespace: BorrowedFd<'_>, kind: CloneFlags) -> Result<()> {
    setns(namespace, kind).map_err(|source| Error::Kernel { op: "setns", subject: Subject::Here, source })
}

/// Does something in another namespace of one kind, on a thread of its own; the calling thread is not moved, and what sockets are made stay
/// there. Errors: EPERM; EINVAL for kinds that no thread may enter alone.
pub fn aside<T: Send>(
    namespace: BorrowedFd<'_>,
    kind: CloneFlags,
    deed: impl FnOnce() -> T + Send,
) -> nix::Result<T> {
    std::thread::scope(|scope| {
        let helper = scope.spawn(move || setns(namespace, kind).map(|()| deed()));
        helper.join().unwrap_or(Err(Errno::EIO))
    })
}

/// Does something in other namespaces and comes back whatever it gives. Error: going there or back failed; after the latter
/// this process is of no more use.
pub fn within<T>(there: &Namespaces, home: &Namespaces, deed: impl FnOnce() -> T) -> Result<T> {
    if there.same(home) {
        return Ok(deed());
    }
    let entered = there.enter(home);
    let result = entered.map(|()| deed());
    home.enter(there)?;
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn within_the_own_namespaces_nothing_is_switched() {
        let own = Namespaces::own().unwrap();
        assert!(own.same(&Namespaces::own().unwrap()));
        assert_eq!(within(&own, &own, || 5).unwrap(), 5);
    }
}
