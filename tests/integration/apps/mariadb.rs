//! MariaDB as Debian ships it, which reads and writes its tables through io_uring(7); only where it keeps its data is ours.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::drive::{Answer, App, Client, Started, app};
use super::servers;
use crate::fixture::{Group, path};
use crate::runner::Test;
use ckpt_tests::system::{eventually, main_pid, must, run};

const UNIT: &str = "mariadb.service";
const PROGRAM: &str = "/usr/sbin/mariadbd";
const ACCOUNTS: u64 = 5000;

pub(crate) fn tests() -> Vec<Test> {
    vec![app("apps-mariadb", mariadb)]
}

struct MariaDb;

/// A session of the command line client, as a user has it.
struct Session {
    client: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    next: u64,
}

fn mariadb(group: &Group) -> Started {
    servers::needs(PROGRAM);
    let data = group.directory("mariadb");
    must(&["chown", "mysql:mysql", path(&data)]);
    must(&["install", "-d", "-o", "mysql", "-g", "mysql", "/run/mysqld"]);
    let place = format!("[mysqld]\ndatadir = {}\n", path(&data));
    fs::write("/etc/mysql/mariadb.conf.d/99-place.cnf", place).expect("/etc is the machine's own");
    must(&["mariadb-install-db", "--user=mysql", "--skip-test-db", &format!("--datadir={}", path(&data))]);
    group.adopt(UNIT, "");
    group.start(UNIT);
    eventually("MariaDB answers", 30, || run(&["mariadb", "-e", "select 1"]).status.success().then_some(()));
    let tables = format!(
        "create database bench; use bench; \
         create table accounts (id int primary key, balance bigint not null, pad varchar(200)) engine=InnoDB; \
         create table history (id int auto_increment primary key, pad varchar(8000)) engine=InnoDB; \
         insert into accounts select seq, 0, repeat('a', 200) from seq_1_to_{ACCOUNTS};"
    );
    must(&["mariadb", "-e", &tables]);
    let links = must(&["sh", "-c", &format!("readlink /proc/{}/fd/* || true", main_pid(UNIT))]);
    assert!(links.contains("io_uring"), "MariaDB runs without io_uring");
    Started { app: Box::new(MariaDb), units: vec![UNIT.to_owned()] }
}

impl App for MariaDb {
    fn client(&self) -> Box<dyn Client> {
        Box::new(Session::new())
    }

    /// Rows of the history: one for each transfer, and none makes or loses money. The tables are sound.
    fn count(&self) -> Answer<u64> {
        let mut session = Session::new();
        let checked = session.ask("check table bench.accounts, bench.history extended")?;
        if checked.lines().any(|line| !line.ends_with("status\tOK")) {
            return Err(checked);
        }
        let said = session
            .ask("select (select sum(balance) from bench.accounts), (select count(*) from bench.history)")?;
        let (sum, rows) = said.split_once('\t').ok_or_else(|| format!("said {said:?}"))?;
        if sum != "0" {
            return Err(format!("the accounts sum up to {sum}"));
        }
        rows.parse().map_err(|_| format!("{rows:?} rows"))
    }
}

impl Session {
    fn new() -> Self {
        let mut client = Command::new("mariadb")
            .args(["--batch", "--skip-column-names", "--unbuffered"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the client is there");
        let to = client.stdin.take().expect("piped");
        let from = BufReader::new(client.stdout.take().expect("piped"));
        Self { client, to, from, next: u64::from(std::process::id()) }
    }

    /// The answer to statements, without its last end of line.
    fn ask(&mut self, statements: &str) -> Answer<String> {
        const END: &str = "that was all";
        writeln!(self.to, "{statements}; select '{END}';")
            .and_then(|()| self.to.flush())
            .map_err(|e| e.to_string())?;
        let mut answer = String::new();
        loop {
            let mut line = String::new();
            match self.from.read_line(&mut line) {
                Ok(0) => return Err(format!("it ended after {answer:?}")),
                Err(e) => return Err(e.to_string()),
                Ok(_) if line.trim_end() == END => return Ok(answer.trim_end().to_owned()),
                Ok(_) => answer += &line,
            }
        }
    }
}

impl Client for Session {
    /// One transfer between two accounts.
    fn step(&mut self) -> Answer<()> {
        let mut account = || {
            self.next =
                self.next.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            self.next >> 33
        };
        // In ascending order, so that clients do not wait for each other in a circle.
        let (one, other) = (account() % (ACCOUNTS / 2) + 1, account() % (ACCOUNTS / 2) + ACCOUNTS / 2 + 1);
        let said = self.ask(&format!(
            "use bench; begin; update accounts set balance = balance + 7 where id = {one}; \
             update accounts set balance = balance - 7 where id = {other}; \
             insert into history (pad) values (repeat('h', 8000)); commit; select row_count() >= 0"
        ))?;
        if said == "1" { Ok(()) } else { Err(format!("a transfer said {said:?}")) }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}
