//! A PID namespace for a group whose process ids others have by now: in it they are free.
//!
//! ```text
//!  ckpt-restore ──► init: pid 1 there, in the namespaces of the host, in no unit
//!                     waits for `go`, or for our end: then it ends, and all in the namespace with it
//!                     after `go`: reaps what falls to it, and ends when no member is left
//! ```
//! One namespace is for the whole group, so that members of different units go on knowing each other. A unit's main process is a child of
//! the host's PID 1 as ever: systemd has it as its Main PID, signals it and learns its end. All other roots are children of init.
//! /proc is mounted to fit in each unit's mount namespace; a unit that had none of its own gets one, which goes with its last member.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use ckpt_image::records::{GroupImage, Pid as MemberPid, UnitIndex};
use ckpt_sys::clone::{CloneArgs, NEW_PID, clone_paused, close_all_but, fork_with, pidfd};
use nix::errno::Errno;
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::places::Places;
use super::{Failure, fitproc};

/// The PID namespace of a group, held by its init; dropped before [`PidSpace::go`], it ends with all that is in it.
#[derive(Debug)]
pub struct PidSpace {
    init: Pid,
    go: File,
    /// An id that no member has, for processes that help for a moment.
    spare: i32,
    /// Roots that systemd is to have as children.
    mains: BTreeSet<MemberPid>,
}

/// A process made as a child of init, and the helper whose end makes it that.
#[derive(Debug)]
pub struct Adoption {
    /// It waits to be traced.
    pub root: Pid,
    helper: Pid,
}

impl PidSpace {
    /// Makes it; from then on the units' places are in it. Every signal must be blocked.
    pub fn make(
        places: &mut Places,
        image: &GroupImage,
        ids: &BTreeSet<MemberPid>,
        mains: BTreeSet<MemberPid>,
    ) -> Result<Self, Failure> {
        let (init, go) = start(roots(image))?;
        let spare = (2..).find(|id| !ids.contains(&MemberPid(*id))).unwrap_or(2);
        let space = Self { init, go, spare, mains };
        let units = (0..image.units.len()).map(|index| UnitIndex(index as u32));
        for unit in units.clone() {
            places.take(unit, CloneFlags::CLONE_NEWPID, init)?;
        }
        // One for all units that shared the host's.
        let mut shared = None;
        for unit in units {
            if places.has_own_mounts(unit)? {
                continue;
            }
            let holder = match shared {
                Some(holder) => holder,
                None => *shared.insert(space.helper(places, unit, unshare_mounts)?),
            };
            places.take(unit, CloneFlags::CLONE_NEWNS, holder)?;
        }
        if let Some(holder) = shared {
            end(holder)?;
        }
        Ok(space)
    }

    /// The pid of init, here.
    pub fn init(&self) -> Pid {
        self.init
    }

    /// Whether a root is to be made as a child of init.
    pub fn adopts(&self, root: MemberPid) -> bool {
        !self.mains.contains(&root)
    }

    /// Makes a process like [`clone_paused`], in the namespaces of a unit, whose parent is init when [`PidSpace::adopted`] is called.
    pub fn adopt(&self, places: &Places, unit: UnitIndex, args: &CloneArgs) -> Result<Adoption, Failure> {
        let helper = self.helper(places, unit, || {
            let made = clone_paused(args).map(drop);
            made.map_err(|e| e.errno().unwrap_or(Errno::EIO))
        })?;
        let children = std::fs::read_to_string(format!("/proc/{helper}/task/{helper}/children"));
        let root = children.ok().and_then(|text| text.trim().parse().ok()).map(Pid::from_raw);
        match root {
            Some(root) => Ok(Adoption { root, helper }),
            None => Err(Failure::not_restorable("a root that was made cannot be found")),
        }
    }

    /// A helper that does something in a unit's namespaces and then waits for its end.
    fn helper(
        &self,
        places: &Places,
        unit: UnitIndex,
        deed: impl FnOnce() -> Result<(), Errno>,
    ) -> Result<Pid, Failure> {
        let name = &places.get(unit)?.name;
        let fail = |what: &str, e: Errno| Failure::not_restorable(format!("{what}: {e}")).of_unit(name);
        let (reader, writer) = nix::unistd::pipe().map_err(|e| fail("pipe", e))?;
        let args = CloneArgs { exit_signal: libc::SIGCHLD, pid: Some(self.spare), ..Default::default() };
        let (mut reader, writer) = (File::from(reader), File::from(writer));
        let helper = places.within(unit, || {
            fork_with(&args, || {
                let errno = deed().err().map_or(0, |e| e as i32);
                let told = (&writer).write_all(&errno.to_le_bytes());
                while told.is_ok() && errno == 0 {
                    nix::unistd::pause();
                }
                1
            })
        })??;
        drop(writer);
        let mut errno = [0; 4];
        let read = reader.read_exact(&mut errno);
        match (read, i32::from_le_bytes(errno)) {
            (Ok(()), 0) => Ok(helper),
            (read, errno) => {
                end(helper)?;
                let errno = if read.is_ok() { Errno::from_raw(errno) } else { Errno::ECHILD };
                Err(fail("make a process in the PID namespace", errno))
            }
        }
    }

    /// Does something in a process that lives there.
    pub fn inside(
        &self,
        places: &Places,
        unit: UnitIndex,
        deed: impl FnOnce() -> Result<(), Errno>,
    ) -> Result<(), Failure> {
        end(self.helper(places, unit, deed)?)
    }

    /// Mounts /proc to fit in the units' mount namespaces. Our own /proc/self leads nowhere in those after that.
    pub fn fit_proc(&self, places: &Places) -> Result<(), Failure> {
        for unit in places.by_mounts() {
            self.inside(places, unit, fitproc::mount_to_fit)?;
        }
        Ok(())
    }

    /// The members are complete: their namespace lives as long as they do.
    pub fn go(mut self) -> Result<(), Failure> {
        self.go.write_all(b"g").map_err(|e| Failure::not_restorable(format!("let init go: {e}")))
    }
}

impl Adoption {
    /// The root, which is traced by now and not killed any more with its maker, becomes a child of init.
    pub fn adopted(self) -> Result<(), Failure> {
        end(self.helper)
    }
}

/// Ends a helper of ours.
fn end(helper: Pid) -> Result<(), Failure> {
    let _ = kill(helper, Signal::SIGKILL);
    let waited = waitpid(helper, Some(WaitPidFlag::__WALL));
    waited.map(drop).map_err(|e| Failure::not_restorable(format!("wait for a helper: {e}")))
}

/// The processes that are no children of members.
fn roots(image: &GroupImage) -> Vec<i32> {
    let members: BTreeMap<_, _> = image.processes.iter().map(|p| (p.pid, p)).collect();
    let roots = image.processes.iter().filter(|p| p.body.is_some() && !members.contains_key(&p.ppid));
    roots.map(|p| p.pid.0).collect()
}

/// Starts init. Gives its pid here, and what lets it go.
fn start(roots: Vec<i32>) -> Result<(Pid, File), Failure> {
    let fail = |what: &str, e: Errno| Failure::not_restorable(format!("{what}: {e}"));
    let (reader, writer) = nix::unistd::pipe().map_err(|e| fail("pipe", e))?;
    let args = CloneArgs { flags: NEW_PID, exit_signal: libc::SIGCHLD, ..Default::default() };
    let mut ends = Some((reader, writer));
    let init = fork_with(&args, || {
        let Some((reader, writer)) = ends.take() else { return 1 };
        drop(writer);
        match await_go(reader) {
            Ok(true) => serve(&roots),
            Ok(false) => 1,
            Err(e) => e as i32,
        }
    })?;
    match ends.take() {
        Some((_, writer)) => Ok((init, File::from(writer))),
        None => Err(Failure::not_restorable("start init")),
    }
}

/// A copy of the mount namespace: what is mounted on the host later is seen there, not the other way round.
fn unshare_mounts() -> Result<(), Errno> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
}

/// Keeps nothing of the caller's streams, and waits. `false`: the caller ended first.
fn await_go(go: OwnedFd) -> Result<bool, Errno> {
    let errno = |e: std::io::Error| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO));
    let _ = nix::sys::prctl::set_name(c"ckpt-init");
    nix::unistd::chdir("/")?;
    let null = File::options().read(true).write(true).open("/dev/null").map_err(errno)?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    // Above all not the pipe by which our maker's maker learns that it has ended.
    close_all_but(&[go.as_fd()]).map_err(|e| e.errno().unwrap_or(Errno::EIO))?;
    std::mem::forget(null);
    let mut word = Vec::new();
    File::from(go).read_to_end(&mut word).map_err(errno)?;
    Ok(word == b"g")
}

/// Reaps orphans until the roots, and then all that descends from them, have ended.
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
