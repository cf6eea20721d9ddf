//! What every verb is given: how to print, and the bus once it is asked for.

use crate::bus::Bus;
use crate::cli::Cli;
use crate::failure::Failure;

/// The options that come before the verb.
#[derive(Debug)]
pub struct Context {
    /// Print JSON.
    pub json: bool,
    /// Use a pager where stdout is a terminal.
    pub pager: bool,
    /// The other host.
    pub host: Option<String>,
}

impl Context {
    /// From the command line. Errors: usage, for a host that ssh would take for an option.
    pub fn new(cli: &Cli) -> Result<Self, Failure> {
        if cli.host.as_ref().is_some_and(|h| h.is_empty() || h.starts_with('-')) {
            return Err(Failure::usage("-H takes [USER@]HOST[:PORT]".into()));
        }
        Ok(Self { json: cli.json, pager: !cli.no_pager && !cli.json, host: cli.host.clone() })
    }

    /// Refuses a verb that passes a file to ckptd, which a connection over ssh cannot.
    pub fn only_here(&self, verb: &str) -> Result<(), Failure> {
        match &self.host {
            None => Ok(()),
            Some(host) => Err(Failure::usage(format!(
                "{verb} passes an open file to ckptd, which -H cannot; use ssh {host} ckptctl {verb} … -"
            ))),
        }
    }

    /// Connects.
    pub async fn bus(&self) -> Result<Bus, Failure> {
        Bus::connect(self.host.as_deref()).await
    }
}
