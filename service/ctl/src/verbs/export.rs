//! `export NAME@ID FILE|-`: the bus has no method for it yet.

use crate::context::Context;
use crate::failure::Failure;
use crate::reference::Exact;

/// What to export.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The checkpoint
    #[arg(value_name = "NAME@ID")]
    which: Exact,
    /// Where to; - is standard output
    #[arg(value_name = "FILE|-")]
    file: String,
}

pub async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let bus = context.bus().await?;
    let row = bus.checkpoint(&args.which.0.group, &args.which.0.id).await?;
    Err(Failure::reply(
        "org.ckpt.Error.Unsupported",
        &format!(
            "not supported: this version of ckpt cannot export checkpoint {} of {} to {}; \
             copy /var/lib/ckpt/{}/{} and send its snapshots with btrfs-send(8)",
            row.id, row.group, args.file, row.group, row.id
        ),
    ))
}
