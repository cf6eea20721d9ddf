//! What the tests share.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Mutex, MutexGuard};

use ckpt_engine::Problem;
use ckpt_engine::capture::{Files, Objects, files};
use ckpt_engine::kinds::rebuild::{Descriptions, Host};
use ckpt_engine::kinds::{Captured, Depth, DescriptorCapture};
use ckpt_image::records::{
    Conversation, DescriptionId, DescriptorRecord, FileId, FileRecord, GroupImage, ObjectId, UnitIndex,
    UnitRecord,
};
use ckpt_sys::descriptor::{self, socket};

pub const FLOOR: RawFd = 300;

/// Descriptor numbers, the working directory and effective ids belong to the process: one test at a time.
pub fn alone() -> Option<MutexGuard<'static, ()>> {
    static ONE: Mutex<()> = Mutex::new(());
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: needs root (pidfd_getfd, SO_SNDBUFFORCE, TCP_REPAIR)");
        return None;
    }
    Some(ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
}

#[derive(Default)]
pub struct Here {
    contents: HashMap<FileId, Vec<(u64, Vec<u8>)>>,
    memfds: HashMap<ObjectId, OwnedFd>,
}

impl Host for Here {
    fn enter(&mut self, _: UnitIndex) -> Result<(), String> {
        Ok(())
    }

    fn held(&mut self, _: &Conversation) -> Option<OwnedFd> {
        None
    }

    fn pinned(&self, _: &FileRecord) -> Option<OwnedFd> {
        None
    }

    fn stub(&self, _: UnitIndex) -> Option<i32> {
        Some(std::process::id() as i32)
    }

    fn object(&mut self, object: ObjectId) -> Result<OwnedFd, String> {
        self.memfds[&object].try_clone().map_err(|e| e.to_string())
    }

    fn content(&mut self, file: FileId, into: BorrowedFd<'_>) -> Result<(), String> {
        for (at, bytes) in &self.contents[&file] {
            nix::sys::uio::pwrite(into, bytes, *at as i64).map_err(|e| e.to_string())?;
        }
        Ok(())
    }
}

/// What became of the descriptors, in the order they were given.
pub struct Rebuilt {
    pub image: GroupImage,
    pub made: Descriptions,
    pub problems: Vec<Problem>,
    numbers: Vec<RawFd>,
}

impl Rebuilt {
    pub fn fd(&self, nth: usize) -> BorrowedFd<'_> {
        self.made.get(self.id(nth)).expect("a description is missing")
    }

    pub fn id(&self, nth: usize) -> DescriptionId {
        let is_it = |d: &&DescriptorRecord| d.fd == self.numbers[nth];
        let found = self.image.fd_tables[0].descriptors.iter().find(is_it);
        found.unwrap_or_else(|| panic!("descriptor {nth}: {:?}", self.problems)).description
    }
}

pub fn capture(numbers: &[RawFd], depth: Depth) -> (Captured, Files, Objects) {
    capture_with(numbers, depth, &mut || {})
}

/// The same with something that happens `between` the look at the descriptors and what is told of them.
pub fn capture_with(
    numbers: &[RawFd],
    depth: Depth,
    between: &mut dyn FnMut(),
) -> (Captured, Files, Objects) {
    let units = ["test.service".to_owned()];
    let mut files = Files::new(vec![], vec![]);
    let mut objects = Objects::new();
    let pid = std::process::id() as i32;
    let mut capture = DescriptorCapture::new(depth, &units, [pid], &mut files, &mut objects);
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    capture.add_descriptors(pid, UnitIndex(0), &sorted).unwrap();
    between();
    let captured = capture.finish();
    (captured, files, objects)
}

/// Makes everything again.
pub fn rebuild(
    captured: Captured,
    files: Files,
    objects: &Objects,
    before: impl FnOnce(),
) -> (GroupImage, Descriptions) {
    let mut here = Here::default();
    for (id, size, fd) in files.contents() {
        let read = |(at, len): (u64, u64)| {
            let mut bytes = vec![0; len as usize];
            nix::sys::uio::pread(fd, &mut bytes, at as i64).unwrap();
            (at, bytes)
        };
        let ranges = files::data_ranges(fd, size).unwrap();
        here.contents.insert(id, ranges.into_iter().map(read).collect());
    }
    for object in objects.records() {
        let fd = objects.descriptor(object.id).unwrap().try_clone_to_owned().unwrap();
        here.memfds.insert(object.id, fd);
    }
    let unit = UnitRecord {
        name: "test.service".into(),
        cgroup: "/".into(),
        main_pid: None,
        namespaces: Default::default(),
        clocks: Default::default(),
        ephemeral: vec![],
        private_users: false,
        mounts: Vec::new(),
    };
    let image = GroupImage {
        units: vec![unit],
        fd_tables: captured.tables,
        descriptions: captured.descriptions,
        pipes: captured.pipes,
        files: files.into_records(),
        ..Default::default()
    };
    before();
    let made = Descriptions::rebuild(&image, &mut here, FLOOR)
        .unwrap_or_else(|e| panic!("{e}: {:?}; {:?}", std::error::Error::source(&e), captured.problems));
    (image, made)
}

/// Captures, closes, rebuilds.
pub fn again(fds: Vec<OwnedFd>) -> Rebuilt {
    let numbers: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let (captured, files, objects) = capture(&numbers, Depth::Contents);
    let problems = captured.problems.clone();
    let (image, made) = rebuild(captured, files, &objects, || drop(fds));
    Rebuilt { image, made, problems, numbers }
}

pub fn dup(fd: &impl AsFd) -> OwnedFd {
    fd.as_fd().try_clone_to_owned().unwrap()
}

pub fn read(fd: BorrowedFd<'_>) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 20];
    let n = nix::unistd::read(fd, &mut bytes).unwrap();
    bytes.truncate(n);
    bytes
}

pub fn same(a: BorrowedFd<'_>, b: BorrowedFd<'_>) -> bool {
    let place = |fd: BorrowedFd<'_>| descriptor::Place { pid: std::process::id() as i32, fd: fd.as_raw_fd() };
    descriptor::compare(place(a), place(b)).unwrap().is_eq()
}

pub fn fdinfo(fd: RawFd) -> String {
    std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap()
}

pub struct Directory(pub std::path::PathBuf);

impl Directory {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ckpt-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn file(&self, name: &str) -> std::path::PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn address(path: &std::path::Path) -> Vec<u8> {
    socket::unix_address(path.as_os_str().as_encoded_bytes()).unwrap()
}
