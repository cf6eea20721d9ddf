//! Threads that wait for work beside one that must be done soon: they are made before the hurry begins, and work on other processors than
//! the one that calls them.
//!
//! A new thread begins where the scheduler puts it: on a busy machine that is often the processor of its maker, whose turn has to end first
//! (4 ms with HZ=250). One that sleeps and may run only elsewhere goes before whatever is less preferred there.
//!
//! ```text
//!  begin ─► each thread sleeps ◄───────────────────────────┐
//!  run   ─► the work is there: whoever wakes does it ──────┤
//!           the caller does it too; then it is taken away, and whoever is at it is waited for
//!  drop  ─► all end
//! ```

use std::cell::Cell;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::{Pid, gettid};

/// What each thread of a crew is to call.
#[derive(Clone, Copy)]
struct Work(*const (dyn Fn() + Sync));

// SAFETY: what it points to is Sync, and [`Crew::run`] keeps it until nobody uses it any more.
unsafe impl Send for Work {}

#[derive(Default)]
struct State {
    work: Option<Work>,
    /// A call of [`Crew::run`] has not come back.
    called: bool,
    /// Which work it is: each thread does it once.
    round: u64,
    /// Threads that do it now.
    busy: usize,
    failed: bool,
    end: bool,
    tids: Vec<Pid>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    called: Condvar,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Threads that wait for work. They take on the scheduling of the thread that makes them.
pub struct Crew {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    tids: Vec<Pid>,
    /// Where the caller may run.
    all: Option<CpuSet>,
    /// The processor that is left to the caller.
    left: Cell<Option<usize>>,
}

impl std::fmt::Debug for Crew {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Crew").field("threads", &self.threads.len()).finish()
    }
}

impl Crew {
    /// Makes so many threads, or as many as can be made, and waits until they are there.
    #[must_use]
    pub fn begin(count: usize) -> Self {
        let shared = Arc::<Shared>::default();
        let thread = |_| {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name("ckpt-crew".into()).spawn(move || serve(&shared)).ok()
        };
        let threads: Vec<_> = (0..count).filter_map(thread).collect();
        let mut state = shared.state();
        while state.tids.len() < threads.len() {
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let tids = std::mem::take(&mut state.tids);
        drop(state);
        let all = sched_getaffinity(Pid::from_raw(0)).ok();
        Self { shared, threads, tids, all, left: Cell::new(None) }
    }

    /// Calls `work` here and, at the same time, in each thread that wakes before it is done here. Comes back when it is done everywhere. False,
    /// and nothing is done, if the crew is at work already.
    ///
    /// # Panics
    /// If `work` does.
    pub fn run(&self, work: &(dyn Fn() + Sync)) -> bool {
        self.leave_processor();
        // SAFETY: only the lifetime changes. `_ends` waits, however this function is left, until no thread uses it, and no other gets it.
        let forever = unsafe {
            std::mem::transmute::<*const (dyn Fn() + Sync + '_), *const (dyn Fn() + Sync + 'static)>(work)
        };
        let mut state = self.shared.state();
        if std::mem::replace(&mut state.called, true) {
            return false;
        }
        state.work = Some(Work(forever));
        state.round += 1;
        drop(state);
        let ends = Ends(&self.shared);
        self.shared.called.notify_all();
        work();
        drop(ends);
        assert!(!self.shared.state().failed, "a thread of the crew panicked");
        true
    }

    /// Sends the threads to other processors than this one, if there are any.
    fn leave_processor(&self) {
        let (Some(all), Ok(own)) = (self.all, sched_getcpu()) else { return };
        if self.left.replace(Some(own)) == Some(own) {
            return;
        }
        let mut others = all;
        let _ = others.unset(own);
        if (0..CpuSet::count()).any(|cpu| others.is_set(cpu) == Ok(true)) {
            for tid in &self.tids {
                let _ = sched_setaffinity(*tid, &others);
            }
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.shared.state().end = true;
        self.shared.called.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Takes the work away, and waits until nobody is at it.
struct Ends<'a>(&'a Shared);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.work = None;
        while state.busy > 0 {
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.called = false;
    }
}

/// A thread is no more at work.
struct Left<'a>(&'a Shared);

impl Drop for Left<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.busy -= 1;
        state.failed |= std::thread::panicking();
        drop(state);
        self.0.changed.notify_all();
    }
}

/// What a thread of the crew does.
fn serve(shared: &Shared) {
    let mut done = 0;
    let mut state = shared.state();
    state.tids.push(gettid());
    shared.changed.notify_all();
    while !state.end {
        match state.work {
            Some(work) if state.round != done => {
                done = state.round;
                state.busy += 1;
                drop(state);
                let left = Left(shared);
                // SAFETY: the pointer is of this round, and [`Ends`] waits for `left` before it becomes invalid.
                unsafe { (*work.0)() };
                drop(left);
                state = shared.state();
            }
            _ => state = shared.called.wait(state).unwrap_or_else(PoisonError::into_inner),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn all_work_is_done_when_a_call_comes_back() {
        for threads in [0, 1, 5] {
            let crew = Crew::begin(threads);
            for items in 0..300 {
                let (next, sum) = (AtomicUsize::new(0), AtomicUsize::new(0));
                let work = || {
                    while let Some(item) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|n| *n < items) {
                        sum.fetch_add(item + 1, Ordering::Relaxed);
                    }
                };
                assert!(crew.run(&work));
                assert_eq!(sum.into_inner(), items * (items + 1) / 2);
            }
        }
    }

    #[test]
    #[should_panic(expected = "panicked")]
    fn a_panic_in_a_thread_is_one_of_the_call() {
        let crew = Crew::begin(1);
        let here = std::thread::current().id();
        let met = AtomicUsize::new(0);
        crew.run(&|| {
            if std::thread::current().id() != here {
                met.store(1, Ordering::Release);
                std::panic::resume_unwind(Box::new(()));
            }
            while met.load(Ordering::Acquire) == 0 {
                std::thread::yield_now();
            }
        });
    }
}
