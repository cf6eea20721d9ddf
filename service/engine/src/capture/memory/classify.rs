//! What a mapping is, from its line of smaps alone, and why it cannot be captured if it cannot.

use std::path::Path;

use ckpt_image::records::MappingFlags;
use ckpt_sys::maps::{MapName, Mapping, VmFlags};

/// What a mapping is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// `[vsyscall]`: the same in every process.
    Vsyscall,
    /// `[vdso]`.
    Vdso,
    /// `[vvar]`, `[vvar_vclock]`.
    Vvar,
    /// Private, nothing below it.
    Anonymous,
    /// A file of a file system.
    File,
    /// Shared memory of the kernel's own file system.
    Object(ObjectClass),
    /// The preload library's table.
    Gate,
    /// A ring of io_uring(7).
    Ring,
    /// The ring of a context of kernel AIO.
    Aio,
}

/// What made a shared memory object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectClass {
    /// mmap(MAP_SHARED | MAP_ANONYMOUS).
    Anonymous,
    /// memfd_create(2).
    Memfd,
    /// shmget(2).
    SysvShm,
}

/// Why a mapping cannot be captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// Problem code.
    pub code: &'static str,
    /// What is wrong.
    pub text: &'static str,
    /// What to do.
    pub remedy: &'static str,
}

const fn refuse<T>(code: &'static str, text: &'static str, remedy: &'static str) -> Result<T, Refusal> {
    Err(Refusal { code, text, remedy })
}

/// Classifies a mapping. `shm_dev`: the device of the kernel's internal tmpfs, as maps shows it; `watched`: the process is watched by
/// this program, whose mark is not the application's doing.
pub fn classify(
    mapping: &Mapping,
    shm_dev: (u32, u32),
    watched: impl Fn() -> bool,
) -> Result<Class, Refusal> {
    let details = mapping.details.unwrap_or_default();
    let special = match &mapping.name {
        MapName::Special(name) => name.as_str(),
        _ => "",
    };
    match special {
        "vsyscall" => return Ok(Class::Vsyscall),
        "vdso" => return Ok(Class::Vdso),
        "vvar" | "vvar_vclock" => return Ok(Class::Vvar),
        _ => {}
    }
    // By its name first: it says more than a flag.
    let class = match &mapping.name {
        MapName::None => Class::Anonymous,
        MapName::Special(name) if is_plain(name) => Class::Anonymous,
        MapName::Special(_) => {
            return refuse(
                "special-mapping",
                "it is a mapping of the kernel's own that this program does not know",
                "stop what made it (uprobes, for example) or report it",
            );
        }
        MapName::Anon(_) if mapping.shared => Class::Object(ObjectClass::Anonymous),
        MapName::Anon(_) => Class::Anonymous,
        MapName::File { path, deleted } => by_path(mapping, path, *deleted, shm_dev)?,
    };
    by_flags(mapping, details.flags, class, watched)?;
    if details.protection_key != 0 {
        return refuse(
            "protection-key",
            "it has a memory protection key",
            "run the program without pkeys(7)",
        );
    }
    Ok(class)
}

/// Names in brackets that stand for ordinary anonymous memory.
fn is_plain(name: &str) -> bool {
    name == "heap" || name == "stack" || name.starts_with("stack:")
}

fn by_path(mapping: &Mapping, path: &Path, deleted: bool, shm_dev: (u32, u32)) -> Result<Class, Refusal> {
    let text = path.as_os_str().as_encoded_bytes();
    let huge = mapping.details.is_some_and(|details| details.flags.has(b"ht"));
    let internal = deleted && (mapping.dev == shm_dev || huge);
    match text {
        b"anon_inode:[io_uring]" if mapping.shared => Ok(Class::Ring),
        b"/[aio]" if mapping.shared => Ok(Class::Aio),
        b"/secretmem" => refuse(
            "secret-memory",
            "it is memory of memfd_secret(2), which nobody else can read",
            "run the program without it",
        ),
        _ if !text.starts_with(b"/") => refuse(
            "special-mapping",
            "it is a mapping of a kernel object that is not a file",
            "stop what uses it",
        ),
        ckpt_gate if internal && ckpt_gate == gate_name() => Ok(Class::Gate),
        b"/anon_hugepage" if internal && huge && !mapping.shared => Ok(Class::Anonymous),
        b"/anon_hugepage" if internal && huge => Ok(Class::Object(ObjectClass::Anonymous)),
        memfd if internal && memfd.starts_with(b"/memfd:") && (mapping.shared || !huge) => {
            Ok(Class::Object(ObjectClass::Memfd))
        }
        _ if internal && huge => refuse(
            "hugetlb-shared",
            "it is a System V segment, an unlinked file, or a private mapping of a memfd, in huge pages of hugetlbfs",
            "use shared anonymous memory in its place (shared_memory_type = mmap in PostgreSQL), or transparent huge pages",
        ),
        b"/dev/zero" if internal => Ok(Class::Object(ObjectClass::Anonymous)),
        sysv if internal && is_sysv(sysv) => Ok(Class::Object(ObjectClass::SysvShm)),
        _ if internal => refuse(
            "special-mapping",
            "it is memory of a driver that is not a file",
            "stop what uses the device",
        ),
        _ => Ok(Class::File),
    }
}

/// The gate's path in maps without ` (deleted)`.
fn gate_name() -> &'static [u8] {
    let name = ckpt_wire::MAPS_NAME;
    name.strip_suffix(" (deleted)").unwrap_or(name).as_bytes()
}

fn is_sysv(path: &[u8]) -> bool {
    path.strip_prefix(b"/SYSV").is_some_and(|key| key.len() == 8 && key.iter().all(u8::is_ascii_hexdigit))
}

fn by_flags(
    mapping: &Mapping,
    flags: VmFlags,
    class: Class,
    watched: impl Fn() -> bool,
) -> Result<(), Refusal> {
    if class == Class::Ring {
        return Ok(()); // memory of the kernel's, but what it is is known
    }
    if flags.has(b"pf") || flags.has(b"io") || flags.has(b"mm") {
        return refuse(
            "device-mapping",
            "it is memory of a device",
            "stop the use of the device (GPU, DRM, VFIO, …) before the checkpoint",
        );
    }
    if flags.has(b"ss") {
        return refuse(
            "shadow-stack",
            "it is a shadow stack",
            "run the program without CET (glibc.cpu.x86_shstk=off)",
        );
    }
    if flags.has(b"um") || flags.has(b"ui") || flags.has(b"uw") && !watched() {
        return refuse(
            "userfaultfd",
            "it is registered with a userfaultfd(2)",
            "run the program without userfaultfd",
        );
    }
    if flags.has(b"sf") {
        return refuse(
            "dax",
            "it is a synchronous mapping of persistent memory (MAP_SYNC)",
            "map the file without MAP_SYNC",
        );
    }
    if flags.has(b"ht") && class == Class::File && mapping.shared {
        return Ok(()); // a file of a mounted hugetlbfs keeps its content itself
    }
    Ok(())
}

/// The flags of a record.
pub fn record_flags(mapping: &Mapping) -> MappingFlags {
    let details = mapping.details.unwrap_or_default();
    let has = |code: &[u8; 2]| details.flags.has(code);
    MappingFlags {
        grows_down: has(b"gd"),
        locked: has(b"lo"),
        lock_on_fault: has(b"lf"),
        dont_fork: has(b"dc"),
        wipe_on_fork: has(b"wf"),
        dont_dump: has(b"dd"),
        mergeable: has(b"mg"),
        huge: has(b"hg"),
        no_huge: has(b"nh"),
        no_reserve: has(b"nr"),
        sequential: has(b"sr"),
        random: has(b"rr"),
        hugetlb: if has(b"ht") { details.page_size } else { 0 },
        droppable: has(b"dp"),
        sealed: has(b"sl"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHM: (u32, u32) = (0, 1);

    fn class(perms: &str, name: &str, flags: &str) -> Result<Class, &'static str> {
        let text =
            format!("1000-2000 {perms} 00000000 00:01 5 {name}\nKernelPageSize: 4 kB\nVmFlags: {flags}\n");
        let mappings = ckpt_sys::maps::parse(text.as_bytes()).unwrap();
        classify(&mappings[0], SHM, || false).map_err(|refusal| refusal.code)
    }

    #[test]
    fn every_kind_of_mapping_is_told_apart_or_refused() {
        let table: &[(&str, &str, &str, Result<Class, &str>)] = &[
            ("rw-p", "", "rd wr", Ok(Class::Anonymous)),
            ("rw-p", "[heap]", "rd wr", Ok(Class::Anonymous)),
            ("rw-p", "[stack]", "rd wr gd", Ok(Class::Anonymous)),
            ("rw-p", "[anon:x]", "rd wr", Ok(Class::Anonymous)),
            ("rw-s", "[anon_shmem:x]", "rd wr sh", Ok(Class::Object(ObjectClass::Anonymous))),
            ("rw-s", "/dev/zero (deleted)", "rd wr sh", Ok(Class::Object(ObjectClass::Anonymous))),
            ("rw-s", "/memfd:a b (deleted)", "rd wr sh", Ok(Class::Object(ObjectClass::Memfd))),
            ("rw-s", "/SYSV0052e2c1 (deleted)", "rd wr sh", Ok(Class::Object(ObjectClass::SysvShm))),
            ("rw-s", "/memfd:ckpt-gate (deleted)", "rd wr sh", Ok(Class::Gate)),
            ("r-xp", "/usr/bin/cat", "rd ex", Ok(Class::File)),
            ("rw-s", "/srv/data", "rd wr sh", Ok(Class::File)),
            ("rw-p", "/anon_hugepage (deleted)", "rd wr ht", Ok(Class::Anonymous)),
            ("rw-s", "/anon_hugepage (deleted)", "rd wr ht sh", Ok(Class::Object(ObjectClass::Anonymous))),
            ("rw-s", "/memfd:x (deleted)", "rd wr ht sh", Ok(Class::Object(ObjectClass::Memfd))),
            ("rw-p", "/memfd:x (deleted)", "rd wr ht", Err("hugetlb-shared")),
            ("rw-s", "/SYSV00000000 (deleted)", "rd wr ht sh", Err("hugetlb-shared")),
            ("r--p", "[vvar]", "rd pf io", Ok(Class::Vvar)),
            ("r--p", "[vvar_vclock]", "rd pf io", Ok(Class::Vvar)),
            ("r-xp", "[vdso]", "rd ex", Ok(Class::Vdso)),
            ("--xp", "[vsyscall]", "ex", Ok(Class::Vsyscall)),
            ("r-xp", "[uprobes]", "ex", Err("special-mapping")),
            ("rw-s", "anon_inode:[io_uring]", "rd mm", Ok(Class::Ring)),
            ("rw-s", "anon_inode:[perf_event]", "rd", Err("special-mapping")),
            ("rw-s", "socket:[123]", "rd", Err("special-mapping")),
            ("rw-s", "/[aio] (deleted)", "rd", Ok(Class::Aio)),
            ("rw-s", "/secretmem (deleted)", "rd", Err("secret-memory")),
            ("rw-s", "/drm mm object (deleted)", "rd", Err("special-mapping")),
            ("rw-s", "/dev/dri/card0", "rd pf io", Err("device-mapping")),
            ("rw-p", "", "rd wr uw", Err("userfaultfd")),
            ("rw-p", "", "rd wr ss", Err("shadow-stack")),
        ];
        for (perms, name, flags, expected) in table {
            assert_eq!(class(perms, name, flags), *expected, "{perms} {name} {flags}");
        }
    }

    #[test]
    fn a_deleted_file_elsewhere_is_a_file() {
        let text = "1000-2000 rw-s 00000000 fe:01 5 /memfd:x (deleted)\n";
        let mappings = ckpt_sys::maps::parse(text.as_bytes()).unwrap();
        assert_eq!(classify(&mappings[0], SHM, || false), Ok(Class::File));
        let text = "1000-2000 rw-p 00000000 00:00 0 \nVmFlags: rd wr uw\n";
        let mappings = ckpt_sys::maps::parse(text.as_bytes()).unwrap();
        assert_eq!(classify(&mappings[0], SHM, || true), Ok(Class::Anonymous));
    }
}
