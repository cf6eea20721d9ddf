//! Programs that keep others running: a terminal multiplexer with a shell, a supervisor with its programs, sshd with a login.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::fixture::{Group, path};
use crate::runner::Test;
use ckpt_tests::system::{must, run, text};

use super::drive::{Answer, App, Client, Started, app};
use super::servers::needs;

const SSHD: u16 = 7114;

pub(crate) fn tests() -> Vec<Test> {
    vec![app("apps-tmux", tmux), app("apps-supervisor", supervisor), app("apps-sshd", sshd)]
}

/// Lines of a log that are the numbers from one on.
fn numbers(log: &Path) -> Answer<u64> {
    let said = fs::read_to_string(log).unwrap_or_default();
    let mut count = 0;
    for line in said.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        count += 1;
        if line.trim_end().parse() != Ok(count) {
            return Err(format!("line {count} of the log is {line:?}"));
        }
    }
    Ok(count)
}

/// Waits for an answer.
fn soon<T>(what: &str, mut look: impl FnMut() -> Answer<Option<T>>) -> Answer<T> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if Instant::now() > deadline {
            return Err(format!("not within 20 s: {what}"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn more_than(log: &Path, before: u64) -> Answer<()> {
    soon("one more line in the log", || Ok((numbers(log)? > before).then_some(())))
}

fn output(words: &[&str]) -> Answer<String> {
    let out = run(&[&["timeout", "20"], words].concat());
    let said = text(&out.stdout);
    let failed = || format!("{}: {said}{}", words.join(" "), text(&out.stderr));
    out.status.success().then_some(&said).cloned().ok_or_else(failed)
}

// tmux: a forking service with a shell in a terminal of its own. The shell counts what is typed, in memory and in its log; what it
// shows is asked of tmux.

#[derive(Clone)]
struct Tmux {
    socket: PathBuf,
    log: PathBuf,
    questions: Arc<AtomicU64>,
}

fn tmux(group: &Group) -> Started {
    needs("/usr/bin/tmux");
    let dir = group.directory("tmux");
    let it = Tmux { socket: dir.join("socket"), log: dir.join("log"), questions: Arc::default() };
    let command = format!(
        "/usr/bin/tmux -S {} -f /dev/null new-session -d -s main -x 200 -y 50 /bin/bash --norc",
        path(&it.socket)
    );
    let settings =
        format!("Type=forking\nWorkingDirectory={0}\nEnvironment=HOME={0} TERM=screen", path(&dir));
    let unit = group.write_unit("tmux", &command, &settings);
    group.start(&unit);
    Started { app: Box::new(it), units: vec![unit] }
}

impl Tmux {
    fn tmux(&self, words: &[&str]) -> Answer<String> {
        output(&[&["/usr/bin/tmux", "-S", path(&self.socket)], words].concat())
    }

    fn type_in(&self, line: &str) -> Answer<()> {
        self.tmux(&["send-keys", "-t", "main", line, "Enter"]).map(drop)
    }
}

impl App for Tmux {
    fn client(&self) -> Box<dyn Client> {
        Box::new(self.clone())
    }

    fn count(&self) -> Answer<u64> {
        let least = numbers(&self.log)?;
        let mark = format!("<{}:", self.questions.fetch_add(1, Ordering::Relaxed));
        self.type_in(&format!("echo \"{mark}$((n + 0))>\""))?;
        let said = soon("the shell shows its number", || {
            let screen = self.tmux(&["capture-pane", "-p", "-t", "main"])?;
            let shown = screen.split(&mark).filter_map(|rest| rest.split_once('>')).map(|(n, _)| n.parse());
            Ok(shown.filter_map(Result::ok).next())
        })?;
        let most = numbers(&self.log)?;
        match (least..=most).contains(&said) {
            true => Ok(said),
            false => Err(format!("the shell has counted {said}, its log {least} to {most}")),
        }
    }
}

impl Client for Tmux {
    fn step(&mut self) -> Answer<()> {
        let before = numbers(&self.log)?;
        self.type_in("n=$((n + 1)); echo $n >>log")?;
        more_than(&self.log, before)
    }
}

// supervisord: it listens at a link to a socket that it bound to another name, and knows its children.

const COUNTS: &str = "n=0; while :; do n=$((n + 1)); echo $n >>log; echo said $n; sleep 0.02; done";

#[derive(Clone)]
struct Supervisor {
    config: PathBuf,
    log: PathBuf,
}

fn supervisor(group: &Group) -> Started {
    needs("/usr/bin/supervisord");
    let dir = group.directory("supervisor");
    let config = dir.join("config");
    fs::write(dir.join("count.sh"), COUNTS).expect("writable");
    let text = format!(
        "[supervisord]\nlogfile={0}/supervisord.log\npidfile={0}/pid\n\
         [unix_http_server]\nfile={0}/socket\n[supervisorctl]\nserverurl=unix://{0}/socket\n\
         [rpcinterface:supervisor]\n\
         supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n\
         [program:counter]\ncommand=/bin/sh {0}/count.sh\ndirectory={0}\nstdout_logfile={0}/out\n\
         [program:waiting]\ncommand=/bin/cat\n",
        path(&dir)
    );
    fs::write(&config, text).expect("writable");
    let unit = group.write_unit("supervisor", &format!("/usr/bin/supervisord -n -c {}", path(&config)), "");
    group.start(&unit);
    Started { app: Box::new(Supervisor { config, log: dir.join("log") }), units: vec![unit] }
}

impl App for Supervisor {
    fn client(&self) -> Box<dyn Client> {
        Box::new(self.clone())
    }

    fn count(&self) -> Answer<u64> {
        let said = output(&["/usr/bin/supervisorctl", "-c", path(&self.config), "status"])?;
        match said.lines().filter(|line| line.contains(" RUNNING ")).count() {
            2 => numbers(&self.log),
            _ => Err(said),
        }
    }

    fn works_by_itself(&self) -> bool {
        true
    }
}

impl Client for Supervisor {
    fn step(&mut self) -> Answer<()> {
        more_than(&self.log, numbers(&self.log)?)
    }
}

// sshd: a session that goes on, client and server in the group, encrypted with keys that both have in memory; and new logins.

#[derive(Clone)]
struct Sshd {
    dir: PathBuf,
}

fn sshd(group: &Group) -> Started {
    needs("/usr/sbin/sshd");
    let dir = group.directory("sshd");
    for key in ["host", "key"] {
        must(&["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path(&dir.join(key))]);
    }
    must(&["mkfifo", path(&dir.join("in"))]);
    fs::create_dir_all("/run/sshd").expect("/run is the machine's own");
    let config = format!(
        "Port {SSHD}\nListenAddress 127.0.0.1\nHostKey {0}/host\nAuthorizedKeysFile {0}/key.pub\n\
         StrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin yes\n",
        path(&dir)
    );
    fs::write(dir.join("config"), config).expect("writable");
    let it = Sshd { dir };
    let place = path(&it.dir);
    let server = group.write_unit("sshd", &format!("/usr/sbin/sshd -D -f {place}/config"), "Type=notify");
    group.start(&server);
    let remote = format!("n=0; while read -r line; do n=$((n + 1)); echo $n >>{place}/log; done");
    let script = format!("exec {} '{remote}' <>{place}/in\n", it.ssh().join(" "));
    fs::write(it.dir.join("session"), script).expect("writable");
    let session = group.write_unit("session", &format!("/bin/sh {place}/session"), "");
    group.start(&session);
    Started { app: Box::new(it), units: vec![server, session] }
}

impl Sshd {
    fn ssh(&self) -> Vec<String> {
        let words = format!(
            "ssh -T -i {}/key -oStrictHostKeyChecking=no -oUserKnownHostsFile=/dev/null -oLogLevel=ERROR -p {SSHD} \
             root@127.0.0.1",
            path(&self.dir)
        );
        words.split(' ').map(str::to_owned).collect()
    }
}

impl App for Sshd {
    fn client(&self) -> Box<dyn Client> {
        Box::new(self.clone())
    }

    fn count(&self) -> Answer<u64> {
        let log = self.dir.join("log");
        let mut words = self.ssh();
        let question = format!("cat {} | wc -l", path(&log));
        words.push(question);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let least = numbers(&log)?;
        let said: u64 = output(&words)?.trim().parse().map_err(|e| format!("a new login: {e}"))?;
        let most = numbers(&log)?;
        (least..=most + 1)
            .contains(&said)
            .then_some(said)
            .ok_or_else(|| format!("{said} for {least} to {most}"))
    }
}

impl Client for Sshd {
    fn step(&mut self) -> Answer<()> {
        let log = self.dir.join("log");
        let before = numbers(&log)?;
        let fifo = OpenOptions::new().read(true).write(true).open(self.dir.join("in"));
        fifo.and_then(|mut fifo| fifo.write_all(b"one more\n")).map_err(|e| format!("fifo: {e}"))?;
        more_than(&log, before)
    }
}
