//! Trackers: what knows which pages of a member were written since the last checkpoint.
//!
//! ```text
//!                 Tracker::watch                     Watch::take                       Watch::take
//!  stopped member ─────────────► Watch ─ … runs … ─► in the window: written, clean ─ … ─► …
//!                                         │            and armed from here on
//!                                         └ Watch::round, while it runs: what was written, armed anew (live capture)
//! ```
//! One [`Watch`] is of one address space. A page that it does not know counts as written, so a new or moved mapping, what a
//! fork made and what an exec made are stored by construction. A watch whose checkpoint did not become durable is dropped:
//! what it armed is not stored anywhere.

mod chain;
mod compare;
mod kept;
mod pageset;
mod soft_dirty;
mod watched;
mod wp_async;
mod write_protect;

use std::fmt::Debug;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use ckpt_image::Tracker as Kind;
use ckpt_sys::inject::Live;
use ckpt_sys::maps::Mapping;
use ckpt_sys::pagemap::{Span, Tracked, Wanted};
use ckpt_sys::thread::Deadline;
use ckpt_sys::{AddrRange, Error as SysError};

use crate::config::TrackerChoice;
use crate::error::Error;

use chain::PageHasher;
pub use chain::{Chain, ContentHashes, Identity, Outrun, SpaceKey, WatchedSpace};
pub use kept::{Kept, Trace};
pub use pageset::{Cursor, PageSet};
pub use watched::{Watched, is_watched};

/// A way to know which pages were written.
pub trait Tracker: Send + Sync + Debug {
    /// Its name in manifests and lists.
    fn kind(&self) -> Kind;

    /// Whether its watches can do rounds ([`Watch::round`]).
    fn is_live(&self) -> bool {
        false
    }

    /// Begins to watch the address spaces of stopped members that are prepared to run batches, side by side where it takes time; the
    /// watches come in the same order. Nothing is armed yet: all pages count as written. `None` where one cannot be watched; then all of it
    /// is stored each time.
    ///
    /// Errors: those of running batches; the members are as they were.
    fn watch(&self, members: &mut [&mut Live], deadline: Deadline) -> Result<Vec<NewWatch>, SysError>;
}

/// A watch that was asked for, where it can be had.
pub type NewWatch = Option<Box<dyn Watch>>;

/// One address space that is watched. Dropped, it watches no more, and the member runs on unharmed.
pub trait Watch: Send + Debug {
    /// The first call in the window, of the member that is stopped and prepared.
    fn enter(&mut self, _live: &Live) {}

    /// The second: looks at all that [`Watch::take`] will be asked for.
    ///
    /// Errors: the kernel's.
    fn look(&mut self, _spans: &[Span]) -> Result<(), SysError> {
        Ok(())
    }

    /// In the window, everything stopped: adds to `found` the wanted pages that a private mapping has — written or clean since
    /// they were armed last — and its guards. All of them are armed from then on, at the latest when [`Watch::settle`] returns.
    ///
    /// Errors: the kernel's.
    fn take(&mut self, mapping: &Mapping, wanted: Wanted, found: &mut Tracked) -> Result<(), SysError>;

    /// The last call in the window, when every mapping was taken and its pages were copied.
    ///
    /// Errors: those of running batches; then the watch must be dropped.
    fn settle(&mut self, _live: &mut Live, _deadline: Deadline) -> Result<(), SysError> {
        Ok(())
    }

    /// While the member runs: the pages of a private mapping that were written, each armed at the instant at which it was looked at; with
    /// `all`, all that it has. What is not watched yet is from here on. `None` where this tracker cannot do that to a running member.
    ///
    /// Errors: the kernel's; the mapping may be gone meanwhile.
    fn round(
        &mut self,
        _mapping: &Mapping,
        _wanted: Wanted,
        _all: bool,
    ) -> Result<Option<Vec<AddrRange>>, SysError> {
        Ok(None)
    }

    /// What it can be made of again by another ckptd, as long as the descriptor is open somewhere. `None` where it ends with this process.
    fn trace(&self) -> Option<(BorrowedFd<'_>, Trace)> {
        None
    }

    /// While the member runs: bytes of a watched private mapping that were written since they were armed, about. Nothing changes.
    fn written(&mut self, _mapping: &Mapping) -> u64 {
        0
    }
}

/// The tracker that a group asks for; with `auto` the best that this machine has. Found by trying, not by the kernel's version.
///
/// Errors: Unsupported, with what to do, where the machine does not have the one that is asked for.
pub fn choose(choice: TrackerChoice) -> Result<Arc<dyn Tracker>, Error> {
    let missing = |name: &str, why: String| {
        Err(Error::Unsupported(format!(
            "tracker {name} on this machine: {why}; set capture.tracker = \"auto\" in the group's configuration"
        )))
    };
    match choice {
        TrackerChoice::Auto => Ok(best()),
        TrackerChoice::None => Ok(Arc::new(compare::Compare::new())),
        TrackerChoice::WpAsync => match wp_async::probe() {
            Ok(()) => Ok(Arc::new(wp_async::WpAsync)),
            Err(why) => missing("wp-async", why),
        },
        TrackerChoice::SoftDirty => match soft_dirty::probe() {
            Ok(()) => Ok(Arc::new(soft_dirty::SoftDirty)),
            Err(why) => missing("soft-dirty", why),
        },
        TrackerChoice::WriteProtect => match write_protect::probe() {
            Ok(()) => {
                ckpt_sys::protect::expect();
                Ok(Arc::new(write_protect::WriteProtect))
            }
            Err(why) => missing("write-protect", why),
        },
    }
}

fn best() -> Arc<dyn Tracker> {
    if wp_async::probe().is_ok() {
        Arc::new(wp_async::WpAsync)
    } else if soft_dirty::probe().is_ok() {
        Arc::new(soft_dirty::SoftDirty)
    } else {
        Arc::new(compare::Compare::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_has_a_tracker_and_what_it_lacks_is_named() {
        let best = choose(TrackerChoice::Auto).unwrap();
        assert_eq!(best.kind() == Kind::WpAsync, wp_async::probe().is_ok());
        assert_eq!(choose(TrackerChoice::None).unwrap().kind(), Kind::None);
        for (choice, name) in [(TrackerChoice::SoftDirty, "soft-dirty"), (TrackerChoice::WpAsync, "wp-async")]
        {
            match choose(choice) {
                Ok(tracker) => assert!(matches!(tracker.kind(), Kind::SoftDirty | Kind::WpAsync)),
                Err(e) => assert!(e.to_string().contains(name), "{e}"),
            }
        }
    }
}
