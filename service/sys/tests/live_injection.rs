//! Injection into live processes harms nothing: not when it works, not when the tracer is killed at any instant.
//!
//! The victim checks itself: results of a long computation with AVX and the red zone, sleeps that end neither early nor
//! with EINTR, epoll and poll time-outs, a pipe ping-pong, signals counted by a handler, sigsuspend.

mod common;

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use ckpt_sys::cgroup::Cgroup;
use ckpt_sys::inject::Live;
use ckpt_sys::seize;
use ckpt_sys::thread::Deadline;

use common::{TestCgroup, fail, kill_tracers, start};

static STOP: AtomicBool = AtomicBool::new(false);
static STRAYS: AtomicU64 = AtomicU64::new(0);
static SIGNALS: AtomicU64 = AtomicU64::new(0);

extern "C" fn stray(_: libc::c_int) {
    STRAYS.fetch_add(1, SeqCst);
}

/// Catches every signal, as Go's runtime does.
fn catch_all() {
    for signal in (1..32).filter(|s| ![libc::SIGUSR1, libc::SIGSEGV, libc::SIGBUS].contains(s)) {
        // SAFETY: installs a handler that only adds to an atomic; SIGKILL and SIGSTOP are refused.
        unsafe { libc::signal(signal, stray as *const () as libc::sighandler_t) };
    }
}

extern "C" fn count(_: libc::c_int) {
    SIGNALS.fetch_add(1, SeqCst);
}

/// A chain of numbers kept in registers, vector registers and the red zone; wrong if any of them is.
fn compute() -> u64 {
    let mut rounds = 0u64;
    while !STOP.load(SeqCst) {
        let (mut a, mut b) = (0x9e37_79b9_u64, 0u64);
        // SAFETY: uses only the registers named; the red zone below rsp belongs to a leaf, which this asm block is.
        unsafe {
            std::arch::asm!(
                "mov [rsp - 64], {a}",
                "movq xmm7, {a}",
                "movq xmm15, {a}",
                "mov {n}, 200000",
                "2:",
                "paddq xmm7, xmm15",
                "add [rsp - 64], {a}",
                "add {b}, {a}",
                "std",
                "cld",
                "dec {n}",
                "jnz 2b",
                "movq {n}, xmm7",
                "sub {n}, [rsp - 64]",
                "sub {b}, [rsp - 64]",
                "add {b}, {a}",
                "or {b}, {n}",
                a = inout(reg) a, b = inout(reg) b, n = out(reg) _, out("xmm7") _, out("xmm15") _,
            );
        }
        if b != 0 || a != 0x9e37_79b9 {
            fail("computation");
        }
        a = 0;
        let _ = a;
        rounds += 1;
    }
    rounds
}

fn sleeps() -> u64 {
    let mut rounds = 0;
    while !STOP.load(SeqCst) {
        let time = libc::timespec { tv_sec: 0, tv_nsec: 3_000_000 };
        let before = Instant::now();
        // SAFETY: both pointers are to time or null.
        if unsafe { libc::nanosleep(&time, std::ptr::null_mut()) } != 0 {
            fail("nanosleep was interrupted");
        }
        if before.elapsed() < Duration::from_millis(3) {
            fail("nanosleep ended early");
        }
        rounds += 1;
    }
    rounds
}

fn epolls() -> u64 {
    let mut rounds = 0;
    // SAFETY: no pointers.
    let fd = unsafe { libc::epoll_create1(0) };
    while !STOP.load(SeqCst) {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: event has room for the one asked for.
        let got = unsafe { libc::epoll_wait(fd, &raw mut event, 1, 2) };
        // signal(7): a mere stop interrupts epoll_wait; that is undone unless the tracer dies before it could.
        if got != 0 && std::env::var_os("CKPT_TEST_MORTAL").is_none() {
            fail("epoll_wait was interrupted");
        }
        // SAFETY: no descriptors, no pointer is followed.
        if unsafe { libc::poll(std::ptr::null_mut(), 0, 2) } != 0 {
            fail("poll was interrupted");
        }
        rounds += 1;
    }
    rounds
}

fn ping_pong() -> u64 {
    let (mut here, mut there) = std::os::unix::net::UnixStream::pair().unwrap_or_else(|_| fail("pair"));
    let echo = std::thread::spawn(move || {
        let mut word = [0; 8];
        while there.read_exact(&mut word).is_ok() && there.write_all(&word).is_ok() {}
    });
    let mut n = 0u64;
    while !STOP.load(SeqCst) {
        n += 1;
        let mut back = [0; 8];
        if here.write_all(&n.to_le_bytes()).is_err() || here.read_exact(&mut back).is_err() {
            fail("ping-pong failed");
        }
        if u64::from_le_bytes(back) != n {
            fail("ping-pong lost count");
        }
    }
    drop(here);
    let _ = echo.join();
    n
}

/// Sends itself signals that only sigsuspend lets through; none may be lost.
fn suspends() -> u64 {
    let mut n = 0u64;
    // SAFETY: the sets live on this stack and are initialized before use.
    unsafe {
        let (mut set, mut old) = (std::mem::zeroed::<libc::sigset_t>(), std::mem::zeroed::<libc::sigset_t>());
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGUSR1);
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, &raw mut old);
        libc::sigdelset(&raw mut old, libc::SIGUSR1);
        let me = libc::pthread_self() as u64;
        let sender = std::thread::spawn(move || {
            let mut sent = 0;
            while !STOP.load(SeqCst) {
                if SIGNALS.load(SeqCst) == sent {
                    sent += 1;
                    libc::pthread_kill(me as libc::pthread_t, libc::SIGUSR1);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            // Wake the waiter a last time.
            libc::pthread_kill(me as libc::pthread_t, libc::SIGUSR1);
            sent
        });
        while !STOP.load(SeqCst) {
            libc::sigsuspend(&old);
            n += 1;
        }
        let sent = sender.join().unwrap_or(0);
        let mut now = std::mem::zeroed::<libc::sigset_t>();
        libc::pthread_sigmask(libc::SIG_SETMASK, std::ptr::null(), &raw mut now);
        if libc::sigismember(&now, libc::SIGUSR1) != 1 {
            fail("mask lost");
        }
        if SIGNALS.load(SeqCst) + 1 < sent {
            fail("signal lost");
        }
    }
    n
}

/// Not a test of its own: what the tests below run against. Ends well when its input ends.
#[test]
#[ignore = "run by the other tests as the process under test"]
fn victim() {
    // SAFETY: installs a handler that only adds to an atomic.
    unsafe { libc::signal(libc::SIGUSR1, count as *const () as libc::sighandler_t) };
    if std::env::var_os("CKPT_TEST_CATCH").is_some() {
        catch_all();
    }
    type Part = (&'static str, fn() -> u64);
    let parts: Vec<Part> = vec![
        ("compute", compute),
        ("compute", compute),
        ("sleeps", sleeps),
        ("epolls", epolls),
        ("ping-pong", ping_pong),
        ("suspends", suspends),
    ];
    let threads: Vec<_> = parts.into_iter().map(|(name, part)| (name, std::thread::spawn(part))).collect();
    println!("READY");
    let _ = std::io::stdin().read(&mut [0]);
    STOP.store(true, SeqCst);
    for (name, thread) in threads {
        let rounds = thread.join().unwrap_or_else(|_| fail(name));
        if rounds < 3 {
            fail(&format!("{name} stood still"));
        }
        println!("DONE {name} {rounds}");
    }
    if STRAYS.load(SeqCst) != 0 {
        fail("signals from nowhere");
    }
    println!("UNHARMED");
}

/// One live batch in every thread of the cgroup.
fn inject(cgroup: &Cgroup) -> Result<usize, ckpt_sys::Error> {
    let deadline = Deadline::after(Duration::from_secs(20)); // the machine may be busy
    let mut threads = 0;
    for process in seize::seize_all(std::slice::from_ref(cgroup), deadline)? {
        let mut live = Live::hold(process, deadline)?;
        live.prepare(deadline)?;
        let tids: Vec<_> = live.threads().map(|t| t.tid).collect();
        let batches: Vec<_> = (0..tids.len())
            .map(|i| {
                let mut batch = live.batch(i)?;
                let old = batch.space(24);
                batch.must(libc::SYS_sigaltstack, [0, old.0, 0, 0, 0, 0]);
                let call = batch.must(libc::SYS_gettid, [0; 6]);
                Ok((batch, call))
            })
            .collect::<Result<_, ckpt_sys::Error>>()?;
        let refs: Vec<_> = batches.iter().enumerate().map(|(i, (b, _))| (i, b)).collect();
        let outcomes = live.run(&refs, deadline)?;
        for ((outcome, (_, call)), tid) in outcomes.iter().zip(&batches).zip(&tids) {
            assert_eq!(outcome.result(*call), Ok(tid.as_raw() as u64));
        }
        threads += tids.len();
        live.release()?;
    }
    Ok(threads)
}

/// Not a test of its own: injects without end until it is killed.
#[test]
#[ignore = "run by the other tests as the tracer that gets killed"]
fn tracer() {
    let Ok(name) = std::env::var("CKPT_TEST_CGROUP") else { return };
    let cgroup = Cgroup::open(&name).unwrap();
    let pause = std::env::var("CKPT_TEST_PAUSE").ok().and_then(|us| us.parse().ok()).unwrap_or(0);
    println!("READY");
    loop {
        std::thread::sleep(Duration::from_micros(pause));
        match inject(&cgroup) {
            Ok(threads) => println!("INJECTED into {threads} threads"),
            // Members that come and go meanwhile are no failure.
            Err(ckpt_sys::Error::Gone(_)) => println!("GONE"),
            Err(e) => println!("TRACER {e}: {:?}", std::error::Error::source(&e)),
        }
    }
}

fn rounds(default: u32) -> u32 {
    std::env::var("CKPT_TEST_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

#[test]
fn thousands_of_batches_leave_the_process_unharmed() {
    let cgroup = TestCgroup::new("batches");
    let victim = start("victim", Some(&cgroup), ("CKPT_TEST_CGROUP", ""));
    let begun = Instant::now();
    let mut threads = 0;
    for _ in 0..rounds(300) {
        threads = inject(&cgroup.1).unwrap();
    }
    println!("{} µs a round of {threads} threads", begun.elapsed().as_micros() / u128::from(rounds(300)));
    victim.assert_unharmed();
}

#[test]
fn a_process_that_catches_every_signal_never_sees_the_sign() {
    let cgroup = TestCgroup::new("catch");
    let victim = start("victim", Some(&cgroup), ("CKPT_TEST_CATCH", "1"));
    for _ in 0..rounds(50) {
        inject(&cgroup.1).unwrap();
        std::thread::sleep(Duration::from_millis(2));
    }
    victim.assert_unharmed();
}

#[test]
fn death_of_the_tracer_at_any_instant_leaves_the_process_unharmed() {
    let cgroup = TestCgroup::new("death");
    let victim = start("victim", Some(&cgroup), ("CKPT_TEST_MORTAL", "1"));
    kill_tracers(&cgroup, rounds(150), 20_000, || ());
    victim.assert_unharmed();
}
