//! What kind a description is of, by what /proc/PID/fd/N points to and its file type.

use nix::libc;

use super::Refusal;

/// The kinds, as far as the link tells them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class<'a> {
    /// By its path; regular, directory, symlink, device, anything with O_PATH.
    File,
    Pipe,
    Socket,
    Eventfd,
    Epoll,
    Timerfd,
    Signalfd,
    Inotify,
    Fanotify,
    Pidfd,
    Memfd,
    IoUring,
    /// /proc/PID/ns/NAME: its name.
    Namespace(&'a str),
    /// Nothing this program knows; what the kernel calls it.
    Unknown(&'a str),
}

/// Classifies a link of /proc/PID/fd; `mode` is st_mode, `flags` are those of fdinfo.
pub(crate) fn classify(link: &[u8], mode: u32, flags: u32) -> Class<'_> {
    let text = std::str::from_utf8(link).unwrap_or("/");
    if let Some(name) = text.strip_prefix("anon_inode:") {
        return match name {
            "[eventfd]" => Class::Eventfd,
            "[eventpoll]" => Class::Epoll,
            "[timerfd]" => Class::Timerfd,
            "[signalfd]" => Class::Signalfd,
            "inotify" => Class::Inotify,
            "[fanotify]" => Class::Fanotify,
            "[pidfd]" => Class::Pidfd,
            "[io_uring]" => Class::IoUring,
            _ => Class::Unknown(text),
        };
    }
    if text.starts_with("pipe:[") {
        return Class::Pipe;
    }
    if text.starts_with("socket:[") {
        return Class::Socket;
    }
    if text.starts_with("/memfd:") && text.ends_with(" (deleted)") {
        return Class::Memfd;
    }
    if let Some((name, "]")) = text
        .split_once(":[")
        .map(|(name, rest)| (name, rest.trim_start_matches(|c: char| c.is_ascii_digit())))
    {
        return Class::Namespace(name);
    }
    if !text.starts_with('/') {
        return Class::Unknown(text);
    }
    let o_path = flags & libc::O_PATH as u32 != 0;
    if mode & libc::S_IFMT == libc::S_IFIFO && !o_path { Class::Pipe } else { Class::File }
}

/// Why a descriptor of a kind that nothing here restores is refused, and what to do.
pub(super) fn unknown(name: &str) -> Refusal {
    let (code, remedy) = match name {
        "anon_inode:[userfaultfd]" => ("userfaultfd", "stop using it before the checkpoint"),
        "anon_inode:[fscontext]" | "anon_inode:[fspick]" => {
            ("mount-object", "close it before the checkpoint")
        }
        "anon_inode:[landlock-ruleset]" => ("landlock", "close the ruleset when it is enforced"),
        "anon_inode:kvm-vm" | "anon_inode:kvm-vcpu" => ("kvm", "save the virtual machine by its own means"),
        name if name.starts_with("anon_inode:bpf") || name.starts_with("anon_inode:[bpf") => {
            ("bpf", "close it before the checkpoint; pin it in the file system of bpf(2) if it is to last")
        }
        "anon_inode:[perf_event]" => ("perf-event", "stop measuring before the checkpoint"),
        _ => ("descriptor-kind", "close it before the checkpoint"),
    };
    Refusal::new(code, format!("{name} cannot be captured"), remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_proc_are_told_apart() {
        let table = [
            ("pipe:[123]", libc::S_IFIFO, 0, Class::Pipe),
            ("/run/fifo", libc::S_IFIFO, 0, Class::Pipe),
            ("/run/fifo", libc::S_IFIFO, libc::O_PATH as u32, Class::File),
            ("socket:[9]", libc::S_IFSOCK, 0, Class::Socket),
            ("anon_inode:[eventfd]", 0o600, 0, Class::Eventfd),
            ("anon_inode:[eventpoll]", 0o600, 0, Class::Epoll),
            ("anon_inode:inotify", 0o600, 0, Class::Inotify),
            ("anon_inode:[io_uring]", 0o600, 0, Class::IoUring),
            ("net:[4026531840]", libc::S_IFREG, 0, Class::Namespace("net")),
            ("strange", libc::S_IFREG, 0, Class::Unknown("strange")),
            ("/memfd:x (deleted)", libc::S_IFREG, 0, Class::Memfd),
            ("/srv/x (deleted)", libc::S_IFREG, 0, Class::File),
            ("/dev/null", libc::S_IFCHR, 0, Class::File),
        ];
        for (link, mode, flags, class) in table {
            assert_eq!(classify(link.as_bytes(), mode, flags), class, "{link}");
        }
    }
}
