//! The second implementation of `Engine`: checkpoints are rows in memory, and the test holds the job at any point.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex};

use ckpt_engine::retention::{Candidate, decide};
use ckpt_engine::{
    Action, CheckpointInfo, CheckpointRequest, Decision, Engine, Error, Event, Group, Incoming, Job, Problem,
    RestoreInfo, RestoreRequest, SnapshotInfo, Stage, UnitMain,
};

/// Where a job waits until the test lets it go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Hold {
    #[default]
    Nowhere,
    /// Before the freeze.
    Barrier,
    /// After the thaw, before it is durable.
    Writing,
}

#[derive(Default)]
pub struct MemoryEngine {
    checkpoints: Mutex<BTreeMap<String, Vec<CheckpointInfo>>>,
    hold: Mutex<Hold>,
    moved: Condvar,
    pub problems: Mutex<Vec<Problem>>,
    pub fail: Mutex<Option<fn() -> Error>>,
    pub requests: Mutex<Vec<CheckpointRequest>>,
    pub groups: Mutex<Vec<Group>>,
}

impl MemoryEngine {
    pub fn hold(&self, at: Hold) {
        *self.hold.lock().unwrap() = at;
        self.moved.notify_all();
    }

    /// Waits while the test holds here; false if the job was canceled meanwhile.
    fn pass(&self, here: Hold, job: &dyn Job) -> bool {
        let mut hold = self.hold.lock().unwrap();
        while *hold == here && !job.canceled() {
            hold = self.moved.wait_timeout(hold, std::time::Duration::from_millis(5)).unwrap().0;
        }
        !job.canceled()
    }

    fn failure(&self) -> Result<(), Error> {
        match self.fail.lock().unwrap().take() {
            Some(make) => Err(make()),
            None => Ok(()),
        }
    }

    fn found(&self, group: &str, id: &str) -> Result<CheckpointInfo, Error> {
        let all = self.checkpoints.lock().unwrap();
        let mut list = all.get(group).into_iter().flatten();
        let found = list.find(|c| id.is_empty() || c.id == id).cloned();
        found.ok_or_else(|| Error::NoSuchCheckpoint { group: group.into(), id: id.into() })
    }
}

impl Engine for MemoryEngine {
    fn checkpoint(
        &self,
        group: &Group,
        request: &CheckpointRequest,
        job: &dyn Job,
    ) -> Result<CheckpointInfo, Error> {
        self.requests.lock().unwrap().push(request.clone());
        self.groups.lock().unwrap().push(group.clone());
        job.stage(Stage::Barrier);
        self.failure()?;
        if !self.pass(Hold::Barrier, job) {
            return Err(Error::Canceled);
        }
        job.stage(Stage::Frozen);
        job.captured(&request.id);
        job.stage(Stage::Writing);
        job.progress(512, 4096);
        if !self.pass(Hold::Writing, job) {
            return Err(Error::Canceled);
        }
        job.progress(4096, 4096);
        let info = CheckpointInfo {
            id: request.id.clone(),
            group: group.name.clone(),
            kind: "full".into(),
            parent: None,
            created: jiff::Timestamp::now(),
            freeze_usec: 1234,
            processes: 2,
            threads: 3,
            pages_written: 1,
            image_bytes: 4096,
            snapshots: vec![SnapshotInfo { subvolume: "/srv/web".into(), path: "/srv/.ckpt/web/x/0".into() }],
            state: "durable".into(),
            tracker: "none".into(),
            description: request.description.clone(),
            tags: request.tags.clone(),
            units: vec![UnitMain { unit: "a.service".into(), main_pid: 7 }],
            stages: vec![],
        };
        self.checkpoints.lock().unwrap().entry(group.name.clone()).or_default().insert(0, info.clone());
        Ok(info)
    }

    fn restore(&self, group: &Group, request: &RestoreRequest, job: &dyn Job) -> Result<RestoreInfo, Error> {
        job.stage(Stage::Stopping);
        self.failure()?;
        let found = self.found(&group.name, &request.checkpoint)?;
        Ok(RestoreInfo {
            id: found.id,
            group: group.name.clone(),
            processes: 2,
            restore_usec: 99,
            units: found.units,
            late: 0,
            stages: vec![],
        })
    }

    fn check(&self, _: &Group) -> Result<Vec<Problem>, Error> {
        Ok(self.problems.lock().unwrap().clone())
    }

    fn list(&self, group: &str) -> Result<Vec<CheckpointInfo>, Error> {
        Ok(self.checkpoints.lock().unwrap().get(group).cloned().unwrap_or_default())
    }

    fn delete(&self, group: &Group, ids: &[String], _: &dyn Job) -> Result<(), Error> {
        for id in ids {
            self.found(&group.name, id)?;
        }
        let mut all = self.checkpoints.lock().unwrap();
        all.entry(group.name.clone()).or_default().retain(|c| !ids.contains(&c.id));
        Ok(())
    }

    fn merge(&self, group: &Group, upto: &str, _: &dyn Job) -> Result<CheckpointInfo, Error> {
        self.found(&group.name, upto)
    }

    fn shorten(&self, _: &Group, _: &dyn Job) -> Result<Option<CheckpointInfo>, Error> {
        Ok(None)
    }

    fn prune(&self, group: &Group, dry_run: bool, _: &dyn Job) -> Result<Vec<Decision>, Error> {
        let mut all = self.checkpoints.lock().unwrap();
        let list = all.entry(group.name.clone()).or_default();
        let all: Vec<_> =
            list.iter().map(|c| Candidate { id: c.id.clone(), created: c.created, undo: false }).collect();
        let decisions = decide(&all, &group.config.retention, &jiff::tz::TimeZone::UTC);
        if !dry_run {
            list.retain(|c| decisions.iter().any(|d| d.id == c.id && d.action == Action::Keep));
        }
        Ok(decisions)
    }

    fn export(&self, group: &Group, id: &str, to: &std::fs::File, _: &dyn Job) -> Result<(), Error> {
        use std::io::Write;
        let found = self.found(&group.name, id)?;
        (&mut &*to).write_all(found.id.as_bytes()).map_err(|e| Error::io("write", e))
    }

    fn import(&self, from: &Incoming, _: &dyn Job) -> Result<CheckpointInfo, Error> {
        Err(Error::Exists(format!("checkpoint {}", from.id())))
    }

    fn verify(&self, group: &Group, id: &str, _: &dyn Job) -> Result<(), Error> {
        self.found(&group.name, id).map(drop)
    }

    fn annotate(
        &self,
        group: &str,
        id: &str,
        description: Option<String>,
        tags: Option<Vec<String>>,
    ) -> Result<CheckpointInfo, Error> {
        let mut all = self.checkpoints.lock().unwrap();
        let mut list = all.get_mut(group).into_iter().flatten();
        let info = list.find(|c| c.id == id);
        let info = info.ok_or_else(|| Error::NoSuchCheckpoint { group: group.into(), id: id.into() })?;
        info.description = description.unwrap_or_else(|| info.description.clone());
        info.tags = tags.unwrap_or_else(|| info.tags.clone());
        Ok(info.clone())
    }

    fn recover(&self, _: &[Group]) -> Result<Vec<Event>, Error> {
        Ok(Vec::new())
    }
}
