//! The command line: options and verbs.

use clap::{Parser, Subcommand};

use crate::verbs;

/// Checkpoint and restore running systemd services, memory and files together.
#[derive(Debug, Parser)]
#[command(
    name = "ckptctl",
    version,
    disable_help_subcommand = true,
    subcommand_value_name = "VERB",
    subcommand_help_heading = "Verbs",
    max_term_width = 120,
    after_help = "See ckptctl(1). Exit status: 0 done, 1 failed, 2 usage, 3 no such group or checkpoint, 4 not checkpointable or \
                  restorable, 6 busy, 77 not permitted."
)]
pub struct Cli {
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// Do not pipe output into a pager
    #[arg(long, global = true)]
    pub no_pager: bool,
    /// Ask the ckptd of another host, over ssh
    #[arg(short = 'H', long, global = true, value_name = "[USER@]HOST[:PORT]")]
    pub host: Option<String>,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// One verb, one file of [`verbs`].
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Register a group: a slice or units, and their subvolumes
    Enable(verbs::enable::Args),
    /// Forget a group and take its drop-ins back; its checkpoints stay
    Disable(verbs::disable::Args),
    /// Show groups, or one group with its units
    Status(verbs::status::Args),
    /// List checkpoints
    List(verbs::list::Args),
    /// Show everything known of a group or a checkpoint
    Show(verbs::show::Args),
    /// Take a checkpoint
    Checkpoint(verbs::checkpoint::Args),
    /// Put a group back to a checkpoint
    Restore(verbs::restore::Args),
    /// Say what stands against a checkpoint, without taking one
    Check(verbs::check::Args),
    /// Look whether this host can do it
    Doctor(verbs::doctor::Args),
    /// Fold incrementals into the full checkpoint they rest on
    Merge(verbs::merge::Args),
    /// Read a checkpoint whole and compare its checksums
    Verify(verbs::verify::Args),
    /// Delete checkpoints: images and snapshots
    Delete(verbs::delete::Args),
    /// Delete what retention does not keep
    Prune(verbs::prune::Args),
    /// Write a checkpoint to a file
    Export(verbs::export::Args),
    /// Read a checkpoint from a file
    Import(verbs::import::Args),
    /// List running jobs
    Jobs(verbs::jobs::Args),
    /// Cancel a job
    Cancel(verbs::cancel::Args),
    /// Show what happens, as it happens
    Monitor(verbs::monitor::Args),
    /// Print the completion script for a shell
    #[command(hide = true)]
    Completions(verbs::completions::Args),
}
