//! What would make a restore fail, as far as it can be told before anything is stopped.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use ckpt_image::records::{DescriptionKind, FileRecord, FileSource, GroupImage, MappingKind};

use crate::error::Error;
use crate::{machine, pinned};

/// Compares an image with this machine: kernel, processor, executables and libraries that the checkpoint (`directory`) has not kept.
///
/// Errors: IncompatibleKernel, FileMismatch.
pub fn image(image: &GroupImage, directory: &Path) -> Result<(), Error> {
    let here = machine::kernel()?;
    let then = &image.kernel;
    if then.machine != here.machine {
        return Err(Error::IncompatibleKernel(format!(
            "it is of a {}, this is a {}",
            then.machine, here.machine
        )));
    }
    if then.vdso != here.vdso {
        return Err(Error::IncompatibleKernel(format!(
            "it was taken under {}, whose vDSO differs from that of {}; boot that kernel to restore it",
            then.release, here.release
        )));
    }
    for description in &image.descriptions {
        if let DescriptionKind::IoUring(ring) = &description.kind {
            crate::kinds::io_uring::can_be_made(ring).map_err(Error::IncompatibleKernel)?;
        }
    }
    for mapping in image.spaces.iter().flat_map(|space| &space.mappings) {
        if let MappingKind::Aio { events: events @ 1.., content } = &mapping.kind {
            crate::kinds::aio::can_be_made(*events, content).map_err(Error::IncompatibleKernel)?;
        }
    }
    let is_kept = |file: &FileRecord| directory.join(pinned::DIRECTORY).join(pinned::name(file)).exists();
    image.files.iter().filter(|file| !is_kept(file)).try_for_each(unchanged)
}

/// Executables and libraries are mapped anew from their files, which must be what they were.
fn unchanged(file: &FileRecord) -> Result<(), Error> {
    if file.source != (FileSource::Path { immutable: true }) {
        return Ok(());
    }
    // A path that we do not see may be there in the unit's mount namespace: the rebuild looks again.
    let Ok(now) = std::fs::metadata(&file.path) else { return Ok(()) };
    let mtime = now.mtime() * 1_000_000_000 + now.mtime_nsec();
    let why = match (now.len() == file.size, mtime == file.mtime) {
        (true, true) => return Ok(()),
        (false, _) => format!("it has {} bytes, at the checkpoint it had {}", now.len(), file.size),
        (true, false) => "it was written since the checkpoint".to_owned(),
    };
    Err(Error::FileMismatch { path: file.path.display().to_string(), why })
}
