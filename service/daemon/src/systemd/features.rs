//! What this kernel and host offer.

use std::path::Path;

/// Words of KernelFeatures, found by looking; constant while the kernel runs.
pub fn kernel_features() -> Vec<String> {
    let mut features = Vec::new();
    let mut probe = |name: &str, there: bool| {
        if there {
            features.push(name.to_owned());
        }
    };
    probe("cgroup2", ckpt_engine::host::cgroup_mount().is_ok());
    probe("btrfs", listed("/proc/filesystems", "btrfs"));
    probe("pagemap", Path::new("/proc/self/pagemap").exists());
    probe("userfaultfd", Path::new("/proc/sys/vm/unprivileged_userfaultfd").exists());
    probe("time-namespaces", Path::new("/proc/self/ns/time").exists());
    probe("sock-diag", ckpt_engine::host::tells_of_sockets());
    features
}

/// Whether a file of the kernel holds the word.
fn listed(file: &str, word: &str) -> bool {
    std::fs::read_to_string(file).is_ok_and(|text| text.split_whitespace().any(|w| w == word))
}
