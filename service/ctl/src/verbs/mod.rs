//! The verbs, one a file: arguments and what they do.

pub mod cancel;
pub mod check;
pub mod checkpoint;
pub mod completions;
pub mod delete;
pub mod disable;
pub mod doctor;
pub mod enable;
pub mod export;
pub mod import;
pub mod jobs;
pub mod list;
pub mod merge;
pub mod monitor;
pub mod prune;
pub mod restore;
pub mod show;
pub mod status;
pub mod verify;

use std::process::ExitCode;

use crate::cli::Verb;
use crate::context::Context;
use crate::failure::Failure;

/// Does what the command line asks for.
pub async fn run(verb: Verb, context: &Context) -> Result<ExitCode, Failure> {
    match verb {
        Verb::Enable(args) => enable::run(args, context).await,
        Verb::Disable(args) => disable::run(args, context).await,
        Verb::Status(args) => status::run(args, context).await,
        Verb::List(args) => list::run(args, context).await,
        Verb::Show(args) => show::run(args, context).await,
        Verb::Checkpoint(args) => checkpoint::run(args, context).await,
        Verb::Restore(args) => restore::run(args, context).await,
        Verb::Check(args) => return check::run(args, context).await,
        Verb::Doctor(args) => return doctor::run(args, context).await,
        Verb::Merge(args) => merge::run(args, context).await,
        Verb::Verify(args) => verify::run(args, context).await,
        Verb::Delete(args) => delete::run(args, context).await,
        Verb::Prune(args) => prune::run(args, context).await,
        Verb::Export(args) => export::run(args, context).await,
        Verb::Import(args) => import::run(args, context).await,
        Verb::Jobs(args) => jobs::run(args, context).await,
        Verb::Cancel(args) => cancel::run(args, context).await,
        Verb::Monitor(args) => monitor::run(args, context).await,
        Verb::Completions(args) => completions::run(args),
    }
    .map(|()| ExitCode::SUCCESS)
}
