//! `restore NAME[@ID] [--lazy]`

use ckpt_dbus::{CheckpointRow, RestoreStats};

use crate::bus::none;
use crate::context::Context;
use crate::failure::Failure;
use crate::job::Follower;
use crate::output::{clean, count, duration, print_json, write_out};
use crate::reference::Reference;
use crate::view;

/// What to restore.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The group, and the checkpoint if it is not to be the newest
    #[arg(value_name = "NAME[@ID]")]
    which: Reference,
    /// Let the members run before all of their memory is read
    #[arg(long)]
    lazy: bool,
}

pub async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let bus = context.bus().await?;
    if args.which.id.starts_with("undo-") {
        return Err(undo(&bus.checkpoint(&args.which.group, &args.which.id).await?));
    }
    let mut options = none();
    options.insert("wait", "none".into());
    if args.lazy {
        options.insert("lazy", true.into());
    }
    let follower = Follower::new(&bus).await?;
    let job = bus.manager.restore(&args.which.group, &args.which.id, &options).await?;
    let done = follower.follow(&job, &format!("restore of {}", args.which.group)).await?;
    let stats: RestoreStats = done.stats()?;
    if context.json {
        return print_json(&view::Restore::from(stats));
    }
    let mut text = format!(
        "{} is back at {}: {} in {}, {}\n",
        clean(&stats.group),
        stats.id,
        count(u64::from(stats.processes), "process"),
        count(stats.units.len() as u64, "unit"),
        duration(stats.restore_usec)
    );
    for (unit, pid) in &stats.units {
        text.push_str(&format!("  {}, Main PID {pid}\n", clean(unit)));
    }
    write_out(&text)
}

/// An undo snapshot has no memory that could be restored.
fn undo(row: &CheckpointRow) -> Failure {
    let places: Vec<_> = row.snapshots.iter().map(|(_, path)| path.as_str()).collect();
    Failure::reply(
        "org.ckpt.Error.NotRestorable",
        &format!(
            "{} of group {} is what a restore put aside: files without memory; take what you need from {}",
            row.id,
            row.group,
            places.join(", ")
        ),
    )
}
