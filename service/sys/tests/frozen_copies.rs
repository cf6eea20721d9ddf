//! A copy of a live process is of one instant, nobody of the process ever sees it, and nothing of it stays.
//!
//! The victim rewrites its memory page after page as fast as it can, checks at each page that its memory is of one instant, and looks all
//! the time for children that it never made.

mod common;

use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use ckpt_sys::cgroup::Cgroup;
use ckpt_sys::gather::gather;
use ckpt_sys::inject::{FrozenCopy, Live, orphans_fall_to_init};
use ckpt_sys::seize;
use ckpt_sys::thread::Deadline;
use ckpt_sys::{AddrRange, VirtAddr};
use common::{Started, TestCgroup, fail, kill_tracers, start};
use nix::unistd::Pid;

const PAGES: usize = 8192;
const WORDS: usize = 512;
static STOP: AtomicBool = AtomicBool::new(false);
static PASSES: AtomicU64 = AtomicU64::new(0);

/// Pass after pass over its half; a page that is not of the pass before is of another instant.
fn write(half: &mut [u64]) {
    let mut pass = 0;
    while !STOP.load(SeqCst) {
        for page in half.chunks_exact_mut(WORDS) {
            if page[0] != pass || page[WORDS - 1] != pass {
                fail("memory of another instant");
            }
            page[0] = pass + 1;
            page[WORDS - 1] = pass + 1;
        }
        pass += 1;
        PASSES.fetch_add(1, SeqCst);
    }
}

/// A child without an exit signal is for those only who ask for it (wait(2), __WALL). If the tracer dies between the two calls of clone(2)
/// such a child is there until the copy is made; so that one is not looked for then.
fn look_for_children() {
    let mortal = std::env::var_os("CKPT_TEST_MORTAL").is_some();
    let all = if mortal { 0 } else { libc::__WALL };
    while !STOP.load(SeqCst) {
        // SAFETY: no pointer is followed.
        let found = unsafe { libc::waitpid(-1, std::ptr::null_mut(), all | libc::WNOHANG) };
        if found != -1 {
            fail("a child that nobody made");
        }
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// Not a test of its own: what the tests below run against. Ends well when its input ends.
#[test]
#[ignore = "run by the other tests as the process under test"]
fn victim() {
    let memory = vec![0u64; PAGES * WORDS].leak();
    memory.iter_mut().step_by(WORDS).for_each(|word| *word = 0);
    println!("AT {}", memory.as_ptr() as usize);
    let (one, other) = memory.split_at_mut(PAGES / 2 * WORDS);
    std::thread::scope(|scope| {
        scope.spawn(|| write(one));
        scope.spawn(|| write(other));
        scope.spawn(look_for_children);
        println!("READY");
        let _ = std::io::stdin().read(&mut [0]);
        STOP.store(true, SeqCst);
    });
    if PASSES.load(SeqCst) < 4 {
        fail("it stood still");
    }
    println!("UNHARMED");
}

/// A copy of the one process of a cgroup, made while it is stopped; `meanwhile` happens before it goes on.
fn copy(cgroup: &Cgroup, meanwhile: impl FnOnce(Pid)) -> Result<FrozenCopy, ckpt_sys::Error> {
    let deadline = Deadline::after(Duration::from_secs(20)); // the machine may be busy
    let process = seize::seize_all(std::slice::from_ref(cgroup), deadline)?;
    let process = process.into_iter().next().ok_or(ckpt_sys::Error::Gone(Pid::from_raw(0)))?;
    let mut live = Live::hold(process, deadline)?;
    live.prepare(deadline)?;
    let mut copying = live.begin_copy()?.expect("no filter");
    live.launch_copy(&mut copying, deadline)?;
    let copy = live.end_copy(copying, deadline)?.expect("the kernel makes it");
    meanwhile(live.pid());
    live.release()?;
    Ok(copy)
}

/// Not a test of its own: copies without end until it is killed.
#[test]
#[ignore = "run by the other tests as the tracer that gets killed"]
fn tracer() {
    let Ok(name) = std::env::var("CKPT_TEST_CGROUP") else { return };
    let cgroup = Cgroup::open(&name).unwrap();
    println!("READY");
    loop {
        match copy(&cgroup, |_| ()) {
            Ok(copy) => {
                std::thread::sleep(Duration::from_millis(1));
                drop(copy);
            }
            Err(e) => println!("TRACER {e}: {:?}", std::error::Error::source(&e)),
        }
    }
}

/// Waits until nobody but this process is in the cgroup.
fn is_alone(cgroup: &TestCgroup, pid: u32) {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let members = cgroup.1.members().unwrap();
        if members.iter().all(|member| member.pid.as_raw() as u32 == pid) {
            return;
        }
        assert!(Instant::now() < end, "{members:?} besides {pid}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Where the victim's memory is.
fn memory(victim: &Started) -> u64 {
    let line = victim.said.lines().find_map(|line| line.split_once("AT "));
    line.and_then(|(_, at)| at.trim().parse().ok()).expect("it tells")
}

#[test]
fn a_copy_is_of_the_instant_at_which_it_was_made() {
    let cgroup = TestCgroup::new("copies");
    let victim = start("victim", Some(&cgroup), ("CKPT_TEST_CGROUP", ""));
    let range = AddrRange::new(VirtAddr(memory(&victim)), (PAGES * WORDS * 8) as u64);
    let (mut then, mut later) = (vec![0u8; PAGES * WORDS * 8], vec![0u8; PAGES * WORDS * 8]);
    for _ in 0..20 {
        let copy = copy(&cgroup.1, |pid| gather(pid, &[range], &mut then).unwrap()).unwrap();
        std::thread::sleep(Duration::from_millis(15)); // the victim writes on
        assert!(std::fs::read_dir(format!("/proc/{}/fd", copy.pid())).unwrap().next().is_none());
        gather(copy.pid(), &[range], &mut later).unwrap();
        assert!(then == later, "the copy changed");
        drop(copy);
        is_alone(&cgroup, victim.child.id());
    }
    victim.assert_unharmed();
}

#[test]
fn death_of_the_tracer_at_any_instant_leaves_nothing_of_a_copy() {
    let cgroup = TestCgroup::new("copy-death");
    let victim = start("victim", Some(&cgroup), ("CKPT_TEST_MORTAL", "1"));
    kill_tracers(&cgroup, 60, 30_000, || is_alone(&cgroup, victim.child.id()));
    victim.assert_unharmed();
}

#[test]
fn a_process_that_is_killed_while_it_is_copied_leaves_nothing() {
    let cgroup = TestCgroup::new("copy-killed");
    for round in 0..10 {
        let mut victim = start("victim", Some(&cgroup), ("CKPT_TEST_CGROUP", ""));
        let copy = copy(&cgroup.1, |_| ()).unwrap();
        if round % 2 == 0 {
            cgroup.1.kill().unwrap();
        } else {
            victim.child.kill().unwrap();
        }
        victim.child.wait().unwrap();
        drop(copy);
        is_alone(&cgroup, 0);
    }
}

#[test]
fn orphans_fall_to_init_unless_somebody_of_the_application_takes_them() {
    let here = Pid::this();
    let parent = nix::unistd::getppid();
    assert!(!orphans_fall_to_init(here, |pid| (pid == here).then_some(true)));
    assert!(!orphans_fall_to_init(here, |pid| (pid == here || pid == parent).then_some(pid == parent)));
    assert!(orphans_fall_to_init(here, |pid| (pid.as_raw() != 1).then_some(false)));
    assert!(!orphans_fall_to_init(here, |_| None) || here.as_raw() == 1);
}
