//! `status [NAME]`

use ckpt_dbus::GroupRow;
use jiff::Timestamp;

use crate::bus::none;
use crate::context::Context;
use crate::failure::Failure;
use crate::output::{ago, count, duration, local, page, print_json, properties, table};
use crate::view;

/// Which group.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The group; all groups if none is given
    name: Option<String>,
}

pub async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let bus = context.bus().await?;
    let Some(name) = args.name else {
        let rows = bus.manager.list_groups(&none()).await?;
        if context.json {
            return print_json(&rows.into_iter().map(view::Group::from).collect::<Vec<_>>());
        }
        return page(context, &all(&rows));
    };
    let row = bus.group(&name).await?;
    if context.json {
        return print_json(&view::Group::from(row));
    }
    page(context, &one(&row))
}

fn moment(usec: u64) -> Option<Timestamp> {
    i64::try_from(usec).ok().filter(|u| *u != 0).and_then(|u| Timestamp::from_microsecond(u).ok())
}

fn all(rows: &[GroupRow]) -> String {
    if rows.is_empty() {
        return "No group. `ckptctl enable SLICE|UNIT…` makes one.\n".into();
    }
    let now = Timestamp::now();
    let lines = rows.iter().map(|row| {
        let active = row.members.iter().filter(|m| m.active_state == "active").count();
        vec![
            row.name.clone(),
            if row.enabled { row.state.clone() } else { format!("{} (not enabled)", row.state) },
            format!("{active}/{}", row.members.len().max(row.units.len())),
            row.checkpoints.to_string(),
            moment(row.last_checkpoint_usec).map_or("-".into(), |t| ago(t, now)),
            if row.last_checkpoint.is_empty() { "-".into() } else { duration(row.last_freeze_usec) },
            row.subvolumes.join(" "),
        ]
    });
    table(
        &["GROUP", "STATE", "UNITS", "CHECKPOINTS", "LAST", "FROZEN", "SUBVOLUMES"],
        &[2, 3],
        lines.collect(),
    )
}

/// One group with its units.
pub fn one(row: &GroupRow) -> String {
    let members = if row.slice.is_empty() { "list of units".into() } else { row.slice.clone() };
    let last = match moment(row.last_checkpoint_usec) {
        Some(at) => format!(
            "{} at {} ({}), frozen for {}",
            row.last_checkpoint,
            local(at),
            ago(at, Timestamp::now()),
            duration(row.last_freeze_usec)
        ),
        None => "none".into(),
    };
    let subvolumes = if row.subvolumes.is_empty() {
        "none: files are not checkpointed".into()
    } else {
        row.subvolumes.join(" ")
    };
    let mut text = properties(&[
        ("Group", row.name.clone()),
        ("Made of", members),
        ("Registered", if row.enabled { "yes".into() } else { "no".into() }),
        ("State", row.state.clone()),
        ("Subvolumes", subvolumes),
        ("Checkpoints", row.checkpoints.to_string()),
        ("Last", last),
    ]);
    let lines: Vec<Vec<String>> = row
        .members
        .iter()
        .map(|m| {
            let preload = match (m.main_pid, m.preloaded) {
                (0, _) => "-",
                (_, true) => "yes",
                (_, false) => "from its next start",
            };
            vec![m.unit.clone(), m.active_state.clone(), m.main_pid.to_string(), preload.into()]
        })
        .collect();
    text.push('\n');
    match lines.len() {
        0 => text.push_str("No unit runs.\n"),
        _ => text.push_str(&table(&["UNIT", "STATE", "MAIN PID", "PRELOAD"], &[2], lines)),
    }
    let without = row.members.iter().filter(|m| m.main_pid != 0 && !m.preloaded).count() as u64;
    if without > 0 {
        text.push_str(&format!(
            "\n{} without the preload library until the next start; checkpoints work all the same.\n",
            match without {
                1 => "1 unit runs".to_string(),
                n => format!("{} run", count(n, "unit")),
            }
        ));
    }
    text
}
