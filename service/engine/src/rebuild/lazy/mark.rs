//! The sign, for all who are to take a checkpoint, that memory of a group is still arriving.
//!
//! ```text
//!  /run/ckpt/arriving/GROUP/NAME    "PID START\n"… : whose memory it is; locked (flock(2)) as long as a descriptor of it is open
//! ```
//! Those who bring the memory have it open, and systemd, who keeps it for them. When all memory is there its text is [`COMPLETE`]; it goes
//! when nobody has it locked any more, for until then somebody may have a userfaultfd(2) of the members, which stands against a checkpoint.
//! A file with another text that nobody has locked tells that their service was ended before.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use ckpt_sys::task;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::rebuild::Failure;

/// MESSAGE_ID of the journal's entry when a group is ended because its memory cannot come.
pub const LOST: &str = "6f1d0c9be7a24e5d93c4b8a1f27e5d11";

/// The text of a mark when all memory is there.
const COMPLETE: &str = "complete\n";

/// A directory for each group, below the directory of what is running.
pub fn directory(run: &Path, group: &str) -> PathBuf {
    run.join("arriving").join(group)
}

/// What a lazy restore needs to be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lazily {
    /// The group's name.
    pub group: String,
    /// Where marks of the group are.
    pub marks: PathBuf,
    /// Where the keeper listens ([`super::keeper`]).
    pub keeper: PathBuf,
    /// Fewer bytes than this are put into memory before the group runs.
    pub least: u64,
}

/// Group, path, the file, the units' cgroup directories.
pub type MarkParts = (String, PathBuf, File, Vec<PathBuf>);

/// The sign for one restore.
#[derive(Debug)]
pub struct Mark {
    group: String,
    path: PathBuf,
    file: File,
    /// The cgroup directories of the units.
    cgroups: Vec<PathBuf>,
}

impl Mark {
    /// Sets it; `pids` are those of the processes whose memory arrives. The lock lives as long as a descriptor of it, in whatever process.
    pub fn set(lazily: &Lazily, pids: &[i32], cgroups: Vec<PathBuf>) -> Result<Self, Failure> {
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        let path = lazily.marks.join(format!("{}-{now}", std::process::id()));
        let fail = |e: std::io::Error| Failure::not_restorable(format!("write {}: {e}", path.display()));
        fs::create_dir_all(&lazily.marks).map_err(fail)?;
        let mut file = File::create_new(&path).map_err(fail)?;
        file.lock().map_err(fail)?;
        let text: String =
            pids.iter().filter_map(|pid| Some(format!("{pid} {}\n", start_time(*pid)?))).collect();
        file.write_all(text.as_bytes()).map_err(fail)?;
        Ok(Self { group: lazily.group.clone(), path, file, cgroups })
    }

    /// The same, in another process that has got its parts.
    pub fn of_parts((group, path, file, cgroups): MarkParts) -> Self {
        Self { group, path, file, cgroups }
    }

    /// What it is made of.
    pub fn into_parts(self) -> MarkParts {
        (self.group, self.path, self.file, self.cgroups)
    }

    /// All memory is there: whoever looks when the last of us has ended removes it.
    pub fn complete(&self) -> std::io::Result<()> {
        self.file.set_len(0)?;
        self.file.write_all_at(COMPLETE.as_bytes(), 0)
    }

    /// Nothing arrives any more.
    pub fn remove(&self) {
        let _ = fs::remove_file(&self.path);
    }

    /// Ends the group.
    pub fn kill(&self) {
        for cgroup in &self.cgroups {
            let _ = ckpt_sys::cgroup::kill(cgroup.clone());
        }
    }

    /// Tells the journal why (systemd's native protocol; who would log for us may be gone).
    pub fn tell(&self, why: &str) {
        let why = why.replace('\n', " ");
        let group = &self.group;
        let text = format!(
            "MESSAGE_ID={LOST}\nPRIORITY=3\nSYSLOG_IDENTIFIER=ckptd\nCKPT_GROUP={group}\nMESSAGE=group {group} was ended: memory that was to arrive after its restore cannot be had: {why}\n"
        );
        let _ =
            UnixDatagram::unbound().and_then(|s| s.send_to(text.as_bytes(), "/run/systemd/journal/socket"));
    }
}

/// When a process began; `None` if it is gone.
fn start_time(pid: i32) -> Option<u64> {
    task::start_time(Pid::from_raw(pid)).ok()
}

/// What a mark that was found tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Memory is arriving.
    Arriving,
    /// It is no more, or its processes are.
    Over,
    /// Nobody brings it any more, and the processes run.
    Lost,
}

/// Looks at a mark; removes what is over.
pub fn look(path: &Path) -> Found {
    let Ok(file) = File::open(path) else { return Found::Over };
    if file.try_lock_shared().is_err() {
        return Found::Arriving;
    }
    let Ok(text) = fs::read_to_string(path) else { return Found::Over };
    let runs = |line: &str| -> Option<bool> {
        let (pid, began) = line.split_once(' ')?;
        Some(start_time(pid.parse().ok()?)? == began.parse::<u64>().ok()?)
    };
    if text.lines().any(|line| runs(line) == Some(true)) {
        return Found::Lost;
    }
    let _ = fs::remove_file(path);
    Found::Over
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_says_whether_memory_arrives_or_is_lost() {
        let marks = std::env::temp_dir().join(format!("ckpt-marks-{}", std::process::id()));
        let lazily = Lazily { group: "web".into(), marks: marks.clone(), keeper: PathBuf::new(), least: 0 };
        let ours = std::process::id() as i32;
        let mark = Mark::set(&lazily, &[ours], vec![]).unwrap();
        let path = mark.path.clone();
        assert_eq!(look(&path), Found::Arriving);
        drop(mark);
        assert_eq!(look(&path), Found::Lost);
        fs::write(&path, format!("{ours} 1\n2147483647 5\n")).unwrap();
        assert_eq!(look(&path), Found::Over);
        assert!(!path.exists());
        let mark = Mark::set(&lazily, &[ours], vec![]).unwrap();
        mark.complete().unwrap();
        let path = mark.path.clone();
        assert_eq!(look(&path), Found::Arriving, "until those who brought it have ended");
        drop(mark);
        assert_eq!(look(&path), Found::Over);
        assert!(!path.exists());
        let mark = Mark::set(&lazily, &[ours], vec![]).unwrap();
        mark.remove();
        assert_eq!(look(&mark.path), Found::Over);
        fs::remove_dir_all(&marks).unwrap();
    }
}
