//! Running a command inside: a client in the machine's namespaces asks its systemd for a transient service.

use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::OwnedFd;
use std::process::Command;

use nix::sched::{CloneFlags, setns};
use nix::unistd::{ForkResult, Pid, fork, getpid};

use crate::MachineArgs;
use crate::boot::die_with_parent;
use crate::cgroup::Cgroup;
use crate::error::{Context, Result};

/// A descriptor for a process.
pub(crate) fn open_pidfd(pid: Pid) -> Result<OwnedFd> {
    ckpt_tests::open_pidfd(pid.as_raw().unsigned_abs()).of("open a pidfd")
}

/// Starts `command` inside the machine whose PID 1 is `systemd`; gives the client's pid. Its exit status is the command's.
pub(crate) fn start(args: &MachineArgs, cgroup: &Cgroup, systemd: Pid, command: &[String]) -> Result<Pid> {
    let parent = getpid();
    // SAFETY: this process has one thread.
    match unsafe { fork() }.of("fork the client")? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let code = client(args, cgroup, systemd, command, parent).unwrap_or_else(|e| {
                eprintln!("machine: {e}");
                125
            });
            // SAFETY: _exit ends the process without running what the driver registered.
            unsafe { libc::_exit(code) }
        }
    }
}

fn client(args: &MachineArgs, cgroup: &Cgroup, systemd: Pid, command: &[String], parent: Pid) -> Result<i32> {
    die_with_parent(parent)?;
    // Above all the lifeline: the guard waits until nobody holds it.
    // SAFETY: nothing that this child still uses owns a descriptor above 2, and it leaves by _exit, so nothing is dropped.
    unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    cgroup.enter("outer")?;
    let directory = std::env::current_dir().of("find the working directory")?;
    enter(systemd)?;
    let status = Command::new("systemd-run")
        .args(["--quiet", "--collect", "--wait", "--service-type=exec", stdio()])
        .arg(format!("--working-directory={}", directory.display()))
        .args(["--setenv=HOME=/root", "--setenv=LANG=C.UTF-8"])
        .args(args.setenv.iter().map(|v| format!("--setenv={v}")))
        .arg("--")
        // systemd expands ${NAME} in a command line, and makes one dollar of two.
        .args(command.iter().map(|word| word.replace('$', "$$")))
        .status()
        .of("run systemd-run inside")?;
    Ok(status.code().unwrap_or(125))
}

fn stdio() -> &'static str {
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    if terminal && std::io::stderr().is_terminal() { "--pty" } else { "--pipe" }
}

/// Moves the calling process into all namespaces of `systemd`; its later children are in the PID namespace.
fn enter(systemd: Pid) -> Result<()> {
    let pidfd: File = open_pidfd(systemd)?.into();
    let all = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWCGROUP;
    // setns(2) with a pidfd: Linux 5.8.
    setns(&pidfd, all).of("enter the machine's namespaces")
}

/// Prints what can be known about a boot that did not end: waiting jobs and the journal.
pub(crate) fn explain(cgroup: &Cgroup, systemd: Pid) {
    let parent = getpid();
    // SAFETY: this process has one thread.
    let Ok(fork) = (unsafe { fork() }) else { return };
    match fork {
        ForkResult::Parent { child } => {
            let _ = nix::sys::wait::waitpid(child, None);
        }
        ForkResult::Child => {
            let _ =
                die_with_parent(parent).and_then(|()| cgroup.enter("outer")).and_then(|()| enter(systemd));
            for words in ["systemctl --no-pager list-jobs", "journalctl --no-pager -q -n 60"] {
                let _ = Command::new("/bin/sh").args(["-c", &format!("timeout 10 {words} >&2")]).status();
            }
            // SAFETY: as in `start`.
            unsafe { libc::_exit(0) }
        }
    }
}
