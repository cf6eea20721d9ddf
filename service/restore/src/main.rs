//! `ckpt-restore`: rebuilds the members of a group inside their units.
//!
//! ckptd starts it outside the group's cgroups and tells it on standard input what to rebuild; it answers on standard output ([`serve`]).
//! Exit status 0: restored, or nothing was requested; 1: failed; 2: what it was asked could not be read.
//!
//! `ckpt-restore --keep SOCKET` brings the memory of members that run already; ckptd has systemd start it as a service of its own.
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::ExitCode;

use ckpt_engine::rebuild::lazy::keeper;
use ckpt_engine::rebuild::serve;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|flag| flag == "--keep") {
        return keep(arguments.next().unwrap_or_default().as_ref());
    }
    match serve(std::io::stdin().lock(), std::io::stdout()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!(
                "ckpt-restore: the request on standard input cannot be read: {e}; ckptd(8) starts this program"
            );
            ExitCode::from(2)
        }
    }
}

fn keep(socket: &Path) -> ExitCode {
    match keeper::keep(socket) {
        Ok(status) => ExitCode::from(u8::try_from(status).unwrap_or(1)),
        Err(failure) => {
            eprintln!("ckpt-restore: memory cannot be brought: {failure}");
            ExitCode::FAILURE
        }
    }
}
