//! Running ckpt-restore, which rebuilds the members in a process of its own.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ckpt_image::Manifest;

use crate::api::Stub;
use crate::error::Error;
use crate::kinds::outside::Held;
use crate::rebuild::lazy::Lazily;
use crate::rebuild::{Reply, Report, Request, UnitPlace};

/// How the members are rebuilt.
pub struct How {
    /// They get a PID namespace of their own.
    pub own_pids: bool,
    /// Memory may come while they run.
    pub lazily: Option<Lazily>,
    /// Connections to outside that they go on with.
    pub held: Vec<Held>,
}

/// Runs ckpt-restore on an image. It either brings everything back or leaves nothing behind.
///
/// `chain` has the image's directory first, then those that it rests on.
pub fn run(
    libdir: &Path,
    chain: Vec<PathBuf>,
    manifest: &Manifest,
    stubs: &[Stub],
    how: How,
) -> Result<Report, Error> {
    let program = libdir.join("ckpt-restore");
    let failed = |what: &str, e: std::io::Error| Error::io(format!("{what} {}", program.display()), e);
    let units = stubs
        .iter()
        .map(|s| UnitPlace { name: s.unit.clone(), cgroup: s.cgroup.clone(), stub: Some(s.pid) })
        .collect();
    let mut child = Command::new(&program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| failed("start", e))?;
    let request = Request { chain, units, own_pids: how.own_pids, lazily: how.lazily, held: how.held };
    let request = serde_json::to_vec(&request).map_err(|e| Error::Failed(e.to_string()))?;
    if let Some(mut input) = child.stdin.take() {
        // It may end before it has read everything; its exit status says why.
        let _ = input.write_all(&request);
    }
    let output = child.wait_with_output().map_err(|e| failed("wait for", e))?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    match serde_json::from_slice(&output.stdout) {
        Ok(Reply::Restored(report)) => Ok(report),
        Ok(Reply::Failed(failure)) => Err(failure.into_error(&manifest.group, &manifest.id.to_string())),
        Err(_) => {
            Err(Error::Failed(format!("ckpt-restore ended without an answer ({}): {said}", output.status)))
        }
    }
}
