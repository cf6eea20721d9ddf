//! `export NAME@ID FILE|-`

use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use crate::bus::none;
use crate::context::Context;
use crate::failure::Failure;
use crate::job::Follower;
use crate::output::{clean, print_json, write_out};
use crate::reference::Exact;

/// What to export.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The checkpoint
    #[arg(value_name = "NAME@ID")]
    which: Exact,
    /// Where to, a file that does not exist; - is standard output
    #[arg(value_name = "FILE|-")]
    file: String,
}

pub async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    context.only_here("export")?;
    let Exact(which) = args.which;
    let bus = context.bus().await?;
    // Said before a file is made.
    bus.checkpoint(&which.group, &which.id).await?;
    let out = std::io::stdout();
    if args.file == "-" {
        if out.is_terminal() {
            return Err(Failure::usage(
                "an export is no text; redirect standard output or name a file".into(),
            ));
        }
        return send(&bus, &which.group, &which.id, out.as_fd()).await;
    }
    // Memory holds secrets.
    let file = File::options().write(true).create_new(true).mode(0o600).open(&args.file);
    let file = file.map_err(|e| Failure::failed(format!("cannot make {}: {e}", clean(&args.file))))?;
    if let Err(failure) = send(&bus, &which.group, &which.id, file.as_fd()).await {
        let _ = std::fs::remove_file(&args.file);
        return Err(failure);
    }
    if context.json {
        return print_json(&serde_json::json!({"id": which.id, "group": which.group, "file": args.file}));
    }
    write_out(&format!("Exported {}@{} to {}\n", clean(&which.group), clean(&which.id), clean(&args.file)))
}

async fn send(bus: &crate::bus::Bus, group: &str, id: &str, to: BorrowedFd<'_>) -> Result<(), Failure> {
    let mut options = none();
    options.insert("wait", "none".into());
    let follower = Follower::new(bus).await?;
    let job = bus.manager.export(group, id, to.into(), &options).await?;
    follower.follow(&job, &format!("export of {group}")).await.map(drop)
}
