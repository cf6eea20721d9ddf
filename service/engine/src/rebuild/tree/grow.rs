//! Makes every process with its parent and its session.

use std::collections::{BTreeMap, BTreeSet};

use ckpt_image::records::{Pid, ProcessRecord, UnitIndex};

use super::{Share, Step, TreeError};

/// The records by id.
pub(super) type Records<'a> = BTreeMap<Pid, &'a ProcessRecord>;

/// A process that exists by now.
#[derive(Debug, Clone, Copy)]
struct Live {
    /// The member that is its parent; `None`: ckpt-restore or init.
    parent: Option<Pid>,
    session: Pid,
    unit: UnitIndex,
    temporary: bool,
}

/// How to make one process.
enum Way {
    /// By itself, or by its parent.
    Fork(Option<Pid>),
    /// As a sibling of this one.
    Sibling(Pid),
    /// By a temporary child of `by`; `reaper` must be a subreaper meanwhile.
    Orphan { by: Pid, reaper: Option<Pid> },
}

pub(super) struct Grower<'a, 's> {
    records: &'a Records<'a>,
    spare: &'s mut dyn Iterator<Item = Pid>,
    /// The session that a process must be born in; `None`: any.
    birth: BTreeMap<Pid, Option<Pid>>,
    live: BTreeMap<Pid, Live>,
    /// Leaders that still have children to make in the session they were born in.
    waiting: BTreeMap<Pid, BTreeSet<Pid>>,
    /// Leaders that are gone, and who is to make a temporary one.
    lost: BTreeMap<Pid, Option<Pid>>,
    /// Temporary leaders, and the member that waits for their end.
    leaders: Vec<(Pid, Option<Pid>)>,
    steps: Vec<Step>,
}

impl<'a, 's> Grower<'a, 's> {
    pub(super) fn new(records: &'a Records<'a>, spare: &'s mut dyn Iterator<Item = Pid>) -> Self {
        let mut grower = Self {
            records,
            spare,
            birth: BTreeMap::new(),
            live: BTreeMap::new(),
            waiting: BTreeMap::new(),
            lost: BTreeMap::new(),
            leaders: Vec::new(),
            steps: Vec::new(),
        };
        for pid in records.keys() {
            grower.find_birth(*pid, 0);
        }
        grower.find_lost_leaders();
        grower
    }

    /// The parent, where it is a member.
    fn parent(&self, pid: Pid) -> Option<Pid> {
        let ppid = self.records[&pid].ppid;
        self.records.contains_key(&ppid).then_some(ppid)
    }

    /// Which session a process must be born in: its own, unless it leads it; then that of children it made before it led.
    fn find_birth(&mut self, pid: Pid, depth: usize) -> Option<Pid> {
        if let Some(known) = self.birth.get(&pid) {
            return *known;
        }
        let record = self.records[&pid];
        if record.sid != pid {
            self.birth.insert(pid, Some(record.sid));
            return Some(record.sid);
        }
        self.birth.insert(pid, None); // ends a cycle of hostile records
        if depth > self.records.len() {
            return None;
        }
        let children: Vec<Pid> = self.records.values().filter(|r| r.ppid == pid).map(|r| r.pid).collect();
        let mut before = BTreeMap::<Pid, BTreeSet<Pid>>::new();
        for child in children {
            match self.find_birth(child, depth + 1) {
                Some(session) if session != pid => before.entry(session).or_default().insert(child),
                _ => continue,
            };
        }
        // A subreaper's foreign children are orphans that fell to it, as a rule, and need no such birth.
        let subreaper = record.body.as_ref().is_some_and(|b| b.child_subreaper);
        let own = if subreaper { None } else { before.into_iter().next() };
        if let Some((session, children)) = own {
            self.birth.insert(pid, Some(session));
            self.waiting.insert(pid, children);
            return Some(session);
        }
        None
    }

    /// Makes all processes.
    pub(super) fn grow(&mut self) -> Result<(), TreeError> {
        let mut missing: Vec<Pid> = self.records.keys().copied().collect();
        while !missing.is_empty() {
            let before = missing.len() + self.lost.len();
            self.make_lost_leaders();
            let mut left = Vec::new();
            for pid in missing {
                if !self.try_make(pid)? {
                    left.push(pid);
                }
            }
            let stuck = left.len() + self.lost.len() == before;
            if stuck && !self.release_a_lost_leader() && !self.release_a_leader() {
                let record = self.records[&left[0]];
                return Err(TreeError::NoWay { pid: record.pid, ppid: record.ppid, sid: record.sid });
            }
            missing = left;
        }
        for (pid, waiter) in std::mem::take(&mut self.leaders).into_iter().rev() {
            self.steps.push(Step::End { pid, waiter });
        }
        Ok(())
    }

    /// The steps, once grown.
    pub(super) fn finish(self) -> Vec<Step> {
        self.steps
    }

    /// Sessions whose leader is gone get a temporary one. The member of another session that has children in this one makes it, so
    /// that they can fall to that member as orphans; of several, the one furthest below.
    fn find_lost_leaders(&mut self) {
        for record in self.records.values().filter(|r| !self.records.contains_key(&r.sid)) {
            let outside = self
                .parent(record.pid)
                .filter(|p| self.records[p].sid != record.sid && self.birth[p] != Some(record.sid));
            let known = self.lost.entry(record.sid).or_default();
            if depth(self.records, outside) > depth(self.records, *known) {
                *known = outside;
            }
        }
    }

    /// Makes those that can be made by now.
    fn make_lost_leaders(&mut self) {
        let ready = |maker: &Option<Pid>| maker.is_none_or(|maker| self.live.contains_key(&maker));
        let made: Vec<_> = self.lost.iter().filter(|(_, m)| ready(m)).map(|(pid, m)| (*pid, *m)).collect();
        for (pid, maker) in made {
            let unit = self.records.values().find(|r| r.sid == pid).map_or(UnitIndex(0), |r| r.unit);
            self.create(pid, maker, false, unit, true, Share::default());
            self.set_session(pid);
            self.lost.remove(&pid);
            self.leaders.push((pid, maker));
        }
    }

    /// Where nothing moves any more: who is to make a temporary leader waits for that leader's session; ckpt-restore makes it.
    fn release_a_lost_leader(&mut self) -> bool {
        let waits = self.lost.values_mut().find(|maker| maker.is_some());
        waits.map(|maker| *maker = None).is_some()
    }

    fn set_session(&mut self, pid: Pid) {
        self.steps.push(Step::Session { pid });
        if let Some(live) = self.live.get_mut(&pid) {
            live.session = pid;
        }
    }

    /// Where nothing moves any more: a leader that waits for children which cannot be made in its first session goes on.
    fn release_a_leader(&mut self) -> bool {
        let Some(pid) = self.waiting.keys().copied().find(|p| self.live.contains_key(p)) else {
            return false;
        };
        self.waiting.remove(&pid);
        self.set_session(pid);
        true
    }

    fn try_make(&mut self, pid: Pid) -> Result<bool, TreeError> {
        let record = self.records[&pid];
        let Some(way) = self.way(record) else { return Ok(false) };
        let maker = match way {
            Way::Fork(maker) => maker,
            Way::Sibling(maker) => Some(maker),
            Way::Orphan { .. } => None,
        };
        let share = self.share(record, maker)?;
        match way {
            Way::Fork(maker) => self.create(pid, maker, false, record.unit, false, share),
            Way::Sibling(maker) => self.create(pid, Some(maker), true, record.unit, false, share),
            Way::Orphan { by, reaper } => self.make_orphan(record, by, reaper)?,
        }
        self.born(pid);
        Ok(true)
    }

    /// Lets leaders lead once all that had to be made before is made.
    fn born(&mut self, pid: Pid) {
        let record = self.records[&pid];
        if record.sid == pid && !self.waiting.contains_key(&pid) {
            self.set_session(pid);
        }
        let Some(parent) = self.parent(pid) else { return };
        if let Some(children) = self.waiting.get_mut(&parent) {
            children.remove(&pid);
            if children.is_empty() {
                self.waiting.remove(&parent);
                self.set_session(parent);
            }
        }
    }

    /// Finds a way that works now.
    fn way(&self, record: &ProcessRecord) -> Option<Way> {
        let parent = self.parent(record.pid);
        let birth = self.birth[&record.pid];
        if let Some(maker) = parent {
            let live = self.live.get(&maker)?;
            if birth.is_none_or(|session| live.session == session) {
                return Some(Way::Fork(Some(maker)));
            }
        } else if birth.is_none() {
            return Some(Way::Fork(None));
        }
        let session = birth?;
        let mut candidates: Vec<(Pid, &Live)> =
            self.live.iter().filter(|(_, l)| l.session == session).map(|(p, l)| (*p, l)).collect();
        // A sibling in the same unit first: it needs no move to another cgroup.
        candidates.sort_by_key(|(pid, l)| (l.unit != record.unit, l.temporary, *pid));
        // A sibling has the exit signal of who makes it; temporary processes have none.
        let siblings = candidates.iter().filter(|(_, l)| l.parent == parent && !l.temporary);
        let signal = |maker: &Pid| self.records.get(maker).map(|r| r.exit_signal);
        if let Some((maker, _)) = siblings.min_by_key(|(pid, _)| signal(pid) != Some(record.exit_signal)) {
            return Some(Way::Sibling(*maker));
        }
        // The parent may still come to the right session, or the right sibling be made: orphans are the last resort.
        let Some(reaper) = parent else {
            return candidates.first().map(|(by, _)| Way::Orphan { by: *by, reaper: None });
        };
        let subreaper = self.records[&reaper].body.as_ref().is_some_and(|b| b.child_subreaper);
        let by = candidates.iter().find(|(pid, _)| subreaper && self.descends(*pid, reaper))?;
        Some(Way::Orphan { by: by.0, reaper: Some(reaper) })
    }

    /// Whether `pid` is below `ancestor` in the tree as it stands.
    fn descends(&self, pid: Pid, ancestor: Pid) -> bool {
        let mut at = Some(pid);
        for _ in 0..=self.live.len() {
            match at {
                Some(p) if p == ancestor => return true,
                Some(p) => at = self.live.get(&p).and_then(|l| l.parent),
                None => return false,
            }
        }
        false
    }

    fn make_orphan(&mut self, record: &ProcessRecord, by: Pid, reaper: Option<Pid>) -> Result<(), TreeError> {
        let middle = self.spare.next().ok_or(TreeError::NoSpare)?;
        if let Some(pid) = reaper {
            self.steps.push(Step::Subreaper { pid, on: true });
        }
        self.create(middle, Some(by), false, record.unit, true, Share::default());
        self.create(record.pid, Some(middle), false, record.unit, false, Share::default());
        self.steps.push(Step::End { pid: middle, waiter: Some(by) });
        self.live.remove(&middle);
        if let Some(live) = self.live.get_mut(&record.pid) {
            live.parent = reaper;
        }
        if let Some(pid) = reaper {
            self.steps.push(Step::Subreaper { pid, on: false });
        }
        Ok(())
    }

    fn create(
        &mut self,
        pid: Pid,
        maker: Option<Pid>,
        sibling: bool,
        unit: UnitIndex,
        temporary: bool,
        share: Share,
    ) {
        self.steps.push(Step::Create { pid, maker, sibling, unit, temporary, share });
        let by = maker.and_then(|m| self.live.get(&m)).copied();
        let parent = if sibling { by.and_then(|l| l.parent) } else { maker };
        let session = by.map_or(Pid(0), |l| l.session);
        self.live.insert(pid, Live { parent, session, unit, temporary });
    }

    /// What the process shares with its maker; an error where it shares with a process that exists and is not its maker.
    fn share(&self, record: &ProcessRecord, maker: Option<Pid>) -> Result<Share, TreeError> {
        let Some(body) = &record.body else { return Ok(Share::default()) };
        let made = maker.and_then(|m| self.records.get(&m)).and_then(|r| r.body.as_ref());
        let others: Vec<_> =
            self.live.keys().filter_map(|p| self.records.get(p)).filter_map(|r| r.body.as_ref()).collect();
        let look = |what, same: &dyn Fn(&ckpt_image::records::ProcessBody) -> bool| {
            if made.is_some_and(same) {
                return Ok(true);
            }
            if others.iter().any(|b| same(b)) {
                Err(TreeError::Sharing { pid: record.pid, what })
            } else {
                Ok(false)
            }
        };
        Ok(Share {
            space: look("memory", &|b| b.space == body.space)?,
            files: look("descriptors", &|b| b.fd_table == body.fd_table)?,
            fs: look("working directory", &|b| b.fs == body.fs)?,
            sighand: look("signal handlers", &|b| b.sighand == body.sighand)?,
        })
    }
}

/// How many members there are from this one upwards; 0: it is none.
fn depth(records: &Records<'_>, pid: Option<Pid>) -> usize {
    let upwards = std::iter::successors(pid, |pid| records.get(pid).map(|r| r.ppid));
    upwards.take_while(|pid| records.contains_key(pid)).take(records.len()).count()
}
