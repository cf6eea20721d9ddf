//! The record of what is frozen now, so that a group is thawed whatever happens to the daemon.
//!
//! ```text
//! /run/ckpt/frozen/GROUP     one cgroup path a line, relative to the cgroup2 mount
//!
//! written ► cgroup.freeze = 1 ► … ► cgroup.freeze = 0 ► removed
//! ```
//!
//! A record that is still there when nobody freezes is a daemon that died in the window: `ckptd --thaw` (ExecStopPost= of
//! ckptd.service) and the start of ckptd write 0 to each cgroup named. Gates open by themselves and ptrace(2) lets its
//! threads go when the tracer ends, so the freezer is the only thing that outlives the daemon; and messages that it was reading, which are
//! given back first (`capture/messages.rs`).

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::api::Event;
use crate::capture::messages;
use crate::error::Error;

/// The record of one group; removed when dropped, after the caller has thawed.
#[derive(Debug)]
pub struct FrozenRecord {
    path: PathBuf,
}

impl FrozenRecord {
    /// Notes that these cgroups are about to be frozen. Nothing is synced: /run does not outlive the machine, nor does a freeze.
    pub fn write(run: &Path, group: &str, cgroups: &[String]) -> Result<Self, Error> {
        let directory = run.join("frozen");
        fs::create_dir_all(&directory)
            .map_err(|e| Error::io(format!("create {}", directory.display()), e))?;
        let path = directory.join(group);
        let mut file =
            fs::File::create(&path).map_err(|e| Error::io(format!("create {}", path.display()), e))?;
        file.write_all(cgroups.join("\n").as_bytes())
            .map_err(|e| Error::io(format!("write {}", path.display()), e))?;
        Ok(Self { path })
    }
}

impl Drop for FrozenRecord {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Thaws every cgroup that a record names and removes the records. Errors only where the records cannot be read; a cgroup
/// that is gone needs no thaw.
pub fn thaw_recorded(run: &Path, cgroup_mount: &Path) -> Result<Vec<Event>, Error> {
    // Before anybody can look into a queue.
    let mut events: Vec<_> = messages::settle(run).into_iter().map(Event::Warning).collect();
    let directory = run.join("frozen");
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(events),
        Err(e) => return Err(Error::io(format!("read {}", directory.display()), e)),
    };
    for entry in entries.flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        for cgroup in text.lines().filter(|l| is_plain_path(l)) {
            let freeze = cgroup_mount.join(cgroup.trim_start_matches('/')).join("cgroup.freeze");
            if fs::write(&freeze, "0").is_ok() {
                events.push(Event::Thawed { cgroup: cgroup.to_owned() });
            }
        }
        let _ = fs::remove_file(entry.path());
    }
    Ok(events)
}

/// A path that names a cgroup below the mount and nothing else.
fn is_plain_path(path: &str) -> bool {
    path.starts_with('/') && path.len() > 1 && path.split('/').all(|part| part != "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_left_behind_is_thawed_and_removed() {
        let base = std::env::temp_dir().join(format!("ckpt-frozen-{}", std::process::id()));
        let (run, mount) = (base.join("run"), base.join("cgroup"));
        fs::create_dir_all(mount.join("a.slice")).unwrap();
        fs::write(mount.join("a.slice/cgroup.freeze"), "1").unwrap();
        std::mem::forget(FrozenRecord::write(&run, "a", &["/a.slice".into(), "/gone.slice".into()]).unwrap());
        let events = thaw_recorded(&run, &mount).unwrap();
        assert_eq!(events, [Event::Thawed { cgroup: "/a.slice".into() }]);
        assert_eq!(fs::read_to_string(mount.join("a.slice/cgroup.freeze")).unwrap(), "0");
        assert_eq!(thaw_recorded(&run, &mount).unwrap(), []);
        fs::remove_dir_all(base).unwrap();
    }

    #[test]
    fn a_record_cannot_lead_out_of_the_cgroup_tree() {
        assert!(is_plain_path("/a.slice/b.service"));
        assert!(!is_plain_path("/../etc"));
        assert!(!is_plain_path("relative"));
        assert!(!is_plain_path("/"));
    }
}
