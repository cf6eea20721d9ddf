//! What the members know processes by, where they live in a PID namespace of their own.
//!
//! A group whose ids were taken at its restore lives in a PID namespace that ckpt-restore made for it. Of each of its processes we see
//! another id than its members do, and theirs is what an image holds. Members that were started anew since live beside us: the ids
//! of both kinds make one picture as long as no two are equal.

use std::collections::{HashMap, HashSet};

use ckpt_image::records::Pid;

use super::text::{self, Ids, Status};

/// The ids of a group's processes, threads, process groups and sessions: ours, and those that its members know.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identities {
    inner: HashMap<i32, i32>,
    members: HashSet<i32>,
    nested: bool,
}

impl Identities {
    /// Those of processes that live in our PID namespace.
    pub fn same(pids: impl IntoIterator<Item = i32>) -> Self {
        let members: HashSet<_> = pids.into_iter().collect();
        Self { inner: HashMap::new(), members, nested: false }
    }

    /// Those of processes that run: what /proc tells now. One that is gone is left out.
    pub fn look(pids: impl IntoIterator<Item = i32>) -> Self {
        let mut identities = Self::default();
        for pid in pids {
            if let Ok(text) = ckpt_sys::proc_file::read(format!("/proc/{pid}/status")) {
                identities.add(&text::parse_status(&text));
            }
        }
        identities
    }

    /// Adds a thread of a member.
    pub fn add(&mut self, status: &Status) {
        self.members.insert(status.outer.pid);
        if status.pid_namespaces > 1 {
            self.nested = true;
            self.inner.extend(pairs(status).into_iter().filter(|(outer, inner)| *outer != 0 && *inner != 0));
        }
    }

    /// Our ids of the members' threads that were met: of each process its own at least.
    pub fn members(&self) -> impl Iterator<Item = i32> {
        self.members.iter().copied()
    }

    /// The id by which members know this member; `None` if the process is not of the group.
    pub fn member(&self, outer: i32) -> Option<Pid> {
        self.members.contains(&outer).then(|| self.known(outer))
    }

    /// The id by which members know this process, thread, process group or session; 0, as in the members' own view, where it is of
    /// another PID namespace than theirs.
    pub fn known(&self, outer: i32) -> Pid {
        match self.inner.get(&outer) {
            Some(inner) => Pid(*inner),
            None if self.nested && !self.members.contains(&outer) => Pid(0),
            None => Pid(outer),
        }
    }

    /// The parent as a member sees it: PID 1 where it is not of the group and the member lives in a namespace of its own.
    pub fn parent(&self, outer: i32) -> Pid {
        match self.known(outer) {
            Pid(0) => Pid(1),
            known => known,
        }
    }

    /// The member that has this id in the members' own view.
    pub fn member_inside(&self, inner: i32) -> Option<Pid> {
        let of = |outer: &&i32| self.known(**outer) == Pid(inner);
        self.members.iter().find(of).map(|_| Pid(inner))
    }
}

/// Ours and theirs, of one thread.
fn pairs(status: &Status) -> [(i32, i32); 4] {
    let Ids { tid, pid, pgid, sid } = status.inner;
    let outer = status.outer;
    [(outer.tid, tid), (outer.pid, pid), (outer.pgid, pgid), (outer.sid, sid)]
}

/// The ids that occur twice: in the PID namespace of some members, and in ours for others. `statuses`: of all threads of all members.
pub fn collisions<'s>(statuses: impl IntoIterator<Item = &'s Status>) -> Vec<i32> {
    let (mut ours, mut theirs) = (HashSet::new(), HashSet::new());
    for status in statuses {
        let Ids { tid, pid, pgid, sid } = status.inner;
        let set = if status.pid_namespaces > 1 { &mut theirs } else { &mut ours };
        set.extend([tid, pid, pgid, sid].into_iter().filter(|id| *id != 0));
    }
    let mut both: Vec<_> = ours.intersection(&theirs).copied().collect();
    both.sort_unstable();
    both
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thread(outer: [i32; 4], inner: [i32; 4]) -> Status {
        let ids = |[tid, pid, pgid, sid]: [i32; 4]| Ids { tid, pid, pgid, sid };
        let pid_namespaces = if outer == inner { 1 } else { 2 };
        Status { outer: ids(outer), inner: ids(inner), pid_namespaces, ..Status::default() }
    }

    #[test]
    fn in_our_namespace_every_id_is_what_it_is() {
        let ids = Identities::same([7]);
        assert_eq!((ids.member(7), ids.member(8)), (Some(Pid(7)), None));
        assert_eq!((ids.known(8), ids.parent(1)), (Pid(8), Pid(1)));
        assert_eq!((ids.member_inside(7), ids.member_inside(8)), (Some(Pid(7)), None));
    }

    #[test]
    fn in_a_nested_one_members_count_by_their_own_ids_and_others_not_at_all() {
        let mut ids = Identities::default();
        ids.add(&thread([900, 900, 900, 900], [40, 40, 40, 40]));
        ids.add(&thread([901, 900, 900, 900], [41, 40, 40, 40]));
        ids.add(&thread([77, 77, 77, 77], [77, 77, 77, 77]));
        assert_eq!((ids.member(900), ids.member(901), ids.member(77)), (Some(Pid(40)), None, Some(Pid(77))));
        assert_eq!((ids.known(901), ids.known(5)), (Pid(41), Pid(0)));
        assert_eq!((ids.parent(5), ids.parent(900)), (Pid(1), Pid(40)));
        assert_eq!((ids.member_inside(40), ids.member_inside(900)), (Some(Pid(40)), None));
    }

    #[test]
    fn ids_collide_between_namespaces_only() {
        let nested = thread([900, 900, 900, 900], [40, 40, 40, 40]);
        let same = thread([901, 900, 900, 900], [41, 40, 40, 40]);
        assert!(collisions([&nested, &same]).is_empty());
        let ours = thread([41, 41, 41, 41], [41, 41, 41, 41]);
        assert_eq!(collisions([&nested, &same, &ours]), [41]);
    }
}
