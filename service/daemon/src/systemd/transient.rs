//! Units of systemd-run(1): their file goes when they stop, so a copy is kept, and put where a restore finds it.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use ckpt_engine::Error;

use super::Systemd;
use super::bridge::failed;

/// Where systemd keeps them while they are loaded (systemd.unit(5)).
const TRANSIENT: &str = "/run/systemd/transient";

/// Where the copies are: like the units they do not outlive the boot.
const KEPT: &str = "/run/ckpt/transient";

impl Systemd {
    /// Keeps a copy of the file of a transient unit. Nothing for others.
    pub(super) async fn keep_transient(&self, unit: &str) -> Result<(), Error> {
        let properties = self.bridge.unit(unit).await?;
        let fragment = properties.fragment_path().await.map_err(|e| failed(unit, &e))?;
        if !Path::new(&fragment).starts_with(TRANSIENT) {
            return Ok(());
        }
        // Gone already if it stops at this moment: then it is not to be kept either.
        let Ok(text) = fs::read(&fragment) else { return Ok(()) };
        let error = |e| Error::io(format!("keep {fragment}"), e);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(KEPT).map_err(error)?;
        let kept = kept(unit);
        let new = kept.with_extension("new");
        fs::write(&new, text).and_then(|()| fs::rename(&new, &kept)).map_err(error)
    }

    /// Makes a transient unit that is gone one of /run/systemd/system, from the copy. Nothing for units that are there, or of which there
    /// is no copy.
    pub(super) async fn bring_transient(&self, unit: &str) -> Result<(), Error> {
        let state = self.bridge.unit(unit).await?.load_state().await.map_err(|e| failed(unit, &e))?;
        let kept = kept(unit);
        if state != "not-found" || !kept.exists() {
            return Ok(());
        }
        let place = self.run.join(unit);
        fs::copy(&kept, &place).map_err(|e| Error::io(format!("write {}", place.display()), e))?;
        self.bridge.reload().await
    }
}

fn kept(unit: &str) -> PathBuf {
    Path::new(KEPT).join(unit)
}
