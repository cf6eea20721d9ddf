//! System V semaphore sets of the caller's IPC namespace (sysvipc(7), semctl(2)).

use nix::errno::Errno;

use crate::error::{Error, Result, Subject};
use crate::sysctl::write_sysctl;

const LIST: &str = "/proc/sysvipc/sem";

/// One set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SemaphoreSet {
    /// Its id.
    pub semid: i32,
    /// Its key, 0 for IPC_PRIVATE.
    pub key: i32,
    /// Permission bits.
    pub mode: u32,
    /// Owner uid, gid, creator uid, gid.
    pub owner: [u32; 4],
    /// The values.
    pub values: Vec<u16>,
    /// Who did the last operation on each, in our PID namespace; 0 nobody, or somebody who is not in it. Not restored.
    pub pids: Vec<i32>,
}

fn fail(op: &'static str) -> Error {
    Error::Kernel { op, subject: Subject::Here, source: Errno::last() }
}

/// All sets. One that is removed meanwhile is left out.
pub fn sets() -> Result<Vec<SemaphoreSet>> {
    let text = crate::proc_file::read_text(LIST).map_err(|e| Error::io("read", LIST, &e))?;
    let mut sets = Vec::new();
    for (mut set, count) in parse_list(&text) {
        set.values = vec![0; count];
        // SAFETY: values has room for as many numbers as the set has semaphores, which never changes.
        if unsafe { libc::semctl(set.semid, 0, libc::GETALL, set.values.as_mut_ptr()) } < 0 {
            match Errno::last() {
                Errno::EINVAL | Errno::EIDRM => continue,
                _ => return Err(fail("semctl GETALL")),
            }
        }
        // SAFETY: no pointers.
        let pid = |n| unsafe { libc::semctl(set.semid, n, libc::GETPID) };
        set.pids = (0..count as i32).map(|n| pid(n).max(0)).collect();
        sets.push(set);
    }
    Ok(sets)
}

/// The lines of /proc/sysvipc/sem (key semid perms nsems uid gid cuid cgid …) with the number of semaphores.
fn parse_list(text: &str) -> Vec<(SemaphoreSet, usize)> {
    let line = |line: &str| {
        let field: Vec<&str> = line.split_ascii_whitespace().collect();
        let number = |at: usize| field.get(at)?.parse::<u32>().ok();
        let set = SemaphoreSet {
            key: field.first()?.parse::<i64>().ok()? as i32,
            semid: field.get(1)?.parse().ok()?,
            mode: u32::from_str_radix(field.get(2)?, 8).ok()?,
            owner: [number(4)?, number(5)?, number(6)?, number(7)?],
            ..SemaphoreSet::default()
        };
        // SEMMSL is 32,000 unless raised; more than this is no set.
        let count = field.get(3)?.parse().ok().filter(|n| (1..=65_536).contains(n))?;
        Some((set, count))
    };
    text.lines().skip(1).filter_map(line).collect()
}

/// What the kernel tells of a set; `None` if there is none of that id.
fn status(semid: i32) -> Result<Option<libc::semid_ds>> {
    // SAFETY: semid_ds is plain numbers, for which zero is a value.
    let mut ds: libc::semid_ds = unsafe { std::mem::zeroed() };
    // SAFETY: ds outlives the call.
    if unsafe { libc::semctl(semid, 0, libc::IPC_STAT, &raw mut ds) } >= 0 {
        return Ok(Some(ds));
    }
    match Errno::last() {
        Errno::EINVAL | Errno::EIDRM => Ok(None),
        source => Err(Error::Kernel { op: "semctl IPC_STAT", subject: Subject::Here, source }),
    }
}

impl SemaphoreSet {
    /// Makes it in the caller's IPC namespace, or gives the one that is there its values and owner back.
    ///
    /// Errors: EEXIST where a set of another creator has its id or key; ENOENT where the kernel does not let the id be chosen.
    pub fn restore(&self) -> Result<()> {
        let mut found = false;
        // Asked one by one: a list of all, for each of thousands, takes minutes.
        for semid in std::iter::once(self.semid).chain(self.of_the_key()) {
            let Some(there) = status(semid)? else { continue };
            if there.sem_perm.cuid != self.owner[2] {
                let source = Errno::EEXIST;
                return Err(Error::Kernel {
                    op: "make a semaphore set with its old id",
                    subject: Subject::Here,
                    source,
                });
            }
            let own = (self.semid, self.key, self.values.len() as u64);
            if (semid, there.sem_perm.__key, there.sem_nsems) == own {
                found = true;
            } else {
                // SAFETY: IPC_RMID takes no buffer.
                unsafe { libc::semctl(semid, 0, libc::IPC_RMID) };
            }
        }
        if !found {
            self.make()?;
        }
        self.set()
    }

    /// The set that has its key.
    fn of_the_key(&self) -> Option<i32> {
        // SAFETY: no pointers.
        (self.key != 0).then(|| unsafe { libc::semget(self.key, 0, 0) }).filter(|id| *id >= 0)
    }

    fn make(&self) -> Result<()> {
        write_sysctl("kernel/sem_next_id", &self.semid.to_string())?;
        let flags = libc::IPC_CREAT | libc::IPC_EXCL | (self.mode & 0o777) as i32;
        // SAFETY: no pointers.
        let id = unsafe { libc::semget(self.key, self.values.len() as i32, flags) };
        if id < 0 {
            return Err(fail("semget"));
        }
        if id != self.semid {
            // SAFETY: IPC_RMID takes no buffer.
            unsafe { libc::semctl(id, 0, libc::IPC_RMID) };
            let source = Errno::EEXIST;
            return Err(Error::Kernel { op: "semget with the old id", subject: Subject::Here, source });
        }
        Ok(())
    }

    fn set(&self) -> Result<()> {
        // SAFETY: values holds one number for each semaphore of the set, as checked or made so.
        if unsafe { libc::semctl(self.semid, 0, libc::SETALL, self.values.as_ptr()) } < 0 {
            return Err(fail("semctl SETALL"));
        }
        // SAFETY: semid_ds is plain numbers, for which zero is a value.
        let mut ds: libc::semid_ds = unsafe { std::mem::zeroed() };
        ds.sem_perm.uid = self.owner[0];
        ds.sem_perm.gid = self.owner[1];
        ds.sem_perm.mode = (self.mode & 0o777) as _;
        // SAFETY: ds outlives the call, which only reads it.
        if unsafe { libc::semctl(self.semid, 0, libc::IPC_SET, &raw mut ds) } < 0 {
            return Err(fail("semctl IPC_SET"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read() {
        let text = "       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime\n\
                    \x20        0          3   600          2     1     2     3     4          0 1700000000\n\
                    broken 1 2\n";
        let sets = parse_list(text);
        assert_eq!(sets.len(), 1);
        let (set, count) = &sets[0];
        assert_eq!((set.semid, set.mode, set.owner, *count), (3, 0o600, [1, 2, 3, 4], 2));
    }

    #[test]
    fn a_set_comes_back_with_its_id_and_values() {
        // In an IPC namespace of our own: ids of the host are not ours to take.
        std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWIPC).unwrap();
            let set = SemaphoreSet {
                semid: 32_800,
                key: 0x77,
                mode: 0o640,
                owner: [5, 6, 0, 0],
                values: vec![1, 2, 3],
                pids: vec![],
            };
            set.restore().unwrap();
            let me = std::process::id() as i32;
            let there = || SemaphoreSet { pids: vec![], ..sets().unwrap().remove(0) };
            assert_eq!((there(), sets().unwrap()[0].pids[0]), (set.clone(), me));
            // It is there: only its values are put back.
            SemaphoreSet { values: vec![9, 9, 9], ..set.clone() }.restore().unwrap();
            set.restore().unwrap();
            assert_eq!((sets().unwrap().len(), there()), (1, set.clone()));
            // Made anew by its owner meanwhile, with the same key.
            let other = SemaphoreSet { semid: 7, values: vec![0], ..set.clone() };
            other.restore().unwrap();
            set.restore().unwrap();
            assert_eq!((sets().unwrap().len(), there()), (1, set));
        })
        .join()
        .unwrap();
    }
}
