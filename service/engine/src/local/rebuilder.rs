//! Running ckpt-restore, which rebuilds the members in a process of its own.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use ckpt_image::Manifest;
use serde::Serialize;

use crate::api::Stub;
use crate::error::Error;
use crate::kinds::outside::Held;
use crate::rebuild::lazy::Lazily;
use crate::rebuild::{Preparation, Reply, Report, Request, UnitPlace};

/// How the members are rebuilt.
pub struct How {
    /// They get a PID namespace of their own.
    pub own_pids: bool,
    /// Memory may come while they run.
    pub lazily: Option<Lazily>,
    /// Connections to outside that they go on with.
    pub held: Vec<Held>,
}

/// ckpt-restore, which reads the image. Dropped, it ends and has done nothing.
pub struct Rebuilder {
    program: PathBuf,
    chain: Vec<PathBuf>,
    child: Option<Child>,
}

impl Rebuilder {
    /// Starts it. `chain` has the image's directory first, then those that it rests on.
    pub fn start(libdir: &Path, chain: Vec<PathBuf>) -> Result<Self, Error> {
        let program = libdir.join("ckpt-restore");
        let child = Command::new(&program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| Error::io(format!("start {}", program.display()), e))?;
        let mut this = Self { program, chain: chain.clone(), child: Some(child) };
        this.say(&Preparation { chain })?;
        Ok(this)
    }

    /// Lets it rebuild the group in the units. It either brings everything back or leaves nothing behind.
    pub fn run(mut self, manifest: &Manifest, stubs: &[Stub], how: How) -> Result<Report, Error> {
        let units = stubs
            .iter()
            .map(|s| UnitPlace { name: s.unit.clone(), cgroup: s.cgroup.clone(), stub: Some(s.pid) })
            .collect();
        let chain = std::mem::take(&mut self.chain);
        self.say(&Request { chain, units, own_pids: how.own_pids, lazily: how.lazily, held: how.held })?;
        let Some(child) = self.child.take() else { return Err(Error::Failed("it has run already".into())) };
        let output = child
            .wait_with_output()
            .map_err(|e| Error::io(format!("wait for {}", self.program.display()), e))?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        match serde_json::from_slice(&output.stdout) {
            Ok(Reply::Restored(report)) => Ok(report),
            Ok(Reply::Failed(failure)) => Err(failure.into_error(&manifest.group, &manifest.id.to_string())),
            Err(_) => Err(Error::Failed(format!(
                "ckpt-restore ended without an answer ({}): {said}",
                output.status
            ))),
        }
    }

    /// One line of JSON.
    fn say(&mut self, what: &impl Serialize) -> Result<(), Error> {
        let mut line = serde_json::to_vec(what).map_err(|e| Error::Failed(e.to_string()))?;
        line.push(b'\n');
        if let Some(input) = self.child.as_mut().and_then(|child| child.stdin.as_mut()) {
            // It may end before it has read everything; its exit status says why.
            let _ = input.write_all(&line);
        }
        Ok(())
    }
}

impl Drop for Rebuilder {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may read an image of many gigabytes, for nobody.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
