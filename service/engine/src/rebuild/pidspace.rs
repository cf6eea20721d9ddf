//! A PID namespace for a unit whose process ids others have by now: in it they are free.
//!
//! ```text
//!  init (pid 1 there, in the unit's cgroup and namespaces)
//!    mounts /proc to fit ─► ready ─► waits for `go`, or for our end: then it ends, and all in the namespace with it
//!    after `go`: waits for what falls to it, and ends when no member is left
//! ```
//! The members' roots are children of PID 1 of the host as ever, so that systemd has its Main PID; only orphans made later fall to
//! init. It handles no signal: those of a stop reach the members by themselves.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use ckpt_image::records::{GroupImage, UnitIndex};
use ckpt_sys::clone::{CloneArgs, NEW_PID, close_all_but, fork_with, pidfd};
use ckpt_sys::namespace::Namespaces;
use nix::errno::Errno;
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::Failure;
use super::places::Places;

/// What ProtectKernelTunables= and containers make read-only below /proc.
const TUNABLES: [&str; 5] = ["/proc/sys", "/proc/sysrq-trigger", "/proc/fs", "/proc/irq", "/proc/acpi"];

/// The namespaces of a group, each held by its init; dropped before [`PidSpaces::go`], they end with all that is in them.
#[derive(Debug, Default)]
pub struct PidSpaces {
    inits: Vec<File>,
}

impl PidSpaces {
    /// Makes one for every unit; from then on the units' places are in them. Every signal must be blocked.
    pub fn make(places: &mut Places, image: &GroupImage) -> Result<Self, Failure> {
        let mut spaces = Self::default();
        for index in 0..image.units.len() {
            let unit = UnitIndex(index as u32);
            let (init, go) = start(places, unit, &roots(image, unit))?;
            spaces.inits.push(go);
            places.replace(unit, Namespaces::of(init)?)?;
        }
        Ok(spaces)
    }

    /// The members are complete: their namespaces live as long as they do.
    pub fn go(self) -> Result<(), Failure> {
        for mut init in self.inits {
            init.write_all(b"g").map_err(|e| Failure::not_restorable(format!("let init go: {e}")))?;
        }
        Ok(())
    }
}

/// The processes of a unit that are no children of members.
fn roots(image: &GroupImage, unit: UnitIndex) -> Vec<i32> {
    let outside = |ppid| !image.processes.iter().any(|p| p.pid == ppid);
    let roots = image.processes.iter().filter(|p| p.unit == unit && p.body.is_some() && outside(p.ppid));
    roots.map(|p| p.pid.0).collect()
}

/// Starts an init in the unit's cgroup and namespaces. Gives its pid here, when it is ready, and what lets it go.
fn start(places: &Places, unit: UnitIndex, roots: &[i32]) -> Result<(Pid, File), Failure> {
    let place = places.get(unit)?;
    let fail = |what: &str, e: Errno| Failure::not_restorable(format!("{what}: {e}")).of_unit(&place.name);
    let (go_reader, go_writer) = nix::unistd::pipe().map_err(|e| fail("pipe", e))?;
    let (ready_reader, ready_writer) = nix::unistd::pipe().map_err(|e| fail("pipe", e))?;
    let own_mounts = places.has_own_mounts(unit)?;
    let args = CloneArgs { flags: NEW_PID, exit_signal: libc::SIGCHLD, ..Default::default() };
    let mut pipes = Some((go_reader, go_writer, ready_reader, ready_writer));
    let init = places.within(unit, || {
        fork_with(&args, || {
            let Some((go_reader, go_writer, ready_reader, ready_writer)) = pipes.take() else { return 1 };
            drop((go_writer, ready_reader));
            match prepare(own_mounts).and_then(|()| await_go(go_reader, ready_writer)) {
                Ok(true) => serve(roots),
                Ok(false) => 1,
                Err(e) => e as i32,
            }
        })
    })??;
    let Some((_, go_writer, ready_reader, ready_writer)) = pipes.take() else {
        return Err(Failure::not_restorable("start init"));
    };
    drop(ready_writer);
    let mut ready = [0];
    if File::from(ready_reader).read_exact(&mut ready).is_err() {
        let status = waitpid(init, None);
        return Err(Failure::not_restorable(format!("init of the PID namespace ended: {status:?}"))
            .of_unit(&place.name));
    }
    place.move_in(init, "")?;
    Ok((init, File::from(go_writer)))
}

/// /proc shows this namespace; what was read-only in it stays so.
fn prepare(own_mounts: bool) -> Result<(), Errno> {
    let _ = nix::sys::prctl::set_name(c"ckpt-init");
    if !own_mounts {
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)?;
    }
    let read_only: Vec<&str> = TUNABLES
        .into_iter()
        .filter(|path| statvfs(*path).is_ok_and(|s| s.flags().contains(FsFlags::ST_RDONLY)))
        .collect();
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>)?;
    for path in read_only.into_iter().filter(|path| Path::new(path).exists()) {
        mount(Some(path), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        let again = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, path, None::<&str>, again | flags, None::<&str>)?;
    }
    Ok(())
}

/// Says that it is ready, keeps nothing of the caller's streams, and waits. `false`: the caller ended first.
fn await_go(go: OwnedFd, ready: OwnedFd) -> Result<bool, Errno> {
    let errno = |e: std::io::Error| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO));
    let null = File::options().read(true).write(true).open("/dev/null").map_err(errno)?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    // Above all not the pipe by which our maker's maker learns that it has ended.
    let kept = close_all_but(&[go.as_fd(), ready.as_fd()]);
    kept.map_err(|e| e.errno().unwrap_or(Errno::EIO))?;
    std::mem::forget(null);
    File::from(ready).write_all(b"r").map_err(errno)?;
    let mut word = Vec::new();
    File::from(go).read_to_end(&mut word).map_err(errno)?;
    Ok(word == b"g")
}

/// Waits for orphans until the roots, and then all that descends from them, have ended.
fn serve(roots: &[i32]) -> i32 {
    let mut living: Vec<OwnedFd> = roots.iter().filter_map(|pid| pidfd(Pid::from_raw(*pid)).ok()).collect();
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let Ok(signals) = SignalFd::with_flags(&children, flags) else { return 1 };
    while !living.is_empty() {
        let mut wait: Vec<PollFd<'_>> = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        wait.extend(living.iter().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
        let _ = poll(&mut wait, PollTimeout::NONE);
        let ended: Vec<bool> = wait.iter().skip(1).map(|w| w.any().unwrap_or(false)).collect();
        while signals.read_signal().is_ok_and(|s| s.is_some()) {}
        while waitpid(None, Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL))
            .is_ok_and(|status| status != WaitStatus::StillAlive)
        {}
        let mut ended = ended.into_iter();
        living.retain(|_| !ended.next().unwrap_or(false));
    }
    while waitpid(None, Some(WaitPidFlag::__WALL)) != Err(Errno::ECHILD) {}
    0
}
