//! The mappings of a process: /proc/PID/maps and /proc/PID/smaps (proc_pid_maps(5), proc_pid_smaps(5)).
//!
//! ```text
//! 7f1c2000-7f1c4000 rw-p 00003000 fe:00 247030                     /usr/lib/x\012y.so (deleted)     maps, and head of an smaps entry
//! KernelPageSize:        4 kB                                                                        smaps only
//! ProtectionKey:         0                                                                           smaps only, where the CPU has them
//! VmFlags: rd wr mr mw me ac sd                                                                      smaps only
//! ```
//! One reader for both: smaps walks the page tables (measured: 6 ms a GiB of 4 KiB pages, 0.1 ms of huge ones) but is the only
//! place of the flags; PROCMAP_QUERY (Linux 6.11) does not have them.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use nix::unistd::Pid;

use crate::error::{Error, Result};
use crate::{AddrRange, VirtAddr, proc_file};

/// One mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// Its addresses, page-aligned.
    pub range: AddrRange,
    /// PROT_READ | PROT_WRITE | PROT_EXEC of mmap(2).
    pub prot: u32,
    /// MAP_SHARED.
    pub shared: bool,
    /// Offset in the file, bytes.
    pub offset: u64,
    /// Device of the file, as the file system's superblock has it (btrfs: not what stat(2) tells).
    pub dev: (u32, u32),
    /// Inode number, 0 if there is no file.
    pub ino: u64,
    /// What the kernel shows behind it.
    pub name: MapName,
    /// From smaps; `None` from maps.
    pub details: Option<Details>,
}

/// The last column.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MapName {
    /// Nothing: anonymous.
    None,
    /// `[heap]`, `[stack]`, `[vdso]`, `[vvar]`, `[vsyscall]`, …: without the brackets.
    Special(String),
    /// `[anon:NAME]`, `[anon_shmem:NAME]` (PR_SET_VMA_ANON_NAME, Linux 5.17): the name.
    Anon(Vec<u8>),
    /// An absolute path, or what a file system without paths shows (`/memfd:x`, `anon_inode:[io_uring]`).
    File {
        /// The path with `\012` made a line feed again and ` (deleted)` cut off. Ambiguous if the real name holds such text:
        /// compare with readlink(2) of /proc/PID/map_files.
        path: PathBuf,
        /// It ended in ` (deleted)`.
        deleted: bool,
    },
}

/// What only smaps tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Details {
    /// Flags.
    pub flags: VmFlags,
    /// Page size in bytes; larger than 4,096 only on hugetlbfs.
    pub page_size: u64,
    /// Protection key (pkeys(7)), 0 is the default.
    pub protection_key: u32,
    /// Resident pages that are not of a file, and swapped ones, in bytes.
    pub anonymous: u64,
}

/// VmFlags: a set of the kernel's two-letter codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VmFlags(u64);

/// The codes this program knows; others are kept as [`VmFlags::has_unknown`].
const CODES: [&[u8; 2]; 41] = [
    b"rd", b"wr", b"ex", b"sh", b"mr", b"mw", b"me", b"ms", b"gd", b"pf", b"dw", b"lo", b"io", b"sr", b"rr",
    b"dc", b"de", b"ac", b"nr", b"ht", b"sf", b"ar", b"wf", b"dd", b"sd", b"mm", b"hg", b"nh", b"mg", b"um",
    b"uw", b"ui", b"bt", b"mt", b"ss", b"sl", b"dp", b"lf", b"nl", b"gu", b"pi",
];
const UNKNOWN: u64 = 1 << 63;

impl VmFlags {
    /// Whether the flag with this code is set; a code that is not in proc_pid_smaps(5) never is.
    #[must_use]
    pub fn has(self, code: &[u8; 2]) -> bool {
        CODES.iter().position(|known| *known == code).is_some_and(|bit| self.0 & (1 << bit) != 0)
    }

    /// Whether the kernel told a code that this program does not know.
    #[must_use]
    pub fn has_unknown(self) -> bool {
        self.0 & UNKNOWN != 0
    }

    fn parse(text: &[u8]) -> Self {
        let mut set = 0;
        for code in text.split(|byte| *byte == b' ').filter(|code| !code.is_empty() && *code != b"??") {
            set |= CODES.iter().position(|known| known[..] == *code).map_or(UNKNOWN, |bit| 1 << bit);
        }
        Self(set)
    }
}

/// The mappings of a process, ascending, without the details of smaps. ESRCH or ENOENT if it is gone.
pub fn read_maps(pid: Pid) -> Result<Vec<Mapping>> {
    read(pid, "maps")
}

/// The mappings of a process, ascending, with all details.
pub fn read_smaps(pid: Pid) -> Result<Vec<Mapping>> {
    read(pid, "smaps")
}

/// The kernel lets go of the address space after each part that it hands out. Of a process that runs, a mapping that has meanwhile
/// grown downwards, or been joined with the one before, is told again from its new beginning: such a text is read once more.
fn read(pid: Pid, file: &str) -> Result<Vec<Mapping>> {
    const TRIES: usize = 20;
    let path = PathBuf::from(format!("/proc/{pid}/{file}"));
    let mut refused = String::new();
    for _ in 0..TRIES {
        let text = proc_file::read(&path).map_err(|e| Error::io("read", &path, &e))?;
        match parse(&text) {
            Ok(mappings) => return Ok(mappings),
            Err(what) => refused = what,
        }
    }
    Err(Error::Parse { path, what: refused })
}

/// Bytes of an ordinary line of maps.
const LINE: usize = 80;

/// Parses the content of maps or smaps. The error is the line that was not understood.
pub fn parse(text: &[u8]) -> std::result::Result<Vec<Mapping>, String> {
    // Of maps a line is about as long; smaps has fewer, longer entries.
    let mut mappings: Vec<Mapping> = Vec::with_capacity((text.len() / LINE).min(1024));
    for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let bad = || String::from_utf8_lossy(line).into_owned();
        // Heads begin with a lower-case hexadecimal number, details with a capital letter.
        if line[0].is_ascii_uppercase() {
            let last = mappings.last_mut().ok_or_else(bad)?;
            detail(line, last.details.get_or_insert_default()).ok_or_else(bad)?;
        } else {
            let mapping = head(line).ok_or_else(bad)?;
            if mappings.last().is_some_and(|last| last.range.end > mapping.range.start) {
                return Err(bad());
            }
            mappings.push(mapping);
        }
    }
    Ok(mappings)
}

fn head(line: &[u8]) -> Option<Mapping> {
    let mut fields = line.splitn(6, |byte| *byte == b' ');
    let (start, end) = split(fields.next()?, b'-')?;
    let perms = fields.next()?;
    let offset = hex(fields.next()?)?;
    let (major, minor) = split(fields.next()?, b':')?;
    let ino = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let name = fields.next().unwrap_or_default().trim_ascii_start();
    let (start, end) = (hex(start)?, hex(end)?);
    if start >= end || (start | end) & 0xfff != 0 || perms.len() != 4 {
        return None;
    }
    let bit = |at: usize, letter: u8, value: u32| match perms[at] {
        b'-' => Some(0),
        found => (found == letter).then_some(value),
    };
    Some(Mapping {
        range: AddrRange { start: VirtAddr(start), end: VirtAddr(end) },
        prot: bit(0, b'r', 1)? | bit(1, b'w', 2)? | bit(2, b'x', 4)?,
        shared: match perms[3] {
            b's' => true,
            b'p' => false,
            _ => return None,
        },
        offset,
        dev: (u32::try_from(hex(major)?).ok()?, u32::try_from(hex(minor)?).ok()?),
        ino,
        name: map_name(name),
        details: None,
    })
}

fn map_name(name: &[u8]) -> MapName {
    if name.is_empty() {
        return MapName::None;
    }
    if let Some(inside) = name.strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]")) {
        for prefix in [&b"anon:"[..], b"anon_shmem:"] {
            if let Some(name) = inside.strip_prefix(prefix) {
                return MapName::Anon(name.to_vec());
            }
        }
        return MapName::Special(String::from_utf8_lossy(inside).into_owned());
    }
    let (name, deleted) = match name.strip_suffix(b" (deleted)") {
        Some(rest) => (rest, true),
        None => (name, false),
    };
    MapName::File { path: PathBuf::from(OsString::from_vec(unescape(name))), deleted }
}

/// maps escapes a line feed in a name as `\012`, and nothing else.
fn unescape(name: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some(&byte) = rest.first() {
        if let Some(after) = rest.strip_prefix(b"\\012") {
            plain.push(b'\n');
            rest = after;
        } else {
            plain.push(byte);
            rest = &rest[1..];
        }
    }
    plain
}

fn detail(line: &[u8], details: &mut Details) -> Option<()> {
    let (key, value) = split(line, b':')?;
    match key {
        b"KernelPageSize" => details.page_size = kilobytes(value)?,
        b"ProtectionKey" => details.protection_key = number(value.trim_ascii())?.try_into().ok()?,
        b"Anonymous" | b"Swap" => details.anonymous = details.anonymous.saturating_add(kilobytes(value)?),
        b"VmFlags" => details.flags = VmFlags::parse(value),
        _ => {}
    }
    Some(())
}

fn kilobytes(value: &[u8]) -> Option<u64> {
    number(value.strip_suffix(b" kB")?.trim_ascii())?.checked_mul(1024)
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn split(text: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let place = text.iter().position(|byte| *byte == at)?;
    Some((&text[..place], &text[place + 1..]))
}

fn hex(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 16 {
        return None;
    }
    text.iter().try_fold(0, |value, byte| {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u64::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(line: &str) -> MapName {
        parse(format!("1000-2000 r--p 00000000 00:00 0 {line}\n").as_bytes()).unwrap().remove(0).name
    }

    fn file(path: &str, deleted: bool) -> MapName {
        MapName::File { path: path.into(), deleted }
    }

    #[test]
    fn names_are_told_apart() {
        assert_eq!(name(""), MapName::None);
        assert_eq!(name("          [heap]"), MapName::Special("heap".into()));
        assert_eq!(name(" [anon:my pool]"), MapName::Anon(b"my pool".to_vec()));
        assert_eq!(name(" [anon_shmem:x]"), MapName::Anon(b"x".to_vec()));
        assert_eq!(name("   /a b\\012c d"), file("/a b\nc d", false));
        assert_eq!(name("   /dev/zero (deleted)"), file("/dev/zero", true));
        assert_eq!(name("   anon_inode:[io_uring]"), file("anon_inode:[io_uring]", false));
    }

    #[test]
    fn an_entry_of_smaps_has_its_details() {
        let text = "7ffe0be9b000-7ffe0bebc000 rw-p 00001000 fe:1a 77                     [stack]\n\
                    Size:                132 kB\nKernelPageSize:        4 kB\nAnonymous:            12 kB\n\
                    Swap:                  4 kB\nProtectionKey:         3\nVmFlags: rd wr mr mw me gd ac zz \n";
        let all = parse(text.as_bytes()).unwrap();
        let [stack] = &all[..] else { panic!("{all:?}") };
        assert_eq!((stack.range.start.0, stack.range.len()), (0x7ffe_0be9_b000, 132 << 10));
        assert_eq!((stack.prot, stack.shared, stack.offset), (3, false, 0x1000));
        assert_eq!((stack.dev, stack.ino), ((0xfe, 0x1a), 77));
        let details = stack.details.unwrap();
        assert_eq!((details.page_size, details.protection_key, details.anonymous), (4096, 3, 16 << 10));
        assert!(details.flags.has(b"gd") && !details.flags.has(b"lo") && details.flags.has_unknown());
    }

    #[test]
    fn our_own_maps_and_smaps_agree() {
        let strip = |mut m: Mapping| (m.details.take(), m).1;
        let maps = read_maps(Pid::this()).unwrap();
        let smaps = read_smaps(Pid::this()).unwrap();
        assert!(
            smaps.iter().all(|m| m.details.is_some_and(|d| d.page_size == 4096 && !d.flags.has_unknown()))
        );
        // The heap may grow between the two; the program itself stays.
        let exe: Vec<_> = maps.into_iter().take(4).collect();
        let same: Vec<_> = smaps.into_iter().take(4).map(strip).collect();
        assert_eq!(
            exe.iter().map(|m| m.range.start).collect::<Vec<_>>(),
            same.iter().map(|m| m.range.start).collect::<Vec<_>>()
        );
    }

    #[test]
    fn mappings_that_join_while_they_are_told_are_read() {
        const PAGES: usize = 64;
        let len = PAGES * 4096;
        let (rw, none) = (libc::PROT_READ | libc::PROT_WRITE, libc::PROT_NONE);
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let at = unsafe {
            libc::mmap(std::ptr::null_mut(), len, rw, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
        };
        assert_ne!(at, libc::MAP_FAILED);
        let at = at as usize;
        let end = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !end.load(std::sync::atomic::Ordering::Relaxed) {
                    // SAFETY: pages of the mapping above, which nobody else uses.
                    unsafe {
                        for page in (0..PAGES).step_by(2) {
                            libc::mprotect((at + page * 4096) as *mut _, 4096, none);
                        }
                        libc::mprotect(at as *mut _, len, rw);
                    }
                }
            });
            let read: Result<Vec<_>> =
                (0..100).flat_map(|_| ["maps", "smaps"]).map(|file| read(Pid::this(), file)).collect();
            end.store(true, std::sync::atomic::Ordering::Relaxed);
            read.unwrap();
        });
        // SAFETY: as above; the thread has ended.
        unsafe { libc::munmap(at as *mut _, len) };
    }

    #[test]
    fn what_is_not_a_mapping_is_refused() {
        for bad in [
            "2000-1000 r--p 0 00:00 0",
            "1000-2000 r--x 0 00:00 0",
            "1000-2000 q--p 0 00:00 0",
            "1001-2000 r--p 0 00:00 0",
            "1000-2000 r--p 0 00:00",
            "1000-2000",
            "Size: 1 kB",
            "1000-2000 r--p 0 00:00 0\n1000-3000 r--p 0 00:00 0",
            "11111111111111111-2 r--p 0 00:00 0",
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in proptest::collection::vec(any::<u8>(), 0..300), tail in "[ -~]{0,80}") {
            let _ = parse(&text);
            let _ = parse(format!("1000-2000 r--p 0 00:00 0 {tail}\nVmFlags: {tail}\nKernelPageSize: {tail}").as_bytes());
        }
    }
}
