//! Watches that outlive ckptd: systemd keeps their descriptors (sd_pid_notify_with_fds(3), FileDescriptorStoreMax=), and with them for each
//! group a memory file, the ledger, that says what they watch and since when.
//!
//! ```text
//!  checkpoint durable ─► watch-… put there, those of before removed, then the ledger is written
//!  the next one begins ─► the ledger is void: what is armed from here on is stored nowhere yet
//!  ckptd begins anew ──► a ledger that is whole: its watches go on · one that is void: systemd lets all go, the next one is a full
//!
//!  ledger ─ 0 length (u64, 0: void) │ 8 VERSION (u32) │ 12 Ledger as postcard
//! ```
//! The length is written last, so that ckptd may be killed at any instant. Contents that are compared are not in it: they are stored again.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ckpt_image::records::SpaceId;
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use ulid::Ulid;

use super::{Chain, SpaceKey, WatchedSpace, wp_async};
use crate::rebuild::notify::Line;

/// Raise it with any change of [`Ledger`].
const VERSION: u32 = 1;
/// Names of ledgers in systemd's store; that of the group follows.
const LEDGER: &str = "ledger-";
/// Names of watches there.
const WATCH: &str = "watch-";
/// How many watches of a group are kept: systemd compares each new one with all that it has.
const MOST: usize = 256;

/// What a watch is made of again, beside its descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// Its name in systemd's store, which no other has.
    pub name: String,
    /// The runner's pages in the address space: start and end.
    pub area: Option<(u64, u64)>,
    /// Mappings that were registered as a whole.
    pub seen: Vec<(u64, u64)>,
}

impl Trace {
    /// A name that no other watch has.
    pub fn new_name() -> String {
        format!("{WATCH}{}", Ulid::new())
    }
}

/// See the drawing.
#[derive(Debug, Serialize, Deserialize)]
struct Ledger {
    /// The last durable checkpoint.
    parent: String,
    spaces: Vec<(SpaceKey, Option<SpaceId>, Trace)>,
}

/// What systemd keeps for ckptd. Without a systemd that has started us it keeps nothing.
#[derive(Debug)]
pub struct Kept {
    line: Option<Line>,
    groups: Mutex<HashMap<String, OfGroup>>,
}

/// What it keeps of a group.
#[derive(Debug)]
struct OfGroup {
    ledger: File,
    watches: BTreeSet<String>,
}

impl Kept {
    /// Takes what was kept and passed to this process, by name: the chains of groups that go on. All else is let go.
    pub fn open(passed: Vec<(String, OwnedFd)>) -> (Self, HashMap<String, Chain>) {
        let mut kept = Self { line: Line::own().unwrap_or_default(), groups: Mutex::default() };
        let chains = kept.take(passed);
        (kept, chains)
    }

    fn take(&mut self, passed: Vec<(String, OwnedFd)>) -> HashMap<String, Chain> {
        let groups = self.groups.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut chains = HashMap::new();
        let (ledgers, watches): (Vec<_>, Vec<_>) =
            passed.into_iter().partition(|(name, _)| name.starts_with(LEDGER));
        let mut watches: BTreeMap<String, OwnedFd> = watches.into_iter().collect();
        let mut stray: BTreeSet<String> = watches.keys().cloned().collect();
        for (name, fd) in ledgers {
            let Some(group) = name.strip_prefix(LEDGER) else { continue };
            let ledger = File::from(fd);
            let chain = read(&ledger).and_then(|ledger| chain(ledger, &mut watches));
            let names: BTreeSet<String> =
                chain.iter().flat_map(traces).map(|(_, _, trace)| trace.name).collect();
            stray.retain(|name| !names.contains(name));
            groups.insert(group.to_owned(), OfGroup { ledger, watches: names });
            chain.map(|chain| chains.insert(group.to_owned(), chain));
        }
        drop(watches);
        // As long as systemd has them the memory is watched, and nobody else can.
        self.remove(stray);
        chains
    }

    /// Before anything of the group is armed: what is kept does not hold any more.
    pub fn void(&self, group: &str) {
        if let Some(kept) = self.lock().get(group) {
            // A write into memory that is there does not fail.
            let _ = kept.ledger.write_all_at(&0u64.to_le_bytes(), 0);
        }
    }

    /// After a checkpoint of the group is durable. What cannot be kept ends with this process.
    pub fn keep(&self, group: &str, chain: &Chain) {
        let (Some(line), Some(parent)) = (&self.line, chain.parent) else { return };
        let mut groups = self.lock();
        let kept = match groups.entry(group.to_owned()) {
            Entry::Occupied(there) => there.into_mut(),
            Entry::Vacant(place) => match new_ledger(line, group) {
                Ok(ledger) => place.insert(OfGroup { ledger, watches: BTreeSet::new() }),
                Err(_) => return,
            },
        };
        let spaces: Vec<_> = traces(chain).take(MOST).collect();
        let now: BTreeSet<String> = spaces.iter().map(|(_, _, trace)| trace.name.clone()).collect();
        self.remove(kept.watches.difference(&now));
        for (fd, _, trace) in spaces.iter().filter(|(_, _, trace)| !kept.watches.contains(&trace.name)) {
            // One that did not come to systemd is not passed to the next ckptd, for which its space is new.
            let _ = line.store(&trace.name, fd.as_raw_fd());
        }
        kept.watches = now;
        let spaces =
            spaces.into_iter().map(|(_, (key, stored), trace)| (key.clone(), stored, trace)).collect();
        // What could not be written whole is void.
        let _ = write(&kept.ledger, &Ledger { parent: parent.to_string(), spaces });
    }

    /// Lets go what is kept of a group whose watches are gone; nothing of it is watched when this returns.
    pub fn let_go(&self, group: &str) {
        self.void(group);
        let watches = self.lock().get_mut(group).map(|kept| std::mem::take(&mut kept.watches));
        self.remove(watches.unwrap_or_default());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, OfGroup>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has systemd close watches; waits until it has.
    fn remove(&self, names: impl IntoIterator<Item = impl AsRef<str>>) {
        let Some(line) = &self.line else { return };
        let mut any = false;
        for name in names {
            any |= line.say(&format!("FDSTOREREMOVE=1\nFDNAME={}", name.as_ref()), &[]).is_ok();
        }
        if any {
            let _ = line.barrier();
        }
    }
}

/// A watch and what is to be known of it.
type Watching<'c> = (BorrowedFd<'c>, (&'c SpaceKey, Option<SpaceId>), Trace);

/// The watches of a chain that can be kept.
fn traces(chain: &Chain) -> impl Iterator<Item = Watching<'_>> {
    chain.spaces.iter().filter_map(|(key, space)| {
        let (fd, trace) = space.watch.as_ref()?.trace()?;
        Some((fd, (key, space.stored), trace))
    })
}

/// The chain that a ledger tells of, with those watches that are there and whose address spaces still are. `None`: there is none.
fn chain(ledger: Ledger, watches: &mut BTreeMap<String, OwnedFd>) -> Option<Chain> {
    let parent = ledger.parent.parse().ok()?;
    let mut chain = Chain::new(Arc::new(wp_async::WpAsync));
    chain.parent = Some(parent);
    for (key, stored, trace) in ledger.spaces {
        let is_there = SpaceKey::of(nix::unistd::Pid::from_raw(key.pid())).is_ok_and(|now| now == key);
        let Some(fd) = watches.remove(&trace.name).filter(|_| is_there) else { continue };
        if let Some(watch) = wp_async::go_on(key.pid(), fd, trace) {
            chain.spaces.insert(key, WatchedSpace { stored, watch: Some(watch) });
        }
    }
    Some(chain)
}

fn new_ledger(line: &Line, group: &str) -> Result<File, Errno> {
    let file = memfd_create(c"ckpt-ledger", MFdFlags::MFD_CLOEXEC).map(File::from)?;
    line.store(&format!("{LEDGER}{group}"), file.as_raw_fd())?;
    Ok(file)
}

fn write(file: &File, ledger: &Ledger) -> std::io::Result<()> {
    let body = postcard::to_stdvec(ledger).map_err(std::io::Error::other)?;
    file.write_all_at(&0u64.to_le_bytes(), 0)?;
    file.write_all_at(&VERSION.to_le_bytes(), 8)?;
    file.write_all_at(&body, 12)?;
    file.write_all_at(&(body.len() as u64).to_le_bytes(), 0)
}

/// What a ledger says; `None` where it is void, or that of another version of ckpt.
fn read(file: &File) -> Option<Ledger> {
    let mut head = [0; 12];
    file.read_exact_at(&mut head, 0).ok()?;
    let (len, version) = head.split_first_chunk()?;
    let len = u64::from_le_bytes(*len);
    if len == 0 || version != VERSION.to_le_bytes() || len > file.metadata().ok()?.len() {
        return None;
    }
    let mut body = vec![0; len as usize];
    file.read_exact_at(&mut body, 12).ok()?;
    postcard::from_bytes(&body).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::Pid;

    fn ledger() -> Ledger {
        let key = SpaceKey::of(Pid::this()).unwrap();
        let trace = Trace { name: Trace::new_name(), area: Some((4096, 8192)), seen: vec![(0, 4096)] };
        Ledger { parent: Ulid::new().to_string(), spaces: vec![(key, Some(SpaceId(3)), trace)] }
    }

    fn file() -> File {
        memfd_create(c"ckpt-ledger", MFdFlags::MFD_CLOEXEC).map(File::from).unwrap()
    }

    #[test]
    fn a_ledger_is_whole_or_void() {
        let (file, written) = (file(), ledger());
        assert!(read(&file).is_none(), "new");
        write(&file, &written).unwrap();
        let found = read(&file).unwrap();
        assert_eq!((found.parent, found.spaces), (written.parent, written.spaces));
        let kept = OfGroup { ledger: file.try_clone().unwrap(), watches: BTreeSet::new() };
        let all = Kept { line: None, groups: Mutex::new(HashMap::from([("g".to_owned(), kept)])) };
        all.void("g");
        assert!(read(&file).is_none(), "void");
        write(&file, &ledger()).unwrap();
        file.write_all_at(&(VERSION + 1).to_le_bytes(), 8).unwrap();
        assert!(read(&file).is_none(), "of another version");
    }

    #[test]
    fn a_watch_that_is_not_there_is_left_out_and_what_is_written_counts() {
        let file = file();
        write(&file, &ledger()).unwrap();
        let passed = vec![
            (format!("{LEDGER}g"), file.into()),
            ("watch-stray".to_owned(), File::open("/dev/null").unwrap().into()),
        ];
        let (_, chains) = Kept::open(passed);
        assert!(chains["g"].parent.is_some() && chains["g"].spaces.is_empty());
    }
}
