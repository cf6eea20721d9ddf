//! Programs that are no servers: a pipeline, a compiler, a database's shell, an agent.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::fixture::{Group, path};
use crate::runner::Test;
use ckpt_tests::system::{run, text};

use super::drive::{Answer, App, Client, Started, app};
use super::servers::needs;

pub(crate) fn tests() -> Vec<Test> {
    vec![
        app("apps-pipeline", pipeline),
        app("apps-gcc", gcc),
        app("apps-sqlite", sqlite),
        app("apps-ssh-agent", ssh_agent),
    ]
}

/// Starts a script of bash as `GROUP-program.service`.
fn script(group: &Group, text: &str, settings: &str) -> (PathBuf, Vec<String>) {
    let dir = group.directory("program");
    let file = dir.join("script");
    fs::write(&file, text).expect("writable");
    let command = format!("/bin/bash {}", path(&file));
    let unit = group.write_unit("program", &command, &format!("WorkingDirectory={}\n{settings}", path(&dir)));
    group.start(&unit);
    (dir, vec![unit])
}

/// A program that works without being asked: a step is that it has gone on.
struct ByItself {
    count: fn(&Path) -> Answer<u64>,
    dir: PathBuf,
}

struct Watcher {
    count: fn(&Path) -> Answer<u64>,
    dir: PathBuf,
}

impl App for ByItself {
    fn client(&self) -> Box<dyn Client> {
        Box::new(Watcher { count: self.count, dir: self.dir.clone() })
    }

    fn count(&self) -> Answer<u64> {
        (self.count)(&self.dir)
    }

    fn works_by_itself(&self) -> bool {
        true
    }
}

impl Client for Watcher {
    fn step(&mut self) -> Answer<()> {
        let before = (self.count)(&self.dir)?;
        let deadline = Instant::now() + Duration::from_secs(20);
        while (self.count)(&self.dir)? <= before {
            if Instant::now() > deadline {
                return Err(format!("it does not go on after {before}"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

// A pipeline: numbers, their sums, both on disk; new children all the time.

const PIPELINE: &str = r#"
i=0
while :; do
    i=$((i + 1))
    echo $i
    [ $((i % 20)) = 0 ] && /bin/sleep 0.01
done | tee all | awk '{ sum += $1; print $1, sum; fflush() }' | cat | cat | while read -r number sum; do
    echo "$number $sum" >>sums
done
"#;

fn pipeline(group: &Group) -> Started {
    let (dir, units) = script(group, PIPELINE, "");
    Started { app: Box::new(ByItself { count: sums, dir }), units }
}

/// Every line has its number and the sum up to it: none is lost, none is there twice.
fn sums(dir: &Path) -> Answer<u64> {
    let text = fs::read_to_string(dir.join("sums")).map_err(|e| format!("sums: {e}"))?;
    let (mut number, mut sum) = (0, 0);
    for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        number += 1;
        sum += number;
        if line.trim_end() != format!("{number} {sum}") {
            return Err(format!("line {number} is {line:?}, the sum is {sum}"));
        }
    }
    Ok(number)
}

// gcc: a program is built again and again, by parallel jobs, with intermediate files in a /tmp of its own.

const BUILDS: &str = r#"
set -e
unset LANG
cat >Makefile <<'END'
program: one.o two.o three.o
	gcc -o $@ $^
%.o: %.c
	gcc -O2 -c -o $@ $<
END
number=0
while :; do
    number=$((number + 1))
    for part in one two; do
        { echo '#include <stdio.h>'
          for f in 1 2 3 4 5 6 7 8 9; do echo "int ${part}_$f(int x) { int y = 0; for (int i = 0; i < x; i++) y += i ^ $f; return y; }"; done
          echo "int $part(void) { return $number; }"
        } >$part.c
    done
    echo '#include <stdio.h>
    int one(void), two(void); int main(void) { printf("%d\n", one() + two()); return 0; }' >three.c
    touch -d '1 hour ago' *.c
    rm -f *.o program
    make -s -j2
    [ "$(./program)" = $((2 * number)) ]
    echo $number >>builds
done
"#;

fn gcc(group: &Group) -> Started {
    needs("/usr/bin/gcc");
    let (dir, units) = script(group, BUILDS, "PrivateTmp=yes");
    Started { app: Box::new(ByItself { count: builds, dir }), units }
}

/// The script ends at the first build that fails or gives a wrong program.
fn builds(dir: &Path) -> Answer<u64> {
    let text = fs::read_to_string(dir.join("builds")).map_err(|e| format!("builds: {e}"))?;
    let mut number = 0;
    for line in text.lines() {
        number += 1;
        if line.parse() != Ok(number) {
            return Err(format!("build {number} is {line}"));
        }
    }
    Ok(number)
}

// The shell of SQLite, in a pipeline: a log and shared memory of its own, locks.

const INSERTS: &str = r#"
sqlite3 db 'pragma journal_mode = wal; create table squares (number integer primary key, square integer);'
i=0
while :; do
    i=$((i + 1))
    echo "insert into squares values ($i, $i * $i);"
    [ $((i % 10)) = 0 ] && /bin/sleep 0.01
done | sqlite3 -bail -cmd '.timeout 10000' db
"#;

fn sqlite(group: &Group) -> Started {
    needs("/usr/bin/sqlite3");
    let (dir, units) = script(group, INSERTS, "");
    Started { app: Box::new(ByItself { count: squares, dir }), units }
}

fn squares(dir: &Path) -> Answer<u64> {
    let file = dir.join("db");
    let query = "pragma integrity_check; \
        select count(*), max(number), sum(square = number * number) from squares;";
    let out = run(&["sqlite3", "-readonly", "-cmd", ".timeout 10000", path(&file), query]);
    let said = text(&out.stdout);
    let wrong = || format!("sqlite3: {said:?} {}", text(&out.stderr));
    let rows = said.strip_prefix("ok\n").ok_or_else(wrong)?;
    let numbers: Vec<u64> = rows.trim().split('|').filter_map(|n| n.parse().ok()).collect();
    match numbers[..] {
        [count, last, right] if count == last && count == right => Ok(count),
        _ => Err(wrong()),
    }
}

// ssh-agent: it lets nobody look into its memory, and is started with another group's rights.

struct Agent {
    socket: PathBuf,
    keys: PathBuf,
    next: Arc<AtomicU64>,
}

fn ssh_agent(group: &Group) -> Started {
    needs("/usr/bin/ssh-agent");
    let socket = group.directory("agent").join("socket");
    let keys = PathBuf::from("/run").join(format!("{}-keys", group.name));
    fs::create_dir_all(&keys).expect("/run is the machine's own");
    let unit = group.write_unit("agent", &format!("/usr/bin/ssh-agent -D -a {}", path(&socket)), "");
    group.start(&unit);
    let agent = Agent { socket, keys, next: Arc::default() };
    Started { app: Box::new(agent), units: vec![unit] }
}

impl Agent {
    fn ask(&self, words: &[&str]) -> Answer<String> {
        let socket = format!("SSH_AUTH_SOCK={}", path(&self.socket));
        let out = run(&[&["timeout", "20", "env", &socket], words].concat());
        if out.status.success() || out.stdout.starts_with(b"The agent has no identities") {
            return Ok(text(&out.stdout));
        }
        Err(format!("{}: {}{}", words.join(" "), text(&out.stdout), text(&out.stderr)))
    }
}

impl App for Agent {
    fn client(&self) -> Box<dyn Client> {
        Box::new(Self { socket: self.socket.clone(), keys: self.keys.clone(), next: self.next.clone() })
    }

    /// The keys that it has. It signs with the first, and the signature holds.
    fn count(&self) -> Answer<u64> {
        let list = self.ask(&["ssh-add", "-L"])?;
        let keys: Vec<&str> = list.lines().filter(|line| line.starts_with("ssh-ed25519 ")).collect();
        if let Some(key) = keys.first() {
            let (public, file) = (self.keys.join("first.pub"), self.keys.join("file"));
            fs::write(&public, key).expect("/run is the machine's own");
            fs::write(&file, "text").expect("/run is the machine's own");
            let _ = fs::remove_file(self.keys.join("file.sig"));
            self.ask(&["ssh-keygen", "-q", "-Y", "sign", "-n", "test", "-f", path(&public), path(&file)])?;
            let check = format!("ssh-keygen -Y check-novalidate -n test -s {0}.sig <{0}", path(&file));
            self.ask(&["sh", "-c", &check])?;
        }
        Ok(keys.len() as u64)
    }
}

impl Client for Agent {
    fn step(&mut self) -> Answer<()> {
        let file = self.keys.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        self.ask(&["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path(&file)])?;
        self.ask(&["ssh-add", "-q", path(&file)]).map(drop)
    }
}
