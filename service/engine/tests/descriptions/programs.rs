//! Real programs: all that they have open can be captured and is made again.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use ckpt_engine::Severity;
use ckpt_engine::capture::{Files, Objects};
use ckpt_engine::kinds::{Depth, DescriptorCapture};
use ckpt_image::records::{DescriptionId, UnitIndex};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::*;
use crate::{Interest, descriptor, interest};
use std::collections::BTreeMap;
use std::os::fd::AsRawFd;

/// A program with its children, killed at the end.
struct Program(Child);

impl Program {
    fn start(command: &mut Command) -> Self {
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.process_group(0).spawn().unwrap())
    }

    /// Its process and all below it.
    fn pids(&self) -> Vec<i32> {
        let mut pids = vec![self.0.id() as i32];
        let mut at = 0;
        while at < pids.len() {
            let pid = pids[at];
            let children =
                std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            let children = children.split_whitespace().map(|pid| pid.parse::<i32>().unwrap());
            pids.extend(children.filter(|pid| state(*pid) != 'Z'));
            at += 1;
        }
        pids
    }

    fn stop(&self) {
        for pid in self.pids() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGSTOP);
            wait_for("a stopped process", || matches!(state(pid), 'T' | 'Z'));
        }
    }

    fn kill(&mut self) {
        for pid in self.pids() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _ = self.0.wait();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The letter of /proc/PID/stat.
fn state(pid: i32) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).unwrap_or('Z')
}

fn wait_for(what: &str, mut there: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !there() {
        assert!(start.elapsed().as_secs() < 60, "{what} does not come");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// What a descriptor points to, without the inode number.
fn link(pid: i32, fd: i32) -> String {
    let link = std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap().display().to_string();
    // A file without a name is another one then; its content is what a test of its own looks at.
    if link.ends_with(" (deleted)") {
        return "a file without a name".to_owned();
    }
    match link.split_once(":[") {
        Some((kind @ ("pipe" | "socket"), _)) => kind.to_owned(),
        _ => link,
    }
}

/// Captures a running program, kills it, makes its descriptions here, and compares.
fn comes_back(mut program: Program) -> Vec<String> {
    program.stop();
    let pids: Vec<_> = program.pids().into_iter().filter(|pid| state(*pid) == 'T').collect();
    let units = ["test.service".to_owned()];
    let (mut files, mut objects) = (Files::new(vec![], vec![]), Objects::new());
    let started = std::time::Instant::now();
    let mut capture =
        DescriptorCapture::new(Depth::Contents, &units, pids.iter().copied(), &mut files, &mut objects);
    for pid in &pids {
        capture.add_process(*pid, UnitIndex(0)).unwrap();
    }
    let captured = capture.finish();
    println!(
        "{} processes, {} descriptions: {:?}",
        pids.len(),
        captured.descriptions.len(),
        started.elapsed()
    );
    let errors: Vec<_> = captured.problems.iter().filter(|p| p.severity == Severity::Error).collect();
    assert!(errors.is_empty(), "{errors:?}");
    let mut before = BTreeMap::<DescriptionId, (String, Interest)>::new();
    for (pid, table) in pids.iter().zip(&captured.tables) {
        for d in &table.descriptors {
            let items = interest(&format!("/proc/{pid}/fdinfo/{}", d.fd));
            before.entry(d.description).or_insert_with(|| (link(*pid, d.fd), items));
        }
    }
    let codes = captured.problems.iter().map(|p| p.code.clone()).collect();
    let (image, made) = rebuild(captured, files, &objects, || program.kill());
    for record in &image.descriptions {
        let fd = made.get(record.id).unwrap().as_raw_fd();
        let after = (link(std::process::id() as i32, fd), interest(&format!("/proc/self/fdinfo/{fd}")));
        if let Some(before) = before.get(&record.id) {
            assert_eq!(&after, before, "{record:?}");
        }
        let flags =
            descriptor::fdinfo::parse(&std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap());
        // O_CLOEXEC is ours; O_LARGEFILE, O_NOFOLLOW and O_TMPFILE tell how it was opened.
        let lasting = |flags: u32| flags & !(0o2000000 | 0o100000 | 0o400000 | 0o20200000);
        assert_eq!(lasting(flags.unwrap().flags), lasting(record.flags), "{record:?}");
    }
    codes
}

fn find(candidates: &[&str]) -> Option<PathBuf> {
    let found = candidates.iter().map(PathBuf::from).find(|path| path.exists());
    if found.is_none() {
        println!("skipped: needs {}", candidates.join(" or "));
    }
    found
}

/// A pipe that whoever runs the tests left open is inherited.
const EXPECTED: [&str; 2] = ["unpaired-file", "pipe-outside"];

#[test]
fn redis() {
    let Some(_alone) = alone() else { return };
    let Some(redis) = find(&["/usr/bin/redis-server"]) else { return };
    let dir = Directory::new("redis");
    let port = free_port();
    let mut command = Command::new(redis);
    command.args(["--bind", "127.0.0.1", "-::1", "--appendonly", "yes", "--unixsocket", "redis.sock"]);
    command.args(["--port", &port.to_string(), "--dir"]).arg(&dir.0).current_dir(&dir.0);
    let program = Program::start(&mut command);
    let mut client = None;
    wait_for("redis", || {
        client = std::net::TcpStream::connect(("127.0.0.1", port)).ok();
        client.is_some()
    });
    use std::io::{Read, Write};
    let mut client = client.unwrap();
    client.write_all(b"SET a 1\r\n").unwrap();
    client.read_exact(&mut [0; 5]).unwrap();
    let codes = comes_back(program);
    assert!(codes.iter().all(|code| EXPECTED.contains(&code.as_str())), "{codes:?}");
}

#[test]
fn postgresql() {
    let Some(_alone) = alone() else { return };
    let Some(initdb) = find(&["/usr/lib/postgresql/15/bin/initdb"]) else { return };
    let dir = Directory::new("postgres");
    let Ok(Some(user)) = nix::unistd::User::from_name("postgres") else {
        println!("skipped: needs the user postgres");
        return;
    };
    nix::unistd::chown(&dir.0, Some(user.uid), Some(user.gid)).unwrap();
    let (uid, gid) = (user.uid.as_raw(), user.gid.as_raw());
    let data = dir.file("data");
    let mut made = Command::new(&initdb);
    made.args(["-A", "trust", "--no-sync", "-D"]).arg(&data).uid(uid).gid(gid);
    assert!(made.stdout(Stdio::null()).status().unwrap().success());
    let port = free_port().to_string();
    let mut command = Command::new(initdb.with_file_name("postgres"));
    command
        .args(["-p", &port, "-c", "logging_collector=on", "-k"])
        .arg(&dir.0)
        .arg("-D")
        .arg(&data)
        .uid(uid)
        .gid(gid);
    let program = Program::start(&mut command);
    let socket = dir.file(&format!(".s.PGSQL.{port}"));
    let mut client = None;
    wait_for("postgres", || {
        client = std::os::unix::net::UnixStream::connect(&socket).ok();
        client.is_some()
    });
    wait_for("the walwriter", || program.pids().len() >= 6);
    let codes = comes_back(program);
    assert!(codes.iter().all(|code| EXPECTED.contains(&code.as_str())), "{codes:?}");
}

#[test]
fn python_with_an_event_loop() {
    let Some(_alone) = alone() else { return };
    let Some(python) = find(&["/usr/bin/python3", "/usr/local/bin/python3", "/root/.pyenv/shims/python3"])
    else {
        return;
    };
    let dir = Directory::new("python");
    let script = r#"
import asyncio, os, signal, socket, sys, tempfile
async def main():
    async def serve(r, w):
        w.write(b"hello" * 1000)
        await r.read(1)
    unix = await asyncio.start_unix_server(serve, "unix.sock")
    tcp = await asyncio.start_server(serve, "127.0.0.1", 0)
    a = await asyncio.open_unix_connection("unix.sock")
    b = await asyncio.open_connection(*tcp.sockets[0].getsockname())
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, print)
    child = await asyncio.create_subprocess_exec("sleep", "1000", stdin=-1, stdout=-1)
    c, d = socket.socketpair()
    socket.send_fds(c, [b"x"], [os.open("/dev/null", os.O_RDONLY)])
    unlinked = tempfile.TemporaryFile(dir=".")
    unlinked.write(b"content"); unlinked.flush()
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); udp.bind(("127.0.0.1", 0))
    log = open("log", "a")
    await asyncio.sleep(0.1)
    open("ready", "w").close()
    await asyncio.sleep(1000)
asyncio.run(main())
"#;
    let program = Program::start(Command::new(python).arg("-c").arg(script).current_dir(&dir.0));
    wait_for("python", || dir.file("ready").exists());
    comes_back(program);
}

#[test]
fn a_shell_with_a_pipeline() {
    let Some(_alone) = alone() else { return };
    let dir = Directory::new("shell");
    std::fs::write(
        dir.file("script"),
        "exec 5<>fifo 6>>log\necho queued >&5\n(sleep 1000; :) | cat | cat >out &\ntouch ready\nwait\n",
    )
    .unwrap();
    nix::unistd::mkfifo(&dir.file("fifo"), nix::sys::stat::Mode::from_bits_retain(0o600)).unwrap();
    let program = Program::start(Command::new("/bin/bash").arg("script").current_dir(&dir.0));
    wait_for("the shell", || dir.file("ready").exists() && program.pids().len() >= 4);
    comes_back(program);
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
