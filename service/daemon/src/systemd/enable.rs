//! Drop-ins of enabled groups.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use ckpt_engine::{Error, Group};
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, statfs};

use super::bridge::failed;
use super::list;
use super::{Systemd, dropin};

/// Where systemd lets generators write (systemd.generator(7)).
const GENERATED: &str = "/run/systemd/generator";

/// The inode number of the top of every subvolume (BTRFS_FIRST_FREE_OBJECTID).
const SUBVOLUME_INODE: u64 = 256;

impl Systemd {
    /// Each unit's drop-in, made from what the unit has without it.
    pub(super) fn install_group(&self, group: &Group) -> Result<(), Error> {
        let units = self.bridge.run(self.units_to_install(group))?;
        list::refuse_ourselves(group, &units)?;
        let _writing = self.lock_writing();
        // A unit that left the group, and what a drop-in of ours hides of the unit's own environment.
        let mut changed = false;
        for unit in dropin::units_with(&self.etc, dropin::ENABLED, Some(&group.name)) {
            changed |= dropin::remove(&self.etc, &unit, dropin::ENABLED)?;
        }
        if changed {
            self.bridge.run(self.bridge.reload())?;
        }
        self.write_all(group, &units).map(drop)
    }

    /// Units that joined the slice since: those that have no drop-in yet. Whether there were any. `is_enabled` is asked at the last moment: the
    /// group may be disabled meanwhile.
    pub(super) fn install_missing(
        &self,
        group: &Group,
        is_enabled: impl Fn() -> bool,
    ) -> Result<bool, Error> {
        let mut units = self.bridge.run(self.units_to_install(group))?;
        let _writing = self.lock_writing();
        if !is_enabled() {
            return Ok(false);
        }
        units.retain(|unit| !dropin::path(&self.etc, unit, dropin::ENABLED).exists());
        self.write_all(group, &units)
    }

    /// With the lock. Reloads if anything changed.
    fn write_all(&self, group: &Group, units: &[String]) -> Result<bool, Error> {
        let mut changed = false;
        for unit in units {
            self.bridge.run(self.keep_transient(unit))?;
            let environment = self.bridge.run(self.environment(unit))?;
            let text = dropin::enabled(group, &self.library(), &environment);
            changed |= dropin::write(&self.etc, unit, dropin::ENABLED, &text)?;
        }
        if changed {
            self.bridge.run(self.bridge.reload())?;
        }
        Ok(changed)
    }

    async fn units_to_install(&self, group: &Group) -> Result<Vec<String>, Error> {
        match &group.config.slice {
            Some(slice) => list::all_services_of(&self.bridge, slice).await,
            None => Ok(group.config.units.clone()),
        }
    }

    async fn environment(&self, unit: &str) -> Result<Vec<String>, Error> {
        self.bridge.service(unit).await?.environment().await.map_err(|e| failed(unit, &e))
    }

    /// Takes back all drop-ins of the group, also of units that are gone.
    pub(super) fn remove_group(&self, group: &Group) -> Result<(), Error> {
        let _writing = self.lock_writing();
        let units = dropin::units_with(&self.etc, dropin::ENABLED, Some(&group.name));
        for unit in &units {
            dropin::remove(&self.etc, unit, dropin::ENABLED)?;
        }
        let generated = dropin::units_with(Path::new(GENERATED), dropin::ENABLED, Some(&group.name));
        match units.is_empty() && generated.is_empty() {
            true => Ok(()),
            false => self.bridge.run(self.bridge.reload()),
        }
    }
}

/// Whether the path is the top of a btrfs subvolume (statfs(2), btrfs(5)).
pub fn is_subvolume(path: &Path) -> Result<(), Error> {
    let shown = path.display();
    let metadata =
        std::fs::metadata(path).map_err(|e| Error::InvalidArgs(format!("subvolume {shown}: {e}")))?;
    let file_system = statfs(path).map_err(|e| Error::InvalidArgs(format!("subvolume {shown}: {e}")))?;
    if file_system.filesystem_type() != BTRFS_SUPER_MAGIC {
        return Err(Error::InvalidArgs(format!(
            "{shown} is not on btrfs; only btrfs has the snapshots that a group needs"
        )));
    }
    if !metadata.is_dir() || metadata.ino() != SUBVOLUME_INODE {
        return Err(Error::InvalidArgs(format!(
            "{shown} is no subvolume but a directory in one; make it one with `btrfs subvolume create`"
        )));
    }
    Ok(())
}
