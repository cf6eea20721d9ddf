//! What is mounted in the mount namespace of a unit. systemd makes the namespace anew for a restore; what the service has mounted there by
//! itself is not in it, and that is told. proc_pid_mountinfo(5).

use ckpt_image::records::{GroupImage, MountRecord, UnitRecord};

use crate::capture::family::namespaces;
use crate::storage::mounts::{Mount, of_process};

/// The mount namespace of the host, which is that of PID 1.
pub struct Host {
    namespace: u64,
    mounts: Vec<MountRecord>,
}

impl Host {
    /// As it is now.
    pub fn look() -> Self {
        Self { namespace: namespaces(1).mnt, mounts: of(1) }
    }

    /// What is mounted in the mount namespace of a process, whose number this is, and not in the host's. Empty where they are one.
    pub fn capture(&self, pid: i32, namespace: u64) -> Vec<MountRecord> {
        if namespace == self.namespace { Vec::new() } else { without(of(pid), &self.mounts) }
    }
}

/// Says of each unit what was mounted in its namespace and is not in that of its stub; `stubs` in the order of the units.
pub fn missing(image: &GroupImage, stubs: impl Iterator<Item = Option<i32>>) -> Vec<String> {
    let units = image.units.iter().zip(stubs).filter(|(unit, _)| !unit.mounts.is_empty());
    let of_unit = |(unit, stub): (&UnitRecord, Option<i32>)| {
        let gone = without(unit.mounts.clone(), &of(stub?));
        let shown: Vec<_> = gone.iter().map(|m| format!("{} ({})", m.point.display(), m.fs_type)).collect();
        (!gone.is_empty()).then(|| {
            format!(
                "what {} had mounted in its mount namespace by itself is not there: {}",
                unit.name,
                shown.join(", ")
            )
        })
    };
    units.filter_map(of_unit).collect()
}

/// What a process sees mounted.
fn of(pid: i32) -> Vec<MountRecord> {
    let record = |mount: Mount| MountRecord { point: mount.point, fs_type: mount.fs_type };
    of_process(pid).into_iter().map(record).collect()
}

/// Those of `all` that are not among `others`, each as often as it is more often there.
fn without(mut all: Vec<MountRecord>, others: &[MountRecord]) -> Vec<MountRecord> {
    for other in others {
        if let Some(at) = all.iter().position(|mount| mount == other) {
            all.remove(at);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_told_as_often_as_they_are_missing() {
        let mount = |point: &str, fs_type: &str| MountRecord { point: point.into(), fs_type: fs_type.into() };
        let all = vec![mount("/a", "tmpfs"), mount("/a", "tmpfs"), mount("/a", "btrfs"), mount("/b", "proc")];
        let others = vec![mount("/a", "tmpfs"), mount("/b", "proc"), mount("/c", "tmpfs")];
        assert_eq!(without(all, &others), [mount("/a", "tmpfs"), mount("/a", "btrfs")]);
    }
}
