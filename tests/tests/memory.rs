//! Memory of a real process, captured while it is stopped and made again in another process, is the same: mappings, flags, every byte.
//! Needs root.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ckpt_engine::capture::members::SpaceFacts;
use ckpt_engine::capture::memory::{Member, Plan, SpaceInput};
use ckpt_engine::capture::text::{parse_stat, parse_status};
use ckpt_engine::capture::{Files, Objects};
use ckpt_engine::rebuild;
use ckpt_engine::rebuild::content::Contents;
use ckpt_engine::rebuild::memory::{FdRef, Ground, Run, script};
use ckpt_image::records::{
    FileId, FileRecord, FileSource, GroupImage, LayoutRecord, MappingKind, ObjectRecord, SpaceId,
    SpaceRecord, UnitIndex,
};
use ckpt_image::{Container, PageReader, PagesWriter};
use ckpt_sys::descriptor::duplicate_above;
use ckpt_sys::nursery;
use ckpt_sys::ptrace::Options;
use ckpt_sys::thread::{Care, Deadline, Running};
use ckpt_sys::{AddrRange, VirtAddr};
use nix::unistd::Pid;

const PAGE: usize = 4096;
/// Where the runner lies; nothing of the victim does.
const RUNNER: u64 = 0x6_0000_0000;

/// A process that is killed at the end.
struct Child(i32);

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: plain numbers; the child is ours and not yet waited for.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}

fn directory(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// Forks; the child runs `live`, stops itself and does nothing more.
fn stopped_after(live: impl FnOnce()) -> Child {
    // SAFETY: the child makes system calls and touches its memory only; it never returns.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        live();
        loop {
            // SAFETY: no memory is involved.
            unsafe { libc::raise(libc::SIGSTOP) };
        }
    }
    let mut status = 0;
    // SAFETY: status outlives the call.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, libc::WUNTRACED) }, pid);
    assert!(libc::WIFSTOPPED(status), "the victim did not come to its stop: {status:#x}");
    Child(pid)
}

/// Maps and fills pages in the victim. Only system calls and plain writes: it is a forked child.
struct Victim;

impl Victim {
    fn map(self, at: usize, pages: usize, prot: i32, flags: i32, fd: i32, offset: usize) -> *mut u8 {
        let how = flags | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: MAP_FIXED_NOREPLACE maps only where nothing is.
        let base = unsafe { libc::mmap(at as *mut _, pages * PAGE, prot, how, fd, offset as i64) };
        if base as usize != at {
            // SAFETY: ends the child; the parent sees that it did not stop.
            unsafe { libc::_exit(100) };
        }
        base.cast()
    }

    fn write(self, base: *mut u8, page: usize, seed: u8) {
        for at in 0..PAGE {
            // SAFETY: the page lies in a writable mapping that this test made.
            unsafe { base.add(page * PAGE + at).write_volatile(seed.wrapping_add((at * 7) as u8)) };
        }
    }

    fn protect(self, base: *mut u8, page: usize, pages: usize, prot: i32) {
        // SAFETY: part of a mapping that this test made.
        self.must(unsafe { libc::mprotect(base.add(page * PAGE).cast(), pages * PAGE, prot) });
    }

    fn advise(self, base: *mut u8, pages: usize, advice: i32) {
        // SAFETY: a mapping that this test made.
        self.must(unsafe { libc::madvise(base.cast(), pages * PAGE, advice) });
    }

    fn must(self, result: i32) {
        if result < 0 {
            // SAFETY: as in map.
            unsafe { libc::_exit(101) };
        }
    }
}

impl Clone for Victim {
    fn clone(&self) -> Self {
        *self
    }
}
impl Copy for Victim {}

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
const PRIVATE: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;

fn anonymous_memory(v: Victim) {
    let sparse = v.map(0x1000_0000, 5000, RW, PRIVATE, -1, 0);
    v.advise(sparse, 5000, libc::MADV_NOHUGEPAGE);
    (0..5000).step_by(3).for_each(|page| v.write(sparse, page, page as u8));
    // A page that was written and is zero again, a page that was only read.
    // SAFETY: both lie in the mapping.
    unsafe {
        sparse.add(PAGE).write_volatile(0);
        sparse.add(2 * PAGE).read_volatile();
    }
    let huge = v.map(0x2000_0000, 1024, RW, PRIVATE, -1, 0);
    v.advise(huge, 1024, libc::MADV_HUGEPAGE);
    (0..700).for_each(|page| v.write(huge, page, 3));
    let guarded = v.map(0x3000_0000, 20, RW, PRIVATE | libc::MAP_NORESERVE, -1, 0);
    (0..20).for_each(|page| v.write(guarded, page, 9));
    v.protect(guarded, 5, 5, libc::PROT_NONE);
    v.protect(guarded, 10, 3, libc::PROT_READ);
    v.protect(guarded, 13, 2, libc::PROT_READ | libc::PROT_EXEC);
    v.map(0x3100_0000, 30, libc::PROT_NONE, PRIVATE | libc::MAP_NORESERVE, -1, 0);
    let stack = v.map(0x3200_0000, 16, RW, PRIVATE | libc::MAP_GROWSDOWN | libc::MAP_STACK, -1, 0);
    v.write(stack, 15, 77);
    for (n, advice) in [libc::MADV_DONTFORK, libc::MADV_WIPEONFORK, libc::MADV_DONTDUMP, libc::MADV_MERGEABLE]
        .iter()
        .enumerate()
    {
        let base = v.map(0x3300_0000 + n * 0x10_0000, 4, RW, PRIVATE, -1, 0);
        v.write(base, 1, n as u8);
        v.advise(base, 4, *advice);
    }
    let locked = v.map(0x3400_0000, 4, RW, PRIVATE, -1, 0);
    v.write(locked, 2, 5);
    // SAFETY: the mapping just made.
    v.must(unsafe { libc::mlock2(locked.cast(), 4 * PAGE, libc::MLOCK_ONFAULT as _) });
    let sealed = v.map(0x3500_0000, 4, RW, PRIVATE, -1, 0);
    v.write(sealed, 0, 6);
    v.protect(sealed, 0, 4, libc::PROT_READ);
    // SAFETY: mseal(2) of the mapping just made; may be unknown to the kernel.
    unsafe { libc::syscall(462, sealed, 4 * PAGE, 0) };
    let named = v.map(0x3600_0000, 4, RW, PRIVATE, -1, 0);
    v.write(named, 0, 8);
    // SAFETY: PR_SET_VMA_ANON_NAME on the mapping just made; may be unknown to the kernel.
    unsafe { libc::prctl(0x5356_4d41, 0, named, 4 * PAGE, c"a pool".as_ptr()) };
    let guards = v.map(0x3700_0000, 16, RW, PRIVATE, -1, 0);
    v.write(guards, 15, 1);
    // SAFETY: MADV_GUARD_INSTALL on two pages of the mapping just made, not touched afterwards; may be unknown to the kernel.
    unsafe { libc::madvise(guards.add(4 * PAGE).cast(), 2 * PAGE, 102) };
}

fn file_memory(v: Victim, data: i32, unlinked: i32) {
    let copied = v.map(0x4000_0000, 16, RW, libc::MAP_PRIVATE, data, 0);
    v.write(copied, 3, 40);
    // A page of zeros over the file's content.
    (0..PAGE).for_each(|at| {
        // SAFETY: inside the mapping.
        unsafe { copied.add(5 * PAGE + at).write_volatile(0) }
    });
    let read_only = v.map(0x4100_0000, 8, RW, libc::MAP_PRIVATE, data, 2 * PAGE);
    v.write(read_only, 1, 41);
    v.protect(read_only, 0, 8, libc::PROT_READ);
    let shared = v.map(0x4200_0000, 4, RW, libc::MAP_SHARED, data, 12 * PAGE);
    v.write(shared, 1, 42);
    let gone = v.map(0x4300_0000, 8, RW, libc::MAP_SHARED, unlinked, 0);
    v.write(gone, 6, 43);
}

fn shared_memory(v: Victim, memfd: i32, sealed: i32, segment: i32) {
    let anonymous = v.map(0x5000_0000, 64, RW, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1, 0);
    v.write(anonymous, 0, 50);
    v.write(anonymous, 33, 51);
    v.protect(anonymous, 10, 10, libc::PROT_READ);
    let twice = v.map(0x5100_0000, 8, RW, libc::MAP_SHARED, memfd, 0);
    v.write(twice, 7, 52);
    v.map(0x5200_0000, 4, libc::PROT_READ, libc::MAP_SHARED, memfd, 4 * PAGE);
    let copied = v.map(0x5300_0000, 8, RW, libc::MAP_PRIVATE, memfd, 0);
    v.write(copied, 2, 53);
    v.map(0x5400_0000, 2, libc::PROT_READ, libc::MAP_SHARED, sealed, 0);
    // SAFETY: attaches where nothing is; the middle of it is then unmapped.
    unsafe {
        if libc::shmat(segment, 0x5500_0000 as *const _, 0) as usize != 0x5500_0000 {
            libc::_exit(102);
        }
        v.write(0x5500_0000 as *mut u8, 9, 54);
        v.must(libc::munmap((0x5500_0000 + 3 * PAGE) as *mut _, 2 * PAGE));
        v.must(libc::shmctl(segment, libc::IPC_RMID, std::ptr::null_mut()));
    }
}

/// Everything that a capture of one address space gives.
struct Image {
    space: SpaceRecord,
    files: Vec<FileRecord>,
    objects: Vec<ObjectRecord>,
    pages: PageReader,
}

/// What is known of a space besides its mappings.
fn facts(pid: i32, brk: u64, ours: &[AddrRange]) -> SpaceFacts {
    let read = |name: &str| std::fs::read(format!("/proc/{pid}/{name}")).unwrap();
    let layout = parse_stat(&read("stat")).unwrap().layout;
    SpaceFacts {
        pid: Pid::from_raw(pid),
        unit: UnitIndex(0),
        layout: LayoutRecord { brk, ..layout },
        auxv: read("auxv"),
        start_time: 0,
        thp_disabled: parse_status(&read("status")).thp_disabled,
        runner: ours.to_vec(),
    }
}

fn capture(pid: i32, brk: u64, ours: &[AddrRange], dir: &Path) -> Image {
    let member = Member { pid, tid: pid, unit: UnitIndex(0), unit_name: "victim.service" };
    let plan = Plan::prepare(&[member]).unwrap();
    assert_eq!(plan.problems(), []);
    let (mut files, mut objects) = (Files::new(vec![], vec![]), Objects::new());
    let mut capture = plan.begin();
    let facts = facts(pid, brk, ours);
    let looked = capture.before().look(&facts, None).unwrap();
    let input = SpaceInput::whole(SpaceId(0), &facts, looked);
    let space = capture.space(&member, input, &mut files, &mut objects).unwrap();
    assert_eq!(capture.problems(), []);
    capture.contents(&files, &objects, None).unwrap();
    let mut copied = capture.copy(None).unwrap();
    let mut writer = PagesWriter::create(dir).unwrap();
    assert!(copied.write(&mut writer, |_| true).unwrap());
    writer.finish().unwrap();
    let pages = PageReader::open(&[dir.to_path_buf()]).unwrap();
    assert!(pages.verify(|_| true).unwrap());
    Image { space, files: files.into_records(), objects: objects.into_records(), pages }
}

/// The kernel writes the CPU's number into a registered area (rseq(2)) of this thread and its copies, which would be memory that is compared.
fn unregister_rseq() {
    unsafe extern "C" {
        static __rseq_offset: isize;
    }
    const UNREGISTER: i32 = 1;
    const SIGNATURE: u32 = 0x5305_3053;
    let thread: usize;
    // SAFETY: reads the thread pointer, which the ABI keeps at fs:0; glibc (2.35) registered its area at that offset from it, 32 bytes.
    unsafe {
        std::arch::asm!("mov {}, fs:0", out(reg) thread, options(nostack, readonly));
        libc::syscall(libc::SYS_rseq, thread.wrapping_add_signed(__rseq_offset), 32, UNREGISTER, SIGNATURE);
    }
}

/// A file with the content that the image holds of one without a name.
fn made_again(image: &Image, file: FileId) -> PathBuf {
    let record = &image.files[file.index()];
    let path = record.path.with_file_name(format!("made-again-{file}"));
    if !path.exists() {
        let made = File::create_new(&path).unwrap();
        for page in 0..record.size.div_ceil(PAGE as u64) {
            let content = image.pages.page(Container::File(file), page).unwrap();
            made.write_all_at(&content, page * PAGE as u64).unwrap();
        }
        made.set_len(record.size).unwrap();
    }
    path
}

/// Makes the address space again in a copy of this process; gives that, stopped by ptrace.
fn remake(image: &Image) -> rebuild::Member {
    let runner = nursery::map_runner(VirtAddr(RUNNER)).unwrap();
    let ground = Ground::of_ourselves(nursery::area(&runner)).unwrap();
    let group = GroupImage {
        spaces: vec![image.space.clone()],
        objects: image.objects.clone(),
        files: image.files.clone(),
        ..GroupImage::default()
    };
    let contents = Contents::make(&group, &image.pages, &mut |_, deed| deed()).unwrap();
    let script = script(&image.space, &image.objects, &image.pages, &ground).unwrap();
    let mut descriptors: BTreeMap<FdRef, OwnedFd> = BTreeMap::new();
    for wanted in script.descriptors() {
        let open = |path: &Path, write| File::options().read(true).write(write).open(path).unwrap();
        let file = match (wanted, contents.descriptor(wanted)) {
            (_, Some(fd)) => fd.try_clone_to_owned().unwrap(),
            (FdRef::Pages(n), _) => image.pages.file(n).as_fd().try_clone_to_owned().unwrap(),
            (FdRef::Zero, _) => open(Path::new("/dev/zero"), false).into(),
            (FdRef::File { file, write }, _) => match image.files[file.index()].source {
                FileSource::Unlinked => open(&made_again(image, file), write).into(),
                _ => open(&image.files[file.index()].path, write).into(),
            },
            other => panic!("{other:?}"),
        };
        descriptors.insert(wanted, duplicate_above(file.as_fd(), 500).unwrap());
    }
    for (index, _) in image.files.iter().enumerate().filter(|(_, f)| f.source == FileSource::Unlinked) {
        let _ = std::fs::remove_file(made_again(image, FileId(index as u32)));
    }
    unregister_rseq();
    // SAFETY: the child makes system calls only.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        loop {
            // SAFETY: no arguments.
            unsafe { libc::pause() };
        }
    }
    let tid = Pid::from_raw(pid);
    let soon = Deadline::after(Duration::from_secs(10));
    let running = Running::seize(tid, Options::EXITKILL | Options::TRACE_CHILDREN).unwrap();
    let mut stopped = running.stop(soon).unwrap().stopped(tid).unwrap();
    stopped.set_care(Care::Kill);
    let mut member = rebuild::Member::new(ckpt_image::records::Pid(tid.as_raw()), stopped, runner);
    let mut run = Run::new(&script);
    while let Some(batch) = run.batch(runner.slot(), &mut |fd| Ok(descriptors[&fd].as_raw_fd())).unwrap() {
        run.check(&member.run("make the memory", &batch).unwrap()).unwrap();
    }
    contents.finish(&group, &mut |_, deed| deed()).unwrap();
    member
}

/// What of two captures must be equal, objects and files by what they are rather than by when they were made.
fn compare(before: &Image, after: &Image) {
    for (a, b) in before.space.mappings.iter().zip(&after.space.mappings) {
        assert_eq!(a, b);
    }
    assert_eq!(before.space, after.space);
    let strip = |objects: &[ObjectRecord]| -> Vec<ObjectRecord> {
        objects.iter().map(|object| ObjectRecord { identity: (0, 0), ..object.clone() }).collect()
    };
    assert_eq!(strip(&before.objects), strip(&after.objects));
    assert_eq!(before.files.len(), after.files.len());
    for (a, b) in before.files.iter().zip(&after.files) {
        assert_eq!((a.mode, a.uid, a.gid, a.size, &a.source), (b.mode, b.uid, b.gid, b.size, &b.source));
        assert!(a.source == FileSource::Unlinked || a.path == b.path);
    }
}

/// Every readable byte of both processes.
fn compare_bytes(space: &SpaceRecord, one: i32, other: i32) {
    let open = |pid: i32| File::open(format!("/proc/{pid}/mem")).unwrap();
    let (one, other) = (open(one), open(other));
    let mut bytes = 0;
    for mapping in space.mappings.iter().filter(|m| !matches!(m.kind, MappingKind::Vvar)) {
        for at in (mapping.start..mapping.end).step_by(PAGE) {
            let page = |file: &File| {
                let mut page = vec![0; PAGE];
                file.read_exact_at(&mut page, at).map(|()| page).map_err(|e| e.raw_os_error())
            };
            let (a, b) = (page(&one), page(&other));
            bytes += a.as_ref().map_or(0, Vec::len);
            assert!(a == b, "page {at:x} of {mapping:?} differs: {:?} {:?}", a.is_ok(), b.is_ok());
        }
    }
    assert!(bytes > 30 << 20, "only {bytes} bytes were compared");
}

fn memfd(name: &std::ffi::CStr, len: u64) -> File {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let file = File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap());
    file.set_len(len).unwrap();
    file
}

#[test]
fn a_rebuilt_address_space_is_the_one_that_was_captured() {
    assert!(nix::unistd::geteuid().is_root(), "this test needs root: it reads and makes other processes");
    // System V ids and leftovers are then nobody else's. One test, one process: no other thread uses IPC.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWIPC).unwrap();
    let dir = directory("memory");
    let content: Vec<u8> = (0..16 * PAGE).map(|at| (at / 3) as u8 | 1).collect();
    let data_path = dir.join("data \u{e9}");
    std::fs::write(&data_path, &content).unwrap();
    let data = File::options().read(true).write(true).open(&data_path).unwrap();
    let gone_path = dir.join("gone");
    std::fs::write(&gone_path, &content).unwrap();
    let gone = File::options().read(true).write(true).open(&gone_path).unwrap();
    gone.set_len(7 * PAGE as u64 + 100).unwrap();
    std::fs::remove_file(&gone_path).unwrap();
    let object = memfd(c"an object", 8 * PAGE as u64);
    let sealed = memfd(c"sealed", 2 * PAGE as u64);
    sealed.write_all_at(&content[..2 * PAGE], 0).unwrap();
    nix::fcntl::fcntl(&sealed, nix::fcntl::FcntlArg::F_ADD_SEALS(nix::fcntl::SealFlag::all())).unwrap();
    // SAFETY: no pointers.
    let segment = unsafe { libc::shmget(libc::IPC_PRIVATE, 10 * PAGE, libc::IPC_CREAT | 0o640) };
    assert!(segment >= 0);
    // SAFETY: no pointers; asks for the break, which the child inherits.
    let brk = unsafe { libc::syscall(libc::SYS_brk, 0) } as u64;
    let fds = [&data, &gone, &object, &sealed].map(|file| file.as_raw_fd());
    let victim = stopped_after(|| {
        anonymous_memory(Victim);
        file_memory(Victim, fds[0], fds[1]);
        shared_memory(Victim, fds[2], fds[3], segment);
    });

    let (first, second) = (dir.join("first"), dir.join("second"));
    std::fs::create_dir(&first).unwrap();
    std::fs::create_dir(&second).unwrap();
    let before = capture(victim.0, brk, &[], &first);
    // The victim keeps its segment; the copy needs the id.
    let mut elsewhere = Image { objects: before.objects.clone(), ..capture(victim.0, brk, &[], &second) };
    for object in &mut elsewhere.objects {
        if let ckpt_image::records::ObjectKind::SysvShm { shmid, .. } = &mut object.kind {
            *shmid += 40;
        }
    }
    let member = remake(&elsewhere);
    let pid = member.tid().as_raw();
    compare_bytes(&before.space, victim.0, pid);
    let ours = AddrRange::new(VirtAddr(RUNNER), nursery::AREA);
    let third = dir.join("third");
    std::fs::create_dir(&third).unwrap();
    let after = capture(pid, brk, &[ours], &third);
    compare(&elsewhere, &after);
    drop(member);
    std::fs::remove_dir_all(&dir).unwrap();
}
