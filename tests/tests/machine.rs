//! Properties of the throwaway machine: the command's outcome is passed on, and nothing is left on the host.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn machine(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_machine"));
    command.args(args);
    command
}

fn run(args: &[&str]) -> Output {
    machine(args).output().expect("the machine program starts")
}

/// Skips, with the reason, where a machine cannot be.
fn possible() -> bool {
    let root = nix::unistd::getuid().is_root();
    if !root {
        eprintln!("skipped: a machine needs root");
    }
    root
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Boots a machine whose command says that it runs and then waits for ever.
fn waiting() -> (Child, u32) {
    let mut child = machine(&["run", "--", "/bin/sh", "-c", "findmnt -no SOURCE /srv; exec sleep infinity"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the machine program starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("readable");
    let number = line.trim().strip_prefix("/dev/loop").and_then(|n| n.parse().ok());
    (child, number.unwrap_or_else(|| panic!("not a loop device: {line:?}")))
}

/// What is left of the machine that driver `pid` started on loop device `number`.
fn left_of(pid: u32, number: u32) -> Vec<String> {
    let mut left = Vec::new();
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("readable");
    let mount = mounts
        .lines()
        .find(|l| l.contains(" - cgroup2 "))
        .and_then(|l| l.split(' ').nth(4))
        .expect("a cgroup2");
    let mine = format!("ckpt-machine-{pid}-");
    for entry in fs::read_dir(mount).expect("readable").flatten() {
        if entry.file_name().to_string_lossy().starts_with(&mine) {
            left.push(entry.path().display().to_string());
        }
    }
    let backing =
        fs::read_to_string(format!("/sys/block/loop{number}/loop/backing_file")).unwrap_or_default();
    // An image of ours has no name any more. Another machine may have taken the device meanwhile: then it runs.
    if backing.contains("(deleted)") && !another_runs() {
        left.push(format!("loop{number}: {backing}"));
    }
    left
}

fn another_runs() -> bool {
    fs::read_dir("/proc")
        .expect("readable")
        .flatten()
        .any(|p| fs::read_to_string(p.path().join("cgroup")).is_ok_and(|c| c.contains("/ckpt-machine-")))
}

fn nothing_left(pid: u32, number: u32) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !left_of(pid, number).is_empty() {
        assert!(Instant::now() < deadline, "left behind: {:?}", left_of(pid, number));
        std::thread::yield_now();
    }
}

#[test]
fn the_exit_status_and_the_streams_are_the_commands() {
    if !possible() {
        return;
    }
    let out = run(&[
        "run",
        "--",
        "/bin/sh",
        "-c",
        "echo out; echo err >&2; a='$HOME'; echo $a $$ | tr 0-9 N; exit 7",
    ]);
    assert_eq!(out.status.code(), Some(7), "{}", text(&out.stderr));
    assert!(text(&out.stdout).starts_with("out\n$HOME N"), "{}", text(&out.stdout));
    assert_eq!(text(&out.stderr), "err\n");
}

#[test]
fn it_is_a_systemd_machine_with_bus_journal_and_btrfs() {
    if !possible() {
        return;
    }
    let script = "systemctl is-system-running --wait; stat -fc %T /srv /var/lib/ckpt; \
                  busctl --no-pager status org.freedesktop.DBus >/dev/null && echo bus; \
                  journalctl -q -n1 --no-pager >/dev/null && echo journal; systemctl --failed --no-legend | wc -l";
    let out = run(&["run", "--", "/bin/sh", "-c", script]);
    assert_eq!(text(&out.stdout), "running\nbtrfs\nbtrfs\nbus\njournal\n0\n", "{}", text(&out.stderr));
}

#[test]
fn a_killed_driver_leaves_nothing() {
    if !possible() {
        return;
    }
    let (mut child, number) = waiting();
    child.kill().expect("SIGKILL");
    child.wait().expect("reaped");
    nothing_left(child.id(), number);
}

#[test]
fn a_terminated_driver_leaves_nothing_and_tells_the_signal() {
    if !possible() {
        return;
    }
    let (mut child, number) = waiting();
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("sent");
    assert_eq!(child.wait().expect("reaped").code(), Some(128 + 15));
    assert_eq!(left_of(child.id(), number), Vec::<String>::new());
}

#[test]
fn the_time_limit_ends_the_machine() {
    if !possible() {
        return;
    }
    let out = run(&["run", "--timeout", "1", "--", "sleep", "infinity"]);
    assert_eq!(out.status.code(), Some(124), "{}", text(&out.stderr));
}

#[test]
fn a_kept_disk_survives_a_second_boot() {
    if !possible() {
        return;
    }
    let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("disk-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("created");
    let disk = dir.to_str().expect("UTF-8");
    let first = run(&[
        "run",
        "--poweroff",
        "--disk",
        disk,
        "--",
        "/bin/sh",
        "-c",
        "echo one > /srv/a; echo two > /etc/b; echo three > /var/lib/ckpt/c",
    ]);
    let second = run(&["run", "--disk", disk, "--", "cat", "/srv/a", "/etc/b", "/var/lib/ckpt/c"]);
    fs::remove_dir_all(&dir).expect("removed");
    assert!(first.status.success(), "{}", text(&first.stderr));
    assert_eq!(text(&second.stdout), "one\ntwo\nthree\n", "{}", text(&second.stderr));
}

#[test]
fn a_machine_runs_in_a_machine_as_on_any_host_with_systemd() {
    if !possible() {
        return;
    }
    let program = env!("CARGO_BIN_EXE_machine");
    let directory = format!("--bind={}", env!("CARGO_MANIFEST_DIR"));
    let script = format!(
        "{program} run -- /bin/sh -c 'systemctl is-system-running --wait; exit 3'; echo $?; \
         systemctl list-units --no-legend 'run-*.scope'; losetup -n | wc -l"
    );
    let out = run(&["run", &directory, "--", "/bin/sh", "-c", &script]);
    let said = text(&out.stdout);
    assert!(said.starts_with("running\n3\n") && !said.contains("scope"), "{said}{}", text(&out.stderr));
}

#[test]
fn several_machines_run_at_once_and_do_not_see_each_other() {
    if !possible() {
        return;
    }
    let script =
        "echo $0 > /srv/who; echo $0 > /etc/who; systemctl is-system-running --wait; cat /srv/who /etc/who";
    let started: Vec<Child> = ["a", "b", "c"]
        .iter()
        .map(|name| {
            machine(&["run", "--memory-disk", "--", "/bin/sh", "-c", script, name])
                .stdout(Stdio::piped())
                .spawn()
                .expect("starts")
        })
        .collect();
    for (child, name) in started.into_iter().zip(["a", "b", "c"]) {
        let out = child.wait_with_output().expect("ends");
        assert_eq!(text(&out.stdout), format!("running\n{name}\n{name}\n"));
    }
}
