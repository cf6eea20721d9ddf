//! What a daemon that died left behind, put right at the start of the next one.

use super::LocalEngine;
use crate::api::{Event, Group};
use crate::error::{Error, with_sources};
use crate::{frozen, storage};

/// Thaws what is frozen, removes images and snapshots without a manifest, reverts exchanges of restores that did not end.
pub fn run(engine: &LocalEngine, groups: &[Group]) -> Result<Vec<Event>, Error> {
    let mount = ckpt_sys::cgroup::mount_point().map_err(|e| Error::Failed(with_sources(&e)))?;
    let mut events = frozen::thaw_recorded(&engine.settings.run, &mount)?;
    crate::rebuild::lazy::keeper::dismiss_all(&engine.settings.run);
    let place = engine.place()?;
    let stored = engine.store.groups()?;
    let mut names: Vec<_> = groups.iter().map(|g| g.name.clone()).chain(stored.iter().cloned()).collect();
    names.sort();
    names.dedup();
    for name in names {
        events.extend(engine.store.remove_leftovers(&name)?);
        let mut subvolumes = engine.known_subvolumes(&name)?;
        let configured = groups.iter().filter(|g| g.name == name).flat_map(|g| g.config.subvolumes.clone());
        subvolumes.extend(configured);
        subvolumes.sort();
        subvolumes.dedup();
        for mut undo in storage::interrupted(&place, &name, &subvolumes)? {
            undo.revert()?;
            events.push(Event::RestoreReverted { undo: undo.id().into() });
        }
        if !stored.contains(&name) {
            // A group that has snapshots has a directory in the store. Where there is none, another store is in its place (not mounted,
            // another setting), and the snapshots of the right one are not ours to remove.
            continue;
        }
        let ids = engine.store.ids(&name)?;
        let removed = storage::remove_orphans(&place, &name, &subvolumes, &|id| ids.iter().any(|i| i == id))?;
        events.extend(removed.into_iter().map(|path| Event::LeftoverRemoved { path }));
    }
    Ok(events)
}
