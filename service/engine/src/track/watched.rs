//! Which processes this program watches: their mappings show the mark of userfaultfd(2), and it is ours.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use ckpt_sys::task::{self, Shared};
use nix::unistd::Pid;

static WATCHED: LazyLock<Mutex<BTreeMap<i32, usize>>> = LazyLock::new(Mutex::default);

/// Says of a process that it is watched, as long as this lives.
#[derive(Debug)]
pub struct Watched(i32);

impl Watched {
    /// Notes it.
    pub fn note(pid: i32) -> Self {
        *WATCHED.lock().unwrap_or_else(PoisonError::into_inner).entry(pid).or_default() += 1;
        Self(pid)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let mut watched = WATCHED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = watched.get_mut(&self.0) {
            *count -= 1;
            if *count == 0 {
                watched.remove(&self.0);
            }
        }
    }
}

/// Whether this program watches the memory of the process by a userfaultfd: it is noted for one of those that share it (CLONE_VM).
pub fn is_watched(pid: i32) -> bool {
    let watched = WATCHED.lock().unwrap_or_else(PoisonError::into_inner);
    let shares = |other: &i32| {
        let order = task::compare(Pid::from_raw(pid), Pid::from_raw(*other), Shared::Space);
        order.is_ok_and(Ordering::is_eq)
    };
    watched.contains_key(&pid) || watched.keys().any(shares)
}
