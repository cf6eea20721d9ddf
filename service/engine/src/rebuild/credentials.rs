//! Credentials of a thread, in the one order in which every step is still permitted (capabilities(7)).
//!
//! ```text
//!  keep capabilities over changes of uid (NO_SETUID_FIXUP) ► bounding set ► groups, gids, uids
//!  ► capabilities, with CAP_SETPCAP on top ► ambient set ► secure bits ► capabilities exactly
//! ```

use ckpt_image::records::Credentials;
use ckpt_sys::batch::Batch;
use nix::libc;

use crate::capture::text::parse_status;

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;
const CAP_SETPCAP: u64 = 1 << 8;
/// SECBIT_NO_SETUID_FIXUP.
const NO_SETUID_FIXUP: u64 = 1 << 2;
/// Capabilities that a kernel may have: CAP_CHECKPOINT_RESTORE is 40.
const CAPABILITIES: u64 = 64;
const PR_CAP_AMBIENT: u64 = 47;
const PR_CAP_AMBIENT_RAISE: u64 = 2;
const PR_CAP_AMBIENT_CLEAR_ALL: u64 = 4;

/// More calls than set all credentials of a thread.
pub const CALLS: usize = 2 * CAPABILITIES as usize + 16;

/// Bytes that the calls for these credentials need.
pub fn bytes(wanted: &Credentials) -> usize {
    4 * wanted.groups.len() + 256
}

/// What members have from this process, which makes them; `None` where that cannot be read.
pub fn ours() -> Option<Credentials> {
    let status = ckpt_sys::proc_file::read("/proc/self/status").ok()?;
    let securebits = ckpt_sys::attributes::secure_bits().ok()?;
    Some(Credentials { securebits, ..parse_status(&status).credentials })
}

/// What is known of the credentials that a thread has before its own are set.
#[derive(Debug, Clone, Copy)]
pub enum Now<'a> {
    /// Nothing.
    Unknown,
    /// The ids: a thread in a user namespace has some that it could not set itself.
    Ids(&'a Credentials),
    /// Everything.
    All(&'a Credentials),
}

impl<'a> Now<'a> {
    fn ids(self) -> Option<&'a Credentials> {
        match self {
            Self::Unknown => None,
            Self::Ids(now) | Self::All(now) => Some(now),
        }
    }

    fn all(self) -> Option<&'a Credentials> {
        match self {
            Self::All(now) => Some(now),
            Self::Unknown | Self::Ids(_) => None,
        }
    }
}

/// Sets all credentials of a thread that has all privileges still. Each change costs the kernel a copy of all of them, so what is right now
/// is left, where that is known.
pub fn set(batch: &mut Batch, wanted: &Credentials, now: Now<'_>) {
    if now.all() == Some(wanted) {
        return;
    }
    let [inheritable, permitted, effective, bounding, ambient] = wanted.caps;
    let had = now.all().map_or(u64::MAX, |now| now.caps[3]);
    batch.must(libc::SYS_prctl, [libc::PR_SET_SECUREBITS as u64, NO_SETUID_FIXUP, 0, 0, 0, 0]);
    for cap in (0..CAPABILITIES).filter(|cap| had & !bounding & (1 << cap) != 0) {
        // EINVAL past the last capability of this kernel.
        batch.push(libc::SYS_prctl, [libc::PR_CAPBSET_DROP as u64, cap, 0, 0, 0, 0]);
    }
    ids(batch, wanted, now.ids());
    let still = permitted | CAP_SETPCAP;
    capset(batch, inheritable, still, still);
    batch.must(libc::SYS_prctl, [PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0, 0]);
    for cap in (0..CAPABILITIES).filter(|cap| ambient & (1 << cap) != 0) {
        batch.must(libc::SYS_prctl, [PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0, 0]);
    }
    batch.must(libc::SYS_prctl, [libc::PR_SET_SECUREBITS as u64, u64::from(wanted.securebits), 0, 0, 0, 0]);
    capset(batch, inheritable, permitted, effective);
}

/// Sets the ids alone, and keeps all capabilities, of a thread that is to go into a user namespace, where it gets these anew.
pub fn set_ids(batch: &mut Batch, wanted: &Credentials) {
    batch.must(libc::SYS_prctl, [libc::PR_SET_SECUREBITS as u64, NO_SETUID_FIXUP, 0, 0, 0, 0]);
    ids(batch, wanted, None);
}

fn ids(batch: &mut Batch, wanted: &Credentials, now: Option<&Credentials>) {
    let differs = |same: fn(&Credentials, &Credentials) -> bool| now.is_none_or(|now| !same(now, wanted));
    if differs(|a, b| a.groups == b.groups) {
        let groups: Vec<u8> = wanted.groups.iter().flat_map(|g| g.to_le_bytes()).collect();
        let at = batch.data(&groups);
        batch.must(libc::SYS_setgroups, [wanted.groups.len() as u64, at.get(), 0, 0, 0, 0]);
    }
    if differs(|a, b| a.gids == b.gids) {
        let [rgid, egid, sgid, fsgid] = wanted.gids.map(u64::from);
        batch.must(libc::SYS_setresgid, [rgid, egid, sgid, 0, 0, 0]);
        batch.must(libc::SYS_setfsgid, [fsgid, 0, 0, 0, 0, 0]);
    }
    if differs(|a, b| a.uids == b.uids) {
        let [ruid, euid, suid, fsuid] = wanted.uids.map(u64::from);
        batch.must(libc::SYS_setresuid, [ruid, euid, suid, 0, 0, 0]);
        batch.must(libc::SYS_setfsuid, [fsuid, 0, 0, 0, 0, 0]);
    }
}

/// capset(2) of the calling thread.
fn capset(batch: &mut Batch, inheritable: u64, permitted: u64, effective: u64) {
    let mut header = CAPABILITY_VERSION_3.to_le_bytes().to_vec();
    header.extend(0u32.to_le_bytes());
    let header = batch.data(&header);
    let mut data = Vec::with_capacity(24);
    for half in [0, 32] {
        for set in [effective, permitted, inheritable] {
            data.extend(((set >> half) as u32).to_le_bytes());
        }
    }
    let data = batch.data(&data);
    batch.must(libc::SYS_capset, [header.get(), data.get(), 0, 0, 0, 0]);
}
