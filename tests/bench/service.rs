//! A service with as much memory, threads, processes and writing as a bench asks for: this program itself, below systemd.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ckpt_tests::system::{ckptctl, eventually, must, run};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{ForkResult, fork};

/// How this program calls itself to be the service.
pub(crate) const CHILD: &str = "--service";

const UNIT: &str = "bench.service";
const GROUP: &str = "bench";
const GAP: &str = "/run/bench-gap";
const PAGE: usize = 4096;

/// What the service is to be.
#[derive(Debug, Clone, Default)]
pub(crate) struct Load {
    /// Memory of all processes, MiB, filled with what does not compress.
    pub mib: usize,
    /// Processes besides the main one, which share the memory evenly.
    pub processes: usize,
    /// Threads of the main process that sleep.
    pub threads: usize,
    /// MB/s written to memory, over all of it, by all processes.
    pub memory_mbps: usize,
    /// MB/s appended to a file in the subvolume.
    pub file_mbps: usize,
    /// The first so many pages are written once between two checkpoints, on SIGUSR2.
    pub pages: usize,
}

/// What one checkpoint cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    /// Freeze window, ms.
    pub window: f64,
    /// Call to durable, s.
    pub durable: f64,
    /// Bytes of the image.
    pub bytes: f64,
}

/// The running service, and its group.
#[derive(Debug)]
pub(crate) struct Service;

impl Load {
    fn words(&self) -> String {
        let Self { mib, processes, threads, memory_mbps, file_mbps, pages } = self;
        format!("{CHILD} {mib} {processes} {threads} {memory_mbps} {file_mbps} {pages}")
    }

    /// As [`Load::words`] wrote it.
    pub(crate) fn parse(words: &[&str]) -> Option<Self> {
        let numbers: Vec<usize> = words.iter().map(|w| w.parse()).collect::<Result<_, _>>().ok()?;
        let [mib, processes, threads, memory_mbps, file_mbps, pages] = numbers[..] else { return None };
        Some(Self { mib, processes, threads, memory_mbps, file_mbps, pages })
    }
}

impl Service {
    /// Starts it, as a group of its own with `/srv/bench`; `capture`: lines of the group's `[capture]`.
    pub(crate) fn start(load: &Load, capture: &str) -> Self {
        if !std::path::Path::new("/srv/bench").exists() {
            must(&["btrfs", "-q", "subvolume", "create", "/srv/bench"]);
        }
        let program = std::env::current_exe().expect("this program's path");
        let unit = format!(
            "[Service]\nType=notify\nNotifyAccess=all\nTasksMax=infinity\nLimitNPROC=infinity\nTimeoutStartSec=300\nExecStart={} {}\n",
            program.display(),
            load.words()
        );
        fs::write(format!("/run/systemd/system/{UNIT}"), unit).expect("/run is the machine's own");
        must(&["systemctl", "daemon-reload"]);
        must(&["ckptctl", "enable", UNIT, "--name", GROUP, "--subvolume", "/srv/bench"]);
        let path = format!("/etc/ckpt/groups.d/{GROUP}.toml");
        let config = fs::read_to_string(&path).expect("what enable wrote");
        let config = toml_without_capture(&config);
        fs::write(&path, format!("{config}\n[capture]\nmax_freeze = \"20s\"\n{capture}\n"))
            .expect("/etc is the machine's own");
        must(&["busctl", "-q", "call", "org.ckpt", "/org/ckpt", "org.ckpt.Manager1", "Reload"]);
        must(&["systemctl", "start", UNIT]);
        Self
    }

    /// Takes a checkpoint; `words` go on behind the group's name.
    pub(crate) fn checkpoint(&self, words: &[&str]) -> Cost {
        let start = Instant::now();
        let made = ckptctl(&[&["checkpoint", GROUP], words].concat());
        let durable = start.elapsed().as_secs_f64();
        let number = |field: &str| made[field].as_f64().unwrap_or(f64::NAN);
        Cost { window: number("freeze_usec") / 1e3, durable, bytes: number("image_bytes") }
    }

    /// Restores the newest checkpoint; ms until the members ran, as the daemon measured it.
    pub(crate) fn restore(&self, words: &[&str]) -> f64 {
        let done = ckptctl(&[&["restore", GROUP], words].concat());
        done["restore_usec"].as_f64().unwrap_or(f64::NAN) / 1e3
    }

    /// Removes all checkpoints.
    pub(crate) fn forget(&self) {
        let list = ckptctl(&["list", GROUP]);
        let ids = list.as_array().into_iter().flatten().filter(|c| c["state"] == "durable");
        let ids: Vec<_> = ids.filter_map(|c| Some(format!("{GROUP}@{}", c["id"].as_str()?))).collect();
        if !ids.is_empty() {
            let words: Vec<_> = ids.iter().map(String::as_str).collect();
            must(&[&["ckptctl", "delete"], &words[..]].concat());
        }
    }

    /// Lets the main process write the pages of [`Load::pages`], and waits until it has; gives the time that it took, ms.
    pub(crate) fn write_pages(&self) -> f64 {
        let _ = fs::remove_file(GAP);
        self.signal("SIGUSR2");
        told("the service has written its pages")
    }

    /// The longest time that the service saw its clock stand still since the last call, ms.
    pub(crate) fn gap(&self) -> f64 {
        let _ = fs::remove_file(GAP);
        self.signal("SIGUSR1");
        told("the service tells its longest gap")
    }

    fn signal(&self, signal: &str) {
        must(&["systemctl", "kill", "--kill-who=main", &format!("--signal={signal}"), UNIT]);
    }
}

/// The service's answer to a signal, ns, as ms.
fn told(what: &str) -> f64 {
    let said = eventually(what, 60, || fs::read_to_string(GAP).ok().filter(|text| text.ends_with('\n')));
    said.trim().parse::<f64>().expect("a number") / 1e6
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = run(&["systemctl", "kill", "--signal=SIGKILL", UNIT]);
        let _ = run(&["systemctl", "stop", UNIT]);
        if !std::thread::panicking() {
            self.forget();
        }
        let _ = run(&["ckptctl", "disable", GROUP]);
    }
}

/// A group's file without its `[capture]`.
fn toml_without_capture(text: &str) -> String {
    let mut inside = false;
    let keep = |line: &&str| {
        if line.starts_with('[') {
            inside = *line == "[capture]";
        }
        !inside
    };
    text.lines().filter(keep).map(|line| format!("{line}\n")).collect()
}

/// The service's own life.
pub(crate) fn child(load: &Load) -> ! {
    nix::sys::prctl::set_thp_disable(true).expect("prctl"); // the common and the harder case
    let share = (load.mib << 20) / (load.processes + 1);
    let rate = load.memory_mbps / (load.processes + 1);
    for _ in 0..load.processes {
        // SAFETY: this process has one thread still; the child goes on in Rust code as its parent would.
        if let ForkResult::Child = unsafe { fork() }.expect("fork") {
            let memory = filled(share);
            if rate > 0 {
                writing(memory, rate)
            }
            loop {
                std::hint::black_box(&memory);
                std::thread::park();
            }
        }
    }
    let signals: SigSet = [Signal::SIGUSR1, Signal::SIGUSR2].into_iter().collect();
    signals.thread_block().expect("sigprocmask");
    for _ in 0..load.threads {
        std::thread::Builder::new().stack_size(64 << 10).spawn(std::thread::park).expect("a thread");
    }
    let mut memory = filled(share);
    let longest: &'static AtomicU64 = Box::leak(Box::default());
    std::thread::spawn(move || watch_the_clock(longest));
    if rate > 0 {
        let own = std::mem::take(&mut memory);
        std::thread::spawn(move || writing(own, rate));
    }
    if load.file_mbps > 0 {
        let rate = load.file_mbps;
        std::thread::spawn(move || appending(rate));
    }
    must(&["systemd-notify", "--ready"]);
    let mut round = 0u8;
    loop {
        let answer = match signals.wait().expect("sigwait") {
            Signal::SIGUSR1 => longest.swap(0, Ordering::Relaxed),
            _ => {
                round = round.wrapping_add(1);
                let pages = load.pages.min(memory.len() / PAGE);
                let start = Instant::now();
                memory.chunks_exact_mut(PAGE).take(pages).for_each(|page| page[17] ^= round | 1);
                start.elapsed().as_nanos() as u64
            }
        };
        let _ = fs::write(format!("{GAP}.new"), format!("{answer}\n"));
        let _ = fs::rename(format!("{GAP}.new"), GAP);
    }
}

/// Memory full of what does not compress.
fn filled(bytes: usize) -> Vec<u8> {
    let mut memory = vec![0; bytes];
    let mut state = 88_172_645_463_325_252_u64 ^ u64::from(std::process::id());
    for word in memory.chunks_exact_mut(8) {
        word.copy_from_slice(&step(&mut state).to_le_bytes());
    }
    memory
}

/// Xorshift.
fn step(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Writes to pages at random, as many bytes a second (whole pages counted), for ever.
fn writing(mut memory: Vec<u8>, mbps: usize) -> ! {
    let pages = (memory.len() / PAGE).max(1) as u64;
    let mut state = 1_234_567_u64;
    paced(mbps, |bytes| {
        for _ in 0..bytes.div_ceil(PAGE) {
            let at = (step(&mut state) % pages) as usize * PAGE;
            if let Some(byte) = memory.get_mut(at) {
                *byte = byte.wrapping_add(1);
            }
        }
    })
}

/// Appends to a file in the subvolume, as many bytes a second; begins it again at 256 MiB.
fn appending(mbps: usize) -> ! {
    let mut file = File::create("/srv/bench/log").expect("the group's subvolume");
    let block = filled(1 << 16);
    let mut length = 0;
    paced(mbps, |bytes| {
        for _ in 0..bytes.div_ceil(block.len()) {
            file.write_all(&block).expect("room");
            length += block.len();
        }
        if length > 256 << 20 {
            file.set_len(0).expect("truncate");
            let _ = file.write_all_at(&block, 0);
            length = 0;
        }
    })
}

/// Calls `work` with the bytes that are due, every 10 ms.
fn paced(mbps: usize, mut work: impl FnMut(usize)) -> ! {
    const STEP: Duration = Duration::from_millis(10);
    loop {
        let start = Instant::now();
        work(mbps * 10_000);
        std::thread::sleep(STEP.saturating_sub(start.elapsed()));
    }
}

/// Keeps the longest time, in ns, between two looks at the clock.
fn watch_the_clock(longest: &AtomicU64) -> ! {
    let mut last = Instant::now();
    loop {
        std::thread::sleep(Duration::from_micros(200));
        let now = Instant::now();
        let gap = (now - last).as_nanos() as u64;
        longest.fetch_max(gap, Ordering::Relaxed);
        last = now;
    }
}
