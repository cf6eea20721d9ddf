//! All that is needed to bring a group's memory, in a memory file: ckpt-restore hands it to the keeper, and a keeper to the next one.
//!
//! ```text
//!  version (u32) │ Record as postcard: descriptors by their numbers in the process that hands over
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use ckpt_image::PageFiles;
use ckpt_sys::event_log::EventLog;
use ckpt_sys::missing::Missing;
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::store::Store;
use super::{Absent, Helpers, Mark, Server};
use crate::rebuild::Failure;

/// Raise it with any change of [`Record`].
const VERSION: u32 = 2;

/// See the drawing.
#[derive(Debug, Serialize, Deserialize)]
pub struct Record {
    /// The group, the mark's path and file, the units' cgroup directories.
    mark: (String, PathBuf, RawFd, Vec<PathBuf>),
    /// CPUs that the keeper may run on.
    pub cpus: Vec<u64>,
    /// The files of the chain, with the checksums of their blocks, u32 each, little-endian: a quarter of a million for a GiB.
    images: Vec<(PathBuf, RawFd, ByteBuf)>,
    /// The userfaultfds, and what is missing when the members begin to run.
    spaces: Vec<(RawFd, Absent)>,
    /// The event log; not there before a keeper has made it.
    log: Option<RawFd>,
}

/// The estate with its descriptors.
#[derive(Debug)]
pub struct Estate {
    /// What it tells.
    pub record: Record,
    fds: BTreeMap<RawFd, OwnedFd>,
}

impl Estate {
    /// What ckpt-restore hands over.
    pub fn new(mark: Mark, files: PageFiles, spaces: Vec<(Missing, Absent)>, cpus: Vec<u64>) -> Self {
        let mut fds = BTreeMap::new();
        let mut keep = |file: File| {
            let number = file.as_raw_fd();
            fds.insert(number, file.into());
            number
        };
        let (group, path, file, cgroups) = mark.into_parts();
        let mark = (group, path, keep(file), cgroups);
        let bytes =
            |sums: Vec<u32>| ByteBuf::from(sums.iter().flat_map(|sum| sum.to_le_bytes()).collect::<Vec<_>>());
        let images = files.into_parts().into_iter().map(|(path, file, sums)| (path, keep(file), bytes(sums)));
        let images = images.collect();
        let spaces = spaces.into_iter().map(|(missing, absent)| (missing.number(), absent)).collect();
        Self { record: Record { mark, cpus, images, spaces, log: None }, fds }
    }

    /// Reads a record, and has its descriptors found by the numbers that it tells.
    pub fn read(
        file: OwnedFd,
        mut find: impl FnMut(RawFd) -> Result<OwnedFd, Failure>,
    ) -> Result<Self, Failure> {
        let mut bytes = Vec::new();
        let mut file = File::from(file);
        let read = file.rewind().and_then(|()| file.read_to_end(&mut bytes));
        read.map_err(|e| broken(&e.to_string()))?;
        let (version, bytes) = bytes.split_first_chunk().ok_or_else(|| broken("it is empty"))?;
        if u32::from_le_bytes(*version) != VERSION {
            return Err(broken("it is that of another version of ckpt"));
        }
        let mut record: Record = postcard::from_bytes(bytes).map_err(|e| broken(&e.to_string()))?;
        let mut fds = BTreeMap::new();
        for number in record.numbers() {
            let fd = find(*number)?;
            *number = fd.as_raw_fd();
            fds.insert(*number, fd);
        }
        Ok(Self { record, fds })
    }

    /// A memory file with the record.
    pub fn write(&self) -> Result<File, Failure> {
        let bytes = postcard::to_stdvec(&self.record).map_err(|e| broken(&e.to_string()))?;
        let file = memfd_create(c"ckpt-estate", MFdFlags::MFD_CLOEXEC).map(File::from);
        let mut file = file.map_err(|e| broken(&e.to_string()))?;
        let written = file.write_all(&VERSION.to_le_bytes()).and_then(|()| file.write_all(&bytes));
        written.map(|()| file).map_err(|e| broken(&e.to_string()))
    }

    /// Adds the event log.
    pub fn add_log(&mut self, log: File) {
        self.record.log = Some(log.as_raw_fd());
        self.fds.insert(log.as_raw_fd(), log.into());
    }

    /// The numbers of all that it tells of.
    pub fn descriptors(&self) -> impl Iterator<Item = RawFd> + '_ {
        self.fds.keys().copied()
    }

    /// Those who bring the memory.
    pub fn into_helpers(self, store: Store) -> Result<Helpers, Failure> {
        let Self { record, mut fds } = self;
        let mut file =
            |number| fds.remove(&number).map(File::from).ok_or_else(|| broken("it names a descriptor twice"));
        let (group, path, mark, cgroups) = record.mark;
        let mark = Mark::of_parts((group, path, file(mark)?, cgroups));
        let images = record.images.into_iter();
        let images = images
            .map(|(path, number, sums)| Ok((path, file(number)?, checksums(&sums))))
            .collect::<Result<_, Failure>>();
        let log = record.log.ok_or_else(|| broken("it has no event log")).and_then(&mut file)?;
        let mut spaces = Vec::new();
        for (number, absent) in record.spaces {
            // It stays open until the process ends.
            spaces.push((Missing::of_owned(file(number)?.into()), absent));
        }
        let server = Server::new(PageFiles::new(images?), spaces, EventLog::of_file(log)?, store);
        Ok(Helpers { server, mark })
    }
}

impl Record {
    fn numbers(&mut self) -> impl Iterator<Item = &mut RawFd> {
        let images = self.images.iter_mut().map(|(_, number, _)| number);
        let spaces = self.spaces.iter_mut().map(|(number, _)| number);
        images.chain(spaces).chain([&mut self.mark.2]).chain(&mut self.log)
    }
}

fn checksums(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect()
}

fn broken(why: &str) -> Failure {
    Failure::not_restorable(format!("what tells of memory that is to arrive: {why}"))
}

#[cfg(test)]
mod tests {
    use super::super::absent::Part;
    use super::super::mark::Lazily;
    use super::*;
    use std::os::fd::IntoRawFd;

    #[test]
    fn what_is_handed_over_is_what_is_read() {
        let marks = std::env::temp_dir().join(format!("ckpt-estate-{}", std::process::id()));
        let lazily = Lazily { group: "web".into(), marks: marks.clone(), keeper: PathBuf::new(), least: 0 };
        let mark = Mark::set(&lazily, &[], vec!["/a".into()]).unwrap();
        let image = File::open("/dev/null").unwrap();
        let number = File::open("/dev/null").unwrap().into_raw_fd();
        let mut absent = Absent::default();
        absent.insert(&ckpt_image::Run {
            first: 7,
            count: 3,
            place: ckpt_image::Place::File { image: 0, offset: 4096 },
        });
        let files = PageFiles::new(vec![("/p".into(), image, vec![1, 2])]);
        let spaces = vec![(Missing::of_number(number), absent.clone())];
        let first = Estate::new(mark, files, spaces, vec![3]);
        let find = |fd: RawFd| {
            let copied = File::open(format!("/proc/self/fd/{fd}")).map(OwnedFd::from);
            copied.map_err(|e| broken(&e.to_string()))
        };
        let mut second = Estate::read(first.write().unwrap().into(), find).unwrap();
        assert_ne!(second.record.spaces[0].0, number);
        assert_eq!(second.record.spaces[0].1.next(0, 9), absent.next(0, 9));
        assert_eq!(absent.next(0, 9), Some(Part { first: 7, count: 3, image: 0, offset: 4096 }));
        assert_eq!((&second.record.mark.0, &second.record.cpus), (&"web".to_owned(), &vec![3]));
        assert_eq!(second.descriptors().count(), 3);
        let log = memfd_create(c"log", MFdFlags::empty()).map(File::from).unwrap();
        log.set_len(4096).unwrap();
        second.add_log(log);
        assert!(second.into_helpers(Store::open().unwrap()).is_ok());
        std::fs::remove_dir_all(&marks).unwrap();
    }
}
