//! What the preload library costs: `bench-preload [LIBRARY] [DIRECTORY]`.
//!
//! Runs itself with and without the library, in turns, and prints the medians: a pwrite of 4 KiB to a page-cached file,
//! a buffered line on a stream, a compute loop, a new process. Exit status 1 if a pwrite costs more than it may.

use std::hint::black_box;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// What the library may add to a pwrite, in nanoseconds.
const LIMIT: f64 = 60.0;
const TURNS: usize = 7;
const MEASURES: [&str; 4] = ["pwrite of 4 KiB", "fwrite of a line", "compute loop", "new process"];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).is_some_and(|argument| argument == "--measure") {
        let results = measure(Path::new(&arguments[2]));
        println!("{}", results.map(|result| result.to_string()).join(" "));
        return ExitCode::SUCCESS;
    }
    let library = arguments.get(1).map_or_else(find_library, PathBuf::from);
    let directory = arguments.get(2).map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    if !library.exists() {
        eprintln!(
            "bench-preload: no library at {}; build it or name it as first argument",
            library.display()
        );
        return ExitCode::FAILURE;
    }
    let mut without = vec![];
    let mut with = vec![];
    for _ in 0..TURNS {
        without.push(run(None, &directory));
        with.push(run(Some(&library), &directory));
    }
    println!("{:<18}{:>14}{:>14}{:>12}", "medians, ns", "without", "with", "added");
    let mut added = [0.0; MEASURES.len()];
    for (index, name) in MEASURES.into_iter().enumerate() {
        let [without, with] = [&without, &with].map(|all| median(all.iter().map(|one| one[index]).collect()));
        added[index] = with - without;
        println!("{name:<18}{without:>14.1}{with:>14.1}{:>12.1}", added[index]);
    }
    if added[0] > LIMIT {
        eprintln!("bench-preload: the library adds {:.1} ns to a pwrite, more than {LIMIT} ns", added[0]);
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Beside this program, or installed.
fn find_library() -> PathBuf {
    let beside = std::env::current_exe().unwrap_or_default().with_file_name("libckpt_preload.so");
    if beside.exists() { beside } else { PathBuf::from("/usr/lib/ckpt/libckpt_preload.so") }
}

fn run(library: Option<&Path>, directory: &Path) -> [f64; MEASURES.len()] {
    let mut command = Command::new("/proc/self/exe");
    command.arg("--measure").arg(directory).env_remove("LD_PRELOAD");
    if let Some(library) = library {
        command.env("LD_PRELOAD", library);
    }
    let output = command.stderr(Stdio::inherit()).output().expect("this program runs itself");
    let text = String::from_utf8_lossy(&output.stdout);
    let mut numbers = text.split_whitespace().map(|number| number.parse().expect("a number"));
    std::array::from_fn(|_| numbers.next().expect("a number for each measure"))
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// The median time of one `work` in nanoseconds, of batches of `count`.
fn time(batches: usize, count: u32, mut work: impl FnMut()) -> f64 {
    let batch = |work: &mut dyn FnMut()| {
        let start = Instant::now();
        (0..count).for_each(|_| work());
        nanoseconds(start.elapsed()) / f64::from(count)
    };
    median((0..batches).map(|_| batch(&mut work)).collect())
}

fn nanoseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e9
}

fn measure(directory: &Path) -> [f64; MEASURES.len()] {
    let path = directory.join(format!("ckpt-bench-{}", std::process::id()));
    let file = std::fs::File::create(&path).expect("a file in the directory");
    let page = [7u8; 4096];
    let pwrite = time(201, 1000, || {
        // SAFETY: the page has 4096 bytes; the descriptor is open.
        let written = unsafe { libc::pwrite(file.as_raw_fd(), page.as_ptr().cast(), page.len(), 0) };
        assert_eq!(written, 4096);
    });
    // SAFETY: C strings; the stream is closed below and not used after.
    let stream = unsafe { libc::fdopen(libc::dup(file.as_raw_fd()), c"w".as_ptr()) };
    let fwrite = time(201, 1000, || {
        // SAFETY: 64 bytes of the page; the stream is open.
        unsafe { libc::fwrite(page.as_ptr().cast(), 64, 1, stream) };
    });
    // SAFETY: as above.
    unsafe { libc::fclose(stream) };
    let mut state = 1u64;
    let compute = time(51, 10, || {
        for _ in 0..100_000 {
            state = black_box(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
    });
    let process = time(51, 1, || {
        let status = Command::new("/bin/true").status().expect("/bin/true runs");
        assert!(status.success());
    });
    let _ = std::fs::remove_file(path);
    [pwrite, fwrite, compute, process]
}
