//! What the rebuild of descriptions needs of ckpt-restore: to be in a unit's namespaces, and content out of the image.

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use ckpt_image::records::{Conversation, FileId, FileRecord, GroupImage, ObjectId, UnitIndex};
use ckpt_image::{Container, PageReader};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use super::content::{self, Contents};
use super::places::Places;
use super::{Failure, Request};
use crate::kinds::outside::Held;
use crate::kinds::{self, rebuild};
use crate::pinned;

/// The host of a rebuild. Where it is now counts: go [`home`](Self::home) when done.
#[derive(Debug)]
pub struct Host<'a> {
    image: &'a GroupImage,
    places: &'a Places,
    pages: &'a PageReader,
    contents: &'a Contents,
    /// The directory of what the checkpoint kept of executables and libraries.
    pinned: Option<OwnedFd>,
    held: &'a [Held],
    now: Option<UnitIndex>,
}

impl<'a> Host<'a> {
    /// At home.
    pub fn new(
        image: &'a GroupImage,
        places: &'a Places,
        pages: &'a PageReader,
        contents: &'a Contents,
        request: &'a Request,
    ) -> Self {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let pinned = open(&request.image().join(pinned::DIRECTORY), flags, Mode::empty()).ok();
        Self { image, places, pages, contents, pinned, held: &request.held, now: None }
    }

    /// Goes back to our own namespaces.
    pub fn home(&mut self) -> Result<(), Failure> {
        match self.now.take() {
            Some(unit) => self.places.leave(unit),
            None => Ok(()),
        }
    }
}

impl rebuild::Host for Host<'_> {
    fn enter(&mut self, unit: UnitIndex) -> Result<(), String> {
        if self.now == Some(unit) {
            return Ok(());
        }
        self.home().and_then(|()| self.places.enter(unit)).map_err(|e| e.to_string())?;
        self.now = Some(unit);
        Ok(())
    }

    fn stub(&self, unit: UnitIndex) -> Option<i32> {
        self.places.get(unit).ok()?.stub.as_ref().map(|(pid, _)| *pid)
    }

    fn object(&mut self, object: ObjectId) -> Result<OwnedFd, String> {
        let fd = self.contents.object(object).ok_or_else(|| format!("the image has no object {object}"))?;
        fd.try_clone_to_owned().map_err(|e| e.to_string())
    }

    fn held(&mut self, conversation: &Conversation) -> Option<OwnedFd> {
        self.held.iter().find(|held| held.cookie == conversation.cookie)?.take().ok()
    }

    fn pinned(&self, file: &FileRecord) -> Option<OwnedFd> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let name = pinned::name(file);
        nix::fcntl::openat(self.pinned.as_ref()?, name.as_str(), flags, Mode::empty()).ok()
    }

    fn content(&mut self, file: FileId, into: BorrowedFd<'_>) -> Result<(), String> {
        let record =
            self.image.files.get(file.index()).ok_or_else(|| format!("the image has no file {file}"))?;
        let into = File::from(into.try_clone_to_owned().map_err(|e| e.to_string())?);
        content::fill(&into, Container::File(file), record.size, self.pages).map_err(|e| e.to_string())
    }
}

impl From<kinds::Error> for Failure {
    fn from(error: kinds::Error) -> Self {
        match error {
            kinds::Error::FileMismatch { path, why } => Failure::new("FileMismatch", why).of_object(path),
            kinds::Error::Dangling(_) => Failure::corrupt(error.to_string()),
            other => Failure::from_error(&other),
        }
    }
}

/// Keeps every number below a floor taken, so that what is opened meanwhile lies above.
#[derive(Debug)]
pub struct Blockade {
    _taken: Vec<OwnedFd>,
}

impl Blockade {
    /// Takes all free numbers below `floor`.
    pub fn below(floor: RawFd) -> Result<Self, Failure> {
        raise_limit();
        let fail =
            |e: std::io::Error| Failure::not_restorable(format!("take descriptors below {floor}: {e}"));
        let first =
            open("/dev/null", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(|e| fail(e.into()))?;
        let mut taken = vec![first];
        loop {
            let next = taken[0].try_clone().map_err(fail)?;
            if next.as_raw_fd() >= floor {
                return Ok(Self { _taken: taken });
            }
            taken.push(next);
        }
    }
}

/// As many descriptors as the kernel allows at all (proc_sys_fs(5), nr_open): members may have been allowed more than ckptd is.
fn raise_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let most = std::fs::read_to_string("/proc/sys/fs/nr_open").ok().and_then(|text| text.trim().parse().ok());
    let raised = most.map(|most: u64| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if !matches!(raised, Some(Ok(())))
        && let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
    {
        // What fails here shows as EMFILE, with the call that meets it.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behind_a_blockade_only_high_numbers_are_given() {
        let blockade = Blockade::below(200).unwrap();
        let file = File::open("/dev/null").unwrap();
        assert!(file.as_raw_fd() >= 200);
        drop(blockade);
    }
}
