//! `list [NAME]`

use ckpt_dbus::CheckpointRow;

use crate::bus::none;
use crate::context::Context;
use crate::failure::Failure;
use crate::output::{bytes, duration, local_text, page, print_json, table};
use crate::view;

/// Which checkpoints.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The group; all groups if none is given
    name: Option<String>,
}

pub async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let bus = context.bus().await?;
    let (rows, several) = match &args.name {
        Some(name) => (bus.manager.list_checkpoints(name, &none()).await?, false),
        None => {
            let mut rows = Vec::new();
            for group in bus.manager.list_groups(&none()).await? {
                rows.extend(bus.manager.list_checkpoints(&group.name, &none()).await?);
            }
            (rows, true)
        }
    };
    if context.json {
        return print_json(&rows.into_iter().map(view::Checkpoint::from).collect::<Vec<_>>());
    }
    page(context, &text(&rows, several))
}

fn text(rows: &[CheckpointRow], several: bool) -> String {
    if rows.is_empty() {
        return "No checkpoint. `ckptctl checkpoint NAME` takes one.\n".into();
    }
    let lines = rows.iter().map(|row| {
        let mut line = if several { vec![row.group.clone()] } else { vec![] };
        let undo = row.state == "undo";
        let unless_undo = |text: String| if undo { "-".into() } else { text };
        line.extend([
            row.id.clone(),
            local_text(&row.created),
            if undo { "-".into() } else { row.kind.clone() },
            row.state.clone(),
            unless_undo(row.processes.to_string()),
            unless_undo(bytes(row.image_bytes)),
            unless_undo(duration(row.freeze_usec)),
            row.description.clone(),
        ]);
        line
    });
    let header = ["GROUP", "ID", "CREATED", "KIND", "STATE", "PROCESSES", "SIZE", "FROZEN", "DESCRIPTION"];
    if several {
        table(&header, &[5, 6, 7], lines.collect())
    } else {
        table(&header[1..], &[4, 5, 6], lines.collect())
    }
}
