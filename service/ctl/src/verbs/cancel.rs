//! `cancel N`

use ckpt_dbus::{Job1Proxy, names};

use crate::context::Context;
use crate::failure::Failure;
use crate::output::{print_json, write_out};

/// Which job.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Its number, as `jobs` shows it
    #[arg(value_name = "N")]
    number: u32,
}

pub async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let bus = context.bus().await?;
    let job = Job1Proxy::builder(&bus.connection).path(names::job_path(args.number)).build().await?;
    job.cancel().await.map_err(|e| match Failure::from(e) {
        f if f.name.starts_with("org.freedesktop.DBus.Error.Unknown") => Failure::failed(format!(
            "job {} does not run (any more); `ckptctl jobs` shows those that do",
            args.number
        )),
        f => f,
    })?;
    if context.json {
        return print_json(&serde_json::json!({"job": args.number, "canceling": true}));
    }
    write_out(&format!("Job {} is asked to end\n", args.number))
}
