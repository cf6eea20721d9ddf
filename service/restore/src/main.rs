//! `ckpt-restore`: rebuilds the members of a group inside their units.
//!
//! ckptd starts it outside the group's cgroups, with a [`Request`] as JSON on standard input; it answers with a [`Report`] or, with
//! exit status 1, a [`Failure`], as one line of JSON on standard output. Status 2: the request could not be read.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::process::ExitCode;

use ckpt_engine::rebuild::{Failure, Report, Request, run};

fn main() -> ExitCode {
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
    let result = run(&request);
    if answer(&result).is_err() {
        return ExitCode::from(2);
    }
    if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints the answer, one line.
fn answer(result: &Result<Report, Failure>) -> std::io::Result<()> {
    let text = match result {
        Ok(report) => serde_json::to_string(report),
        Err(failure) => serde_json::to_string(failure),
    };
    let mut out = std::io::stdout();
    writeln!(out, "{}", text?)?;
    out.flush()
}
