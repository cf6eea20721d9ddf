//! `prune NAME [--dry-run]`

use crate::bus::none;
use crate::context::Context;
use crate::failure::Failure;
use crate::output::{page, print_json, table};
use crate::view;

/// What to prune.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The group; its [retention] says what is kept
    name: String,
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
    let rows = bus.manager.prune(&args.name, &options).await?;
    let decisions: Vec<_> = rows.into_iter().map(view::Decision::from).collect();
    if context.json {
        return print_json(&decisions);
    }
    if decisions.is_empty() {
        return page(context, "No checkpoint.\n");
    }
    let verdict = |d: &view::Decision| match (d.decision.as_str(), args.dry_run) {
        ("delete", true) => "would delete".to_string(),
        ("delete", false) => "deleted".into(),
        (other, _) => other.into(),
    };
    let lines = decisions.iter().map(|d| vec![d.id.clone(), verdict(d), d.reason.clone()]).collect();
    page(context, &table(&["ID", "DECISION", "REASON"], &[], lines))
}
