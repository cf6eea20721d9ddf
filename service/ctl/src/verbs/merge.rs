//! `merge NAME[@ID]`

use crate::bus::none;
use crate::context::Context;
use crate::failure::Failure;
use crate::job::Follower;
use crate::output::{clean, print_json, write_out};
use crate::reference::Reference;

/// What to merge.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The group, and the last incremental to fold if it is not to be the newest
    #[arg(value_name = "NAME[@ID]")]
    which: Reference,
}

pub async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let bus = context.bus().await?;
    let mut options = none();
    options.insert("wait", "none".into());
    let follower = Follower::new(&bus).await?;
    let job = bus.manager.merge(&args.which.group, &args.which.id, &options).await?;
    follower.follow(&job, &format!("merge of {}", args.which.group)).await?;
    if context.json {
        return print_json(&serde_json::json!({"group": args.which.group, "merged": true}));
    }
    write_out(&format!("Merged the incrementals of {}\n", clean(&args.which.group)))
}
