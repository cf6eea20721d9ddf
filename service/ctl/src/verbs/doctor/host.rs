//! What can be seen of the host without the bus.

use std::fs;
use std::path::{Path, PathBuf};

use super::Finding;

pub(super) fn findings() -> Vec<Finding> {
    let mut findings = vec![kernel()];
    findings.extend(ptrace_scope());
    findings.extend(cgroups());
    findings.push(btrfs());
    findings.push(programs());
    findings.push(store());
    findings
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_string()
}

/// Features are probed by the daemon; here only what is needed at all.
fn kernel() -> Finding {
    let release = read("/proc/sys/kernel/osrelease");
    if std::env::consts::ARCH != "x86_64" {
        return Finding::error(
            "kernel",
            format!("{release} on {}", std::env::consts::ARCH),
            "ckpt needs x86_64",
        );
    }
    match version(&release) {
        // PAGEMAP_SCAN tells which pages are a process's own. The other calls that nothing works without are older: clone3(2) with
        // set_tid and CLONE_INTO_CGROUP, pidfd_getfd(2), close_range(2), cgroup.kill were there by 5.14.
        Some(v) if v >= (6, 7) => Finding::ok("kernel", release),
        _ => Finding::error(
            "kernel",
            release,
            "6.7 or newer is needed (on Debian 12: linux-image-amd64 of bookworm-backports)",
        ),
    }
}

/// Major and minor number of a release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn ptrace_scope() -> Option<Finding> {
    let scope = read("/proc/sys/kernel/yama/ptrace_scope");
    (scope == "3").then(|| {
        Finding::error(
            "ptrace",
            "kernel.yama.ptrace_scope is 3: nobody may trace a process",
            "set it to 2 or less in sysctl.d(5) and reboot",
        )
    })
}

/// The cgroup2 mount, and what stands frozen in it.
fn cgroups() -> Vec<Finding> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let Some(root) = cgroup2_mount(&mounts) else {
        return vec![Finding::error("cgroups", "no cgroup2 file system is mounted", "boot with cgroups v2")];
    };
    let frozen = frozen(&root);
    if frozen.is_empty() {
        return vec![Finding::ok("cgroups", format!("cgroup2 at {}, nothing is frozen", root.display()))];
    }
    let line = |path: PathBuf| {
        let unit = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let remedy = format!("if no checkpoint is under way: systemctl thaw {unit}");
        Finding::warning("cgroups", format!("{} is frozen", path.display()), remedy)
    };
    frozen.into_iter().map(line).collect()
}

fn cgroup2_mount(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        after.starts_with("cgroup2 ").then(|| before.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// Cgroups that somebody froze, not those frozen by an ancestor.
fn frozen(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut rest = vec![root.to_path_buf()];
    while let Some(directory) = rest.pop() {
        if fs::read_to_string(directory.join("cgroup.freeze")).is_ok_and(|f| f.trim() == "1") {
            found.push(directory);
            continue;
        }
        let children = fs::read_dir(&directory).into_iter().flatten().flatten();
        rest.extend(children.filter(|c| c.file_type().is_ok_and(|t| t.is_dir())).map(|c| c.path()));
    }
    found.sort();
    found
}

fn btrfs() -> Finding {
    let known = read("/proc/filesystems").lines().any(|l| l.trim() == "btrfs");
    if known {
        Finding::ok("btrfs", "the kernel has it")
    } else {
        Finding::warning(
            "btrfs",
            "not loaded, so no subvolume can be paired now",
            "modprobe btrfs; without it only memory is checkpointed",
        )
    }
}

fn programs() -> Finding {
    let directory = Path::new("/usr/lib/ckpt");
    let missing: Vec<_> = ["ckptd", "ckpt-restore", "ckpt-stub", "libckpt_preload.so"]
        .into_iter()
        .filter(|p| !directory.join(p).exists())
        .collect();
    if missing.is_empty() {
        Finding::ok("programs", directory.display().to_string())
    } else {
        Finding::error(
            "programs",
            format!("{} not in {}", missing.join(", "), directory.display()),
            "install ckpt again (`make install`)",
        )
    }
}

/// The default store; another place is a setting that only the daemon knows.
fn store() -> Finding {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let path = "/var/lib/ckpt";
    match fs::metadata(path) {
        Ok(meta) if meta.uid() != 0 || meta.permissions().mode() & 0o077 != 0 => Finding::error(
            "store",
            format!("{path} can be read by others than root, and images hold secrets"),
            format!("chown root:root {path}; chmod 700 {path}"),
        ),
        Ok(_) => Finding::ok("store", path),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Finding::warning(
            "store",
            format!("{path} is not there yet"),
            "ckptd makes it; see `store` in ckptd(8)",
        ),
        Err(e) => Finding::warning("store", format!("{path}: {e}"), "run doctor as root"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_have_a_version() {
        assert_eq!(version("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(version("5.14-rc1"), Some((5, 14)));
        assert_eq!(version("x"), None);
    }

    #[test]
    fn the_cgroup2_mount_is_found() {
        let text = "1 2 0:3 / / rw - ext4 /dev/vda rw\n30 1 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n";
        assert_eq!(cgroup2_mount(text), Some(PathBuf::from("/sys/fs/cgroup")));
        assert_eq!(cgroup2_mount(""), None);
    }

    #[test]
    fn what_was_frozen_is_found_once() {
        let root = std::env::temp_dir().join(format!("ckpt-doctor-{}", std::process::id()));
        for (path, freeze) in [("a.slice", "1\n"), ("a.slice/b.service", "0\n"), ("c.service", "0\n")] {
            fs::create_dir_all(root.join(path)).unwrap();
            fs::write(root.join(path).join("cgroup.freeze"), freeze).unwrap();
        }
        assert_eq!(frozen(&root), [root.join("a.slice")]);
        fs::remove_dir_all(root).unwrap();
    }
}
