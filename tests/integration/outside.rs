//! Connections to outside the group with `tcp = "repair"`: the test itself is the other end.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::fixture::{Group, path};
use crate::runner::{Test, test};
use ckpt_tests::system::{eventually, must, run};

/// A server that answers each line with how many it had before, of all connections; without SO_REUSEADDR, one thread a connection.
const SERVER: &str = "
import itertools, socket, sys, threading
at = socket.socket()
at.bind(('127.0.0.1', int(sys.argv[1])))
at.listen()
count = itertools.count()
def serve(peer):
    try:
        for line in peer.makefile('r'):
            peer.sendall(f'{next(count)} {line}'.encode())
    except OSError as e:
        print('a connection ended:', e, flush=True)
while True:
    threading.Thread(target=serve, args=(at.accept()[0],)).start()
";

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("outside-stop", goes_on_after_stop),
        test("outside-idle", goes_on_where_nobody_spoke),
        test("outside-moved-on", ends_where_it_moved_on),
        test("outside-twice", goes_on_once),
        test("outside-killed", ends_with_its_members),
        test("outside-close", ends_as_shipped),
    ]
}

struct Conversation {
    group: Group,
    unit: String,
    port: u16,
}

impl Conversation {
    /// A server in a group that is told what to do with connections.
    fn new(name: &str, port: u16, tcp: &str) -> Self {
        let group = Group::new(name);
        group.enable();
        let file = format!("/etc/ckpt/groups.d/{name}.toml");
        let config = fs::read_to_string(&file).expect("enable writes it");
        fs::write(&file, config.replace("tcp = \"close\"", &format!("tcp = \"{tcp}\""))).expect("written");
        must(&["systemctl", "reload", "ckptd.service"]);
        let script = group.subvolume.join("server.py");
        fs::write(&script, SERVER).expect("written");
        let unit = group.write_unit("server", &format!("/usr/bin/python3 {} {port}", path(&script)), "");
        group.start(&unit);
        Self { group, unit, port }
    }

    fn connect(&self) -> TcpStream {
        let peer = eventually("the server listens", 20, || TcpStream::connect(("127.0.0.1", self.port)).ok());
        peer.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
        peer
    }

    fn stop(&self) {
        self.group.checkpoint(&["--stop"]);
    }

    /// What the journal tells of the server's group.
    fn was_told(&self, code: &str) -> bool {
        let out = run(&["journalctl", "--no-pager", "-u", "ckptd.service"]);
        String::from_utf8_lossy(&out.stdout)
            .lines()
            .any(|line| line.contains(code) && line.contains(&self.unit))
    }
}

fn say(mut peer: &TcpStream, word: &str) {
    peer.write_all(format!("{word}\n").as_bytes()).expect("written");
}

/// The next line; `None` where the connection has ended.
fn hear(mut peer: &TcpStream) -> Option<String> {
    let (mut line, mut byte) = (Vec::new(), [0]);
    while byte != [b'\n'] {
        match peer.read(&mut byte) {
            Ok(1) => line.push(byte[0]),
            Ok(_) => return None,
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return None,
            Err(e) => panic!("no answer: {e}"),
        }
    }
    Some(String::from_utf8_lossy(&line).trim().to_owned())
}

fn asks(peer: &TcpStream, word: &str, answer: &str) {
    say(peer, word);
    assert_eq!(hear(peer).as_deref(), Some(answer));
}

/// What the other end says while the group does not run is heard; so is what a connection was told before and nobody read.
fn goes_on_after_stop(name: &str) {
    let c = Conversation::new(name, 7981, "repair");
    let (one, two, ended) = (c.connect(), c.connect(), c.connect());
    asks(&one, "a", "0 a");
    asks(&two, "b", "1 b");
    asks(&ended, "c", "2 c");
    for round in 0..3 {
        c.stop();
        say(&one, "meanwhile");
        if round == 0 {
            ended.shutdown(std::net::Shutdown::Write).expect("shut down");
        }
        c.group.restore();
        let next = 3 + 2 * round;
        assert_eq!(hear(&one), Some(format!("{next} meanwhile")));
        asks(&two, "d", &format!("{} d", next + 1));
    }
    assert_eq!(hear(&ended), None, "the server ends a connection that the other side has closed");
    assert!(!c.was_told("tcp-moved-on"));
    asks(&c.connect(), "new", "9 new");
}

/// Back to a checkpoint of a running group: in the connection nobody has spoken since.
fn goes_on_where_nobody_spoke(name: &str) {
    let c = Conversation::new(name, 7982, "repair");
    let (idle, busy) = (c.connect(), c.connect());
    asks(&idle, "a", "0 a");
    asks(&busy, "b", "1 b");
    c.group.checkpoint(&[]);
    asks(&busy, "c", "2 c");
    c.group.restore();
    asks(&idle, "d", "2 d");
    assert_eq!(hear(&busy), None);
    assert!(c.was_told("tcp-moved-on"));
}

fn ends_where_it_moved_on(name: &str) {
    let c = Conversation::new(name, 7983, "repair");
    let peer = c.connect();
    asks(&peer, "a", "0 a");
    c.group.checkpoint(&[]);
    asks(&peer, "b", "1 b");
    c.stop();
    let old = must(&["ckptctl", "--json", "list", name]);
    let list: serde_json::Value = serde_json::from_str(&old).expect("JSON");
    let ids: Vec<_> = list.as_array().expect("a list").iter().filter_map(|c| c["id"].as_str()).collect();
    let oldest = ids.iter().min().expect("two checkpoints");
    c.group.restore_id(oldest);
    assert_eq!(hear(&peer), None);
    assert!(c.was_told("tcp-moved-on"));
    asks(&c.connect(), "c", "1 c");
}

/// What was restored goes on, so that another restore of the same checkpoint finds it further on.
fn goes_on_once(name: &str) {
    let c = Conversation::new(name, 7984, "repair");
    let peer = c.connect();
    asks(&peer, "a", "0 a");
    c.stop();
    c.group.restore();
    asks(&peer, "b", "1 b");
    c.group.restore();
    assert_eq!(hear(&peer), None);
    asks(&c.connect(), "c", "1 c");
}

fn ends_with_its_members(name: &str) {
    let c = Conversation::new(name, 7985, "repair");
    let peer = c.connect();
    asks(&peer, "a", "0 a");
    c.group.checkpoint(&[]);
    c.group.kill();
    assert_eq!(hear(&peer), None);
    c.group.restore();
    asks(&c.connect(), "b", "1 b");
}

fn ends_as_shipped(name: &str) {
    let c = Conversation::new(name, 7986, "close");
    let peer = c.connect();
    asks(&peer, "a", "0 a");
    c.stop();
    assert_eq!(hear(&peer), None);
    c.group.restore();
    asks(&c.connect(), "b", "1 b");
}
