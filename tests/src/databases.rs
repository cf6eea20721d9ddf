//! Debian's Redis and PostgreSQL with their files on one btrfs subvolume, under load, and what must agree in them.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::system::{eventually, main_pid, must, run, text};

const REDIS: &str = "redis-server.service";
const PORT: &str = "5544";
const DATABASE: &str = "bench";
/// One step of the Redis load: a counter goes up and its value is appended to a list.
const STEP: &str = "redis.call('rpush','history',redis.call('incr','counter')) return 1";
/// Sums over accounts, tellers, branches and history of pgbench, and the rows of its history.
const SUMS: &str = "select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers), \
                    (select sum(bbalance) from pgbench_branches), coalesce((select sum(delta) from pgbench_history), 0), \
                    (select count(*) from pgbench_history)";

/// Both services, in one slice, with all their files in one subvolume.
pub struct Databases {
    /// The slice of both services.
    pub slice: String,
    /// The subvolume with the files of both.
    pub subvolume: String,
    postgres: String,
    cluster: [String; 2],
}

/// Clients that keep both services busy until [`Load::end`].
pub struct Load {
    clients: Vec<Child>,
}

/// What both services say of themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// Redis: the counter.
    pub counter: i64,
    /// Redis: length of the list that got each value of the counter.
    pub history_len: i64,
    /// Redis: last value in that list.
    pub history_last: i64,
    /// pgbench: sum over all accounts.
    pub accounts: i64,
    /// pgbench: sum over all tellers.
    pub tellers: i64,
    /// pgbench: sum over all branches.
    pub branches: i64,
    /// pgbench: sum over the history.
    pub history_sum: i64,
    /// pgbench: rows of the history, one for each transaction.
    pub transactions: i64,
}

impl State {
    /// Whether counter and list agree, and the four sums.
    pub fn holds(&self) -> bool {
        self.counter == self.history_len
            && self.counter == self.history_last
            && self.accounts == self.tellers
            && self.accounts == self.branches
            && self.accounts == self.history_sum
    }
}

impl Databases {
    /// Makes subvolume and cluster, and puts both services into the slice of group `name` by drop-ins.
    ///
    /// Errors: what is not installed, as a sentence.
    pub fn prepare(name: &str) -> Result<Self, String> {
        let version = fs::read_dir("/usr/lib/postgresql")
            .ok()
            .and_then(|dir| dir.flatten().filter_map(|e| e.file_name().into_string().ok()).max())
            .ok_or("PostgreSQL is not installed (package postgresql)")?;
        if !Path::new("/usr/bin/redis-server").exists() {
            return Err("Redis is not installed (package redis-server)".into());
        }
        let it = Self {
            slice: format!("{name}.slice"),
            subvolume: format!("/srv/{name}"),
            postgres: format!("postgresql@{version}-{name}.service"),
            cluster: [version, name.into()],
        };
        must(&["btrfs", "-q", "subvolume", "create", &it.subvolume]);
        it.configure_redis();
        it.configure_postgres();
        must(&["systemctl", "daemon-reload"]);
        Ok(it)
    }

    fn configure_redis(&self) {
        let dir = format!("{}/redis", self.subvolume);
        must(&["install", "-d", "-o", "redis", "-g", "redis", &dir]);
        let path = "/etc/redis/redis.conf";
        let settings = format!("\ndir {dir}\nappendonly yes\nappendfsync everysec\nsave \"\"\n");
        let before = fs::read_to_string(path).expect("Redis has a configuration");
        fs::write(path, before + &settings).expect("/etc is the machine's own");
        // Debian's unit sees all but its own directories read-only.
        drop_in(REDIS, &format!("[Service]\nSlice={}\nReadWritePaths={}\n", self.slice, self.subvolume));
    }

    fn configure_postgres(&self) {
        let [version, name] = &self.cluster;
        let dir = format!("{}/postgres", self.subvolume);
        must(&[
            "pg_createcluster",
            version,
            name,
            "-d",
            &dir,
            "-p",
            PORT,
            "-o",
            "unix_socket_directories=/var/run/postgresql",
            "-o",
            "shared_buffers=32MB",
            "-o",
            "autovacuum=on",
            "--",
            "--no-sync",
            "--auth=trust",
        ]);
        drop_in(&self.postgres, &format!("[Service]\nSlice={}\n", self.slice));
    }

    /// Starts both services and fills the tables of pgbench.
    pub fn start(&self) {
        must(&["systemctl", "start", REDIS, &self.postgres]);
        must(&["runuser", "-u", "postgres", "--", "createdb", "-p", PORT, DATABASE]);
        must(&["runuser", "-u", "postgres", "--", "pgbench", "-q", "-i", "-s", "2", "-p", PORT, DATABASE]);
        must(&["redis-cli", "set", "counter", "0"]);
    }

    /// Both units.
    pub fn units(&self) -> [&str; 2] {
        [REDIS, &self.postgres]
    }

    /// Main PIDs of both, Redis first.
    pub fn main_pids(&self) -> [u32; 2] {
        self.units().map(main_pid)
    }

    /// Starts clients of both that go on for at most `seconds`: pgbench with 4, redis-benchmark with 4.
    pub fn load(&self, seconds: u32) -> Load {
        let seconds = seconds.to_string();
        let pgbench = [
            "runuser", "-u", "postgres", "--", "pgbench", "-n", "-c", "4", "-j", "2", "-T", &seconds, "-p",
            PORT, DATABASE,
        ];
        let redis =
            ["timeout", &seconds, "redis-benchmark", "-q", "-c", "4", "-n", "100000000", "eval", STEP, "0"];
        Load { clients: vec![quiet(&pgbench), quiet(&redis)] }
    }

    /// Waits until both have made steps since the call.
    pub fn wait_for_progress(&self) {
        let (counter, transactions) = self.progress();
        eventually("both databases make progress", 30, || {
            let now = self.progress();
            (now.0 > counter + 200 && now.1 > transactions + 50).then_some(())
        });
    }

    /// The counter of Redis and the transactions of PostgreSQL.
    pub fn progress(&self) -> (i64, i64) {
        (redis(&["get", "counter"]), number(&self.sql("select count(*) from pgbench_history")))
    }

    /// What both say now. Asks each in one step.
    pub fn state(&self) -> State {
        let said = self.sql(SUMS);
        let sums: Vec<i64> = said.trim().split('|').map(number).collect();
        let [accounts, tellers, branches, history_sum, transactions] = sums[..] else {
            panic!("psql said {said}")
        };
        State {
            counter: redis(&["get", "counter"]),
            history_len: redis(&["llen", "history"]),
            history_last: redis(&["lindex", "history", "-1"]),
            accounts,
            tellers,
            branches,
            history_sum,
            transactions,
        }
    }

    /// The counter that a second Redis finds in a copy of the append-only file: what is on disk.
    pub fn counter_on_disk(&self) -> i64 {
        let copy = "/run/redis-copy";
        // What is not yet written belongs to the answer of the running one.
        must(&["rm", "-rf", copy]);
        must(&["cp", "-r", &format!("{}/redis", self.subvolume), copy]);
        let socket = format!("{copy}/socket");
        let words = [
            "redis-server",
            "--port",
            "0",
            "--unixsocket",
            &socket,
            "--dir",
            copy,
            "--appendonly",
            "yes",
            "--save",
            "",
        ];
        let mut server = quiet(&words);
        let found = eventually("a Redis on the copied file", 20, || {
            let out = run(&["redis-cli", "-s", &socket, "get", "counter"]);
            text(&out.stdout).trim().parse().ok()
        });
        let _ = server.kill();
        let _ = server.wait();
        found
    }

    /// Removes every file of both databases.
    pub fn wipe(&self) {
        for dir in ["redis", "postgres"] {
            must(&["rm", "-rf", &format!("{}/{dir}", self.subvolume)]);
        }
    }

    fn sql(&self, query: &str) -> String {
        must(&["runuser", "-u", "postgres", "--", "psql", "-XAt", "-p", PORT, "-c", query, DATABASE])
    }
}

impl Load {
    /// Ends the clients that still run.
    pub fn end(&mut self) {
        for client in &mut self.clients {
            // runuser and timeout pass SIGTERM on to what they started; SIGKILL they could not.
            let _ = run(&["kill", &client.id().to_string()]);
            let _ = client.wait();
        }
        self.clients.clear();
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

fn redis(words: &[&str]) -> i64 {
    number(&must(&[&["redis-cli"], words].concat()))
}

fn number(said: &str) -> i64 {
    said.trim().parse().unwrap_or_else(|_| panic!("not a number: {said:?}"))
}

fn quiet(words: &[&str]) -> Child {
    Command::new(words[0])
        .args(&words[1..])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|e| panic!("{}: {e}", words[0]))
}

fn drop_in(unit: &str, settings: &str) {
    let dir = format!("/run/systemd/system/{unit}.d");
    fs::create_dir_all(&dir).expect("/run is the machine's own");
    fs::write(format!("{dir}/10-group.conf"), settings).expect("/run is the machine's own");
}
