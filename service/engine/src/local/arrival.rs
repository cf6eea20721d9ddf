//! Memory that is still arriving after a lazy restore: who takes a checkpoint waits for it.

use std::path::Path;
use std::time::Duration;

use crate::api::Job;
use crate::error::Error;
use crate::rebuild::lazy::mark::{self, Found};

/// How often is looked again; the memory itself comes as fast as it can.
const AGAIN: Duration = Duration::from_millis(2);

/// Waits until all memory of a group is there.
///
/// Errors: Canceled; Failed where what was to bring it has ended before.
pub fn wait(run: &Path, group: &str, job: &dyn Job) -> Result<(), Error> {
    let Ok(marks) = std::fs::read_dir(mark::directory(run, group)) else { return Ok(()) };
    for path in marks.flatten().map(|entry| entry.path()) {
        loop {
            match mark::look(&path) {
                Found::Over => break,
                Found::Arriving if job.canceled() => return Err(Error::Canceled),
                Found::Arriving => std::thread::sleep(AGAIN),
                Found::Lost => {
                    return Err(Error::Failed(format!(
                        "memory of group {group} did not all arrive after its restore, because the service that brought it was ended; restore it again"
                    )));
                }
            }
        }
    }
    Ok(())
}
