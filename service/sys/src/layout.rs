//! Addresses that the kernel keeps of an address space: proc_pid_stat(5), the fields that PR_SET_MM_MAP takes, without brk.

use std::fs;

use nix::unistd::Pid;

use crate::error::{Error, Result};

/// struct prctl_mm_map as far as /proc/PID/stat tells it; addresses. brk is told by brk(2) inside the process only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)] // the names are those of struct prctl_mm_map
pub struct Layout {
    pub start_code: u64,
    pub end_code: u64,
    pub start_data: u64,
    pub end_data: u64,
    pub start_brk: u64,
    pub start_stack: u64,
    pub arg_start: u64,
    pub arg_end: u64,
    pub env_start: u64,
    pub env_end: u64,
}

/// Reads the layout of a process. Zeros without the rights of ptrace(2). [`Error::Gone`] if there is no such task.
pub fn layout(tid: Pid) -> Result<Layout> {
    let path = format!("/proc/{tid}/stat");
    match fs::read(&path) {
        Ok(text) => {
            let what = || String::from_utf8_lossy(&text).into_owned();
            parse_layout(&text).ok_or_else(|| Error::Parse { path: path.into(), what: what() })
        }
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => Err(Error::Gone(tid)),
        Err(e) => Err(Error::io("read", path, &e)),
    }
}

/// Parses /proc/PID/stat; the name in parentheses may hold anything.
#[must_use]
pub fn parse_layout(text: &[u8]) -> Option<Layout> {
    let close = text.iter().rposition(|byte| *byte == b')')?;
    let fields: Vec<&str> = std::str::from_utf8(&text[close + 1..]).ok()?.split_ascii_whitespace().collect();
    // The first after the name is field 3.
    let field = |number: usize| fields.get(number - 3)?.parse().ok();
    Some(Layout {
        start_code: field(26)?,
        end_code: field(27)?,
        start_stack: field(28)?,
        start_data: field(45)?,
        end_data: field(46)?,
        start_brk: field(47)?,
        arg_start: field(48)?,
        arg_end: field(49)?,
        env_start: field(50)?,
        env_end: field(51)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_from_behind_the_name() {
        let numbers: Vec<String> =
            (3..=52).map(|n| if n == 3 { "S".into() } else { (n * 10).to_string() }).collect();
        let text = format!("12 (a) b) S 1) {}", numbers.join(" "));
        let layout = parse_layout(text.as_bytes()).unwrap();
        assert_eq!(
            (layout.start_code, layout.start_stack, layout.start_brk, layout.env_end),
            (260, 280, 470, 510)
        );
        assert!(parse_layout(b"12 (a) S 1 2").is_none());
        assert!(parse_layout(b"").is_none());
    }

    #[test]
    fn our_own_layout_holds_our_code() {
        let layout = layout(Pid::this()).unwrap();
        let here = our_own_layout_holds_our_code as *const () as u64;
        assert!(layout.start_code <= here && here < layout.end_code, "{layout:x?}");
    }
}
