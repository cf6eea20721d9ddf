//! Units of every type and with every setting that concerns their start, end and input: as before, after a restore.

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use crate::fixture::Group;
use crate::runner::{Test, test};
use ckpt_tests::system::{eventually, main_pid, must, property, run};

/// What a service of these tests does when nothing else is asked: it counts.
const COUNT: &str = "n=0; while sleep 0.02; do n=$((n+1)); echo $n >count.new; mv count.new count; done";

/// Name of the test, lines of a script before it counts, settings with {} for the directory.
const COUNTERS: [(&str, &str, &str); 15] = [
    ("unit-simple", "", "Type=simple"),
    ("unit-exec", "", "Type=exec"),
    ("unit-idle", "", "Type=idle"),
    ("unit-notify", "systemd-notify --ready --status=up", "Type=notify\nNotifyAccess=all"),
    (
        "unit-watchdog",
        "systemd-notify --ready; (while sleep 0.3; do systemd-notify WATCHDOG=1; done) &",
        "Type=notify\nNotifyAccess=all\nWatchdogSec=2",
    ),
    ("unit-kill-process", "", "KillMode=process"),
    ("unit-kill-mixed", "sleep infinity &", "KillMode=mixed\nTimeoutStopSec=2"),
    ("unit-output-file", "", "StandardOutput=file:{}/out\nStandardError=append:{}/err"),
    ("unit-input-file", "read -r word; [ $word = one ]", "StandardInput=file:{}/in"),
    (
        "unit-input-data",
        "read -r word; [ $word = one ]",
        "StandardInput=data\nStandardInputText=one\nStandardInputText=two",
    ),
    ("unit-syslog", "logger hello", "SyslogIdentifier=counter\nLogRateLimitBurst=0\nLogExtraFields=A=b"),
    (
        "unit-exec-lines",
        "",
        "ExecStartPre=/bin/sh -c 'echo pre >>{}/lines'\nExecStartPost=/bin/sh -c 'echo post >>{}/lines'\n\
         ExecReload=/bin/sh -c 'echo reload >>{}/lines'\nExecStopPost=/bin/true",
    ),
    ("unit-restart", "", "Restart=always\nRestartSec=50ms\nStartLimitBurst=50"),
    (
        "unit-environment",
        "[ \"$WORD\" = one ]",
        "Environment=WORD=one\nEnvironmentFile=-/nowhere\nPassEnvironment=LANG",
    ),
    ("unit-runtime-limit", "", "RuntimeMaxSec=1h\nTimeoutSec=5\nSuccessExitStatus=7"),
];

pub(crate) fn tests() -> Vec<Test> {
    let counter = |&(name, before, settings): &(&str, &'static str, &'static str)| {
        test(name, move |name| {
            let group = Group::new(name);
            group.enable();
            let one = Counter::start(&group, "counter", before, settings);
            goes_back(&group, &[&one]);
            if property(&one.unit, "CanReload") == "yes" {
                must(&["systemctl", "reload", &one.unit]);
            }
            must(&["systemctl", "stop", &one.unit]);
            assert_ne!(property(&one.unit, "ActiveState"), "active");
        })
    };
    let mut tests: Vec<Test> = COUNTERS.iter().map(counter).collect();
    tests.extend([
        test("unit-dbus", dbus),
        test("unit-descriptor-store", descriptor_store),
        test("unit-forking", forking),
        test("unit-oneshot", a_oneshot_that_remains_has_children_only),
        test("unit-delegate", delegate),
        test("unit-socket", socket_activation),
        test("unit-template", templates),
        test("unit-transient", a_unit_of_systemd_run),
        test("unit-requires", units_that_need_each_other),
        test("unit-on-failure", on_failure_restores),
        test("unit-plain-name", a_service_without_a_group),
    ]);
    tests
}

/// A service that counts in its directory.
struct Counter {
    unit: String,
    dir: PathBuf,
}

impl Counter {
    fn start(group: &Group, role: &str, before: &str, settings: &str) -> Self {
        let it = Self::write(group, role, before, settings);
        must(&["systemctl", "start", &it.unit]);
        it
    }

    fn write(group: &Group, role: &str, before: &str, settings: &str) -> Self {
        let dir = group.directory(role.trim_end_matches("@1").trim_end_matches("@2"));
        let place = dir.display().to_string();
        fs::write(dir.join("in"), "one\ntwo\n").expect("writable");
        fs::write(dir.join("name.py"), OWN_NAME).expect("writable");
        fs::write(dir.join("script"), format!("set -e\n{}\n{COUNT}\n", before.replace("{}", &place)))
            .expect("writable");
        let settings = format!("WorkingDirectory={place}\n{}", settings.replace("{}", &place));
        let unit = group.write_unit(role, &format!("/bin/bash {place}/script"), &settings);
        Self { unit, dir }
    }

    fn count(&self) -> u64 {
        let file = self.dir.join("count");
        eventually(&format!("{} counts", self.unit), 20, || {
            let state = property(&self.unit, "ActiveState");
            assert_ne!(state, "failed", "{}", self.unit);
            fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok())
        })
    }

    fn counts_past(&self, number: u64) {
        eventually(&format!("{} counts past {number}", self.unit), 20, || {
            (self.count() > number).then_some(())
        });
    }
}

/// Says a name on the bus, a line to its output, and waits.
const OWN_NAME: &str = r#"
import ctypes, os, socket, struct, sys, time
s = socket.socket(socket.AF_UNIX)
s.connect("/run/dbus/system_bus_socket")
s.sendall(b"\0AUTH EXTERNAL " + b"30" + b"\r\n")
s.recv(100)
s.sendall(b"BEGIN\r\n")
def call(serial, member, body=b"", signature=b""):
    fields = [(1, b"o", b"/org/freedesktop/DBus"), (2, b"s", b"org.freedesktop.DBus"), (3, b"s", member), (6, b"s", b"org.freedesktop.DBus")]
    out = b""
    for code, kind, value in fields:
        out += b"\0" * (-len(out) % 8)
        out += bytes([code, 1]) + kind + b"\0"
        out += b"\0" * (-len(out) % 4) + struct.pack("<I", len(value)) + value + b"\0"
    if signature:
        out += b"\0" * (-len(out) % 8)
        out += bytes([8, 1]) + b"g\0" + bytes([len(signature)]) + signature + b"\0"
    head = struct.pack("<cBBBIII", b"l", 1, 0, 1, len(body), serial, len(out)) + out
    s.sendall(head + b"\0" * (-len(head) % 8) + body)
call(1, b"Hello")
name = b"org.example.Ckpt"
call(2, b"RequestName", struct.pack("<I", len(name)) + name + b"\0" + b"\0" * (-(5 + len(name)) % 4) + struct.pack("<I", 4), b"su")
s.recv(4096)
print("named", flush=True)
while True:
    time.sleep(60)
"#;

/// Counts on after a checkpoint, from there after loss and restore, with the same main processes; twice.
fn goes_back(group: &Group, counters: &[&Counter]) {
    for _ in 0..2 {
        let before: Vec<_> = counters.iter().map(|c| (c.count(), main_pid(&c.unit))).collect();
        group.checkpoint(&[]);
        for counter in counters {
            counter.counts_past(counter.count() + 5);
        }
        group.kill();
        group.wreck();
        group.restore();
        for (counter, (count, pid)) in counters.iter().zip(before) {
            assert_eq!(property(&counter.unit, "ActiveState"), "active", "{}", counter.unit);
            assert_eq!(main_pid(&counter.unit), pid, "{}", counter.unit);
            assert!(counter.count() >= count);
            counter.counts_past(counter.count());
        }
    }
}

/// systemd stops such a unit when it loses its name, which a restore cannot keep: refused by name, and it goes on.
fn dbus(name: &str) {
    let policy =
        "<busconfig><policy context=\"default\"><allow own=\"org.example.Ckpt\"/></policy></busconfig>";
    fs::write("/etc/dbus-1/system.d/org.example.Ckpt.conf", policy).expect("/etc is the machine's own");
    must(&["systemctl", "reload", "dbus.service"]);
    let group = Group::new(name);
    group.enable();
    let before = "exec 9< <(exec /usr/bin/python3 {}/name.py); read -r word <&9; echo $word";
    let it = Counter::start(&group, "counter", before, "Type=dbus\nBusName=org.example.Ckpt");
    assert_eq!(group.check()["problems"][0]["code"], "bus-name");
    assert_eq!(run(&["ckptctl", "checkpoint", name]).status.code(), Some(4));
    it.counts_past(it.count());
}

/// What systemd keeps for a unit is lost when the unit is stopped for a restore: told, and the group goes back all the same.
fn descriptor_store(name: &str) {
    let group = Group::new(name);
    group.enable();
    let store = "import os, socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); \
                 s.connect(os.environ['NOTIFY_SOCKET']); \
                 socket.send_fds(s, [b'FDSTORE=1\\nFDNAME=kept'], [os.memfd_create('kept')])";
    let before = format!("systemd-notify --ready; /usr/bin/python3 -c \"{store}\"");
    let settings = "Type=notify\nNotifyAccess=all\nFileDescriptorStoreMax=4";
    let one = Counter::start(&group, "counter", &before, settings);
    eventually("systemd keeps it", 20, || (property(&one.unit, "NFileDescriptorStore") == "1").then_some(()));
    let problems = group.check()["problems"].clone();
    let codes: Vec<_> = problems.as_array().expect("a list").iter().map(|p| p["code"].clone()).collect();
    assert!(codes.contains(&"descriptor-store".into()), "{problems}");
    goes_back(&group, &[&one]);
}

/// A daemon that leaves its starter, with a PID file.
fn forking(name: &str) {
    let group = Group::new(name);
    group.enable();
    let pid_file = format!("/run/{name}.pid");
    let before =
        format!("if [ -z \"$CHILD\" ]; then CHILD=1 setsid bash $0 & echo $! >{pid_file}; exit 0; fi");
    let daemon = Counter::start(&group, "daemon", &before, &format!("Type=forking\nPIDFile={pid_file}"));
    goes_back(&group, &[&daemon]);
}

/// Active without a main process: what it left behind runs.
fn a_oneshot_that_remains_has_children_only(name: &str) {
    let group = Group::new(name);
    group.enable();
    let before = "if [ -z \"$CHILD\" ]; then CHILD=1 setsid bash $0 & exit 0; fi";
    let left = Counter::start(&group, "left", before, "Type=oneshot\nRemainAfterExit=yes");
    let count = left.count();
    group.checkpoint(&[]);
    left.counts_past(left.count() + 5);
    group.kill();
    group.wreck();
    group.restore();
    assert_eq!(property(&left.unit, "ActiveState"), "active");
    assert!(left.count() >= count);
    left.counts_past(left.count());
    must(&["systemctl", "stop", &left.unit]);
}

/// Cgroups that the service made below its own are made again, with the processes in them.
fn delegate(name: &str) {
    let group = Group::new(name);
    group.enable();
    let before = "own=/sys/fs/cgroup/unified; [ -d $own ] || own=/sys/fs/cgroup; \
                  own=$own$(sed -n 's/^0:://p' /proc/self/cgroup); mkdir -p $own/a/b $own/main; \
                  sh -c \"echo \\$\\$ >$own/a/b/cgroup.procs; exec sleep infinity\" & echo $$ >$own/main/cgroup.procs";
    let it = Counter::start(&group, "delegate", before, "Delegate=yes");
    let processes = || {
        let dir = property(&it.unit, "ControlGroup");
        let mount = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
            .into_iter()
            .find(|m| PathBuf::from(format!("{m}{dir}")).exists());
        fs::read_to_string(format!("{}{dir}/a/b/cgroup.procs", mount.expect("its cgroup"))).expect("readable")
    };
    it.count();
    let before = processes();
    assert_eq!(before.lines().count(), 1);
    goes_back(&group, &[&it]);
    assert_eq!(processes(), before);
}

const LISTENER: &str = r#"
import os, socket
count = 0
listener = socket.socket(fileno=3)
while True:
    client, _ = listener.accept()
    count += 1
    client.sendall(b"%d\n" % count)
    client.close()
"#;

/// The socket stays systemd's: before, between and after the service's lives clients can connect.
fn socket_activation(name: &str) {
    let group = Group::new(name);
    group.enable();
    let (socket, dir) = (format!("/run/{name}.socket"), group.directory("listener"));
    fs::write(dir.join("listener.py"), LISTENER).expect("writable");
    let text = format!("[Socket]\nListenStream={socket}\n");
    fs::write(format!("/run/systemd/system/{name}-listener.socket"), text).expect("writable");
    let unit = group.write_unit("listener", &format!("/usr/bin/python3 {}/listener.py", dir.display()), "");
    must(&["systemctl", "start", &format!("{name}-listener.socket")]);
    let ask = || {
        let mut stream = UnixStream::connect(&socket).expect("systemd listens");
        stream.set_read_timeout(Some(std::time::Duration::from_secs(20))).expect("settable");
        let mut said = String::new();
        stream.read_to_string(&mut said).expect("an answer");
        said.trim().parse::<u64>().expect("a number")
    };
    assert_eq!((ask(), ask()), (1, 2));
    let pid = main_pid(&unit);
    group.checkpoint(&[]);
    assert_eq!(ask(), 3);
    group.kill();
    group.restore();
    assert_eq!(main_pid(&unit), pid);
    assert_eq!((ask(), ask()), (3, 4));
    assert_eq!(property(&format!("{name}-listener.socket"), "ActiveState"), "active");
    must(&["systemctl", "stop", &unit]);
    assert_eq!(ask(), 1, "the socket starts a new service");
    must(&["systemctl", "stop", &format!("{name}-listener.socket")]);
}

/// Its file goes with it; a restore has a copy.
fn a_unit_of_systemd_run(name: &str) {
    let group = Group::new(name);
    group.enable();
    let dir = group.directory("counter");
    fs::write(dir.join("script"), COUNT).expect("writable");
    let unit = format!("{name}-counter.service");
    let (slice, place) =
        (format!("--slice={}", group.slice), format!("--working-directory={}", dir.display()));
    let start =
        ["systemd-run", "-q", "--unit", &unit, &slice, &place, "-p", "PrivateTmp=yes", "/bin/bash", "script"];
    must(&start);
    let it = Counter { unit, dir };
    eventually("its drop-in", 20, || property(&it.unit, "DropInPaths").contains("50-ckpt").then_some(()));
    let (count, pid) = (it.count(), main_pid(&it.unit));
    group.checkpoint(&["--stop"]);
    assert_eq!(property(&it.unit, "ActiveState"), "inactive");
    group.restore();
    assert_eq!(main_pid(&it.unit), pid);
    assert!(it.count() >= count);
    goes_back(&group, &[&it]);
    group.restore();
    it.counts_past(it.count());
}

fn templates(name: &str) {
    let group = Group::new(name);
    group.enable();
    let mut one = Counter::write(&group, "t@", "", "");
    let text = fs::read_to_string(format!("/run/systemd/system/{}", one.unit)).expect("readable");
    let text = text.replace("WorkingDirectory=", "Environment=INSTANCE=%i\nWorkingDirectory=");
    fs::write(format!("/run/systemd/system/{}", one.unit), text).expect("writable");
    let script = fs::read_to_string(one.dir.join("script")).expect("readable");
    fs::write(one.dir.join("script"), format!("mkdir -p $INSTANCE; cd $INSTANCE\n{script}"))
        .expect("writable");
    must(&["systemctl", "daemon-reload"]);
    let dir = one.dir.clone();
    let instances: Vec<Counter> = ["1", "2"]
        .iter()
        .map(|i| Counter { unit: one.unit.replace('@', &format!("@{i}")), dir: dir.join(i) })
        .collect();
    one.unit.clear();
    for instance in &instances {
        must(&["systemctl", "start", &instance.unit]);
    }
    goes_back(&group, &[&instances[0], &instances[1]]);
}

/// After=, Requires= and BindsTo= among units of a group hinder neither stop nor restore.
fn units_that_need_each_other(name: &str) {
    let group = Group::new(name);
    group.enable();
    let first = Counter::write(&group, "first", "systemd-notify --ready", "Type=notify\nNotifyAccess=all");
    let second = Counter::write(&group, "second", "", "Type=exec");
    let third = Counter::write(&group, "third", "", "");
    for (unit, needs) in [
        (&second, format!("Requires={0}\nAfter={0}", first.unit)),
        (&third, format!("BindsTo={0}\nAfter={0}\nPartOf={1}", second.unit, first.unit)),
    ] {
        let file = format!("/run/systemd/system/{}", unit.unit);
        let text = fs::read_to_string(&file).expect("readable");
        fs::write(&file, text.replace("[Unit]\n", &format!("[Unit]\n{needs}\n"))).expect("writable");
    }
    must(&["systemctl", "daemon-reload"]);
    must(&["systemctl", "start", &third.unit]);
    goes_back(&group, &[&first, &second, &third]);
    must(&["systemctl", "stop", &first.unit]);
    assert_eq!(property(&third.unit, "ActiveState"), "inactive", "PartOf= and BindsTo= hold after a restore");
}

/// `OnFailure=ckpt-restore@NAME.service`: a service that dies is back.
fn on_failure_restores(name: &str) {
    let group = Group::new(name);
    group.enable();
    let it = Counter::write(&group, "fragile", "", "");
    let file = format!("/run/systemd/system/{}", it.unit);
    let text = fs::read_to_string(&file).expect("readable");
    let needs = format!("[Unit]\nOnFailure=ckpt-restore@{name}.service\n");
    fs::write(&file, text.replace("[Unit]\n", &needs)).expect("writable");
    must(&["systemctl", "daemon-reload"]);
    must(&["systemctl", "start", &it.unit]);
    let pid = main_pid(&it.unit);
    it.count();
    group.checkpoint(&[]);
    for _ in 0..2 {
        must(&["systemctl", "kill", "--signal=KILL", &it.unit]);
        eventually("the restore by OnFailure=", 30, || {
            let active = property(&it.unit, "ActiveState") == "active" && main_pid(&it.unit) == pid;
            let done = property(&format!("ckpt-restore@{name}.service"), "ActiveState") != "activating";
            (active && done).then_some(())
        });
        it.counts_past(it.count());
    }
    // Its end is not to be one more failure.
    fs::write(&file, text).expect("writable");
    must(&["systemctl", "daemon-reload"]);
}

/// `systemctl start ckpt@NAME` where NAME is no group: the service NAME is one.
fn a_service_without_a_group(name: &str) {
    let group = Group::new(name);
    // Its files are not taken with it: what it is about to move may be gone.
    let it = Counter::start(&group, "alone", "set +e", "");
    let service = it.unit.trim_end_matches(".service");
    it.count();
    let pid = main_pid(&it.unit);
    must(&["systemctl", "start", &format!("ckpt@{service}.service")]);
    must(&["systemctl", "kill", "--signal=KILL", &it.unit]);
    let _ = run(&["systemctl", "stop", &it.unit]);
    must(&["systemctl", "start", &format!("ckpt-restore@{service}.service")]);
    assert_eq!(main_pid(&it.unit), pid);
    it.counts_past(it.count());
}
