//! Which groups there are: registered ones, services taken as a group of one, and names that only have checkpoints left.

use std::path::Path;
use std::sync::Arc;

use ckpt_dbus::GroupRow;
use ckpt_engine::config::GroupConfig;
use ckpt_engine::{CheckpointInfo, Error, Group, Problem};

use super::{Known, Service};
use crate::bus::options::Dict;
use crate::bus::rows;
use crate::{groups, journal};

/// What to do about a file that is wrong.
const CORRECT_IT: &str = "correct the file, then `systemctl reload ckptd`";

impl Service {
    /// The group of this name; where there is none, the service `NAME.service` as a group of one. `NAME` may be escaped like the
    /// instance of a unit (systemd.unit(5)).
    pub async fn resolve(self: &Arc<Self>, name: &str) -> Result<Group, Error> {
        let candidates = groups::names::candidates(name);
        if let Some(group) = candidates.iter().find_map(|n| self.registered(n)) {
            return Ok(group);
        }
        let asked = name.to_owned();
        self.blocking(move |service| {
            for name in candidates {
                let unit = format!("{name}.service");
                if service.host.exists(&unit)? {
                    let config = GroupConfig { units: vec![unit], ..GroupConfig::default() };
                    return Ok(Group { name, config });
                }
            }
            match groups::load::wrong(&service.groups_dir, &asked) {
                Some(wrong) => Err(Error::InvalidArgs(format!("{wrong}; {CORRECT_IT}"))),
                None => Err(Error::NoSuchGroup(asked)),
            }
        })
        .await?
    }

    /// The group of this name, for what concerns only its checkpoints: they may outlive the group and its units.
    pub async fn resolve_stored(self: &Arc<Self>, name: &str) -> Result<Group, Error> {
        for candidate in groups::names::candidates(name) {
            if let Some(known) = self.state().groups.get(&candidate)
                && (known.enabled || !known.checkpoints.is_empty())
            {
                return Ok(Group { name: candidate, config: known.config.clone() });
            }
        }
        self.resolve(name).await
    }

    fn registered(&self, name: &str) -> Option<Group> {
        let state = self.state();
        let known = state.groups.get(name).filter(|k| k.enabled)?;
        Some(Group { name: name.to_owned(), config: known.config.clone() })
    }

    /// Reads groups.d, writes what is wrong with it to the journal, repairs what a former daemon left, publishes everything.
    /// `stored` are the names of groups that have a directory in the store.
    pub async fn start_up(self: &Arc<Self>, stored: Vec<String>) -> Result<(), Error> {
        self.load();
        let groups = self.all_registered();
        let to_repair = groups.clone();
        let recovered = self.blocking(move |service| service.engine.recover(&to_repair)).await?;
        match recovered {
            Ok(events) => events.iter().for_each(|event| journal::event("", event)),
            Err(error) => journal::problem("", &error),
        }
        if let Err(error) = self.blocking(|service| service.host.tidy_leftovers()).await? {
            journal::problem("", &error);
        }
        let names =
            groups.into_iter().map(|g| g.name).chain(stored.into_iter().filter(|n| groups::names::valid(n)));
        for name in names.collect::<std::collections::BTreeSet<_>>() {
            if let Err(error) = self.sync(&name).await {
                journal::problem(&name, &error);
            }
        }
        Ok(())
    }

    /// Registered groups.
    pub fn all_registered(&self) -> Vec<Group> {
        let state = self.state();
        let enabled = state.groups.iter().filter(|(_, known)| known.enabled);
        enabled.map(|(name, known)| Group { name: name.clone(), config: known.config.clone() }).collect()
    }

    /// Registered groups that are slices.
    pub fn slices(&self) -> Vec<Group> {
        self.all_registered().into_iter().filter(|g| g.config.slice.is_some()).collect()
    }

    /// Whether a group has its file, which goes before its drop-ins do.
    pub fn has_file(&self, group: &str) -> bool {
        groups::file::path(&self.groups_dir, group).exists()
    }

    /// Takes groups.d as it is now. Files that are wrong are told; what was known of them stays. Gives what is wrong with each, and what
    /// follows from it.
    fn load(&self) -> Vec<String> {
        let (read, errors) = groups::load::all(&self.groups_dir);
        let mut state = self.state();
        let told = |error: &groups::load::Error| {
            let stays = state.groups.get(&error.group).is_some_and(|known| known.enabled);
            let outcome = if stays { "the group stays as it was before" } else { "the group is left out" };
            journal::bad_group_file(error, outcome);
            format!("{error}; {outcome}")
        };
        let told = errors.iter().map(told).collect();
        for (name, known) in &mut state.groups {
            let wrong = errors.iter().any(|e| e.group == *name);
            known.enabled = read.contains_key(name) || (known.enabled && wrong);
        }
        for (name, config) in read {
            let known: &mut Known = state.groups.entry(name).or_default();
            (known.config, known.enabled) = (config, true);
        }
        told
    }

    /// Reload(): groups.d and the drop-ins, anew.
    ///
    /// Errors: InvalidArgs with what is wrong in which file; all other files are taken.
    pub async fn reload(self: &Arc<Self>) -> Result<(), Error> {
        let before = self.all_registered();
        let wrong = self.load();
        let now = self.all_registered();
        let gone: Vec<_> = before.iter().filter(|b| now.iter().all(|n| n.name != b.name)).cloned().collect();
        let present = now.clone();
        let names: Vec<_> = gone.iter().chain(&present).map(|g| g.name.clone()).collect();
        self.blocking(move |service| {
            gone.iter().try_for_each(|group| service.host.remove(group))?;
            present.iter().try_for_each(|group| service.host.install(group))
        })
        .await??;
        for name in names {
            self.sync(&name).await?;
            self.publish_config(&name).await;
        }
        match wrong.is_empty() {
            true => Ok(()),
            false => Err(Error::InvalidArgs(format!("{}; {CORRECT_IT}", wrong.join("; ")))),
        }
    }

    /// Registers a group: checks everything, writes groups.d/NAME.toml and the drop-ins.
    pub async fn enable(self: &Arc<Self>, name: &str, config: Dict) -> Result<String, Error> {
        let (name, given) = (name.to_owned(), groups::make::from_dict(config)?);
        let group = self.blocking(move |service| service.enable_blocking(&name, given)).await??;
        {
            let mut state = self.state();
            let known = state.groups.entry(group.name.clone()).or_default();
            (known.config, known.enabled) = (group.config.clone(), true);
        }
        self.sync(&group.name).await?;
        self.publish_config(&group.name).await;
        journal::enabled(&group, true);
        Ok(group.name)
    }

    fn enable_blocking(&self, name: &str, given: toml::Table) -> Result<Group, Error> {
        let group = groups::make::group(name, given, &self.groups_dir, |unit| self.host.exists(unit))?;
        self.refuse_overlap(&group)?;
        for path in &group.config.subvolumes {
            self.host.is_subvolume(path)?;
        }
        let was_there = groups::file::path(&self.groups_dir, &group.name).exists();
        if !was_there {
            groups::file::write(&self.groups_dir, &group)?;
        }
        if let Err(error) = self.host.install(&group) {
            // All or nothing: what was written goes again; the first error is the one that counts.
            let _ = self.host.remove(&group);
            if !was_there {
                let _ = groups::file::remove(&self.groups_dir, &group.name);
            }
            return Err(error);
        }
        Ok(group)
    }

    /// A unit has one drop-in of ours: it is in one group.
    fn refuse_overlap(&self, group: &Group) -> Result<(), Error> {
        let state = self.state();
        for (name, known) in state.groups.iter().filter(|(n, k)| k.enabled && **n != group.name) {
            if known.config.slice.is_some() && known.config.slice == group.config.slice {
                return Err(Error::Exists(format!("group {name} with the same slice")));
            }
            if let Some(unit) = group.config.units.iter().find(|u| known.config.units.contains(u)) {
                return Err(Error::Exists(format!("group {name} with {unit}, and a unit is in one group,")));
            }
        }
        Ok(())
    }

    /// Takes back all that `enable` wrote. Checkpoints stay: `Delete` is for them.
    pub async fn disable(self: &Arc<Self>, name: &str) -> Result<(), Error> {
        let group = self.registered(name).ok_or_else(|| Error::NoSuchGroup(name.to_owned()))?;
        if let Some(job) = self.state().groups.get(name).and_then(|k| k.busy.clone()) {
            let doing = format!("job {} is {} it", job.number, job.work.group_state());
            return Err(Error::GroupBusy { group: name.to_owned(), doing });
        }
        let old = group.clone();
        self.blocking(move |service| {
            // The file first: systemd's reload, by which the drop-ins go, asks our generator, which reads it.
            groups::file::remove(&service.groups_dir, &old.name)?;
            service.engine.forget(&old.name);
            service.host.remove(&old)
        })
        .await??;
        if let Some(known) = self.state().groups.get_mut(name) {
            known.enabled = false;
        }
        self.sync_group(name).await?;
        self.publish_config(name).await;
        journal::enabled(&group, false);
        Ok(())
    }

    /// Check().
    pub async fn check(self: &Arc<Self>, group: Group) -> Result<Vec<Problem>, Error> {
        self.blocking(move |service| service.engine.check(&group)).await?
    }

    /// ListCheckpoints().
    pub async fn list(self: &Arc<Self>, group: Group) -> Result<Vec<CheckpointInfo>, Error> {
        self.blocking(move |service| service.engine.list(&group.name)).await?
    }

    /// A checkpoint that exists, by its group and id; `""` is the newest durable one.
    pub async fn stored_checkpoint(
        self: &Arc<Self>,
        group: &str,
        id: &str,
    ) -> Result<(Group, String), Error> {
        let group = self.resolve_stored(group).await?;
        let list = self.list(group.clone()).await?;
        match list.into_iter().find(|c| if id.is_empty() { c.state == "durable" } else { c.id == id }) {
            Some(found) => Ok((group, found.id)),
            None => Err(Error::NoSuchCheckpoint { group: group.name, id: id.to_owned() }),
        }
    }

    /// GetGroup(): the name of a group that has an object.
    pub fn served(&self, name: &str) -> Result<String, Error> {
        let state = self.state();
        let served = |n: &String| state.groups.get(n).is_some_and(|k| k.served);
        let found = groups::names::candidates(name).into_iter().find(served);
        found.ok_or_else(|| Error::NoSuchGroup(name.to_owned()))
    }

    /// What is known of a group without asking systemd.
    pub fn known_row(&self, name: &str) -> Option<GroupRow> {
        self.state().groups.get(name).map(|known| row(name, known))
    }

    /// Checkpoint1.Description and .Tags.
    pub async fn annotate(
        self: &Arc<Self>,
        info: &CheckpointInfo,
        description: Option<String>,
        tags: Option<Vec<String>>,
    ) -> Result<CheckpointInfo, Error> {
        let (group, id) = (info.group.clone(), info.id.clone());
        let annotated =
            self.blocking(move |service| service.engine.annotate(&group, &id, description, tags)).await??;
        if let Some(known) = self.state().groups.get_mut(&annotated.group) {
            for old in known.checkpoints.iter_mut().filter(|c| c.id == annotated.id) {
                old.clone_from(&annotated);
            }
        }
        Ok(annotated)
    }

    /// ListGroups(): registered groups, and others that have checkpoints.
    pub async fn rows(self: &Arc<Self>) -> Result<Vec<GroupRow>, Error> {
        let names: Vec<_> =
            self.state().groups.iter().filter(|(_, k)| k.served).map(|(n, _)| n.clone()).collect();
        let mut rows = Vec::new();
        for name in names {
            rows.extend(self.row(&name).await?);
        }
        Ok(rows)
    }

    /// One row of ListGroups.
    pub async fn row(self: &Arc<Self>, name: &str) -> Result<Option<GroupRow>, Error> {
        let (mut row, config) = {
            let state = self.state();
            let Some(known) = state.groups.get(name) else { return Ok(None) };
            (row(name, known), known.config.clone())
        };
        if config.slice.is_some() || !config.units.is_empty() {
            let group = Group { name: name.to_owned(), config };
            // systemd may not answer: the rest of the row is right all the same.
            match self.blocking(move |service| service.host.units(&group)).await? {
                Ok(units) => {
                    row.units = units.iter().map(|u| u.name.clone()).collect();
                    row.members = units.iter().map(rows::member).collect();
                }
                Err(error) => journal::problem(name, &error),
            }
        }
        Ok(Some(row))
    }
}

fn row(name: &str, known: &Known) -> GroupRow {
    let last = known.last();
    GroupRow {
        name: name.to_owned(),
        enabled: known.enabled,
        slice: known.config.slice.clone().unwrap_or_default(),
        units: known.config.units.clone(),
        subvolumes: known.config.subvolumes.iter().map(|p| lossy(p)).collect(),
        state: known.busy.as_ref().map_or("idle", |j| j.work.group_state()).to_owned(),
        checkpoints: known.checkpoints.iter().filter(|c| c.state == "durable").count() as u32,
        last_checkpoint: last.map(|c| c.id.clone()).unwrap_or_default(),
        last_checkpoint_usec: last.map_or(0, rows::created_usec),
        last_freeze_usec: last.map_or(0, |c| c.freeze_usec),
        members: Vec::new(),
    }
}

fn lossy(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
