//! `disable NAME`

use crate::bus::none;
use crate::context::Context;
use crate::failure::Failure;
use crate::output::{clean, print_json, write_out};

/// The group to forget.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The group
    name: String,
}

pub async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let bus = context.bus().await?;
    bus.manager.disable(&args.name, &none()).await?;
    if context.json {
        return print_json(&serde_json::json!({"name": args.name, "enabled": false}));
    }
    write_out(&format!("Disabled group {}; its checkpoints stay until `ckptctl delete`\n", clean(&args.name)))
}
