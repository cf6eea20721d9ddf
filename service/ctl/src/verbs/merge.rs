//! `merge NAME[@ID]`

use crate::bus::none;
use crate::context::Context;
use crate::failure::Failure;
use crate::job::Follower;
use crate::output::{clean, print_json, write_out};
use crate::reference::Reference;
use crate::view;

/// What to merge.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The group, and the checkpoint that is to stand alone if it is not the newest
    #[arg(value_name = "NAME[@ID]")]
    which: Reference,
}

pub async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let bus = context.bus().await?;
    let mut options = none();
    options.insert("wait", "none".into());
    let follower = Follower::new(&bus).await?;
    let job = bus.manager.merge(&args.which.group, &args.which.id, &options).await?;
    let done = follower.follow(&job, &format!("merge of {}", args.which.group)).await?;
    let row: view::Checkpoint = done.stats::<ckpt_dbus::CheckpointRow>()?.into();
    if context.json {
        return print_json(&row);
    }
    write_out(&format!("{}@{} stands alone\n", clean(&row.group), clean(&row.id)))
}
