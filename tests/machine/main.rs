//! A throwaway machine: a real systemd with bus, polkit, journal and a btrfs, in namespaces of its own.
//!
//! ```text
//!  machine run -- COMMAND           the driver: boots, runs the command inside, ends the machine
//!    ├── guard                      waits for the driver's end, however it comes, and removes what is left
//!    └── keeper  (cgroup …/outer)   owns the namespaces and the mounts; receives systemd's READY=1
//!          └── systemd (…/inner)    PID 1 of the machine: basic.target, then whatever the bus asks for
//! ```
//!
//! Nothing is left on the host. Disk images are files without a name (or memory), the loop device is detached by the
//! kernel with its last user, every mount lives in a private mount namespace, every process dies with the cgroup.

mod boot;
mod cgroup;
mod disk;
mod driver;
mod enter;
mod error;
mod guard;
mod huge_pages;
mod mounts;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// A systemd machine that leaves nothing behind.
#[derive(Parser)]
#[command(name = "machine", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Boot, run COMMAND inside as a service of its own, end the machine; the exit status is the command's.
    Run {
        #[command(flatten)]
        machine: MachineArgs,
        /// Program and arguments.
        #[arg(trailing_var_arg = true, required = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Boot and give a login shell.
    Shell {
        #[command(flatten)]
        machine: MachineArgs,
    },
    /// Remove what machines that were killed with their guard left behind (done at each start as well).
    Sweep,
}

/// What kind of machine to boot.
#[derive(Args)]
pub(crate) struct MachineArgs {
    /// Keep the btrfs, /etc, /var and the store in DISK (a file, or a directory that gets `machine.img`), for a second boot.
    #[arg(long, value_name = "DISK")]
    disk: Option<PathBuf>,
    /// Keep the btrfs in memory (for benches).
    #[arg(long, conflicts_with = "disk")]
    memory_disk: bool,
    /// Size of a new btrfs in GiB; it takes only the space that is written.
    #[arg(long, default_value_t = 16)]
    disk_size: u64,
    /// A tree made with `make install DESTDIR=…`: its usr and etc are laid over the host's.
    #[arg(long, value_name = "DIR")]
    stage: Vec<PathBuf>,
    /// A directory of the host that is writable inside, at the same place. The rest of the host is read-only.
    #[arg(long, value_name = "DIR")]
    bind: Vec<PathBuf>,
    /// An environment variable for the command: NAME=VALUE, or NAME to pass it on.
    #[arg(long, value_name = "NAME[=VALUE]")]
    setenv: Vec<String>,
    /// Seconds by which its CLOCK_MONOTONIC and CLOCK_BOOTTIME are ahead of the host's, as another boot would have other ones.
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    clock_offset: Option<i64>,
    /// Shut the machine down in order instead of pulling the plug.
    #[arg(long)]
    poweroff: bool,
    /// Seconds that the command may take; past it the machine is ended and the exit status is 124.
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().verb {
        Verb::Run { machine, command } => driver::run(&machine, &command),
        Verb::Shell { machine } => driver::run(&machine, &["/bin/bash".into(), "--login".into()]),
        Verb::Sweep => cgroup::sweep().map(|()| 0),
    };
    match outcome {
        Ok(status) => ExitCode::from(status),
        Err(e) => {
            eprintln!("machine: {e}");
            ExitCode::from(125)
        }
    }
}
