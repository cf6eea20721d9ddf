//! `checkpoint NAME [--full] [--stop] [--description T]`

use ckpt_dbus::CheckpointRow;

use crate::bus::none;
use crate::context::Context;
use crate::failure::Failure;
use crate::job::Follower;
use crate::output::{bytes, clean, count, duration, print_json, write_out};
use crate::view;

/// The checkpoint to take.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The group; where there is none of that name, the service NAME.service as a group of one
    name: String,
    /// An image that stands alone, also where an incremental would do
    #[arg(long)]
    full: bool,
    /// End the group at the instant of the checkpoint: nothing runs after it
    #[arg(long)]
    stop: bool,
    /// Free text kept with the checkpoint
    #[arg(long, short, value_name = "TEXT")]
    description: Option<String>,
    /// A free word kept with the checkpoint, once for each
    #[arg(long = "tag", value_name = "WORD")]
    tags: Vec<String>,
}

pub async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let bus = context.bus().await?;
    let mut options = none();
    options.insert("wait", "none".into());
    if args.full {
        options.insert("mode", "full".into());
    }
    if args.stop {
        options.insert("stop", true.into());
    }
    if let Some(description) = &args.description {
        options.insert("description", description.as_str().into());
    }
    if !args.tags.is_empty() {
        options.insert("tags", args.tags.clone().into());
    }
    let follower = Follower::new(&bus).await?;
    let (job, _) = bus.manager.checkpoint(&args.name, &options).await?;
    let done = follower.follow(&job, &format!("checkpoint of {}", args.name)).await?;
    let row: CheckpointRow = done.stats()?;
    if context.json {
        return print_json(&view::Checkpoint::from(row));
    }
    write_out(&text(&row, args.stop))
}

fn text(row: &CheckpointRow, stopped: bool) -> String {
    let mut text = format!(
        "{} of {}: {}, {}, {}, {}",
        row.id,
        clean(&row.group),
        row.kind,
        count(u64::from(row.processes), "process"),
        count(u64::from(row.threads), "thread"),
        bytes(row.image_bytes),
    );
    if !row.snapshots.is_empty() {
        let subvolumes: Vec<_> = row.snapshots.iter().map(|(subvolume, _)| subvolume.as_str()).collect();
        text.push_str(&format!(", with {}", clean(&subvolumes.join(", "))));
    }
    if stopped {
        text.push_str("; the group is stopped\n");
    } else {
        text.push_str(&format!("; frozen for {}\n", duration(row.freeze_usec)));
    }
    text
}
