//! ckptctl: takes, lists and restores checkpoints of systemd services, by asking ckptd over the bus (ckptctl(1)).
#![forbid(unsafe_code)]

mod bus;
mod cli;
mod context;
mod failure;
mod job;
mod output;
mod reference;
mod verbs;
mod view;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::cli::Cli;
use crate::context::Context;
use crate::failure::Failure;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Help and version, on stdout; help on stderr where no verb was given.
        Err(e) if !e.use_stderr() || e.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            e.exit()
        }
        Err(e) => {
            let failure = Failure::usage(usage(&e.to_string()));
            failure.print(std::env::args().any(|a| a == "--json"));
            return ExitCode::from(failure.status);
        }
    };
    let json = cli.json;
    let outcome = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(async {
            let context = Context::new(&cli)?;
            verbs::run(cli.verb, &context).await
        }),
        Err(e) => Err(Failure::failed(format!("cannot start: {e}"))),
    };
    match outcome {
        Ok(code) => code,
        Err(failure) => {
            failure.print(json);
            ExitCode::from(failure.status)
        }
    }
}

/// The first paragraph of clap's message as one line.
fn usage(message: &str) -> String {
    let lines = message.lines().map(str::trim).take_while(|l| !l.is_empty());
    let what = lines.collect::<Vec<_>>().join(" ");
    format!("{}; see `ckptctl --help`", what.trim_start_matches("error: "))
}
