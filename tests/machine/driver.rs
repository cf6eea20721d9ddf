//! The driver: boots a machine, runs one command in it, ends it, on every path.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getpid, getuid, pipe2};

use crate::cgroup::{self, Cgroup};
use crate::error::{Context, Error, Result};
use crate::guard::Guard;
use crate::{MachineArgs, boot, enter};

const BOOT_LIMIT: Duration = Duration::from_secs(60);
const POWEROFF_LIMIT: Duration = Duration::from_secs(30);

/// A booted machine.
struct Machine {
    keeper: Pid,
    systemd: Pid,
    signals: SignalFd,
}

/// How waiting for a child ended.
enum End {
    Exited(u8),
    Signal(u8),
    TimeLimit,
    Died,
}

/// Boots, runs `command`, ends. Gives the command's exit status; 124 past the time limit, 128 + N after signal N.
pub(crate) fn run(args: &MachineArgs, command: &[String]) -> Result<u8> {
    needs_root()?;
    own_scope()?;
    cgroup::sweep()?;
    let cgroup = Cgroup::create()?;
    let signals = block_signals()?;
    let guard = Guard::start(&cgroup)?;
    let (outcome, guard) = run_guarded(args, command, &cgroup, signals, guard);
    guard.finish();
    outcome
}

fn run_guarded(
    args: &MachineArgs,
    command: &[String],
    cgroup: &Cgroup,
    signals: SignalFd,
    mut guard: Guard,
) -> (Result<u8>, Guard) {
    let outcome = boot_machine(args, cgroup, signals, &mut guard).and_then(|machine| {
        let client = enter::start(args, cgroup, machine.systemd, command)?;
        let end = machine.wait(client, args.timeout.map(Duration::from_secs))?;
        if args.poweroff && matches!(end, End::Exited(_)) {
            machine.power_off()?;
        }
        Ok(end)
    });
    let status = outcome.map(|end| match end {
        End::Exited(code) => code,
        End::Signal(n) => 128 + n,
        End::TimeLimit => {
            eprintln!("machine: the command took longer than {} s", args.timeout.unwrap_or(0));
            124
        }
        End::Died => {
            eprintln!("machine: the machine ended before the command");
            125
        }
    });
    (status, guard)
}

fn needs_root() -> Result<()> {
    if getuid().is_root() {
        return Ok(());
    }
    Err(Error::Missing {
        what: "root".into(),
        remedy: "namespaces, mounts and loop devices need it: run as root",
    })
}

/// Where systemd runs the host, the cgroup must be one that systemd delegates: runs this program again in such a scope.
fn own_scope() -> Result<()> {
    const MARK: &str = "CKPT_MACHINE_SCOPE";
    if !Path::new("/run/systemd/system").exists() || std::env::var_os(MARK).is_some() {
        return Ok(());
    }
    let exe = std::env::current_exe().of("find this program")?;
    let error = Command::new("systemd-run")
        .args(["--scope", "--quiet", "--collect", "--property=Delegate=yes", "--"])
        .arg(exe)
        .args(std::env::args_os().skip(1))
        .env(MARK, "1")
        .exec();
    Err(error).of("run systemd-run")
}

fn block_signals() -> Result<SignalFd> {
    let mut set = SigSet::empty();
    for s in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGCHLD] {
        set.add(s);
    }
    set.thread_block().of("block signals")?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).of("make a signalfd")
}

fn boot_machine(
    args: &MachineArgs,
    cgroup: &Cgroup,
    signals: SignalFd,
    guard: &mut Guard,
) -> Result<Machine> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC).of("make a pipe")?;
    let driver = getpid();
    // SAFETY: this process has one thread.
    let keeper = match unsafe { fork() }.of("fork the keeper")? {
        ForkResult::Child => {
            guard.forget_in_child();
            drop(read);
            boot::keep(args, cgroup, driver, write.into())
        }
        ForkResult::Parent { child } => child,
    };
    drop(write);
    let mut machine = Machine { keeper, systemd: Pid::from_raw(0), signals };
    machine.wait_booted(read.into(), cgroup, guard)?;
    Ok(machine)
}

impl Machine {
    /// Follows the keeper's report until the machine is up.
    fn wait_booted(&mut self, report: File, cgroup: &Cgroup, guard: &Guard) -> Result<()> {
        let deadline = Instant::now() + BOOT_LIMIT;
        let mut report = BufReader::new(report);
        loop {
            if report.buffer().is_empty() && !readable(report.get_ref(), &self.signals, deadline)? {
                if self.systemd.as_raw() != 0 {
                    enter::explain(cgroup, self.systemd);
                }
                return Err(Error::Boot(format!("not up after {} s", BOOT_LIMIT.as_secs())));
            }
            let mut line = String::new();
            report.read_line(&mut line).of("read the keeper's report")?;
            match line.trim_end().split_once(' ').unwrap_or((line.trim_end(), "")) {
                ("loop", n) => guard.expect_loop(n.parse().unwrap_or(0)),
                ("pid", n) => self.systemd = Pid::from_raw(n.parse().unwrap_or(0)),
                ("ready", _) => return Ok(()),
                ("error", text) => return Err(Error::Boot(text.into())),
                _ => return Err(Error::Boot("the keeper ended".into())),
            }
        }
    }

    /// Waits for `child`, a signal to end, the machine's death, or the time limit.
    fn wait(&self, child: Pid, limit: Option<Duration>) -> Result<End> {
        let deadline = limit.map(|l| Instant::now() + l);
        loop {
            if let Some(code) = reap(child)? {
                return Ok(End::Exited(code));
            }
            if reap(self.keeper)?.is_some() {
                return Ok(End::Died);
            }
            let mut fds = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            if poll(&mut fds, remaining(deadline)).of("wait for the command")? == 0 {
                return Ok(End::TimeLimit);
            }
            while let Some(info) = self.signals.read_signal().of("read a signal")? {
                if info.ssi_signo != Signal::SIGCHLD as u32 {
                    return Ok(End::Signal(info.ssi_signo as u8));
                }
            }
        }
    }

    /// Asks systemd to shut down, SIGRTMIN+4 of systemd(1), and waits for it.
    fn power_off(&self) -> Result<()> {
        // SAFETY: kill takes two integers; systemd is our grandchild and its keeper has not reaped it yet.
        unsafe { libc::kill(self.systemd.as_raw(), libc::SIGRTMIN() + 4) };
        match self.wait(self.keeper, Some(POWEROFF_LIMIT))? {
            End::TimeLimit => eprintln!("machine: no orderly shutdown within {} s", POWEROFF_LIMIT.as_secs()),
            End::Signal(_) => {
                let _ = kill(self.systemd, Signal::SIGKILL);
            }
            End::Exited(_) | End::Died => {}
        }
        Ok(())
    }
}

/// Waits until `report` is readable. False: the deadline passed, or a signal told to end.
fn readable(report: &File, signals: &SignalFd, deadline: Instant) -> Result<bool> {
    loop {
        let mut fds =
            [PollFd::new(report.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, remaining(Some(deadline))).of("wait for the boot")? == 0 {
            return Ok(false);
        }
        if fds[0].any() == Some(true) {
            return Ok(true);
        }
        while let Some(info) = signals.read_signal().of("read a signal")? {
            if info.ssi_signo != Signal::SIGCHLD as u32 {
                return Err(Error::Boot(format!("interrupted by signal {}", info.ssi_signo)));
            }
        }
    }
}

fn remaining(deadline: Option<Instant>) -> PollTimeout {
    let Some(deadline) = deadline else { return PollTimeout::NONE };
    let left = deadline.saturating_duration_since(Instant::now()).as_millis();
    PollTimeout::try_from(i32::try_from(left).unwrap_or(i32::MAX)).unwrap_or(PollTimeout::MAX)
}

/// Exit status of a child that has ended.
fn reap(child: Pid) -> Result<Option<u8>> {
    Ok(match waitpid(child, Some(WaitPidFlag::WNOHANG)).of("wait for a child")? {
        WaitStatus::Exited(_, code) => Some(code as u8),
        WaitStatus::Signaled(_, signal, _) => Some(128 + signal as u8),
        _ => None,
    })
}
