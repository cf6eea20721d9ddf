//! The preload library in real programs: it follows into every child, changes nothing that can be seen, and its gate
//! holds file operations up, and only those, and never for good.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use ckpt_engine::barrier::Barrier;
use ckpt_sys::gate::{Gate, Operation};

const LONG: Duration = Duration::from_secs(20);

/// The library, built now.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let status =
            Command::new(env!("CARGO")).args(["build", "-q", "-p", "ckpt-preload"]).status().unwrap();
        assert!(status.success());
        Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("debug").join("libckpt_preload.so")
    })
}

/// A victim of tests/victims/preload, compiled now.
fn victim(name: &str, flags: &[&str]) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("victims/preload").join(name).with_extension("c");
    let program = scratch(&format!("{name}{}", flags.concat()));
    let mut compile = Command::new("cc");
    compile
        .args(["-Wall", "-Wextra", "-Wno-unused-result", "-pthread"])
        .args(flags)
        .arg("-o")
        .arg(&program)
        .arg(source);
    assert!(compile.status().unwrap().success());
    program
}

/// A name for a file of this test alone.
fn scratch(name: &str) -> PathBuf {
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("preload-{}-{count}-{name}", std::process::id()))
}

/// The victim `operations` in one of its situations; killed when dropped.
struct Situation {
    child: Child,
    file: PathBuf,
}

impl Situation {
    fn start(mode: &str) -> Situation {
        Situation::start_program(&victim("operations", &[]), mode)
    }

    fn start_program(program: &Path, mode: &str) -> Situation {
        Situation::start_command(Command::new(program), mode)
    }

    fn start_command(mut command: Command, mode: &str) -> Situation {
        let file = scratch("file");
        command
            .arg(mode)
            .arg(&file)
            .env("LD_PRELOAD", library())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "{mode}: {:?}", child.try_wait());
        Situation { child, file }
    }

    fn pid(&self) -> i32 {
        self.child.id().try_into().unwrap()
    }

    fn gate(&self) -> Gate {
        Gate::find(self.pid()).unwrap().expect("the victim has a gate")
    }

    fn size(&self) -> u64 {
        fs::metadata(&self.file).map_or(0, |found| found.len())
    }
}

impl Drop for Situation {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.file);
    }
}

/// /proc/PID/map_files is for root.
fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: mapping a gate from outside needs root");
    }
    root
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LONG, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn run(program: &str, arguments: &[&str], preload: bool) -> Option<Output> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).env_remove("LD_PRELOAD");
    if preload {
        command.env("LD_PRELOAD", library());
    }
    command.output().ok()
}

#[test]
fn the_library_follows_into_every_child() {
    let output = run(victim("children", &[]).to_str().unwrap(), &[], true).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let lost: Vec<_> = text.lines().filter(|line| !line.ends_with(" yes")).collect();
    assert!(lost.is_empty(), "{lost:?}");
    assert_eq!(text.lines().count(), 5 * 17 + 2);
}

#[test]
fn env_and_shells_cannot_lose_it() {
    let count = "grep -c memfd:ckpt-gate /proc/self/maps";
    for command in [
        format!("env -i {count}"),
        format!("env -u LD_PRELOAD {count}"),
        format!("unset LD_PRELOAD; {count}"),
        format!("LD_PRELOAD= {count}"),
        format!("LD_PRELOAD=libm.so.6 env -i sh -c 'env -i {count}'"),
        format!("exec env -i bash -c 'exec -c {count}'"),
        format!("env -i setsid nice {count}"),
        format!("echo x | env -i xargs -I_ {count}"),
    ] {
        let output = run("sh", &["-c", &command], true).unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "1\n", "{command}");
        assert!(output.stderr.is_empty(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let output = run("sh", &["-c", "LD_PRELOAD=libm.so.6 env"], true).unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let value = text.lines().find_map(|line| line.strip_prefix("LD_PRELOAD=")).unwrap();
    assert_eq!(
        value,
        format!("libm.so.6:{}", library().display()),
        "another library keeps its place before ours"
    );
}

#[test]
fn where_it_cannot_be_loaded_nothing_complains() {
    if !is_root() {
        return;
    }
    // A root directory that the library is not in: everything but the place that it lies in is visible there.
    let script = "cd / && mount -t tmpfs none /mnt && mkdir /mnt/usr /mnt/proc && mount --bind /usr /mnt/usr && \
        ln -s usr/bin usr/lib usr/lib64 /mnt/ && mount --bind /proc /mnt/proc && \
        LD_PRELOAD=$LD_PRELOAD:libm.so.6 chroot /mnt sh -c 'echo $LD_PRELOAD; sh -c true; env -i sh -c true' && \
        chroot /mnt env | grep -c ^LD_PRELOAD; chroot /mnt true";
    let output = run("unshare", &["-m", "sh", "-c", script], true).unwrap();
    let shown = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!((shown.0.as_ref(), shown.1.as_ref()), ("libm.so.6\n0\n", ""));
}

#[test]
fn programs_do_the_same_with_it() {
    let dir = scratch("dir");
    let place = dir.to_str().unwrap();
    let setup = format!("rm -rf {place}; mkdir -p {place}; cd {place}");
    let printers = [&["-O2", "-D_FORTIFY_SOURCE=2"][..], &[]]
        .map(|flags| format!("{} p; echo $?; md5sum p", victim("printer", flags).display()));
    for (program, script) in [
        (
            "sh",
            "for i in 1 2 3; do echo $i > f$i; (cat f$i; exit $i); echo $?; done; ls; rm f1; ls no-such 2>&1; echo $?",
        ),
        (
            "bash",
            "set -o pipefail; seq 2000 | while read n; do echo $n; done | sort -rn | tail -3; kill -TERM $$",
        ),
        (
            "python3",
            "python3 -c 'import subprocess,threading,tempfile,os\nwith tempfile.TemporaryFile() as f:\n f.write(b\"x\"*9999); f.flush(); os.fsync(f.fileno()); print(os.fstat(f.fileno()).st_size)\nt=[threading.Thread(target=subprocess.run,args=([\"echo\",str(i)],),kwargs=dict(stdout=subprocess.DEVNULL)) for i in range(20)]\n[x.start() for x in t]; [x.join() for x in t]; print(subprocess.check_output([\"echo\",\"a\"],env={}))'",
        ),
        (
            "perl",
            "perl -e 'open F,\">p\"; printf F \"%05.2f %s\\n\",$_/7,$_ for 1..3000; close F; print -s \"p\"; print `echo x`; system(\"exit 7\"); print $?>>8,\"\\n\"'",
        ),
        (
            "tar",
            "mkdir d; seq 9999 > d/a; ln -s a d/b; ln d/a d/c; tar cf t.tar d; rm -r d; tar xf t.tar; find d -type f -o -type l | sort; md5sum d/a",
        ),
        (
            "git",
            "git init -q r; cd r; echo a > a; git add a; git -c user.name=a -c user.email=a@b commit -qm m; git fsck 2>&1; git status --short; git log --format=%s",
        ),
        (
            "cc",
            "printf '#include <stdio.h>\\nint main(){printf(\"%%d %%.3f\\\\n\",1,2.5);return 4;}' > a.c; cc -O2 a.c -o a; ./a; echo $?",
        ),
        ("fortified printer", printers[0].as_str()),
        ("printer", &printers[1]),
        (
            "dd",
            "dd if=/dev/zero of=z bs=64k count=20 conv=fsync,notrunc status=none; truncate -s 100 z; stat -c %s z; cp --reflink=auto z y; cmp z y && mv y x && ls",
        ),
    ] {
        let both = [false, true]
            .map(|preload| run("bash", &["-c", &format!("{setup}; {script}")], preload).unwrap());
        let shown = both.clone().map(|output| {
            (
                output.status,
                String::from_utf8_lossy(&output.stdout).into_owned(),
                String::from_utf8_lossy(&output.stderr).into_owned(),
            )
        });
        assert_eq!(shown[0], shown[1], "{program}");
        if !shown[0].1.is_empty() {
            continue;
        }
        eprintln!("{program} said nothing: {}", shown[0].2);
    }
    let _ = fs::remove_dir_all(dir);
}

#[test]
fn a_closed_gate_stops_writers_and_an_open_one_lets_them_go_on() {
    if !is_root() {
        return;
    }
    let victim = Situation::start("writers");
    until("the writers write", || victim.size() > 100_000);
    for _ in 0..20 {
        let barrier = Barrier::close(&[victim.pid()], Duration::from_secs(5)).unwrap();
        assert_eq!((barrier.gates(), barrier.pending(), barrier.without_gate()), (1, &[][..], &[][..]));
        assert!(barrier.still_quiet());
        let size = victim.size();
        until("the writers wait", || victim.gate().waiting() >= 4);
        assert_eq!(victim.size(), size, "written behind the barrier");
        drop(barrier);
        until("the writers go on", || victim.size() > size);
    }
}

#[test]
fn a_gate_whose_daemon_is_gone_opens_by_itself() {
    if !is_root() {
        return;
    }
    let victim = Situation::start("writers");
    let gate = victim.gate();
    let lease = Duration::from_millis(300);
    gate.close(lease);
    until("the writers wait", || gate.waiting() >= 4);
    let size = victim.size();
    // As long as there is a sign of life, it stays closed.
    let start = Instant::now();
    while start.elapsed() < lease * 3 {
        gate.renew();
        std::thread::sleep(lease / 10);
    }
    assert_eq!((victim.size(), gate.is_open()), (size, false));
    // Nobody opens it now.
    std::mem::forget(gate);
    until("the gate opens by itself", || victim.size() > size);
    // A barrier that was held up closes it again.
    let mut barrier = Barrier::close(&[victim.pid()], lease).unwrap();
    let size = victim.size();
    until("the gate opens by itself", || victim.size() > size);
    barrier.extend(&[victim.pid()]).unwrap();
    assert!(barrier.drain(LONG) && !victim.gate().is_open());
}

#[test]
fn operations_that_block_hold_nothing_up() {
    if !is_root() {
        return;
    }
    let victim = Situation::start("blocked");
    let gate = victim.gate();
    let is_read = |told: &Operation| told.name == "read" && told.length == 1 && told.thread > 0;
    until("300 threads read", || gate.executing().iter().filter(|told| is_read(told)).count() == 300);
    let start = Instant::now();
    let barrier = Barrier::close(&[victim.pid()], LONG).unwrap();
    assert!(barrier.pending().is_empty() && start.elapsed() < LONG / 2);
}

#[test]
fn more_threads_than_slots_are_held_up_and_go_on_as_well() {
    if !is_root() {
        return;
    }
    let victim = Situation::start("crowd");
    let gate = victim.gate();
    until("the slots are taken", || gate.executing().len() > ckpt_wire::SLOTS - 10);
    until("the writers write", || victim.size() > 10_000);
    for _ in 0..3 {
        let barrier = Barrier::close(&[victim.pid()], Duration::from_millis(100)).unwrap();
        until("the writers wait", || gate.waiting() >= 4);
        let size = victim.size();
        assert!(barrier.still_quiet());
        drop(barrier);
        until("the writers go on", || victim.size() > size);
    }
}

#[test]
fn an_operation_that_was_left_is_told_no_longer() {
    if !is_root() {
        return;
    }
    for mode in ["jump", "jump-altstack", "cancel", "churn", "close-range"] {
        let victim = Situation::start(mode);
        let gate = victim.gate();
        until(mode, || gate.executing().is_empty() && gate.added().is_empty());
    }
}

#[test]
fn handlers_operate_inside_operations() {
    if !is_root() {
        return;
    }
    for mode in ["nested", "nested-altstack"] {
        let victim = Situation::start(mode);
        let gate = victim.gate();
        until("only the blocked read is told", || {
            gate.executing().iter().map(|operation| operation.name).eq(["read"])
        });
    }
}

#[test]
fn a_process_that_forks_all_the_time_stands_still_behind_the_barrier() {
    if !is_root() {
        return;
    }
    let victim = Situation::start("forks");
    let children = || fs::read_to_string(format!("/proc/{0}/task/{0}/children", victim.pid())).unwrap();
    for _ in 0..20 {
        let barrier = Barrier::close(&[victim.pid()], LONG).unwrap();
        until("the parent waits for the gate", || victim.gate().waiting() > 0);
        assert_eq!(children(), "");
        drop(barrier);
    }
}

#[test]
fn a_program_that_cannot_load_it_is_named() {
    if !is_root() {
        return;
    }
    let victim = Situation::start_program(&victim("operations", &["-static"]), "churn");
    let barrier = Barrier::close(&[victim.pid()], LONG).unwrap();
    assert_eq!((barrier.gates(), barrier.without_gate()), (0, &[victim.pid()][..]));
}

#[test]
fn a_sandbox_that_kills_for_a_memfd_does_not_kill() {
    if !is_root() {
        return;
    }
    let mut command = Command::new(victim("filtered", &[]));
    command.arg(victim("operations", &[]));
    let victim = Situation::start_command(command, "writers");
    until("the writers write", || victim.size() > 10_000);
    let barrier = Barrier::close(&[victim.pid()], LONG).unwrap();
    assert_eq!((barrier.gates(), barrier.pending()), (1, &[][..]));
    let size = victim.size();
    until("the writers wait", || victim.gate().waiting() >= 4);
    assert_eq!(victim.size(), size);
    drop(barrier);
    until("the writers go on", || victim.size() > size);
}

#[test]
fn limits_do_not_matter() {
    let count = "grep -c -e memfd:ckpt-gate -e /dev/zero /proc/self/maps";
    for limit in ["ulimit -f 0", "ulimit -n 4"] {
        let output = run("bash", &["-c", &format!("{{ {limit}; {count}; }} 2>&1")], true).unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "1\n", "{limit}");
    }
}

#[test]
fn a_member_that_lies_holds_nothing_up() {
    if !is_root() {
        return;
    }
    let program = victim("liar", &[]);
    let victim = Situation::start_program(&program, "steady");
    until("the table is full of lies", || victim.gate().added().len() > ckpt_wire::SLOTS);
    let deadline = Duration::from_millis(50);
    for _ in 0..5 {
        let barrier = Barrier::close(&[victim.pid()], deadline).unwrap();
        assert!(barrier.still_quiet() && barrier.took() < LONG / 2);
    }
    let victim = Situation::start_program(&program, "wild");
    for _ in 0..5 {
        let barrier = Barrier::close(&[victim.pid()], deadline).unwrap();
        let _ = barrier.still_quiet();
        assert!(barrier.took() < LONG / 2);
    }
}
