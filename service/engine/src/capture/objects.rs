//! The shared memory objects of a group: descriptors and mappings name them by [`ObjectId`].

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ckpt_image::records::{ObjectId, ObjectKind, ObjectRecord};

/// The registry. One a capture.
#[derive(Debug, Default)]
pub struct Objects {
    records: Vec<ObjectRecord>,
    known: HashMap<(u64, u64), ObjectId>,
    descriptors: HashMap<ObjectId, OwnedFd>,
}

impl Objects {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// The object with this device and inode number (stat(2); the same numbers stand in maps), if it is known.
    pub fn find(&self, identity: (u64, u64)) -> Option<ObjectId> {
        self.known.get(&identity).copied()
    }

    /// The object with this identity, made by `kind` if it is not known yet.
    pub fn record(&mut self, identity: (u64, u64), size: u64, kind: impl FnOnce() -> ObjectKind) -> ObjectId {
        if let Some(id) = self.find(identity) {
            return id;
        }
        let id = ObjectId(self.records.len() as u32);
        self.records.push(ObjectRecord { id, kind: kind(), size, identity });
        self.known.insert(identity, id);
        id
    }

    /// Keeps a descriptor through which the object's content can be read; the first one that is given.
    pub fn keep_descriptor(&mut self, id: ObjectId, fd: OwnedFd) {
        self.descriptors.entry(id).or_insert(fd);
    }

    /// The descriptor that was kept. An object that is only mapped has none: its content is read through a mapping.
    pub fn descriptor(&self, id: ObjectId) -> Option<BorrowedFd<'_>> {
        self.descriptors.get(&id).map(AsFd::as_fd)
    }

    /// One record.
    pub fn get(&self, id: ObjectId) -> &ObjectRecord {
        &self.records[id.index()]
    }

    /// One record, to complete it.
    pub fn get_mut(&mut self, id: ObjectId) -> &mut ObjectRecord {
        &mut self.records[id.index()]
    }

    /// All records.
    pub fn records(&self) -> &[ObjectRecord] {
        &self.records
    }

    /// All records, at the end.
    pub fn into_records(self) -> Vec<ObjectRecord> {
        self.records
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_recorded_once() {
        let mut objects = Objects::new();
        let a = objects.record((1, 2), 4096, || ObjectKind::Anonymous);
        assert_eq!(objects.record((1, 2), 4096, || ObjectKind::Anonymous), a);
        assert_ne!(objects.record((1, 3), 4096, || ObjectKind::Anonymous), a);
        assert_eq!(objects.find((1, 2)), Some(a));
        assert_eq!(objects.records().len(), 2);
    }
}
