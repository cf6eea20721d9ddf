//! What is mounted in the mount namespace of a unit. systemd makes the namespace anew for a restore; what the service has mounted there by
//! itself is not in it, and that is told. proc_pid_mountinfo(5).

use ckpt_image::records::{GroupImage, MountRecord};

use crate::storage::mounts::parse;

/// What is mounted in the mount namespace of a process and not in that of PID 1. Empty where it has none of its own, or is gone.
pub fn capture(pid: i32) -> Vec<MountRecord> {
    let namespace = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    if namespace(pid) == namespace(1) {
        return Vec::new();
    }
    without(of(pid), of(1))
}

/// Says of each unit what was mounted in its namespace and is not in that of its stub; `stubs` in the order of the units.
pub fn missing(image: &GroupImage, stubs: impl Iterator<Item = Option<i32>>) -> Vec<String> {
    let units = image.units.iter().zip(stubs).filter(|(unit, _)| !unit.mounts.is_empty());
    let of_unit = |(unit, stub): (&ckpt_image::records::UnitRecord, Option<i32>)| {
        let gone = without(unit.mounts.clone(), of(stub?));
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
    let text = std::fs::read(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    let mounts = parse(&String::from_utf8_lossy(&text)).into_iter();
    mounts.map(|mount| MountRecord { point: mount.point, fs_type: mount.fs_type }).collect()
}

/// Those of `all` that are not among `others`, each as often as it is more often there.
fn without(mut all: Vec<MountRecord>, others: Vec<MountRecord>) -> Vec<MountRecord> {
    for other in others {
        if let Some(at) = all.iter().position(|mount| *mount == other) {
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
        assert_eq!(without(all, others), [mount("/a", "tmpfs"), mount("/a", "btrfs")]);
    }
}
