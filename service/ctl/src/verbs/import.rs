//! `import FILE|-`

use std::fs::File;
use std::os::fd::AsFd;

use crate::bus::none;
use crate::context::Context;
use crate::failure::Failure;
use crate::job::Follower;
use crate::output::{clean, print_json, write_out};
use crate::view;

/// What to import.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where from; - is standard input
    #[arg(value_name = "FILE|-")]
    file: String,
}

pub async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    context.only_here("import")?;
    let file = match args.file.as_str() {
        "-" => None,
        path => {
            Some(File::open(path).map_err(|e| Failure::failed(format!("cannot open {}: {e}", clean(path))))?)
        }
    };
    let bus = context.bus().await?;
    let mut options = none();
    options.insert("wait", "none".into());
    let input = std::io::stdin();
    let from = file.as_ref().map_or_else(|| input.as_fd(), AsFd::as_fd);
    let follower = Follower::new(&bus).await?;
    let (job, _) = bus.manager.import(from.into(), &options).await?;
    let done = follower.follow(&job, "import").await?;
    let row: view::Checkpoint = done.stats::<ckpt_dbus::CheckpointRow>()?.into();
    if context.json {
        return print_json(&row);
    }
    write_out(&format!("Imported {}@{}\n", clean(&row.group), clean(&row.id)))
}
