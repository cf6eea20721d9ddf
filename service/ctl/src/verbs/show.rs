//! `show NAME[@ID]`

use ckpt_dbus::CheckpointRow;

use super::status;
use crate::context::Context;
use crate::failure::Failure;
use crate::output::{bytes, clean, duration, local_text, page, print_json, properties};
use crate::reference::Reference;
use crate::view;

/// What to show.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A group, or one of its checkpoints
    #[arg(value_name = "NAME[@ID]")]
    which: Reference,
}

pub async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let bus = context.bus().await?;
    if args.which.id.is_empty() {
        let row = bus.group(&args.which.group).await?;
        if context.json {
            return print_json(&view::Group::from(row));
        }
        return page(context, &status::one(&row));
    }
    let row = bus.checkpoint(&args.which.group, &args.which.id).await?;
    if context.json {
        return print_json(&view::Checkpoint::from(row));
    }
    page(context, &text(&row))
}

fn text(row: &CheckpointRow) -> String {
    let mut text = if row.state == "undo" { undo(row) } else { checkpoint(row) };
    for (unit, pid) in &row.units {
        text.push_str(&format!("{:>13}: {}, Main PID {pid}\n", "Unit", clean(unit)));
    }
    for (subvolume, path) in &row.snapshots {
        text.push_str(&format!("{:>13}: {} in {}\n", "Snapshot", clean(subvolume), clean(path)));
    }
    text
}

/// What a restore put aside has no memory.
fn undo(row: &CheckpointRow) -> String {
    properties(&[
        ("Undo snapshot", row.id.clone()),
        ("Group", row.group.clone()),
        ("Created", local_text(&row.created)),
        ("State", row.state.clone()),
        ("Description", row.description.clone()),
    ])
}

fn checkpoint(row: &CheckpointRow) -> String {
    properties(&[
        ("Checkpoint", row.id.clone()),
        ("Group", row.group.clone()),
        ("Created", local_text(&row.created)),
        ("State", row.state.clone()),
        ("Kind", row.kind.clone()),
        ("Parent", row.parent.clone().unwrap_or_else(|| "none".into())),
        ("Freeze window", duration(row.freeze_usec)),
        ("Processes", format!("{} with {} threads", row.processes, row.threads)),
        ("Pages", row.pages_written.to_string()),
        ("Image", bytes(row.image_bytes)),
        ("Tracker", row.tracker.clone()),
        ("Description", row.description.clone()),
        ("Tags", row.tags.join(" ")),
    ])
}
