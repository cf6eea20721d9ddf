//! The keeper: makes the namespaces, starts systemd in them, passes on that it has booted.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, getppid, setsid};

use crate::MachineArgs;
use crate::cgroup::Cgroup;
use crate::disk::Disk;
use crate::error::{Context, Result};
use crate::mounts;

/// The keeper's whole life. It writes lines to `report`: `loop N`, `pid N`, `ready`, or `error TEXT`.
pub(crate) fn keep(args: &MachineArgs, cgroup: &Cgroup, driver: Pid, mut report: File) -> ! {
    let code = match boot(args, cgroup, driver, &mut report) {
        Ok(()) => 0,
        Err(e) => {
            // The driver that would read this may be gone.
            let _ = writeln!(report, "error {e}");
            1
        }
    };
    // SAFETY: _exit ends the process without running what the driver registered.
    unsafe { libc::_exit(code) }
}

fn boot(args: &MachineArgs, cgroup: &Cgroup, driver: Pid, report: &mut File) -> Result<()> {
    die_with_parent(driver)?;
    setsid().of("start a session")?;
    cgroup.enter("outer")?;
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    let disk = Disk::attach(args)?;
    say(report, &format!("loop {}", disk.number()))?;
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWNET,
    )
    .of("make namespaces")?;
    nix::unistd::sethostname("machine").of("set the host name")?;
    mounts::build(args, &disk)?;
    let path = mounts::notify_socket();
    let notify = UnixDatagram::bind(&path).on("bind", path)?;
    if let Some(seconds) = args.clock_offset {
        let offset = seconds * 1_000_000_000;
        let offsets = ckpt_sys::time_namespace::Offsets { monotonic: offset, boottime: offset };
        offsets.unshare().of("make a time namespace")?;
    }
    // Only now: the first child after this is PID 1, and helper programs ran before.
    unshare(CloneFlags::CLONE_NEWPID).of("make a PID namespace")?;
    // SAFETY: this process has one thread.
    let systemd = match unsafe { fork() }.of("fork PID 1")? {
        ForkResult::Child => {
            let e = become_systemd(cgroup).unwrap_err();
            let _ = writeln!(report, "error {e}");
            // SAFETY: as in `keep`.
            unsafe { libc::_exit(1) }
        }
        ForkResult::Parent { child } => child,
    };
    drop(disk);
    say(report, &format!("pid {systemd}"))?;
    attend(&notify, systemd, report)?;
    waitpid(systemd, None).of("wait for PID 1")?;
    Ok(())
}

/// Turns the calling process, first of its PID namespace, into systemd. Returns only with an error.
fn become_systemd(cgroup: &Cgroup) -> Result<std::convert::Infallible> {
    // The parent cannot be checked against a number here: getppid is 0 in the new PID namespace.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).of("set the parent-death signal")?;
    setsid().of("start a session")?;
    cgroup.enter("inner")?;
    unshare(CloneFlags::CLONE_NEWCGROUP).of("make a cgroup namespace")?;
    mounts::finish()?;
    let console =
        || std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").on("open", "/dev/null");
    let error = Command::new("/lib/systemd/systemd")
        .args(["--system", "--unit=basic.target"])
        .env_clear()
        .env("container", "ckpt-machine")
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LANG", "C.UTF-8")
        .env("NOTIFY_SOCKET", mounts::notify_socket())
        .current_dir("/")
        .stdin(console()?)
        .stdout(console()?)
        .stderr(console()?)
        .exec();
    Err(error).of("start systemd")
}

/// Waits for systemd's READY=1, sd_notify(3), then for its end. It goes on telling its status, and would wait for a reader.
fn attend(notify: &UnixDatagram, systemd: Pid, report: &mut File) -> Result<()> {
    let pidfd = crate::enter::open_pidfd(systemd)?;
    let mut message = [0; 4096];
    let mut ready = false;
    loop {
        let mut fds =
            [PollFd::new(notify.as_fd(), PollFlags::POLLIN), PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::NONE).of("wait for systemd")?;
        if fds[1].any() == Some(true) {
            return if ready { Ok(()) } else { say(report, "error systemd ended during the boot") };
        }
        let len = notify.recv(&mut message).of("read systemd's message")?;
        if !ready && message[..len].split(|b| *b == b'\n').any(|line| line == b"READY=1") {
            ready = true;
            say(report, "ready")?;
        }
    }
}

/// Ends the calling process with its parent, also if that is gone already.
pub(crate) fn die_with_parent(parent: Pid) -> Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).of("set the parent-death signal")?;
    if getppid() != parent {
        std::process::exit(1);
    }
    Ok(())
}

fn say(report: &mut File, line: &str) -> Result<()> {
    writeln!(report, "{line}").of("report to the driver")
}
