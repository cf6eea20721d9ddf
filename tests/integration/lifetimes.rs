//! Units whose life does not wait for us: what a busy socket starts again at once, what ends just before a checkpoint or just after a restore.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::fixture::{Group, path};
use crate::runner::{Test, test};
use ckpt_tests::system::{eventually, main_pid, must, property, run, text};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("unit-socket-busy", a_socket_that_is_never_quiet),
        test("unit-ends-at-once", programs_that_end_as_soon_as_they_are_back),
        test("unit-ended", what_has_ended_is_in_no_checkpoint),
    ]
}

const RECEIVER: &str = r#"
import os, socket
here = os.path.dirname(__file__)
with open(here + "/lives", "a") as lives:
    lives.write("one\n")
count = 0
receiver = socket.socket(fileno=3)
while True:
    receiver.recv(100)
    count += 1
    with open(here + "/count.new", "w") as file:
        file.write(str(count))
    os.rename(here + "/count.new", here + "/count")
"#;

/// As journald does it with syslog: whoever stops the service gets a new one with the next datagram, which must not run while files are
/// exchanged, nor stand in the restore's way.
fn a_socket_that_is_never_quiet(name: &str) {
    let group = Group::new(name);
    group.enable();
    let (address, dir) = (format!("/run/{name}.socket"), group.directory("receiver"));
    fs::write(dir.join("receiver.py"), RECEIVER).expect("writable");
    let socket = format!("{name}-receiver.socket");
    fs::write(format!("/run/systemd/system/{socket}"), format!("[Socket]\nListenDatagram={address}\n"))
        .expect("writable");
    let unit = group.write_unit("receiver", &format!("/usr/bin/python3 {}/receiver.py", path(&dir)), "");
    must(&["systemctl", "start", &socket]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let sender = UnixDatagram::unbound().expect("a socket");
            sender.set_write_timeout(Some(Duration::from_millis(50))).expect("settable");
            while !done.load(Ordering::Relaxed) {
                let _ = sender.send_to(b"word", &address);
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let end = EndOf(&done);
        busy_rounds(&group, &unit, &dir);
        drop(end);
    });
    assert_eq!(property(&socket, "ActiveState"), "active");
    must(&["systemctl", "stop", &socket]);
}

/// Also where a check fails.
struct EndOf<'a>(&'a AtomicBool);

impl Drop for EndOf<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn busy_rounds(group: &Group, unit: &str, dir: &Path) {
    let count = || fs::read_to_string(dir.join("count")).ok().and_then(|n| n.parse::<u64>().ok());
    eventually("it receives", 20, || count().filter(|n| *n > 5));
    let pid = main_pid(unit);
    let goes_on = || {
        assert_eq!(main_pid(unit), pid);
        let now = count().expect("a number");
        eventually("it receives more", 20, || count().filter(|n| *n > now));
        assert_eq!(fs::read_to_string(dir.join("lives")).expect("readable"), "one\n");
    };
    group.checkpoint(&[]);
    for _ in 0..2 {
        group.restore();
        goes_on();
    }
    group.checkpoint(&["--stop"]);
    group.restore();
    goes_on();
}

/// It waits for an hour of the day, so nothing is left to wait for when it is back.
const WAITS: &str = r#"
import os, sys, time
end = time.time() + 2
open("began", "w").close()
while time.time() < end:
    time.sleep(0.001)
open("done", "w").close()
if sys.argv[1] == "killed":
    os.abort()
"#;

/// One that ended well is restored, with what it did; of one that ended badly the restore says so.
fn programs_that_end_as_soon_as_they_are_back(name: &str) {
    let group = Group::new(name);
    group.enable();
    let dir = group.directory("waits");
    fs::write(dir.join("waits.py"), WAITS).expect("writable");
    for (way, well) in [("well", true), ("killed", false)] {
        let settings = format!("WorkingDirectory={}\nLimitCORE=0", path(&dir));
        let unit = group.write_unit("waits", &format!("/usr/bin/python3 waits.py {way}"), &settings);
        group.start(&unit);
        eventually("it runs", 20, || dir.join("began").exists().then_some(()));
        group.checkpoint(&["--stop"]);
        std::thread::sleep(Duration::from_secs(2)); // what it waits for
        let out = run(&["ckptctl", "restore", name]);
        assert_eq!(out.status.success(), well, "{way}: {}", text(&out.stderr));
        let state = eventually("it ends", 20, || {
            Some(property(&unit, "ActiveState")).filter(|state| state != "active")
        });
        assert!(state == "inactive" || !well, "{way}: {state}");
        assert_eq!(dir.join("done").exists(), well, "{way}: what it did");
        let _ = run(&["systemctl", "stop", &unit]);
        let _ = fs::remove_file(dir.join("began"));
        let _ = fs::remove_file(dir.join("done"));
    }
}

/// Programs that end all the time, beside one that stays: whatever ends while a checkpoint begins is not in it, and hinders nothing.
fn what_has_ended_is_in_no_checkpoint(name: &str) {
    let group = Group::new(name);
    group.enable();
    let stays = group.write_unit("stays", "/bin/sleep infinity", "");
    let short = group.write_unit("short", "/bin/sleep 0.3", "");
    group.start(&stays);
    group.start(&short);
    for round in 0..5 {
        let _ = run(&["systemctl", "restart", &short]);
        std::thread::sleep(Duration::from_millis(100 + 40 * round));
        group.checkpoint(&[]);
        let restored: Value = group.restore();
        assert!(restored["processes"].as_u64().is_some_and(|n| n > 0), "{restored}");
        assert_eq!(property(&stays, "ActiveState"), "active");
    }
    must(&["systemctl", "stop", &stays, &short]);
    let out = run(&["ckptctl", "checkpoint", name]);
    assert_eq!(out.status.code(), Some(4), "{}", text(&out.stderr));
}
