//! The files of a group: subvolumes, their snapshots, and what a restore puts aside.
//!
//! ```text
//!   /srv                      a mount of a btrfs
//!   ├── web                   a subvolume of the group            Subvolume
//!   └── .ckpt                 a subvolume of ours, 0700           Place
//!       └── GROUP
//!           ├── ID/srv-web                read-only snapshot       Prepared ► Taken ► SnapshotEntry
//!           └── undo-ID/srv-web           what a restore put aside Undo
//! ```
//!
//! checkpoint: [`Prepared::new`] and [`Subvolume::flush`] while the group runs, [`Prepared::take`] in the freeze window,
//! [`Taken::make_durable`] after the thaw, [`Taken::keep`] once the manifest is committed; a [`Taken`] that is dropped without
//! is removed, so that a snapshot without a checkpoint does not stay.
//!
//! restore: [`verify`] before anything is stopped, [`exchange`] once the units are stopped, then [`Undo::commit`] when the
//! members are about to run or [`Undo::revert`] when they cannot.
//!
//! `.ckpt` is a subvolume itself: where the subvolume of a group is a mount of its own, `.ckpt` lies inside it, and must
//! neither be in its snapshots nor be lost with what is put aside.

mod exchange;
mod exchanged;
mod mounted;
pub(crate) mod mounts;
mod pending;
mod place;
mod received;
mod snapshot;
mod subvolume;
#[cfg(test)]
mod tests;

pub use exchange::{Undo, UndoInfo, exchange, interrupted, remove_undo, undos};
pub use place::{Place, escape};
pub use received::{Btrfs, Reception};
pub use snapshot::{Prepared, Taken, remove, remove_orphans, verify};
pub use subvolume::{Subvolume, check, covering};

use std::path::Path;

use nix::errno::Errno;

use crate::error::Error;

/// A failed operation on a subvolume or snapshot as the error of the contract.
fn failed(subvolume: &Path, what: &str, errno: Errno) -> Error {
    match errno {
        Errno::ENOSPC | Errno::EDQUOT => {
            Error::NoSpace(format!("{what} for {}: {}", subvolume.display(), errno.desc()))
        }
        _ => Error::SnapshotFailed {
            subvolume: subvolume.display().to_string(),
            why: format!("{what}: {}", errno.desc()),
        },
    }
}

/// The error number of an i/o error.
fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
