//! Whether the process ids of an image are free.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;
use std::time::{Duration, Instant};

use ckpt_image::records::{GroupImage, Pid};
use ckpt_sys::proc_file;

use super::Failure;
use super::tree::Plan;

/// How long an ended process may take to be waited for by its parent.
const PATIENCE: Duration = Duration::from_secs(5);

/// What can be told of a restore before anything is stopped: that there is a way to grow the tree. Ids that others have are no
/// obstacle: the members get PID namespaces of their own then.
///
/// Errors: NotRestorable, Unsupported, Corrupt.
pub fn check(image: &GroupImage) -> Result<(), Failure> {
    needed(image).map(drop)
}

/// A process id of the image, or a thread id, that somebody else has now, and who; `leaving`: threads that will be gone by the time of the
/// rebuild.
///
/// Errors: those of [`check`].
pub fn in_use(image: &GroupImage, leaving: &HashSet<i32>) -> Result<Option<(i32, String)>, Failure> {
    let stays = |pid: &&Pid| {
        !leaving.contains(&pid.0) && Path::new(&format!("/proc/{pid}")).exists() && !has_ended(**pid)
    };
    Ok(needed(image)?.iter().find(stays).map(|pid| (pid.0, name(*pid))))
}

/// Waits until ended processes that have ids of the image are waited for. Error: a living process has one.
pub fn wait_until_free(image: &GroupImage) -> Result<(), Failure> {
    let end = Instant::now() + PATIENCE;
    for pid in needed(image)? {
        let place = format!("/proc/{pid}");
        while Path::new(&place).exists() {
            if Instant::now() > end || !has_ended(pid) {
                return Err(taken(pid));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(())
}

/// All ids that must be free: of processes, of threads, of lost leaders.
pub fn needed(image: &GroupImage) -> Result<BTreeSet<Pid>, Failure> {
    let mut ids =
        Plan::of(image, std::iter::empty()).or_else(|_| Plan::of(image, (1 << 22..).map(Pid)))?.ids();
    ids.retain(|pid| pid.0 < 1 << 22);
    ids.extend(
        image.processes.iter().filter_map(|p| p.body.as_ref()).flat_map(|b| &b.threads).map(|t| t.tid),
    );
    Ok(ids)
}

/// Whether a process is a zombie, or its last thread is about to be one.
fn has_ended(pid: Pid) -> bool {
    let stat = proc_file::read_text(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    matches!(state, None | Some('Z' | 'X'))
}

fn taken(pid: Pid) -> Failure {
    Failure::not_restorable(format!("its process id is in use by {}", name(pid))).of_pid(pid.0)
}

fn name(pid: Pid) -> String {
    proc_file::read_text(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_living_process_has_not_ended() {
        assert!(!has_ended(Pid(std::process::id() as i32)));
        assert!(has_ended(Pid(i32::MAX)));
    }
}
