//! The machine's place in the host's cgroup v2 tree.
//!
//! ```text
//!  BASE/ckpt-machine-PID-STARTTIME/        PID: the driver; its start time tells it from a later process of that number
//!       outer/   keeper and clients
//!       inner/   root of the machine's cgroup namespace, given to its systemd
//! ```

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Result};

const PREFIX: &str = "ckpt-machine-";

/// A machine's cgroup directory.
pub(crate) struct Cgroup {
    dir: PathBuf,
}

impl Cgroup {
    /// Makes the directories for the calling process's machine.
    pub(crate) fn create() -> Result<Self> {
        let pid = std::process::id();
        let start = start_time(pid).unwrap_or(0);
        let dir = base()?.join(format!("{PREFIX}{pid}-{start}"));
        for d in [dir.clone(), dir.join("outer"), dir.join("inner")] {
            fs::create_dir(&d).on("create", &d)?;
        }
        Ok(Self { dir })
    }

    /// Moves the calling process into `outer` or `inner`.
    pub(crate) fn enter(&self, part: &str) -> Result<()> {
        let procs = self.dir.join(part).join("cgroup.procs");
        fs::write(&procs, "0").on("write", procs)
    }

    /// Kills everything inside (cgroup.kill, Linux 5.14) and removes the directories. Waits at most a minute.
    pub(crate) fn destroy(&self) -> Result<()> {
        destroy(&self.dir)
    }
}

fn destroy(dir: &Path) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match fs::write(dir.join("cgroup.kill"), "1") {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            other => other.on("kill", dir)?,
        }
        match remove_tree(dir) {
            Ok(()) => return Ok(()),
            Err(e) if Instant::now() > deadline => return Err(e).on("remove", dir),
            // A dying process leaves its cgroup when its last resources are gone, and no event tells that of a whole tree.
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// Removes a cgroup directory and those below it, deepest first. The files in it are the kernel's and go with it.
fn remove_tree(dir: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)?.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Removes the cgroups of machines whose driver is gone.
pub(crate) fn sweep() -> Result<()> {
    let base = base()?;
    for entry in fs::read_dir(&base).on("list", &base)?.flatten() {
        let name = entry.file_name();
        let Some((pid, start)) = name.to_str().and_then(owner) else { continue };
        if start_time(pid) != Some(start) {
            destroy(&entry.path())?;
        }
    }
    Ok(())
}

/// Driver's pid and start time out of a directory's name.
fn owner(name: &str) -> Option<(u32, u64)> {
    let (pid, start) = name.strip_prefix(PREFIX)?.split_once('-')?;
    Some((pid.parse().ok()?, start.parse().ok()?))
}

/// Start time of a process in clock ticks since boot: field 22 of /proc/PID/stat, proc_pid_stat(5).
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Where machines' cgroups are made: the caller's own cgroup in the v2 hierarchy.
fn base() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").on("read", "/proc/self/mountinfo")?;
    let mount = cgroup2_mount(&mounts).ok_or_else(|| Error::Missing {
        what: "a mounted cgroup2 file system".into(),
        remedy: "mount one: mount -t cgroup2 none /sys/fs/cgroup/unified",
    })?;
    let own = fs::read_to_string("/proc/self/cgroup").on("read", "/proc/self/cgroup")?;
    let own = own.lines().find_map(|l| l.strip_prefix("0::/")).unwrap_or("");
    Ok(mount.join(own))
}

/// Mount point of the cgroup v2 hierarchy in a mountinfo text, proc_pid_mountinfo(5). Of several the last: it may cover others.
fn cgroup2_mount(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().rev().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        (right.split(' ').next()? == "cgroup2").then(|| left.split(' ').nth(4).map(PathBuf::from))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_directory_tells_its_driver() {
        assert_eq!(owner("ckpt-machine-12-345"), Some((12, 345)));
        assert_eq!(owner("ckpt-machine-12"), None);
        assert_eq!(owner("system.slice"), None);
    }

    #[test]
    fn the_v2_hierarchy_is_found_among_others() {
        let text = "25 1 0:22 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                    26 1 0:23 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        assert_eq!(cgroup2_mount(text), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(cgroup2_mount("25 1 0:22 / / rw - ext4 /dev/vda rw\n"), None);
    }

    #[test]
    fn the_start_time_of_a_living_process_is_known() {
        assert!(start_time(std::process::id()).is_some_and(|t| t > 0));
    }
}
