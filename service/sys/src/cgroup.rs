//! Cgroups of version 2: members of a subtree, freezing and thawing (Documentation/admin-guide/cgroup-v2.rst).

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;

use crate::error::{Error, Result, Subject};
use crate::task;
use crate::thread::Deadline;

/// The mount point of the cgroup2 file system in a text of /proc/PID/mountinfo; the shortest, if there are several.
#[must_use]
pub fn parse_mount_point(mountinfo: &str) -> Option<PathBuf> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let place = left.split(' ').nth(4)?;
            (right.split(' ').next() == Some("cgroup2")).then(|| unescape(place))
        })
        .min_by_key(|path| path.as_os_str().len())
}

/// Undoes the octal escapes of mountinfo for the characters that occur in paths of mount points.
fn unescape(text: &str) -> PathBuf {
    let plain = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    PathBuf::from(plain.iter().fold(text.to_owned(), |t, (code, c)| t.replace(code, c)))
}

/// Where the cgroup2 file system is mounted here.
pub fn mount_point() -> Result<PathBuf> {
    const PATH: &str = "/proc/self/mountinfo";
    let text = fs::read_to_string(PATH).map_err(|e| Error::io("read", PATH, &e))?;
    parse_mount_point(&text)
        .ok_or_else(|| Error::Parse { path: PATH.into(), what: "no cgroup2 file system is mounted".into() })
}

/// The cgroup of version 2 in a text of /proc/PID/cgroup: a path that begins with a slash.
#[must_use]
pub fn parse_membership(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

/// The cgroup a process is in, relative to the root of our cgroup namespace; zombies have one too.
pub fn of_process(pid: Pid) -> Result<String> {
    let path = format!("/proc/{pid}/cgroup");
    let text = fs::read_to_string(&path).map_err(|e| Error::io("read", &path, &e))?;
    let name = parse_membership(&text).unwrap_or("/");
    Ok(name.strip_suffix(" (deleted)").unwrap_or(name).to_owned())
}

/// What the limits of one cgroup leave; `None` if it has none.
fn memory_left(dir: &Path) -> Option<u64> {
    let read = |name| fs::read_to_string(dir.join(name)).unwrap_or_default();
    let limit = |name| read(name).trim().parse::<u64>().ok(); // "max", or no such controller: none
    let most = limit("memory.max").into_iter().chain(limit("memory.high")).min()?;
    Some(left(most, read("memory.current").trim().parse().unwrap_or(u64::MAX), &read("memory.stat")))
}

/// What is left of `most` when `current` is taken, of which `stat` (memory.stat) tells the page cache.
fn left(most: u64, current: u64, stat: &str) -> u64 {
    let cache = |line: &str| {
        let (name, bytes) = line.split_once(' ')?;
        matches!(name, "active_file" | "inactive_file").then(|| bytes.parse::<u64>().ok())?
    };
    let cache: u64 = stat.lines().filter_map(cache).sum();
    most.saturating_sub(current.saturating_sub(cache))
}

/// One cgroup with all below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    name: String,
    dir: PathBuf,
}

/// [`Cgroup::kill`] of the cgroup with this directory.
pub fn kill(dir: PathBuf) -> Result<()> {
    Cgroup { name: String::new(), dir }.kill()
}

/// A process and the cgroup it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub pid: Pid,
    /// Its cgroup, relative to the cgroup2 mount, with a leading slash.
    pub cgroup: String,
}

impl Cgroup {
    /// The cgroup of this name: relative to the cgroup2 mount, with or without a leading slash. ENOENT if there is none.
    pub fn open(name: &str) -> Result<Self> {
        Self::below(&mount_point()?, name)
    }

    /// Same, with the mount point known.
    pub fn below(mount: &Path, name: &str) -> Result<Self> {
        let relative = name.trim_matches('/');
        let climbs = relative.split('/').any(|part| part == "..");
        let dir = mount.join(relative);
        if climbs || !dir.is_dir() {
            return Err(Error::path("open cgroup", dir, Errno::ENOENT));
        }
        Ok(Self { name: format!("/{relative}"), dir })
    }

    /// Its name: relative to the cgroup2 mount, with a leading slash.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The cgroups directly below it.
    pub fn children(&self) -> Result<Vec<Self>> {
        let entries = fs::read_dir(&self.dir).map_err(|e| Error::io("list", &self.dir, &e))?;
        let mut children = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| Error::io("list", &self.dir, &e))?;
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                let name = entry.file_name();
                let name = format!("{}/{}", self.name.trim_end_matches('/'), name.to_string_lossy());
                children.push(Self { name, dir: entry.path() });
            }
        }
        Ok(children)
    }

    /// Every process in it and below, without zombies (the kernel does not list them), in no order.
    pub fn members(&self) -> Result<Vec<Member>> {
        let mut members = Vec::new();
        self.collect(&mut members)?;
        Ok(members)
    }

    /// Every thread in it and below, in no order; `None` where they cannot be listed.
    pub fn threads(&self) -> Option<Vec<Pid>> {
        let text = fs::read_to_string(self.dir.join("cgroup.threads")).ok()?;
        let mut threads: Vec<Pid> = parse_procs(&text).collect();
        for child in self.children().ok()? {
            threads.extend(child.threads()?);
        }
        Some(threads)
    }

    /// Takes a process into it, with all its threads.
    pub fn take(&self, pid: Pid) -> Result<()> {
        let path = self.dir.join("cgroup.procs");
        fs::write(&path, pid.to_string()).map_err(|e| Error::io("write", path, &e))
    }

    /// It and those above it that have a limit of memory (memory.max, memory.high), by their directories, with the bytes that they leave. What
    /// of the page cache can be dropped is not counted as taken.
    #[must_use]
    pub fn memory_left(&self) -> Vec<(PathBuf, u64)> {
        let depth = self.name.split('/').filter(|part| !part.is_empty()).count();
        let limited = |dir: &Path| Some((dir.to_path_buf(), memory_left(dir)?));
        self.dir.ancestors().take(depth).filter_map(limited).collect()
    }

    fn collect(&self, members: &mut Vec<Member>) -> Result<()> {
        let path = self.dir.join("cgroup.procs");
        match fs::read_to_string(&path) {
            Ok(text) => {
                members.extend(parse_procs(&text).map(|pid| Member { pid, cgroup: self.name.clone() }))
            }
            // A threaded cgroup: its processes are listed by the cgroup above. A cgroup that went away has none.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOENT | libc::ENODEV)) => {}
            Err(e) => return Err(Error::io("read", path, &e)),
        }
        match self.children() {
            Ok(children) => children.iter().try_for_each(|child| child.collect(members)),
            Err(e) if e.errno() == Some(Errno::ENOENT) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Whether somebody asked for it to be frozen (its own cgroup.freeze).
    pub fn freeze_wanted(&self) -> Result<bool> {
        let path = self.dir.join("cgroup.freeze");
        let text = fs::read_to_string(&path).map_err(|e| Error::io("read", path, &e))?;
        Ok(text.trim() == "1")
    }

    /// Whether all of it stands still (cgroup.events).
    pub fn is_frozen(&self) -> Result<bool> {
        let path = self.dir.join("cgroup.events");
        let text = fs::read_to_string(&path).map_err(|e| Error::io("read", path, &e))?;
        Ok(parse_frozen(&text))
    }

    /// Writes cgroup.freeze, without waiting.
    pub fn set_freeze(&self, freeze: bool) -> Result<()> {
        self.write("cgroup.freeze", if freeze { "1" } else { "0" })
    }

    /// SIGKILL to every process in it and below (cgroup.kill, Linux 5.14). Frozen ones die too.
    ///
    /// The kernel (to 6.18 at least) sends it to the first thread alone, which does nothing to a process whose first thread has ended while
    /// others go on: such a one gets a signal of its own.
    pub fn kill(&self) -> Result<()> {
        self.write("cgroup.kill", "1")?;
        for member in self.members()? {
            if task::status(member.pid).is_ok_and(|status| status.state == 'Z') {
                let _ = nix::sys::signal::kill(member.pid, nix::sys::signal::Signal::SIGKILL);
            }
        }
        Ok(())
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.dir.join(file);
        OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut f| f.write_all(text.as_bytes()))
            .map_err(|e| Error::io("write", path, &e))
    }
}

/// The pids of a cgroup.procs; 0 stands for processes that our PID namespace does not see and is left out.
fn parse_procs(text: &str) -> impl Iterator<Item = Pid> + '_ {
    text.lines().filter_map(|line| line.trim().parse().ok()).filter(|pid| *pid > 0).map(Pid::from_raw)
}

/// The `frozen` of a cgroup.events.
fn parse_frozen(text: &str) -> bool {
    text.lines().any(|line| line == "frozen 1")
}

/// Cgroups that stand still until this is dropped or [`Frozen::thaw`]ed.
#[derive(Debug)]
pub struct Frozen {
    cgroups: Vec<Cgroup>,
}

impl Frozen {
    /// Freezes all of them and waits until everything in them stands still.
    ///
    /// Errors: [`Error::Frozen`] if one is frozen by somebody else; [`Error::Deadline`] if something does not stop in time, all thawed again.
    pub fn freeze(cgroups: &[Cgroup], deadline: Deadline) -> Result<Self> {
        for cgroup in cgroups {
            if cgroup.freeze_wanted()? {
                return Err(Error::Frozen { cgroup: cgroup.name.clone() });
            }
        }
        let mut frozen = Self { cgroups: Vec::with_capacity(cgroups.len()) };
        for cgroup in cgroups {
            // Noted before it is done: a failure in between thaws it too.
            frozen.cgroups.push(cgroup.clone());
            cgroup.set_freeze(true)?;
        }
        for cgroup in cgroups {
            wait_frozen(cgroup, deadline)?;
        }
        Ok(frozen)
    }

    /// What is frozen.
    #[must_use]
    pub fn cgroups(&self) -> &[Cgroup] {
        &self.cgroups
    }

    /// Thaws all of them; tells the first failure after having tried all.
    pub fn thaw(mut self) -> Result<()> {
        self.thaw_all()
    }

    fn thaw_all(&mut self) -> Result<()> {
        let results: Vec<_> = self.cgroups.drain(..).map(|cgroup| thaw(&cgroup)).collect();
        results.into_iter().collect()
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = self.thaw_all();
    }
}

/// Thaws one cgroup; one that is gone needs no thaw.
fn thaw(cgroup: &Cgroup) -> Result<()> {
    match cgroup.set_freeze(false) {
        Err(e) if matches!(e.errno(), Some(Errno::ENOENT | Errno::ENODEV)) => Ok(()),
        other => other,
    }
}

/// Waits for `frozen 1`. The notification can lag 16 ms behind the state, so look again every so often.
fn wait_frozen(cgroup: &Cgroup, deadline: Deadline) -> Result<()> {
    let path = cgroup.dir.join("cgroup.events");
    let mut events = File::open(&path).map_err(|e| Error::io("open", &path, &e))?;
    let mut text = String::new();
    let mut turns = 0;
    loop {
        text.clear();
        events
            .seek(SeekFrom::Start(0))
            .and_then(|_| events.read_to_string(&mut text))
            .map_err(|e| Error::io("read", &path, &e))?;
        if parse_frozen(&text) {
            return Ok(());
        }
        if deadline.passed() {
            return Err(Error::Deadline { op: "freeze", subject: Subject::Path(cgroup.dir.clone()) });
        }
        turns += 1;
        if turns < 50 {
            std::thread::yield_now();
            continue;
        }
        let wait = deadline.left().min(Duration::from_millis(1));
        let timeout = PollTimeout::try_from(wait.as_millis().max(1) as i32).unwrap_or(PollTimeout::ZERO);
        let _ = poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], timeout);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_cache_does_not_count_as_taken() {
        let stat = "anon 700\nfile 250\nactive_file 50\ninactive_file 100\nshmem 100\n";
        assert_eq!((left(1000, 950, stat), left(1000, 950, ""), left(500, 950, stat)), (200, 50, 0));
    }

    #[test]
    fn mount_point_is_found_beside_version_one() {
        let text = "30 24 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                    31 24 0:27 / /sys/fs/cgroup/un\\040ified rw,nosuid shared:9 - cgroup2 cgroup2 rw\n\
                    32 24 0:27 / /sys/fs/cgroup/un\\040ified/below rw - cgroup2 cgroup2 rw\n";
        assert_eq!(parse_mount_point(text), Some(PathBuf::from("/sys/fs/cgroup/un ified")));
        assert_eq!(parse_mount_point("garbage - \n - cgroup2"), None);
    }

    #[test]
    fn lists_and_events_parse() {
        assert_eq!(parse_procs("12\n0\nx\n7\n").map(Pid::as_raw).collect::<Vec<_>>(), [12, 7]);
        assert!(parse_frozen("populated 1\nfrozen 1\n"));
        assert!(!parse_frozen("populated 1\nfrozen 0\n"));
        assert_eq!(parse_membership("4:memory:/x\n0::/a.slice/b.service\n"), Some("/a.slice/b.service"));
    }
}
