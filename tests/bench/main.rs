//! What it costs: an intercepted pwrite, a checkpoint, a restore. Runs inside the throwaway machine (`make bench`).

mod checkpoints;
mod memory;
mod pwrite;

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        [pwrite::CHILD] => pwrite::child(),
        [checkpoints::CHILD, mib] => checkpoints::child(mib.parse().expect("a number")),
        [memory::SMALL] => memory::child(false),
        [memory::HUGE] => memory::child(true),
        ["memory"] => memory::bench(), // touches nothing of systemd
        _ if !std::path::Path::new("/run/machine").exists() => {
            eprintln!("bench: this is for the throwaway machine: make bench");
            return ExitCode::FAILURE;
        }
        _ => {
            pwrite::bench();
            memory::bench();
            checkpoints::bench();
        }
    }
    ExitCode::SUCCESS
}
