//! What every program goes through: rounds of load, checkpoint, loss and restore; generations of restored groups that are
//! taken again.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::fixture::Group;
use crate::runner::{Test, test};
use ckpt_tests::system::{eventually, main_pid, property};

/// Rounds and generations, unless CKPT_ROUNDS says how many.
const ROUNDS: u64 = 2;
/// More generations than this tell nothing new.
const GENERATIONS: u64 = 5;
const CLIENTS: usize = 2;

/// What an answer should be, or what is wrong, in words.
pub(crate) type Answer<T> = Result<T, String>;

/// A client of a program: it may keep a connection as long as it lives.
pub(crate) trait Client: Send {
    /// Makes the program count one more. Errors: a wrong answer, or none.
    fn step(&mut self) -> Answer<()>;
}

/// A program, seen by its clients.
pub(crate) trait App {
    /// A client with a connection of its own.
    fn client(&self) -> Box<dyn Client>;

    /// What the program has counted. Looks also at all that the program says of itself and at what lies on disk.
    ///
    /// Errors: what does not fit.
    fn count(&self) -> Answer<u64>;

    /// Whether it counts on without its clients, which then only watch it.
    fn works_by_itself(&self) -> bool {
        false
    }
}

/// A program in a group, and its units.
pub(crate) struct Started {
    pub(crate) app: Box<dyn App>,
    pub(crate) units: Vec<String>,
}

/// A test of the program that `start` starts in the units of a group.
pub(crate) fn app(name: &str, start: impl Fn(&Group) -> Started + 'static) -> Test {
    let check = move |name: &str| {
        let group = Group::new(name);
        group.enable();
        let started = start(&group);
        let mut last = String::new();
        eventually(&format!("{name} serves: {last}"), 30, || started.app.count().map_err(|e| last = e).ok());
        for round in 0..rounds() {
            println!("round {round}");
            lost_under_load(&group, &started);
        }
        for generation in 0..rounds().min(GENERATIONS) {
            println!("generation {generation}");
            next_generation(&group, &started);
        }
    };
    test(name, check).limit(60 + 30 * rounds())
}

fn rounds() -> u64 {
    std::env::var("CKPT_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS)
}

/// Load, checkpoint, more load, SIGKILL and loss of every file, restore.
fn lost_under_load(group: &Group, it: &Started) {
    let pids = it.main_pids();
    let load = Load::start(it.app.as_ref());
    load.progress("before the checkpoint");
    let before = it.count();
    group.checkpoint(&[]);
    let after = it.count();
    load.progress("after the checkpoint");
    load.end();
    group.kill();
    group.wreck();
    let now = it.restored(group, &pids);
    let after = if it.app.works_by_itself() { u64::MAX } else { after };
    assert!(before <= now && now <= after, "from {before} to {after} around the checkpoint, {now} restored");
    it.steps(3);
    assert!(it.count() > now, "{now} restored, no more after further steps");
}

/// Some steps, a checkpoint that ends the group, restore: exactly what was.
fn next_generation(group: &Group, it: &Started) {
    let pids = it.main_pids();
    it.steps(3);
    let before = it.count();
    group.checkpoint(&["--stop"]);
    group.wreck();
    let now = it.restored(group, &pids);
    assert!(now >= before, "{before} before the checkpoint, {now} restored");
}

impl Started {
    fn main_pids(&self) -> Vec<u32> {
        self.units.iter().map(|u| main_pid(u)).collect()
    }

    fn count(&self) -> u64 {
        self.app.count().unwrap_or_else(|e| panic!("{e}"))
    }

    fn steps(&self, count: u64) {
        let mut client = self.app.client();
        for n in 0..count {
            client.step().unwrap_or_else(|e| panic!("step {n} of a new client: {e}"));
        }
    }

    /// Restores the newest checkpoint; gives what the program has counted.
    fn restored(&self, group: &Group, pids: &[u32]) -> u64 {
        group.restore();
        for (unit, pid) in self.units.iter().zip(pids) {
            assert_eq!(property(unit, "ActiveState"), "active", "{unit}");
            assert_eq!(main_pid(unit), *pid, "Main PID of {unit}");
        }
        self.count()
    }
}

/// Clients at work. The first error of one is kept.
struct Load {
    stop: Arc<AtomicBool>,
    steps: Arc<AtomicU64>,
    error: Arc<Mutex<Option<String>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(app: &dyn App) -> Self {
        let mut load =
            Self { stop: Arc::default(), steps: Arc::default(), error: Arc::default(), threads: Vec::new() };
        for mut client in (0..CLIENTS).map(|_| app.client()) {
            let (stop, steps, error) = (load.stop.clone(), load.steps.clone(), load.error.clone());
            load.threads.push(std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    if let Err(e) = client.step() {
                        error.lock().expect("not poisoned").get_or_insert(e);
                        return;
                    }
                    steps.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(1));
                }
            }));
        }
        load
    }

    /// Waits until the clients have made some steps since the call.
    fn progress(&self, when: &str) {
        let now = self.steps.load(Ordering::Relaxed);
        eventually(&format!("clients go on {when}"), 30, || {
            let error = self.error.lock().expect("not poisoned").clone();
            assert!(error.is_none(), "a client {when}: {}", error.unwrap_or_default());
            (self.steps.load(Ordering::Relaxed) > now + 4).then_some(())
        });
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("a client does not panic");
        }
    }
}
