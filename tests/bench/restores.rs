//! Time of restores against memory, threads and processes: until the command returns, and until the group answers on its socket. Beside it,
//! in the same run: systemd's own start of the service until it answers, and for memory a plain copy of the same image into fresh memory.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use ckpt_tests::system::{ckptctl, must, run};

use crate::pwrite::median;
use crate::report::{Curve, Figure, Report, Target};

/// How this program calls itself to be the service that is restored: MiB, threads, processes.
pub(crate) const CHILD: &str = "--restored";
/// How it calls itself to be one of many small processes.
pub(crate) const IDLE: &str = "--idle";

const UNIT: &str = "restored.service";
const SOCKET: &str = "/run/restored.socket";

/// A group to restore.
struct Case {
    name: &'static str,
    mib: u32,
    threads: u32,
    processes: u32,
    /// All memory is read before the group runs.
    eager: bool,
    /// What is promised of the first answer.
    target: Promise,
}

/// What is promised of the first answer.
#[derive(Clone, Copy)]
enum Promise {
    Nothing,
    /// Milliseconds at most.
    Within(f64),
    /// So many times a plain copy of the image.
    Copies(f64),
}

const TINY: Case =
    Case { name: "tiny", mib: 0, threads: 1, processes: 1, eager: false, target: Promise::Nothing };

const CASES: [Case; 6] = [
    TINY,
    Case { name: "256 MiB", mib: 256, ..TINY },
    Case { name: "1 GiB", mib: 1024, target: Promise::Within(60.0), ..TINY },
    Case { name: "1 GiB, eager", mib: 1024, eager: true, target: Promise::Copies(1.3), ..TINY },
    Case { name: "500 threads", threads: 500, target: Promise::Within(80.0), ..TINY },
    Case { name: "200 processes", processes: 200, target: Promise::Within(200.0), ..TINY },
];

/// How often each is restored; BENCH_ROUNDS sets another number.
const ROUNDS: usize = 5;

/// Milliseconds.
struct Times {
    /// Until the command returned.
    returned: f64,
    answered: f64,
    /// systemd's own start, until it answered.
    started: f64,
    copied: f64,
}

/// The figures of all cases, and the time against memory.
pub(crate) fn bench(report: &mut Report) {
    let wanted = std::env::var("BENCH_CASE").unwrap_or_default();
    let rounds = std::env::var("BENCH_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(ROUNDS);
    let mut points = Vec::new();
    for case in CASES.iter().filter(|case| case.name.contains(&wanted)) {
        let times = measure(case, rounds);
        if case.mib > 0 && !case.eager {
            points.push([f64::from(case.mib), times.answered]);
        }
        let target = match case.target {
            Promise::Nothing => None,
            Promise::Within(most) => Some(Target::AtMost(most)),
            Promise::Copies(most) => Some(Target::AtMost(most * times.copied)),
        };
        let name = |what: &str| format!("restore, {}, {what}", case.name);
        let beside = match case.eager {
            true => ("a plain copy of the image", times.copied),
            false => ("systemd's start of it, until it answers", times.started),
        };
        report.figure(Figure {
            name: name("first answer"),
            value: times.answered,
            unit: "ms",
            target,
            beside: Some(beside),
        });
        report.figure(Figure {
            name: name("the command returns"),
            value: times.returned,
            unit: "ms",
            target: None,
            beside: None,
        });
    }
    report.curve(Curve { name: "restore-memory", axes: ["MiB", "first answer, ms"], points });
}

/// Medians.
fn measure(case: &Case, rounds: usize) -> Times {
    let Case { mib, threads, processes, .. } = case;
    let program = std::env::current_exe().expect("this program's path");
    let unit = format!(
        "[Service]\nType=notify\nNotifyAccess=all\nTasksMax=infinity\nExecStart={} {CHILD} {mib} {threads} {processes}\n",
        program.display()
    );
    std::fs::write(format!("/run/systemd/system/{UNIT}"), unit).expect("/run is the machine's own");
    must(&["systemctl", "daemon-reload"]);
    must(&["ckptctl", "enable", UNIT, "--name", "restored"]);
    must(&["systemctl", "start", UNIT]);
    let made = ckptctl(&["checkpoint", "restored", "--full"]);
    let id = made["id"].as_str().unwrap_or("").to_string();
    let image = Path::new("/var/lib/ckpt/restored").join(&id);
    let all: Vec<Times> = (0..rounds).map(|_| round(&image, case.eager)).collect();
    must(&["systemctl", "stop", UNIT]);
    let _ = run(&["ckptctl", "delete", &format!("restored@{id}")]);
    let _ = run(&["ckptctl", "disable", "restored"]);
    let of = |time: fn(&Times) -> f64| median(all.iter().map(time).collect());
    Times {
        returned: of(|t| t.returned),
        answered: of(|t| t.answered),
        started: of(|t| t.started),
        copied: of(|t| t.copied),
    }
}

/// One start and one restore, both from nothing: the group does not run.
fn round(image: &Path, eager: bool) -> Times {
    let (_, started) = until_answer(|| drop(must(&["systemctl", "start", UNIT])));
    let (returned, answered) = until_answer(|| match eager {
        // ckptctl(1) asks for a lazy restore, or leaves the choice to ckptd.
        true => {
            let id = image.file_name().and_then(|name| name.to_str()).unwrap_or("");
            let ask = ["busctl", "call", "org.ckpt", "/org/ckpt", "org.ckpt.Manager1", "Restore"];
            let what = ["ssa{sv}", "restored", id, "1", "lazy", "b", "false"];
            drop(must(&[ask.as_slice(), &what].concat()));
        }
        false => drop(ckptctl(&["restore", "restored"])),
    });
    let entry = format!("MESSAGE_ID={RESTORE_DONE}");
    eprintln!(
        "  {}",
        must(&["journalctl", "-n1", "-o", "cat", "--output-fields=CKPT_STAGES", &entry]).trim()
    );
    Times { returned, answered, started, copied: ms(plain_copy(image)) }
}

/// Ends the group, does something, and gives the milliseconds until that returned, and until the group answered.
fn until_answer(begin: impl FnOnce()) -> (f64, f64) {
    must(&["systemctl", "kill", "--signal=KILL", UNIT]);
    let _ = run(&["systemctl", "stop", UNIT]);
    let start = Instant::now();
    let asker = std::thread::spawn(move || first_answer(start));
    begin();
    let returned = start.elapsed();
    (ms(returned), ms(asker.join().expect("an answer")))
}

/// MESSAGE_ID of the journal's entry of a restore.
const RESTORE_DONE: &str = "b1f6d2a94a584d0e8a3f6a7f9e0c2d03";

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Asks until somebody answers.
fn first_answer(start: Instant) -> Duration {
    loop {
        if let Ok(mut stream) = UnixStream::connect(SOCKET) {
            let mut answer = [0; 8];
            if stream.write_all(b"?").is_ok() && stream.read_exact(&mut answer).is_ok() {
                return start.elapsed();
            }
        }
        assert!(start.elapsed() < Duration::from_secs(60), "nobody answers");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Reads the image's pages into memory that nobody has touched.
fn plain_copy(image: &Path) -> Duration {
    let file = File::open(image.join("pages")).expect("the image");
    let size = file.metadata().expect("the image").len() as usize;
    let start = Instant::now();
    let mut memory = vec![0_u8; size.max(1)];
    let mut at = 0;
    while at < size {
        let part = (size - at).min(8 << 20);
        file.read_exact_at(&mut memory[at..at + part], at as u64).expect("the image");
        at += part;
    }
    start.elapsed()
}

/// Has memory, threads and processes; answers on a socket with the sum over some of its pages.
pub(crate) fn child(mib: usize, threads: usize, processes: usize) {
    let mut state = 88_172_645_463_325_252_u64;
    let memory: Vec<u64> = (0..mib << 17)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        })
        .collect();
    for _ in 1..threads {
        std::thread::Builder::new()
            .stack_size(64 << 10)
            .spawn(|| {
                loop {
                    std::thread::park()
                }
            })
            .expect("a thread");
    }
    let program = std::env::current_exe().expect("this program's path");
    let idle: Vec<_> =
        (1..processes).map(|_| Command::new(&program).arg(IDLE).spawn().expect("a process")).collect();
    let _ = std::fs::remove_file(SOCKET);
    let listener = UnixListener::bind(SOCKET).expect("a socket");
    must(&["systemd-notify", "--ready"]);
    for mut stream in listener.incoming().flatten() {
        let sum: u64 = memory
            .iter()
            .step_by((memory.len() / 20).max(1))
            .fold(idle.len() as u64, |a, b| a.wrapping_add(*b));
        let _ = stream.read(&mut [0; 1]);
        let _ = stream.write_all(&sum.to_le_bytes());
    }
}

/// Does nothing.
pub(crate) fn idle() {
    loop {
        std::thread::park();
    }
}
