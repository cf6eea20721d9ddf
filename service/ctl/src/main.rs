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

use crate::cli::Cli;
use crate::context::Context;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let json = cli.json;
    let outcome = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(async {
            let context = Context::new(&cli)?;
            verbs::run(cli.verb, &context).await
        }),
        Err(e) => Err(failure::Failure::failed(format!("cannot start: {e}"))),
    };
    match outcome {
        Ok(code) => code,
        Err(failure) => {
            failure.print(json);
            ExitCode::from(failure.status)
        }
    }
}
