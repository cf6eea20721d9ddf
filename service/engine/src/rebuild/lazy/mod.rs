//! Lazy restore: members run before their memory is there; it comes when it is touched, and all of it meanwhile.
//!
//! ```text
//!  rebuild:  mappings made ► hot pages put there ► userfaultfd in the member, taken ► the rest registered as missing ► keeper ► release
//!  keeper:   a page that is touched, from the image, checked ► put there        ┐ until nothing is missing; then the userfaultfds are
//!            all others, in order                            ► put there        ┘ closed and the memory is like any other
//! ```
//! Only private anonymous memory comes late, and only where nothing asks for it before: not what is locked, sealed, guarded, wiped on fork or
//! huge by hugetlbfs. Why not a private mapping of the image, which would need no helper: pages given back by madvise(MADV_DONTNEED)
//! would show the image again, where they must be zero. What makes a userfaultfd as robust: systemd itself has each of them ([`store`]).

pub mod absent;
mod estate;
pub mod guard;
mod hot;
pub mod keeper;
pub mod mark;
pub mod server;
pub mod store;

use std::collections::BTreeSet;

use std::os::fd::{AsFd, RawFd};

use ckpt_image::PageReader;
use ckpt_image::records::{GroupImage, MappingKind, MappingRecord, SpaceRecord};
use ckpt_sys::clone::{pidfd, take_descriptor};
use ckpt_sys::missing::{FLAGS, Missing};
use ckpt_sys::{AddrRange, VirtAddr};
use nix::libc;

pub use absent::Absent;
pub use guard::Helpers;
pub use mark::{Lazily, Mark};
pub use server::Server;

use super::memory::{Ground, Heritage, Script, script_with};
use super::{Failure, Member};

/// An address space with less than this to come late is not worth a userfaultfd.
const LEAST_OF_SPACE: u64 = 64;

/// The scripts of all spaces, which have what they inherit; lazily where that is asked for and pays.
pub fn scripts(
    image: &GroupImage,
    pages: &PageReader,
    (ground, heritage): (&Ground, &Heritage),
    lazily: Option<&Lazily>,
) -> Result<Vec<Script>, Failure> {
    let script = |space: &SpaceRecord, hot: Option<&BTreeSet<u64>>| {
        script_with(space, &image.objects, pages, ground, (heritage.left(space.id), hot))
    };
    let eager = |space: &SpaceRecord| script(space, None);
    let Some(lazily) = lazily else { return image.spaces.iter().map(eager).collect() };
    let mut scripts = Vec::new();
    for space in &image.spaces {
        let hot: BTreeSet<u64> = hot::pages(image, space.id, pages);
        let late = script(space, Some(&hot))?;
        let enough = late.absent.pages() >= LEAST_OF_SPACE.min(lazily.least / ckpt_image::PAGE_SIZE);
        scripts.push(if enough && !late.absent.is_empty() { late } else { eager(space)? });
    }
    let bytes = absent_bytes(&scripts);
    match bytes >= lazily.least {
        true => Ok(scripts),
        false => image.spaces.iter().map(eager).collect(),
    }
}

/// Has who touches a page of a space that comes late wait for it; the script has run. Gives the userfaultfd.
pub fn watch(member: &mut Member, script: &Script) -> Result<Missing, Failure> {
    let number = member.call("watch missing pages", libc::SYS_userfaultfd, [FLAGS, 0, 0, 0, 0, 0])?;
    let process = pidfd(member.tid())?;
    let taken = take_descriptor(process.as_fd(), number as RawFd)
        .map_err(|e| Failure::not_restorable(format!("take its userfaultfd: {e}")).of_pid(member.pid.0))?;
    member.call("close a descriptor", libc::SYS_close, [number, 0, 0, 0, 0, 0])?;
    let missing = Missing::agree(taken)?;
    for (start, end) in &script.watched {
        missing.register(AddrRange { start: VirtAddr(*start), end: VirtAddr(*end) })?;
    }
    Ok(missing)
}

/// What comes late.
pub fn absent_bytes(scripts: &[Script]) -> u64 {
    scripts.iter().map(|script| script.absent.pages() * ckpt_image::PAGE_SIZE).sum()
}

/// Whether pages of a mapping may come late.
pub fn may_be_late(space: &SpaceRecord, mapping: &MappingRecord) -> bool {
    let flags = mapping.flags;
    mapping.kind == MappingKind::Anonymous
        && !mapping.shared
        && mapping.guards.is_empty()
        && space.mlock_future == 0
        && flags.hugetlb == 0
        && !(flags.locked
            || flags.lock_on_fault
            || flags.droppable
            || flags.sealed
            || flags.wipe_on_fork
            || flags.grows_down
            || flags.mergeable)
}
