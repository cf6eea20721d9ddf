//! epoll(7). An interest list is keyed by description and by the number the target had when it was added, so items are added from
//! that number.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;

use ckpt_image::records::{DescriptionId, DescriptionKind, DescriptionRecord, EpollItem, EpollRecord};
use ckpt_sys::descriptor::{
    self, Place,
    fdinfo::{self, EpollLine},
    make, socket,
};
use nix::libc;

use super::collect::{Depth, DescriptorCapture, Found};
use super::rebuild::Rebuild;
use super::{Error, Refusal};

/// Bits that the kernel adds to every armed item.
const ALWAYS: u32 = (libc::EPOLLERR | libc::EPOLLHUP) as u32;

pub(super) fn capture(cx: &mut DescriptorCapture<'_>, found: &Found) -> Result<DescriptionKind, Refusal> {
    let mut nth: HashMap<i32, u32> = HashMap::new();
    let mut items = Vec::with_capacity(found.info.epoll.len());
    for line in &found.info.epoll {
        let n = nth.entry(line.fd).or_default();
        match target(cx, found, line, *n) {
            Some(target) => {
                items.push(EpollItem { fd: line.fd, target, events: line.events, data: line.data });
            }
            None if cx.depth == Depth::Surface && has_moved_on(found.place, line, *n) => {}
            None => {
                return Err(Refusal::new(
                    "epoll-target",
                    format!("what it watches as descriptor {} is not open in the group", line.fd),
                    "remove descriptors from epoll before closing them",
                ));
            }
        }
        *n += 1;
    }
    Ok(DescriptionKind::Epoll(EpollRecord { items }))
}

/// The target is as a rule what the process has at that number still; else any description with the same inode.
fn target(cx: &DescriptorCapture<'_>, epoll: &Found, line: &EpollLine, nth: u32) -> Option<DescriptionId> {
    let is = |id: &DescriptionId| {
        let place = cx.found(*id).place;
        descriptor::is_epoll_target(epoll.place, line.fd, nth, place).unwrap_or(false)
    };
    let usual = cx.at(Place { pid: epoll.place.pid, fd: line.fd });
    usual.filter(is).or_else(|| cx.with_ino(line.ino).iter().copied().find(is))
}

/// Whether a running process has accepted the target since its descriptors were listed, or has closed it since the item was read.
fn has_moved_on(epoll: Place, line: &EpollLine, nth: u32) -> bool {
    let at_its_number = Place { pid: epoll.pid, fd: line.fd };
    if descriptor::is_epoll_target(epoll, line.fd, nth, at_its_number).unwrap_or(false) {
        return true;
    }
    let path = format!("/proc/{}/fdinfo/{}", epoll.pid, epoll.fd);
    let now = ckpt_sys::proc_file::read_text(path).ok().and_then(|text| fdinfo::parse(&text).ok());
    let is_it = |item: &EpollLine| (item.fd, item.ino) == (line.fd, line.ino);
    now.is_none_or(|info| !info.epoll.iter().any(is_it))
}

pub(super) fn create(cx: &mut Rebuild<'_>, record: &DescriptionRecord) -> Result<(), Error> {
    let fd = make::epoll().map_err(Error::call("epoll_create1", cx.describe(record)))?;
    cx.put(record.id, fd)
}

/// Adds the items whose targets exist now; those of late targets are added in the members. Disarmed items come first, while nothing
/// else of the instance can be ready.
pub(super) fn watch(cx: &Rebuild<'_>, record: &DescriptionRecord, epoll: &EpollRecord) -> Result<(), Error> {
    let instance = cx.get(record.id)?;
    let (armed, disarmed): (Vec<&EpollItem>, Vec<&EpollItem>) =
        epoll.items.iter().filter(|item| cx.has(item.target)).partition(|item| item.events & ALWAYS != 0);
    for item in disarmed.into_iter().chain(armed) {
        let target = cx.get(item.target)?;
        let added = descriptor::at_number(target, item.fd, || {
            if item.events & ALWAYS != 0 {
                make::epoll_add(instance, item.fd, item.events, item.data)
            } else {
                add_disarmed(instance, target, item)
            }
        });
        added.map_err(Error::call("epoll_ctl", format!("{}, item {}", cx.describe(record), item.fd)))?;
    }
    Ok(())
}

/// An EPOLLONESHOT item is disarmed by firing: it is added for what the target is ready for, and the event is taken. A target that is
/// ready for nothing stays armed for errors and hang-ups, which is all it would tell.
fn add_disarmed(
    instance: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    item: &EpollItem,
) -> descriptor::Result<()> {
    let ready = socket::ready(target, libc::POLLIN | libc::POLLOUT)?;
    let events = item.events | ready as u16 as u32;
    make::epoll_add(instance, item.fd, events, item.data)?;
    if ready != 0 {
        make::epoll_take(instance)?;
    }
    Ok(())
}
