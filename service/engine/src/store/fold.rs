//! Folding: a checkpoint takes in images that it rests on, in place, with its own id.
//!
//! ```text
//! 1  STORE/GROUP/.ID.merge/       made whole: pages, index, the other files by hard link, manifest; all of it fsynced
//! 2  renameat2(RENAME_EXCHANGE)   ID/ is the folded one, .ID.merge/ what it was; the directory is fsynced
//! 3  .ID.merge/ is removed
//! ```
//! Whenever it ends, `ID/` is the checkpoint as it was or folded, and whole. What rests on it finds the same pages in it.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use ckpt_image::{INDEX_FILE, Kind, Manifest, PAGES_FILE, PagesSummary};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use super::{Store, read, sync_directory};
use crate::error::Error;

/// What is done, in this order; the tests end it after each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Made,
    Folded,
    Linked,
    Committed,
    Exchanged,
    Synced,
    Removed,
}

/// The name of the directory in which a checkpoint is folded.
fn aside(directory: &Path) -> PathBuf {
    let id = directory.file_name().unwrap_or_default().to_string_lossy();
    directory.with_file_name(format!(".{id}.merge"))
}

/// Whether a name in a group's directory is one that only a crash leaves there.
pub(super) fn is_leftover(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(".merge")
}

impl Store {
    /// Folds the images of `chain`, a checkpoint and ancestors of it as [`Store::ancestry`] tells them, into the first. It then rests on what the
    /// last of them rests on; on nothing if that is a full. The others stay as they are. `progress` gets bytes done and in total and ends it by
    /// `false`.
    ///
    /// Errors: Canceled, NoSpace, Corrupt, Io, Unsupported where the file system cannot exchange directories. Then nothing has changed.
    pub fn fold(&self, chain: &[Manifest], progress: &mut dyn FnMut(u64, u64) -> bool) -> Result<(), Error> {
        let [newest, .., _] = chain else { return Ok(()) };
        let directory = self.directory(&newest.group, &newest.id.to_string());
        let aside = aside(&directory);
        let folded = self.make_folded(chain, &directory, &aside, progress);
        match folded {
            Ok(()) => {}
            Err(error) if is_fault(&error) => return Err(error),
            Err(error) => {
                let _ = fs::remove_dir_all(&aside);
                return Err(error);
            }
        }
        sync_directory(directory.parent().unwrap_or(Path::new("/")))?;
        step(Step::Synced)?;
        remove(&aside)?;
        step(Step::Removed)
    }

    /// A chain as one full image in a directory beside the store's checkpoints, which goes when this is dropped (and at the next start).
    ///
    /// Errors: as [`Store::fold`].
    pub fn folded(
        &self,
        chain: &[Manifest],
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<Folded, Error> {
        let newest = &chain[0];
        let directory = self.directory(&newest.group, &newest.id.to_string());
        let aside = directory.with_file_name(format!(".{}.export.merge", newest.id));
        remove(&aside)?;
        let mut folded = Folded { directory: aside.clone(), manifest: newest.clone() };
        let (directory, summary) = self.make_image(chain, &aside, progress)?;
        folded.manifest = described(newest.clone(), chain, summary);
        link_others(&folded.manifest, &directory, &aside)?;
        Ok(folded)
    }

    /// Up to and with the exchange.
    fn make_folded(
        &self,
        chain: &[Manifest],
        directory: &Path,
        aside: &Path,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<(), Error> {
        let (_, summary) = self.make_image(chain, aside, progress)?;
        step(Step::Folded)?;
        // Description and tags may be changed meanwhile, but not between this and the exchange.
        let _manifests = self.manifests();
        let manifest = read(directory)?;
        link_others(&manifest, directory, aside)?;
        step(Step::Linked)?;
        let manifest = described(manifest, chain, summary);
        manifest.commit(aside)?;
        step(Step::Committed)?;
        exchange(directory, aside)?;
        step(Step::Exchanged)
    }

    /// Makes a directory with `pages` and `pages.index` of a chain; gives that of its newest, too.
    fn make_image(
        &self,
        chain: &[Manifest],
        aside: &Path,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<(PathBuf, PagesSummary), Error> {
        remove(aside)?;
        fs::DirBuilder::new()
            .mode(0o700)
            .create(aside)
            .map_err(|e| Error::io(format!("create {}", aside.display()), e))?;
        step(Step::Made)?;
        let directories: Vec<_> = chain.iter().map(|m| self.directory(&m.group, &m.id.to_string())).collect();
        let share = |from: &fs::File, offset, to: &fs::File, at, len| {
            ckpt_sys::reflink::share(from, offset, to, at, len).map_err(std::io::Error::from)
        };
        let summary = ckpt_image::fold(&directories, aside, &share, progress)?.ok_or(Error::Canceled)?;
        Ok((directories[0].clone(), summary))
    }
}

/// The manifest of a folded image.
fn described(mut manifest: Manifest, chain: &[Manifest], summary: PagesSummary) -> Manifest {
    manifest.parent = chain[chain.len() - 1].parent;
    manifest.kind = if manifest.parent.is_some() { Kind::Incremental } else { Kind::Full };
    manifest.pages_written = summary.pages_written;
    manifest.files.insert(PAGES_FILE.into(), summary.pages);
    manifest.files.insert(INDEX_FILE.into(), summary.index);
    manifest.image_bytes = crate::pinned::image_bytes(&manifest.files);
    manifest
}

/// A chain as one image, for as long as this lives.
#[derive(Debug)]
pub struct Folded {
    directory: PathBuf,
    manifest: Manifest,
}

impl Folded {
    /// Where it lies.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its manifest, which is not written.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }
}

impl Drop for Folded {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Gives the new directory all files of the old one that do not change.
fn link_others(manifest: &Manifest, directory: &Path, aside: &Path) -> Result<(), Error> {
    for name in manifest.files.keys().filter(|name| ![PAGES_FILE, INDEX_FILE].contains(&name.as_str())) {
        let (from, to) = (directory.join(name), aside.join(name));
        let io = |what: &str, path: &Path, e| Error::io(format!("{what} {}", path.display()), e);
        if let Some(parent) = to.parent().filter(|parent| *parent != aside) {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(parent)
                .map_err(|e| io("create", parent, e))?;
        }
        fs::hard_link(&from, &to).map_err(|e| io("link", &from, e))?;
        if let Some(parent) = to.parent().filter(|parent| *parent != aside) {
            sync_directory(parent)?;
        }
    }
    Ok(())
}

/// rename(2), "RENAME_EXCHANGE".
fn exchange(directory: &Path, aside: &Path) -> Result<(), Error> {
    let exchanged = renameat2(AT_FDCWD, aside, AT_FDCWD, directory, RenameFlags::RENAME_EXCHANGE);
    exchanged.map_err(|errno| match errno {
        nix::errno::Errno::EINVAL => Error::Unsupported(format!(
            "the file system of {} cannot exchange two directories in one step, without which a merge is not safe",
            directory.display()
        )),
        errno => Error::io(format!("exchange {} with the merged one", directory.display()), errno),
    })
}

/// Removes a directory if it is there.
fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io(format!("remove {}", path.display()), e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
thread_local! {
    /// The step after which this thread ends a fold as if it had been killed.
    pub(super) static FAULT: std::cell::Cell<Option<Step>> = const { std::cell::Cell::new(None) };
}

#[cfg(test)]
const KILLED: &str = "killed here";

/// A step is done.
#[cfg(test)]
fn step(step: Step) -> Result<(), Error> {
    if FAULT.get() == Some(step) { Err(Error::Failed(KILLED.into())) } else { Ok(()) }
}

#[cfg(not(test))]
fn step(_: Step) -> Result<(), Error> {
    Ok(())
}

/// Whether an error stands for a kill, after which nobody cleans up.
fn is_fault(error: &Error) -> bool {
    #[cfg(test)]
    let fault = matches!(error, Error::Failed(text) if text == KILLED);
    #[cfg(not(test))]
    let fault = false;
    let _ = error;
    fault
}
