//! `verify NAME[@ID]`

use crate::bus::none;
use crate::context::Context;
use crate::failure::Failure;
use crate::job::Follower;
use crate::output::{bytes, clean, print_json, write_out};
use crate::reference::Reference;

/// What to read.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The group, and the checkpoint if it is not to be the newest
    #[arg(value_name = "NAME[@ID]")]
    which: Reference,
}

pub async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let bus = context.bus().await?;
    let row = bus.checkpoint(&args.which.group, &args.which.id).await?;
    let mut options = none();
    options.insert("wait", "none".into());
    let follower = Follower::new(&bus).await?;
    let job = bus.manager.verify(&args.which.group, &row.id, &options).await?;
    follower.follow(&job, &format!("verification of {}", row.id)).await?;
    if context.json {
        return print_json(&serde_json::json!({"group": row.group, "id": row.id, "ok": true}));
    }
    write_out(&format!("{} of {} is whole: {} read\n", row.id, clean(&row.group), bytes(row.image_bytes)))
}
