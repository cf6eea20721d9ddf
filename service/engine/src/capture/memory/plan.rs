//! Before the window.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use ckpt_sys::arena::Arena;
use ckpt_sys::maps::{MapName, Mapping, read_smaps};
use nix::errno::Errno;
use nix::unistd::Pid;

use super::files::{is_refused_device, map_files};
use super::{Before, Capture, Class, Member, MemoryError, Refusal, classify};
use crate::Problem;
use crate::kinds::aio;
use crate::track::is_watched;

/// What a look at running members told.
#[derive(Debug, Default)]
pub struct Survey {
    /// What cannot be captured.
    pub problems: Vec<Problem>,
    /// Bytes that a full copies: own pages, shared memory. Unlinked files and objects that are not mapped come on top.
    pub bytes: u64,
    /// Those of them that are a process's own, by its id.
    pub own: HashMap<i32, u64>,
    /// The mappings of each process, with all details.
    pub mappings: HashMap<i32, Vec<Mapping>>,
}

/// Looks at the memory of running members. A member that ends meanwhile is left out.
pub fn survey(members: &[Member<'_>]) -> Result<Survey, MemoryError> {
    let shm_dev = shm_dev()?;
    let mut survey = Survey::default();
    let mut objects = HashSet::new();
    for member in members {
        let mappings = match read_smaps(Pid::from_raw(member.tid)) {
            Ok(mappings) => mappings,
            Err(e) if matches!(e.errno(), Some(Errno::ESRCH | Errno::ENOENT)) => continue,
            Err(e) => return Err(e.into()),
        };
        for mapping in &mappings {
            look(&mut survey, &mut objects, member, mapping, shm_dev);
        }
        survey.mappings.insert(member.pid, mappings);
    }
    Ok(survey)
}

fn look(
    survey: &mut Survey,
    objects: &mut HashSet<((u32, u32), u64)>,
    member: &Member<'_>,
    mapping: &Mapping,
    shm_dev: (u32, u32),
) {
    // Who is noted is the thread whose /proc shows the memory: another than the leader, where that has ended.
    let watched = || is_watched(member.tid) || is_watched(member.pid);
    let refused = match classify(mapping, shm_dev, watched) {
        Ok(Class::Object(_)) => {
            if objects.insert((mapping.dev, mapping.ino)) {
                let blocks =
                    nix::sys::stat::stat(&map_files(member, mapping)).map_or(0, |stat| stat.st_blocks);
                survey.bytes += blocks as u64 * 512;
            }
            None
        }
        Ok(Class::File) => is_refused_device(member, mapping),
        Ok(Class::Aio) => unseen(member, mapping),
        Ok(_) => None,
        Err(refusal) => Some(refusal),
    };
    if let Some(refusal) = refused {
        survey.problems.push(member.problem(describe(mapping), refusal));
    }
    if !mapping.shared {
        let own = mapping.details.map_or(0, |details| details.anonymous);
        survey.bytes += own;
        *survey.own.entry(member.pid).or_default() += own;
    }
}

/// Whether a mapping is memory of a ring of io_uring(7).
fn is_ring(mapping: &Mapping) -> bool {
    is_of(mapping, crate::kinds::is_ring)
}

/// Whether a mapping is the ring of a context of kernel AIO.
pub fn is_aio(mapping: &Mapping) -> bool {
    is_of(mapping, aio::is_context)
}

fn is_of(mapping: &Mapping, is_one: fn(&Path) -> bool) -> bool {
    matches!(&mapping.name, MapName::File { path, .. } if is_one(path))
}

/// Why the context of a ring cannot be captured whatever it does.
fn unseen(member: &Member<'_>, mapping: &Mapping) -> Option<Refusal> {
    let look = aio::look(Pid::from_raw(member.tid), mapping.range.start);
    let refusal = Refusal { code: aio::CODE, text: aio::UNSEEN, remedy: aio::WITHOUT };
    matches!(look, Ok(aio::Look::Unseen)).then_some(refusal)
}

/// A mapping as problems name it.
pub(super) fn describe(mapping: &Mapping) -> String {
    let range = format!("mapping {:x}-{:x}", mapping.range.start.0, mapping.range.end.0);
    match &mapping.name {
        MapName::None => range,
        MapName::Special(name) => format!("{range} [{name}]"),
        MapName::Anon(name) => format!("{range} [anon:{}]", String::from_utf8_lossy(name)),
        MapName::File { path, .. } => format!("{range} {}", path.display()),
    }
}

/// The device of the kernel's own tmpfs, as maps shows it: that of any memfd.
fn shm_dev() -> Result<(u32, u32), MemoryError> {
    use nix::sys::{memfd, stat};
    let error = |op, source| {
        MemoryError::Kernel(ckpt_sys::Error::Kernel { op, subject: ckpt_sys::Subject::Here, source })
    };
    let fd = memfd::memfd_create(c"ckpt-probe", memfd::MFdFlags::MFD_CLOEXEC)
        .map_err(|e| error("memfd_create", e))?;
    let dev = stat::fstat(&fd).map_err(|e| error("fstat", e))?.st_dev;
    Ok((stat::major(dev) as u32, stat::minor(dev) as u32))
}

/// What is ready before the window opens.
#[derive(Debug)]
pub struct Plan {
    survey: Survey,
    arena: Arena,
    shm_dev: (u32, u32),
}

impl Plan {
    /// Looks at the members.
    ///
    /// Errors: the kernel's; the caller looks at [`Plan::problems`] before it freezes anything.
    pub fn prepare(members: &[Member<'_>]) -> Result<Self, MemoryError> {
        Ok(Self { survey: survey(members)?, arena: Arena::new(0)?, shm_dev: shm_dev()? })
    }

    /// Takes the memory that the copy in the window will need. Errors: NoMemory where it would not fit.
    pub fn make_room(&mut self, bytes: u64) -> Result<(), MemoryError> {
        // The group runs on and grows a little until it is frozen.
        let need = bytes + bytes / 16 + (4 << 20);
        room_for(need)?;
        self.arena = Arena::new(need as usize)?;
        self.arena.populate()?;
        Ok(())
    }

    /// Reads the mappings of the members again, as late as possible: reading them takes long where there is much memory, and in the
    /// window only those processes are asked whose mappings are others by then.
    pub fn look_again(&mut self) {
        for (pid, mappings) in &mut self.survey.mappings {
            if let Ok(now) = read_smaps(Pid::from_raw(*pid)) {
                *mappings = now;
            }
        }
    }

    /// Bytes of a process's own.
    pub fn own_bytes(&self) -> &HashMap<i32, u64> {
        &self.survey.own
    }

    /// Processes that have a ring of io_uring(7) mapped.
    pub fn with_rings(&self) -> Vec<i32> {
        self.with(is_ring)
    }

    /// Processes that have the ring of a context of kernel AIO mapped.
    pub fn with_contexts(&self) -> Vec<i32> {
        self.with(is_aio)
    }

    fn with(&self, is_one: impl Fn(&Mapping) -> bool) -> Vec<i32> {
        let with = |mappings: &Vec<Mapping>| mappings.iter().any(&is_one);
        self.survey.mappings.iter().filter(|(_, mappings)| with(mappings)).map(|(pid, _)| *pid).collect()
    }

    /// What cannot be captured.
    pub fn problems(&self) -> &[Problem] {
        &self.survey.problems
    }

    /// Bytes that will have to be copied, about.
    pub fn bytes(&self) -> u64 {
        self.survey.bytes
    }

    /// The window opens.
    pub fn begin(self) -> Capture {
        Capture {
            arena: self.arena,
            sources: Vec::new(),
            pieces: Vec::new(),
            inherited: Vec::new(),
            later: Vec::new(),
            told: Vec::new(),
            known: HashMap::new(),
            before: Before { mappings: self.survey.mappings, shm_dev: self.shm_dev },
            rings: HashMap::new(),
            contexts: HashMap::new(),
            own: self.survey.own,
            problems: Vec::new(),
        }
    }
}

/// Whether there is so much memory. Errors: NoMemory.
pub(super) fn room_for(need: u64) -> Result<(), MemoryError> {
    let available = available()?;
    if need > available - available / 16 {
        return Err(MemoryError::NoMemory { need, available });
    }
    Ok(())
}

/// MemAvailable of /proc/meminfo, bytes.
pub fn available() -> Result<u64, MemoryError> {
    let path = "/proc/meminfo";
    let text =
        std::fs::read_to_string(path).map_err(|source| MemoryError::Proc { path: path.into(), source })?;
    Ok(parse_available(&text).unwrap_or(u64::MAX))
}

fn parse_available(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read() {
        assert_eq!(parse_available("MemFree: 1 kB\nMemAvailable:   24000 kB\n"), Some(24000 << 10));
        assert!(available().unwrap() > 1 << 20);
    }
}
