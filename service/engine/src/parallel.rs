//! The same work on many things, on all processors: for what is short but stands between a group and its next instruction.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::rc::Rc;
use std::sync::{LazyLock, Mutex};

use ckpt_sys::crew::Crew;

/// Asked for once: std reads the cgroup, the table of mounts and the quota for each answer.
static PROCESSORS: LazyLock<usize> =
    LazyLock::new(|| std::thread::available_parallelism().map_or(1, NonZeroUsize::get));

thread_local! {
    /// Who helps the calling thread.
    static CREW: RefCell<Option<Rc<Crew>>> = const { RefCell::new(None) };
}

/// As long as this lives, the threads that help the calling one are there already. They take on its scheduling of now.
#[derive(Debug)]
pub struct Ready(PhantomData<*const ()>);

impl Ready {
    /// Begins.
    pub fn begin() -> Self {
        let helpers = PROCESSORS.saturating_sub(1);
        CREW.set((helpers > 0).then(|| Rc::new(Crew::begin(helpers))));
        Self(PhantomData)
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        CREW.set(None);
    }
}

/// Does `work` on every item; the results come in the order of the items. Threads take on the scheduling of the calling one, which
/// works too. With fewer than `least` items each, another thread would cost more than it gains.
pub fn map<T: Sync, R: Send>(items: &[T], least: usize, work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let mut items: Vec<&T> = items.iter().collect();
    map_mut(&mut items, least, |item| work(item))
}

/// The same with items that change.
pub fn map_mut<T: Send, R: Send>(items: &mut [T], least: usize, work: impl Fn(&mut T) -> R + Sync) -> Vec<R> {
    let helpers = PROCESSORS.min(items.len() / least.max(1)).saturating_sub(1);
    if helpers == 0 {
        return items.iter_mut().map(work).collect();
    }
    let mut results: Vec<Option<R>> = items.iter().map(|_| None).collect();
    let open = Mutex::new(items.iter_mut().zip(&mut results));
    let next = || open.lock().ok().and_then(|mut open| open.next());
    let worker = || {
        while let Some((item, result)) = next() {
            *result = Some(work(item));
        }
    };
    let crew = CREW.with_borrow(Clone::clone);
    if crew.is_some_and(|crew| crew.run(&worker)) {
        return results.into_iter().flatten().collect();
    }
    std::thread::scope(|scope| {
        for _ in 0..helpers {
            // Where no thread can be made the others do it all.
            let _ = std::thread::Builder::new().name("ckpt-parallel".into()).spawn_scoped(scope, worker);
        }
        worker();
    });
    results.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_items() {
        in_order();
        let _ready = Ready::begin();
        in_order();
        let nested = map(&[1, 2, 3, 4], 1, |n| map(&[1, 2, 3, 4], 1, |m| n * m).iter().sum::<i32>());
        assert_eq!(nested, [10, 20, 30, 40]);
    }

    fn in_order() {
        for count in [0, 1, 7, 1000] {
            let items: Vec<usize> = (0..count).collect();
            assert_eq!(map(&items, 8, |n| n * 2), (0..count).map(|n| n * 2).collect::<Vec<_>>());
        }
        let mut items = vec![1; 100];
        let before = map_mut(&mut items, 8, |item| std::mem::replace(item, 2));
        assert!(before == [1; 100] && items == [2; 100]);
    }
}
