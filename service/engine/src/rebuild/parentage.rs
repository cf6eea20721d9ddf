//! Who the members' parent is: PID 1, before systemd is told of them.
//!
//! ```text
//!  ckpt-restore ──fork──► rebuilds the group: the members are its children
//!       │                 reply ► pipe, ► end ──► the members are children of PID 1
//!       └ reads, pidfds ► lets it end ► tells systemd ► ends the stubs
//! ```
//! A main process that is not its child is one whose end systemd 252 does not wait for: `systemctl stop` would follow
//! SIGTERM with SIGKILL at once.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};

use ckpt_image::records::GroupImage;
use ckpt_sys::clone::{CloneArgs, fork_with, pidfd};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::driver::{Reply, Report, Request, rebuild, tell_systemd};
use super::grow::TAKEN;
use super::host::Blockade;
use super::{Failure, Places, Prepared, tables};

impl Prepared {
    /// Rebuilds the group; this process must have one thread only. On success the members run, are no children of this process, and
    /// systemd knows them; on failure none lives.
    pub(super) fn run(&self, request: &Request) -> Result<Report, Failure> {
        let image = &self.image;
        let (mut reply, mut mains) = apart(image, || rebuild(self, request))?;
        if matches!(&reply, Reply::Failed(failure) if failure.text.contains(TAKEN)) && !request.own_pids {
            // Somebody took an id while the members were made.
            let own = Request { own_pids: true, ..request.clone() };
            (reply, mains) = apart(image, || rebuild(self, &own))?;
        }
        let report = match reply {
            Reply::Restored(report) => report,
            Reply::Failed(failure) => return Err(failure),
        };
        tell_systemd(&Places::open(image, &request.units)?, &report.units, &mains, &report.endings)?;
        Ok(report)
    }
}

/// Does it in a child, and waits for the child's end. Gives its reply, and pidfds of the main processes, taken as long as nobody else can
/// wait for one that ends at once.
fn apart(
    image: &GroupImage,
    deed: impl FnOnce() -> Result<Report, Failure>,
) -> Result<(Reply, Vec<Option<OwnedFd>>), Failure> {
    let system = |op: &'static str| move |e: Errno| Failure::new("Failed", format!("{op}: {e}"));
    // The rebuild needs the numbers that members use.
    let blockade = Blockade::below(tables::floor(image))?;
    let (reader, writer) = nix::unistd::pipe().map_err(system("pipe"))?;
    drop(blockade);
    let ourselves = nix::unistd::getpid();
    let args = CloneArgs { exit_signal: libc::SIGCHLD, ..Default::default() };
    let (mut reader, writer) = (Some(BufReader::new(File::from(reader))), Some(writer));
    let child = fork_with(&args, || {
        reader = None;
        // Whoever ends us ends the rebuild, and with it, as long as it traces them, the members.
        let _ = set_pdeathsig(Signal::SIGKILL);
        if nix::unistd::getppid() != ourselves {
            return 1;
        }
        let reply = match deed() {
            Ok(report) => Reply::Restored(report),
            Err(failure) => Reply::Failed(failure),
        };
        let Some(writer) = &writer else { return 1 };
        let sent = send(writer, &reply);
        // Until the reader closes its end.
        let _ = poll(&mut [PollFd::new(writer.as_fd(), PollFlags::empty())], PollTimeout::NONE);
        i32::from(sent.is_err())
    })?;
    drop(writer);
    let mut text = Vec::new();
    let read = reader.as_mut().map_or(Ok(0), |reader| reader.read_until(b'\n', &mut text));
    let reply = serde_json::from_slice(&text);
    let mains = reply.as_ref().map(main_processes).unwrap_or_default();
    drop(reader);
    let status = waitpid(child, None).map_err(system("waitpid"))?;
    read.map_err(|e| Failure::new("Failed", format!("read the reply of the rebuild: {e}")))?;
    match reply {
        Ok(reply) => Ok((reply, mains)),
        Err(_) => Err(Failure::new("Failed", format!("the rebuild ended without a reply: {status:?}"))),
    }
}

fn main_processes(reply: &Reply) -> Vec<Option<OwnedFd>> {
    let Reply::Restored(report) = reply else { return Vec::new() };
    report.units.iter().map(|unit| pidfd(Pid::from_raw(unit.main_pid)).ok()).collect()
}

fn send(writer: &OwnedFd, reply: &Reply) -> std::io::Result<()> {
    let line = [serde_json::to_vec(reply)?, vec![b'\n']].concat();
    File::from(writer.try_clone()?).write_all(&line)
}
