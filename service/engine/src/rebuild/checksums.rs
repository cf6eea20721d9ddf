//! Comparing the pages that are read straight into members with their checksums: in a process of its own, while they are read.

use ckpt_image::{PageReader, Run};
use ckpt_sys::clone::{CloneArgs, fork_with};
use nix::libc;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::memory::Script;
use super::{Failure, cpus, prepared};

/// Less than this is not worth a process.
const LITTLE: u64 = 8 << 20;

/// The comparison under way.
#[derive(Debug)]
pub struct Comparison {
    process: Option<Pid>,
}

impl Comparison {
    /// Of pages that are compared already.
    pub fn done() -> Self {
        Self { process: None }
    }

    /// Begins; on `cpus`. This process must have one thread only. Errors: those of [`PageReader::read_at`], where it was quick.
    pub fn begin(pages: &PageReader, scripts: &[&Script], on: &[u64]) -> Result<Self, Failure> {
        let bytes: u64 = runs(scripts).map(|run| run.count * ckpt_image::PAGE_SIZE).sum();
        if bytes < LITTLE {
            compare(pages, scripts)?;
            return Ok(Self { process: None });
        }
        let args = CloneArgs { exit_signal: libc::SIGCHLD, ..Default::default() };
        let process = fork_with(&args, || {
            cpus::allow(on);
            i32::from(compare(pages, scripts).is_err())
        })?;
        Ok(Self { process: Some(process) })
    }

    /// Waits for its end. Errors: those of [`PageReader::read_at`].
    pub fn end(mut self, pages: &PageReader, scripts: &[&Script]) -> Result<(), Failure> {
        match self.process.take().map(|pid| waitpid(pid, None)) {
            None | Some(Ok(WaitStatus::Exited(_, 0))) => Ok(()),
            // Once more, for the words.
            Some(_) => compare(pages, scripts),
        }
    }
}

impl Drop for Comparison {
    fn drop(&mut self) {
        if let Some(pid) = self.process {
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            let _ = waitpid(pid, None);
        }
    }
}

fn runs<'a>(scripts: &'a [&Script]) -> impl Iterator<Item = &'a Run> {
    scripts.iter().flat_map(|script| &script.filled)
}

fn compare(pages: &PageReader, scripts: &[&Script]) -> Result<(), Failure> {
    prepared::compare(pages, runs(scripts).filter_map(prepared::place_of))
}
