//! `import FILE|-`: the bus has no method for it yet.

use crate::context::Context;
use crate::failure::Failure;

/// What to import.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where from; - is standard input
    #[arg(value_name = "FILE|-")]
    file: String,
}

pub async fn run(args: Args, _: &Context) -> Result<(), Failure> {
    Err(Failure::reply(
        "org.ckpt.Error.Unsupported",
        &format!("not supported: this version of ckpt cannot import {}; nothing was changed", args.file),
    ))
}
