//! `ckpt-restore`: rebuilds the members of a group inside their units.
//!
//! ckptd starts it outside the group's cgroups, with a [`Request`] as JSON on standard input; it answers with a [`Reply`], one line
//! of JSON on standard output. Exit status 0: restored; 1: failed; 2: the request could not be read.
//!
//! `ckpt-restore --keep SOCKET` brings the memory of members that run already; ckptd has systemd start it as a service of its own.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::path::Path;
use std::process::ExitCode;

use ckpt_engine::rebuild::lazy::keeper;
use ckpt_engine::rebuild::{Reply, Request, run};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|flag| flag == "--keep") {
        return keep(arguments.next().unwrap_or_default().as_ref());
    }
    let mut text = String::new();
    let request: Request = match std::io::stdin()
        .read_to_string(&mut text)
        .map_err(|e| e.to_string())
        .and_then(|_| serde_json::from_str(&text).map_err(|e| e.to_string()))
    {
        Ok(request) => request,
        Err(e) => {
            eprintln!(
                "ckpt-restore: the request on standard input cannot be read: {e}; ckptd(8) starts this program"
            );
            return ExitCode::from(2);
        }
    };
    let (reply, status) = match run(&request) {
        Ok(report) => (Reply::Restored(report), ExitCode::SUCCESS),
        Err(failure) => (Reply::Failed(failure), ExitCode::FAILURE),
    };
    if answer(&reply).is_err() { ExitCode::from(2) } else { status }
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

/// Prints the answer, one line.
fn answer(reply: &Reply) -> std::io::Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{}", serde_json::to_string(reply)?)?;
    out.flush()
}
