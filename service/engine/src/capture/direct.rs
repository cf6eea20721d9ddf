//! Processes whose memory devices write themselves: by io_uring(7), or by read(2) from a file that is open with O_DIRECT.
//!
//! ```text
//!  read begins: pages are written, for the tracker ─► a round arms and copies them ─► the device writes ─► nobody has seen it
//! ```
//! So they are not looked at in rounds while they run. In the window no thread is in a call and no request is under way, so what is
//! armed there is armed for good.

use ckpt_sys::descriptor::fdinfo;
use ckpt_sys::proc_file;
use nix::libc;

use crate::kinds;

/// Whether a process has something open by which that may happen.
pub fn writes_directly(pid: i32) -> bool {
    kinds::numbers(pid).unwrap_or_default().into_iter().any(|fd| {
        std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).is_ok_and(|link| {
            kinds::is_ring(&link) || link.is_absolute() && is_direct(&format!("/proc/{pid}/fdinfo/{fd}"))
        })
    })
}

fn is_direct(info: &str) -> bool {
    let info = proc_file::read_text(info).ok().and_then(|text| fdinfo::parse(&text).ok());
    info.is_some_and(|info| info.flags & libc::O_DIRECT as u32 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::OpenOptionsExt;

    #[test]
    fn an_open_file_that_is_read_directly_is_seen() {
        let path = std::env::temp_dir().join(format!("ckpt-direct-{}", std::process::id()));
        std::fs::write(&path, "x").unwrap();
        // This process has other tests' files open: only what must be true is asked for.
        let direct = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path);
        std::fs::remove_file(&path).unwrap();
        let Ok(_direct) = direct else { return eprintln!("skipped: no direct reads in {}", path.display()) };
        assert!(writes_directly(std::process::id() as i32));
        assert!(!writes_directly(1 << 30));
    }
}
