//! The machine's btrfs: an image without a name, in memory or kept, on a loop device that detaches itself.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::{Mode, SFlag, mknod};

use crate::MachineArgs;
use crate::error::{Context, Error, Result};

const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// Magic of a btrfs super block, 64 bytes into the super block at 64 KiB.
const BTRFS_MAGIC: (&[u8; 8], u64) = (b"_BHRfS_M", 0x10040);

/// `struct loop_config` of linux/loop.h (Linux 5.8): the backing descriptor, block size, `struct loop_info64`, reserved.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info_head: [u64; 5],
    lo_number: u32,
    lo_encrypt_type: u32,
    lo_encrypt_key_size: u32,
    lo_flags: u32,
    names: [u8; 64 + 64 + 32],
    lo_init: [u64; 2],
    reserved: [u64; 8],
}

/// An attached loop device. It detaches when this is dropped and nothing is mounted from it any more.
pub(crate) struct Disk {
    device: File,
    number: u32,
}

impl Disk {
    /// Opens or makes the image, attaches it, and puts a btrfs on it if there is none.
    pub(crate) fn attach(args: &MachineArgs) -> Result<Self> {
        let image = open_image(args)?;
        let mut magic = [0; 8];
        let fresh = image.read_exact_at(&mut magic, BTRFS_MAGIC.1).is_err() || &magic != BTRFS_MAGIC.0;
        let disk = attach(&image)?;
        if fresh {
            disk.format()?;
        }
        Ok(disk)
    }

    /// `/dev/loopN` on the host.
    pub(crate) fn path(&self) -> PathBuf {
        loop_path(self.number)
    }

    /// N of `/dev/loopN`.
    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    fn format(&self) -> Result<()> {
        let out = Command::new("mkfs.btrfs")
            .args(["-q", "-f", "-m", "single", "-d", "single"])
            .arg(self.path())
            .output()
            .of("run mkfs.btrfs (package btrfs-progs)")?;
        if out.status.success() {
            return self.device.sync_all().of("sync the loop device");
        }
        let text = String::from_utf8_lossy(&out.stderr).trim().to_string();
        Err(Error::Program { program: "mkfs.btrfs", text })
    }
}

fn loop_path(number: u32) -> PathBuf {
    format!("/dev/loop{number}").into()
}

fn open_image(args: &MachineArgs) -> Result<File> {
    let size = args.disk_size << 30;
    let image = match &args.disk {
        Some(disk) => {
            let path = if disk.is_dir() { disk.join("machine.img") } else { disk.clone() };
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
            file.on("open", path)?
        }
        None if args.memory_disk => {
            File::from(memfd_create(c"ckpt-machine-disk", MFdFlags::MFD_CLOEXEC).of("create a memory file")?)
        }
        None => nameless_file(Path::new("/var/tmp"))?,
    };
    if image.metadata().of("stat the image")?.len() < size {
        image.set_len(size).of("set the image's size")?;
    }
    Ok(image)
}

/// A file in `dir` without a name. Where the file system cannot make one, it has a name for an instant.
fn nameless_file(dir: &Path) -> Result<File> {
    let open = |flags| OpenOptions::new().read(true).write(true).custom_flags(flags).open(dir);
    match open(libc::O_TMPFILE) {
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            let path = dir.join(format!("ckpt-machine-{}", std::process::id()));
            let file =
                OpenOptions::new().read(true).write(true).create_new(true).open(&path).on("create", &path)?;
            std::fs::remove_file(&path).on("remove", path)?;
            Ok(file)
        }
        other => other.on("create a file in", dir),
    }
}

/// Attaches `image` to a free loop device. Another process may be faster with the free one: then the next is tried.
fn attach(image: &File) -> Result<Disk> {
    let control = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/loop-control")
        .on("open", "/dev/loop-control")?;
    let mut last = std::io::Error::from_raw_os_error(libc::EBUSY);
    for _ in 0..100 {
        // SAFETY: LOOP_CTL_GET_FREE takes no argument and touches no memory of ours; control is open.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        let number =
            u32::try_from(number).map_err(|_| std::io::Error::last_os_error()).of("find a loop device")?;
        let path = loop_path(number);
        if !path.exists() {
            // Only where /dev is not the kernel's own, in a container: losetup(8) does the same.
            let device = nix::sys::stat::makedev(7, number.into());
            mknod(&path, SFlag::S_IFBLK, Mode::from_bits_truncate(0o600), device).on("make device", &path)?;
        }
        let device = OpenOptions::new().read(true).write(true).open(&path).on("open", &path)?;
        match configure(&device, image) {
            Ok(()) => return Ok(Disk { device, number }),
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => last = e,
            Err(e) => return Err(e).on("configure", path),
        }
    }
    Err(last).of("find a free loop device")
}

fn configure(device: &File, image: &File) -> std::io::Result<()> {
    let config = LoopConfig {
        fd: image.as_raw_fd() as u32,
        block_size: 0,
        info_head: [0; 5],
        lo_number: 0,
        lo_encrypt_type: 0,
        lo_encrypt_key_size: 0,
        lo_flags: LO_FLAGS_AUTOCLEAR,
        names: [0; 160],
        lo_init: [0; 2],
        reserved: [0; 8],
    };
    // SAFETY: config has the layout of struct loop_config (a test holds its size), is only read, and outlives the call.
    match unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &config) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Waits until the kernel has detached loop device `number`: a mount of a dead mount namespace ends in the background.
pub(crate) fn wait_detached(number: u32) {
    let backing = format!("/sys/block/loop{number}/loop/backing_file");
    for _ in 0..1000 {
        if !Path::new(&backing).exists() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    eprintln!("machine: /dev/loop{number} is still attached");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loop_configuration_has_the_kernels_size() {
        assert_eq!(std::mem::size_of::<LoopConfig>(), 4 + 4 + 232 + 64);
        assert_eq!(std::mem::offset_of!(LoopConfig, lo_flags), 8 + 52);
    }
}
