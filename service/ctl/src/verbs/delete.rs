//! `delete NAME@ID…`

use std::collections::BTreeMap;

use crate::bus::none;
use crate::context::Context;
use crate::failure::Failure;
use crate::job::Follower;
use crate::output::{clean, print_json, write_out};
use crate::reference::Exact;

/// What to delete.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The checkpoints; undo snapshots too
    #[arg(required = true, value_name = "NAME@ID")]
    which: Vec<Exact>,
}

pub async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let bus = context.bus().await?;
    let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for Exact(reference) in args.which {
        groups.entry(reference.group).or_default().push(reference.id);
    }
    let mut deleted = Vec::new();
    for (group, ids) in groups {
        let mut options = none();
        options.insert("wait", "none".into());
        let follower = Follower::new(&bus).await?;
        let words: Vec<_> = ids.iter().map(String::as_str).collect();
        let job = bus.manager.delete(&group, &words, &options).await?;
        follower.follow(&job, &format!("deletion in {group}")).await?;
        deleted.extend(ids.into_iter().map(|id| format!("{group}@{id}")));
    }
    if context.json {
        return print_json(&serde_json::json!({"deleted": deleted}));
    }
    write_out(&deleted.iter().map(|d| format!("Deleted {}\n", clean(d))).collect::<String>())
}
