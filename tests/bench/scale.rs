//! One group with much of one kind of thing: how capture and restore grow with its number. The exponent of a power law through the
//! points says it in one figure: 1 is linear, 2 quadratic.

use std::fs::{self, File};
use std::os::fd::AsRawFd;

use ckpt_tests::system::{ckptctl, must, run};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{ForkResult, fork};

use crate::report::{Curve, Report, Target};

/// How this program calls itself to be the service: the kind and the number.
pub(crate) const CHILD: &str = "--many";

const UNIT: &str = "many.service";
const GROUP: &str = "many";

/// What there is much of, with the numbers that are tried. BENCH_CASE chooses one.
const KINDS: [(&str, [usize; 3]); 4] = [
    ("processes", [100, 300, 1000]),
    ("threads", [500, 1500, 5000]),
    ("descriptors", [2000, 6000, 20_000]),
    ("mappings", [5000, 15_000, 50_000]),
];
/// Near linear.
const EXPONENT: f64 = 1.2;

/// Both curves of each kind, and their exponents.
pub(crate) fn bench(report: &mut Report) {
    let wanted = std::env::var("BENCH_CASE").unwrap_or_default();
    for (kind, counts) in KINDS.iter().filter(|(kind, _)| kind.contains(&wanted)) {
        let counts = counts.map(|count| if *kind == "descriptors" { count.min(possible()) } else { count });
        let measured: Vec<_> = counts.iter().map(|count| (*count as f64, measure(kind, *count))).collect();
        for (place, what) in ["freeze window", "restore"].iter().enumerate() {
            for (count, ms) in &measured {
                report.plain(format!("{what}, {count} {kind}"), ms[place], "ms");
            }
            let points = measured.iter().map(|(count, ms)| [*count, ms[place]]).collect();
            let curve = Curve { name: curve_name(place, kind), axes: [*kind, "ms"], points };
            let name = format!("{what}, exponent against {kind}");
            report.promised(name, curve.exponent(), "", Target::AtMost(EXPONENT));
            report.curve(curve);
        }
    }
}

/// How many descriptors ckpt-restore can hold beside those of its members: half of what a process may have here, but for some.
fn possible() -> usize {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("getrlimit");
    usize::try_from(most).unwrap_or(usize::MAX) / 2 - 1500
}

fn curve_name(place: usize, kind: &str) -> &'static str {
    match (place, kind) {
        (0, "processes") => "scale-freeze-processes",
        (0, "threads") => "scale-freeze-threads",
        (0, "descriptors") => "scale-freeze-descriptors",
        (0, _) => "scale-freeze-mappings",
        (_, "processes") => "scale-restore-processes",
        (_, "threads") => "scale-restore-threads",
        (_, "descriptors") => "scale-restore-descriptors",
        (_, _) => "scale-restore-mappings",
    }
}

/// Milliseconds of freeze window and restore: the least of three, since what hinders is never less than nothing.
fn measure(kind: &str, count: usize) -> [f64; 2] {
    let program = std::env::current_exe().expect("this program's path");
    let unit = format!(
        "[Service]\nType=notify\nNotifyAccess=all\nTasksMax=infinity\nLimitNPROC=infinity\nLimitNOFILE=65536\n\
         TimeoutStartSec=300\nExecStart={} {CHILD} {kind} {count}\n",
        program.display()
    );
    fs::write(format!("/run/systemd/system/{UNIT}"), unit).expect("/run is the machine's own");
    must(&["systemctl", "daemon-reload"]);
    must(&["ckptctl", "enable", UNIT, "--name", GROUP]);
    let path = format!("/etc/ckpt/groups.d/{GROUP}.toml");
    let config = fs::read_to_string(&path).expect("what enable wrote");
    fs::write(&path, config.replace("max_freeze = \"500ms\"", "max_freeze = \"60s\"")).expect("writable");
    must(&["systemctl", "reload", "ckptd.service"]);
    must(&["systemctl", "start", UNIT]);
    let mut least = [f64::INFINITY; 2];
    for _ in 0..3 {
        let made = ckptctl(&["checkpoint", GROUP, "--full"]);
        let back = ckptctl(&["restore", GROUP]);
        let ms = |value: &serde_json::Value| value.as_f64().unwrap_or(f64::NAN) / 1e3;
        least[0] = least[0].min(ms(&made["freeze_usec"]));
        least[1] = least[1].min(ms(&back["restore_usec"]));
        let id = made["id"].as_str().unwrap_or("");
        must(&["ckptctl", "delete", &format!("{GROUP}@{id}")]);
    }
    let _ = run(&["systemctl", "kill", "--signal=KILL", UNIT]);
    let _ = run(&["systemctl", "stop", UNIT]);
    let _ = run(&["ckptctl", "disable", GROUP]);
    least
}

/// The service: makes them, says that it is ready, waits.
pub(crate) fn child(kind: &str, count: usize) -> ! {
    match kind {
        "processes" => processes(count),
        "threads" => (0..count).for_each(|_| {
            let builder = std::thread::Builder::new().stack_size(64 << 10);
            builder.spawn(std::thread::park).expect("a thread");
        }),
        "descriptors" => descriptors(count),
        _ => mappings(count),
    }
    must(&["systemd-notify", "--ready"]);
    loop {
        std::thread::park();
    }
}

fn processes(count: usize) {
    for _ in 1..count {
        // SAFETY: this process has one thread; the child only sleeps.
        if let ForkResult::Child = unsafe { fork() }.expect("fork") {
            loop {
                std::thread::park();
            }
        }
    }
}

/// A process may not have more than this on many hosts.
const DESCRIPTORS: usize = 10_000;

/// Descriptors in as many processes as are needed, the last of which is this.
fn descriptors(count: usize) {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("getrlimit");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("the hard limit is allowed");
    let mut left = count;
    while left > DESCRIPTORS {
        left -= DESCRIPTORS;
        let (ready, done) = nix::unistd::pipe().expect("a pipe");
        // SAFETY: this process has one thread; the child goes on in Rust code as its parent would.
        if let ForkResult::Child = unsafe { fork() }.expect("fork") {
            open_descriptors(DESCRIPTORS);
            drop(done);
            loop {
                std::thread::park();
            }
        }
        drop(done);
        assert_eq!(nix::unistd::read(&ready, &mut [0]), Ok(0), "the child closes its end");
    }
    open_descriptors(left);
}

/// Files, pipes, eventfds and socket pairs in turn. They are never closed.
fn open_descriptors(count: usize) {
    let mut made = 0;
    while made < count {
        made += 6;
        std::mem::forget(File::open("/etc/passwd").expect("readable"));
        let event = nix::sys::eventfd::EventFd::from_value(7).expect("an eventfd");
        // SAFETY: dup of a descriptor that is ours; it stays open for ever, as is meant here.
        assert!(unsafe { libc::dup(event.as_raw_fd()) } >= 0);
        std::mem::forget(event);
        let (read, write) = nix::unistd::pipe().expect("a pipe");
        let sockets = std::os::unix::net::UnixStream::pair().expect("sockets");
        std::mem::forget((read, write, sockets));
    }
}

/// Pages of other protection than their neighbours, so that each is a mapping. One in eight has content.
fn mappings(count: usize) {
    let page = 4096;
    // SAFETY: a new private mapping at an address that the kernel chooses.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            count * page,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    assert_ne!(start, libc::MAP_FAILED);
    for n in 0..count {
        // SAFETY: inside the mapping above, which nothing else uses.
        unsafe {
            let at = start.cast::<u8>().add(n * page);
            if n % 8 == 0 {
                at.write_volatile(n as u8 | 1);
            }
            if n % 2 == 0 {
                assert_eq!(libc::mprotect(at.cast(), page, libc::PROT_READ), 0);
            }
        }
    }
}
