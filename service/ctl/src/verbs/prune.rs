//! `prune NAME [--dry-run]`

use crate::bus::none;
use crate::context::Context;
use crate::failure::Failure;
use crate::output::{local_text, page, print_json, table};
use crate::view;

/// What to prune.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The group; its [retention] says what is kept
    #[arg(required_unless_present = "all")]
    name: Option<String>,
    /// Every group that is registered
    #[arg(long, conflicts_with = "name")]
    all: bool,
    /// Only say what would be deleted
    #[arg(long)]
    dry_run: bool,
}

pub async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let bus = context.bus().await?;
    let mut options = none();
    if args.dry_run {
        options.insert("dry-run", true.into());
    }
    let names = match args.name {
        Some(name) => vec![name],
        None => {
            let rows = bus.manager.list_groups(&none()).await?;
            rows.into_iter().filter(|r| r.enabled).map(|r| r.name).collect()
        }
    };
    let mut decisions: Vec<view::Decision> = Vec::new();
    for name in names {
        let rows = bus.manager.prune(&name, &options).await?;
        decisions.extend(rows.into_iter().map(|row| view::Decision::of(&name, row)));
    }
    if context.json {
        return print_json(&decisions);
    }
    if decisions.is_empty() {
        return page(context, "No checkpoint.\n");
    }
    let verdict = |d: &view::Decision| match (d.action.as_str(), args.dry_run) {
        ("remove", true) => "would remove".to_string(),
        ("remove", false) => "removed".into(),
        (other, _) => other.into(),
    };
    let line = |d: &view::Decision| {
        vec![
            format!("{}@{}", d.group, d.id),
            local_text(&d.created),
            verdict(d),
            d.rule.clone(),
            d.reason.clone(),
        ]
    };
    page(
        context,
        &table(
            &["CHECKPOINT", "CREATED", "ACTION", "RULE", "REASON"],
            &[],
            decisions.iter().map(line).collect(),
        ),
    )
}
