//! The service that brings a lazily restored group's memory: `ckpt-restore --keep SOCKET`, a transient unit of systemd's.
//!
//! ```text
//!  ckptd ── starts the unit ──► keeper listens ◄── connects, "the estate is my descriptor N" ── ckpt-restore
//!                                 │ takes it and all that it tells of (pidfd_getfd(2)), has systemd keep all that ──► "r"
//!                                 └ guardian and server ([`super::guard`])
//!  killed, however many of them ► systemd starts it anew, with all that it kept ► guardian and server
//! ```
//! Who connects and says nothing has no memory to bring: the keeper ends.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use ckpt_image::PageFiles;
use ckpt_sys::clone::{pidfd, take_descriptor};
use ckpt_sys::event_log::EventLog;
use ckpt_sys::missing::Missing;
use ckpt_sys::{nursery, passed};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Pid;

use super::estate::Estate;
use super::store::{self, FIRST, Store};
use super::{Absent, Lazily, Mark, guard};
use crate::rebuild::Failure;
use crate::rebuild::host::Blockade;

/// How long a keeper may take to listen.
const PATIENCE: Duration = Duration::from_secs(20);
const AGAIN: Duration = Duration::from_millis(1);
/// 256 MiB of addresses; memory only for events that come.
const EVENTS: usize = 1 << 23;
/// Below `run`, where keepers listen for what they are to keep.
const DIRECTORY: &str = "keepers";

fn failed(what: &str) -> impl Fn(std::io::Error) -> Failure {
    move |e| Failure::not_restorable(format!("{what}: {e}"))
}

/// Brings a group's memory; gives the exit status when all of it is there, or nobody needs it. This process must have one thread only.
pub fn keep(socket: &Path) -> Result<i32, Failure> {
    let limit = nursery::raise_descriptor_limit()?;
    nursery::block_signals()?;
    let passed = passed::take(RawFd::try_from(limit / 2).unwrap_or(RawFd::MAX / 2))?;
    let store = Store::open().map_err(|e| failed("reach systemd")(e.into()))?;
    // All that has a number which others know lies above it.
    let _below = Blockade::below(FIRST)?;
    let (estate, ready) = match store::place(passed)? {
        Some((estate, kept)) => {
            let mut kept: Vec<_> = kept.into_iter().map(Some).collect();
            let mut find = |number: RawFd| {
                let mut found =
                    kept.iter_mut().find(|fd| fd.as_ref().map(AsRawFd::as_raw_fd) == Some(number));
                found.as_mut().and_then(|fd| fd.take())
            };
            let estate = Estate::read(estate, |number| {
                find(number)
                    .ok_or_else(|| Failure::not_restorable(format!("descriptor {number} was not kept")))
            })?;
            // Children's userfaultfds: the event log tells of them.
            for child in kept.into_iter().flatten() {
                let _ = Missing::of_owned(child);
            }
            store.ready();
            (estate, None)
        }
        None => match receive(socket, &store)? {
            Some((estate, from)) => (estate, Some(from)),
            None => return Ok(0),
        },
    };
    crate::rebuild::cpus::allow(&estate.record.cpus);
    let mut helpers = estate.into_helpers(store)?;
    if helpers.server.is_complete() {
        return Ok(0);
    }
    let ready = ready.map(|stream| fs::File::from(OwnedFd::from(stream)));
    Ok(guard::guard(&mut helpers, None, ready))
}

/// Waits for what is to be kept. `None`: nothing is.
fn receive(socket: &Path, store: &Store) -> Result<Option<(Estate, UnixStream)>, Failure> {
    let _ = fs::remove_file(socket);
    let listener = UnixListener::bind(socket).map_err(failed("listen"))?;
    store.ready();
    let (mut stream, _) = listener.accept().map_err(failed("accept"))?;
    let _ = fs::remove_file(socket);
    let mut number = [0; 4];
    if stream.read_exact(&mut number).is_err() {
        return Ok(None);
    }
    let peer = getsockopt(&stream, PeerCredentials).map_err(|e| failed("SO_PEERCRED")(e.into()))?;
    let peer = pidfd(Pid::from_raw(peer.pid()))?;
    let take = |number: RawFd| {
        take_descriptor(peer.as_fd(), number)
            .map_err(|e| failed("take a descriptor of ckpt-restore")(e.into()))
    };
    let mut estate = Estate::read(take(RawFd::from_le_bytes(number))?, take)?;
    drop(peer);
    let log = EventLog::new(EVENTS)?;
    let log = log.as_fd().try_clone_to_owned().map_err(failed("dup"))?;
    estate.add_log(log.into());
    let file = estate.write()?;
    estate.descriptors().for_each(|number| store.put(number));
    store.seal(file.as_raw_fd()).map_err(|e| failed("have systemd keep what is missing")(e.into()))?;
    Ok(Some((estate, stream)))
}

/// Hands over to the keeper what it is to bring; when this returns, it serves.
pub fn hand_over(
    lazily: &Lazily,
    mark: Mark,
    files: PageFiles,
    spaces: Vec<(Missing, Absent)>,
    cpus: Vec<u64>,
) -> Result<(), Failure> {
    let estate = Estate::new(mark, files, spaces, cpus);
    let file = estate.write()?;
    let begin = Instant::now();
    let mut stream = loop {
        match UnixStream::connect(&lazily.keeper) {
            Ok(stream) => break stream,
            Err(_) if begin.elapsed() < PATIENCE => std::thread::sleep(AGAIN),
            Err(e) => return Err(failed("reach what is to bring the memory that is not there yet")(e)),
        }
    };
    let mut sign = [0];
    let told = stream.write_all(&file.as_raw_fd().to_le_bytes()).and_then(|()| stream.read_exact(&mut sign));
    told.map_err(failed("what was to bring the memory that is not there yet did not begin"))
}

/// Where a keeper for a restore that begins now listens; makes the directory.
pub fn socket(run: &Path, group: &str) -> std::io::Result<std::path::PathBuf> {
    let directory = run.join(DIRECTORY);
    fs::create_dir_all(&directory)?;
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_micros();
    // A name of a unix socket has 107 bytes at most, a group's may be longer.
    let short: String = group.chars().take(32).collect();
    Ok(directory.join(format!("{short}-{now}")))
}

/// Tells a keeper that nothing is to be kept, unless it has taken something.
pub fn dismiss(socket: &Path) {
    let _ = UnixStream::connect(socket);
    let _ = fs::remove_file(socket);
}

/// Dismisses all that still wait: those whose restore ended with a former daemon.
pub fn dismiss_all(run: &Path) {
    let sockets = fs::read_dir(run.join(DIRECTORY)).into_iter().flatten().flatten();
    sockets.for_each(|entry| dismiss(&entry.path()));
}
