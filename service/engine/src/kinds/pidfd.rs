//! pidfd_open(2) of a member. It is made in the members that hold it, when its target is there: see [`late`](super::late).

use ckpt_image::records::{DescriptionKind, PidfdRecord};

use super::Refusal;
use super::collect::{DescriptorCapture, Found};

pub(super) fn capture(cx: &mut DescriptorCapture<'_>, found: &Found) -> Result<DescriptionKind, Refusal> {
    let remedy = "close it before the checkpoint";
    let member = found.info.pid.and_then(|pid| cx.identities().member(pid));
    match found.info.pid {
        _ if let Some(pid) = member => Ok(DescriptionKind::Pidfd(PidfdRecord { pid })),
        Some(pid) if pid > 0 => {
            let text = format!("it refers to process {pid}, which is not of the group");
            Err(Refusal::new("pidfd-outside", text, remedy))
        }
        _ => Err(Refusal::new("pidfd-gone", "it refers to a process that is gone", remedy)),
    }
}
