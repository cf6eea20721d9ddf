//! What the machine sees: the host's files, read-only, with its own /run, /tmp, /dev and btrfs, and overlays where it writes.
//!
//! ```text
//!  /            the host's, read-only              /srv           the btrfs, top level
//!  /usr         stage/usr over the host's          /var/lib/ckpt  .machine/store of the btrfs
//!  /etc /var /root /home   overlays, writable      /run /tmp /var/tmp /dev /dev/shm   tmpfs
//!  the working directory and --bind: the host's, writable
//! ```

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::MachineArgs;
use crate::disk::Disk;
use crate::error::{Context, Error, Result};

/// Everything of the machine's own on its /run.
const BASE: &str = "/run/machine";
/// What survives a boot, on the btrfs.
const STATE: &str = "/srv/.machine";
/// Devices copied from the host where it has them. Not /dev/kmsg: the kernel's log is the host's.
const DEVICES: [&str; 10] = [
    "null",
    "zero",
    "full",
    "random",
    "urandom",
    "tty",
    "btrfs-control",
    "loop-control",
    "fuse",
    "userfaultfd",
];
/// What in /proc/sys belongs to the network, IPC, UTS or PID namespace.
const OWN_SETTINGS: [&str; 12] = [
    "net",
    "fs/mqueue",
    "kernel/hostname",
    "kernel/ns_last_pid",
    "kernel/shmmax",
    "kernel/shmall",
    "kernel/shmmni",
    "kernel/msgmnb",
    "kernel/sem",
    "kernel/shm_next_id",
    "kernel/sem_next_id",
    "kernel/msg_next_id",
];
/// Units that would change the host or wait for hardware.
const MASKED: [&str; 21] = [
    "systemd-sysctl.service",
    "systemd-binfmt.service",
    "systemd-modules-load.service",
    "kmod-static-nodes.service",
    "systemd-random-seed.service",
    "systemd-pstore.service",
    "systemd-firstboot.service",
    "systemd-repart.service",
    "systemd-timesyncd.service",
    "systemd-tmpfiles-clean.timer",
    "systemd-journald-audit.socket",
    "systemd-udevd-kernel.socket",
    "systemd-udevd-control.socket",
    "systemd-udev-trigger.service",
    "proc-sys-fs-binfmt_misc.automount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "modprobe@.service",
    "keyboard-setup.service",
    "console-setup.service",
];

/// Makes the whole view except /proc, /sys and the root's read-only flag, which need the machine's PID 1.
/// The caller is in a mount namespace of its own.
pub(crate) fn build(args: &MachineArgs, disk: &Disk) -> Result<()> {
    mount_at(None, "/", None, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None)?;
    let devices = host_devices(disk);
    let disk_path = disk.path();
    tmpfs("/run", "mode=755")?;
    make_dir(BASE)?;
    let kept = keep(args)?;
    mount_at(Some(&disk_path), "/srv", Some("btrfs"), MsFlags::empty(), None)?;
    state(args)?;
    overlays(args)?;
    make_dir("/var/lib/ckpt")?;
    bind(Path::new(STATE).join("store"), "/var/lib/ckpt")?;
    for dir in ["/tmp", "/var/tmp"] {
        tmpfs(dir, "mode=1777")?;
    }
    device_tree(&devices)?;
    put_back(&kept)?;
    settings()
}

/// The part that belongs to the machine's PID 1: file systems that show its own namespaces, and the read-only root.
pub(crate) fn finish() -> Result<()> {
    let secure = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount_at(None, "/proc", Some("proc"), secure, None)?;
    // The settings there are the host's but for those of the machine's own namespaces.
    bind("/proc/sys", "/proc/sys")?;
    for own in OWN_SETTINGS {
        let place = Path::new("/proc/sys").join(own);
        if place.exists() {
            bind(&place, &place)?;
        }
    }
    // Every boot has an id of its own.
    let id = Path::new(BASE).join("boot_id");
    std::fs::copy("/proc/sys/kernel/random/uuid", &id).on("write", &id)?;
    bind(&id, "/proc/sys/kernel/random/boot_id")?;
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    mount_at(None, "/proc/sys", None, read_only | secure, None)?;
    if Path::new("/proc/sysrq-trigger").exists() {
        bind("/dev/null", "/proc/sysrq-trigger")?;
    }
    // With a writable /sys systemd starts udevd.
    mount_at(None, "/sys", Some("sysfs"), secure | MsFlags::MS_RDONLY, None)?;
    mount_at(None, "/sys/fs/cgroup", Some("cgroup2"), secure, None)?;
    mount_at(None, "/", None, read_only, None)
}

/// Path of the socket on which systemd tells that it has booted.
pub(crate) fn notify_socket() -> PathBuf {
    Path::new(BASE).join("notify")
}

/// A directory of the host that stays writable, and where its mount waits meanwhile.
struct Kept {
    place: PathBuf,
    waiting: PathBuf,
}

/// Holds on to the working directory and the `--bind` directories before /tmp and others are covered.
fn keep(args: &MachineArgs) -> Result<Vec<Kept>> {
    let mut places = args.bind.clone();
    places.push(std::env::current_dir().of("find the working directory")?);
    let mut kept = Vec::new();
    for (i, place) in places.iter().enumerate() {
        let place = place.canonicalize().on("find", place)?;
        let waiting = Path::new(BASE).join("keep").join(i.to_string());
        // The root itself is not worth keeping: as a working directory it is there anyway.
        if place != Path::new("/") {
            make_dir(&waiting)?;
            mount_at(Some(&place), &waiting, None, MsFlags::MS_BIND | MsFlags::MS_REC, None)?;
            kept.push(Kept { place, waiting });
        }
    }
    Ok(kept)
}

fn put_back(kept: &[Kept]) -> Result<()> {
    for k in kept {
        make_dir(&k.place)?;
        mount_at(Some(&k.waiting), &k.place, None, MsFlags::MS_BIND | MsFlags::MS_REC, None)?;
        nix::mount::umount2(&k.waiting, nix::mount::MntFlags::MNT_DETACH).on("unmount", &k.waiting)?;
    }
    Ok(())
}

/// The machine's own subvolume on the btrfs: the store, and with `--disk` what was written to /etc and /var.
fn state(args: &MachineArgs) -> Result<()> {
    if !Path::new(STATE).exists() {
        let out =
            Command::new("btrfs").args(["-q", "subvolume", "create", STATE]).output().of("run btrfs")?;
        if !out.status.success() {
            let text = String::from_utf8_lossy(&out.stderr).trim().to_string();
            return Err(Error::Program { program: "btrfs subvolume create", text });
        }
    }
    make_dir(Path::new(STATE).join("store"))?;
    fs::set_permissions(STATE, std::os::unix::fs::PermissionsExt::from_mode(0o700)).on("protect", STATE)?;
    let upper = Path::new(BASE).join("upper");
    make_dir(&upper)?;
    if args.disk.is_some() {
        let kept = Path::new(STATE).join("upper");
        make_dir(&kept)?;
        bind(&kept, &upper)?;
    }
    Ok(())
}

fn overlays(args: &MachineArgs) -> Result<()> {
    // First: of a stage below an overlay (a clone of the project in /root) maps would show paths that lead nowhere.
    // Without an upper directory on another file system, device numbers in maps and in stat agree.
    let usr = lower_dirs(args, "usr")?;
    if usr.contains(':') {
        overlay("usr", &format!("lowerdir={usr}"))?;
    }
    for name in ["etc", "var", "root", "home"] {
        let upper = Path::new(BASE).join("upper").join(name).join("upper");
        let work = Path::new(BASE).join("upper").join(name).join("work");
        make_dir(&upper)?;
        make_dir(&work)?;
        let mode = fs::metadata(format!("/{name}")).on("stat", name)?.mode();
        fs::set_permissions(&upper, std::os::unix::fs::PermissionsExt::from_mode(mode))
            .on("protect", &upper)?;
        let lower = lower_dirs(args, name)?;
        let options = format!("lowerdir={lower},upperdir={},workdir={}", upper.display(), work.display());
        overlay(name, &options)?;
    }
    Ok(())
}

fn overlay(name: &str, options: &str) -> Result<()> {
    let target = format!("/{name}");
    mount_at(Some(Path::new("overlay")), &target, Some("overlay"), MsFlags::empty(), Some(options))
}

/// The stages' part of `/NAME` and the host's, in overlayfs's order and escaping.
fn lower_dirs(args: &MachineArgs, name: &str) -> Result<String> {
    let mut dirs = Vec::new();
    for stage in &args.stage {
        let dir = stage.canonicalize().on("find", stage)?.join(name);
        if dir.is_dir() {
            dirs.push(dir.to_string_lossy().replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,"));
        }
    }
    dirs.push(format!("/{name}"));
    Ok(dirs.join(":"))
}

/// A device node: name below /dev, kind and permissions, device number.
struct Node {
    name: String,
    mode: u32,
    device: u64,
}

fn host_devices(disk: &Disk) -> Vec<Node> {
    let loop_name = format!("loop{}", disk.number());
    let mut nodes: Vec<Node> = DEVICES
        .iter()
        .filter_map(|name| {
            let meta = fs::metadata(Path::new("/dev").join(name)).ok()?;
            Some(Node { name: (*name).into(), mode: meta.mode(), device: meta.rdev() })
        })
        .collect();
    nodes.push(Node {
        name: loop_name,
        mode: libc::S_IFBLK | 0o600,
        device: makedev(7, disk.number().into()),
    });
    // A console that nobody reads and that is not the host's.
    nodes.push(Node { name: "console".into(), mode: libc::S_IFCHR | 0o600, device: makedev(1, 3) });
    nodes
}

fn device_tree(nodes: &[Node]) -> Result<()> {
    tmpfs("/dev", "mode=755,nosuid,noexec")?;
    for node in nodes {
        let path = Path::new("/dev").join(&node.name);
        let kind = SFlag::from_bits_truncate(node.mode & libc::S_IFMT);
        mknod(&path, kind, Mode::from_bits_truncate(node.mode & 0o777), node.device)
            .on("make device", path)?;
    }
    for (link, target) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        let path = Path::new("/dev").join(link);
        symlink(target, &path).on("link", path)?;
    }
    for dir in ["/dev/pts", "/dev/shm"] {
        make_dir(dir)?;
    }
    let options = Some("newinstance,ptmxmode=0666,mode=620,gid=5");
    mount_at(
        Some(Path::new("devpts")),
        "/dev/pts",
        Some("devpts"),
        MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
        options,
    )?;
    tmpfs("/dev/shm", "mode=1777")
}

/// Settings of the machine's systemd that differ from the host's.
fn settings() -> Result<()> {
    let units = Path::new("/run/systemd/system");
    make_dir(units)?;
    for unit in MASKED {
        let path = units.join(unit);
        symlink("/dev/null", &path).on("mask", path)?;
    }
    for target in ["sysinit", "sockets", "timers", "basic", "local-fs"] {
        let dir = format!("/etc/systemd/system/{target}.target.wants");
        match fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).on("clear", dir),
            _ => {}
        }
    }
    // The shipped one empties /tmp, and what is bound below it.
    make_dir("/run/tmpfiles.d")?;
    write("/run/tmpfiles.d/tmp.conf", "q /tmp 1777 root root -\nq /var/tmp 1777 root root -\n")?;
    write("/etc/fstab", "")?;
    write("/etc/hostname", "machine\n")
}

fn write(path: &str, text: &str) -> Result<()> {
    fs::write(path, text).on("write", path)
}

fn make_dir(path: impl AsRef<Path>) -> Result<()> {
    fs::create_dir_all(path.as_ref()).on("create", path.as_ref())
}

fn tmpfs(target: &str, options: &str) -> Result<()> {
    let (flags, options) = match options.strip_suffix(",nosuid,noexec") {
        Some(rest) => (MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, rest),
        None => (MsFlags::MS_NOSUID | MsFlags::MS_NODEV, options),
    };
    mount_at(Some(Path::new("tmpfs")), target, Some("tmpfs"), flags, Some(options))
}

fn bind(source: impl AsRef<Path>, target: impl AsRef<Path>) -> Result<()> {
    mount_at(Some(source.as_ref()), target, None, MsFlags::MS_BIND, None)
}

fn mount_at(
    source: Option<&Path>,
    target: impl AsRef<Path>,
    kind: Option<&str>,
    flags: MsFlags,
    options: Option<&str>,
) -> Result<()> {
    mount(source.or(kind.map(Path::new)), target.as_ref(), kind, flags, options).on("mount", target.as_ref())
}
