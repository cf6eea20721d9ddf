//! pidfd_open(2) of a member. It is made in the members that hold it, when its target is there: see [`late`](super::late). One whose process
//! was waited for is one like any other such.

use ckpt_image::records::{DescriptionKind, PidfdRecord};

use super::Refusal;
use super::collect::{Depth, DescriptorCapture, Found};

pub(super) fn capture(cx: &mut DescriptorCapture<'_>, found: &Found) -> Result<DescriptionKind, Refusal> {
    let remedy = "close it before the checkpoint";
    let member = found.info.pid.and_then(|pid| cx.identities().member(pid));
    match found.info.pid {
        _ if let Some(pid) = member => Ok(DescriptionKind::Pidfd(PidfdRecord { pid })),
        Some(pid) if pid > 0 && is_zombie_of_member(cx, pid) => {
            Ok(DescriptionKind::Pidfd(PidfdRecord { pid: cx.identities().known(pid) }))
        }
        Some(pid) if pid > 0 => {
            let text = format!("it refers to process {pid}, which is not of the group");
            Err(Refusal::new("pidfd-outside", text, remedy))
        }
        Some(-1) => Ok(DescriptionKind::PidfdGone),
        _ => {
            let text = "it refers to a process of another PID namespace";
            Err(Refusal::new("pidfd-outside", text, remedy))
        }
    }
}

/// Whether it has ended and a member has not waited for it yet. While the group runs, members are those in its cgroups, which show no
/// zombies.
fn is_zombie_of_member(cx: &DescriptorCapture<'_>, pid: i32) -> bool {
    let text = ckpt_sys::proc_file::read_text(format!("/proc/{pid}/stat")).unwrap_or_default();
    let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let mut words = rest.split_ascii_whitespace();
    let zombie = words.next() == Some("Z");
    let parent = words.next().and_then(|word| word.parse().ok());
    zombie
        && cx.depth == Depth::Surface
        && parent.is_some_and(|parent| cx.identities().member(parent).is_some())
}
