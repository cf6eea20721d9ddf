//! Debian's own servers in Debian's own units; only where they keep their data is ours.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;

use crate::fixture::{Group, path};
use crate::runner::Test;
use ckpt_tests::system::{must, text};

use super::client::{Connection, Page};
use super::drive::{Answer, App, Client, Started, app};
use super::servers;

const NGINX: u16 = 7110;
const HAPROXY: u16 = 7111;
const BEHIND_HAPROXY: u16 = 7112;
const MEMCACHED: u16 = 11211;
const ETCD: u16 = 2379;
const BEANSTALKD: u16 = 11300;
const APACHE: u16 = 7113;

pub(crate) fn tests() -> Vec<Test> {
    vec![
        app("apps-nginx", nginx),
        app("apps-memcached", memcached),
        app("apps-etcd", etcd),
        app("apps-beanstalkd", beanstalkd),
        app("apps-haproxy", haproxy),
        app("apps-apache", apache),
    ]
}

/// Puts Debian's unit into the group, with more settings, and starts it.
fn start(group: &Group, program: &str, unit: &str, settings: &str) -> Vec<String> {
    servers::needs(program);
    let unit = format!("{unit}.service");
    group.adopt(&unit, settings);
    group.start(&unit);
    vec![unit]
}

fn other(message: &str, said: &str) -> String {
    format!("{message}: {said:?}")
}

fn number(said: &str) -> Answer<u64> {
    said.trim().parse().map_err(|_| other("not a number", said))
}

// nginx: a connection that is kept; requests are counted in memory that the workers share, and in the log.

const PAGE_SIZE: usize = 100_000;

struct Nginx {
    log: PathBuf,
}

struct Browser(Connection);

fn nginx(group: &Group) -> Started {
    let dir = group.directory("nginx");
    let page: String = (0..PAGE_SIZE).map(|i| char::from(b'a' + (i % 26) as u8)).collect();
    fs::write(dir.join("page"), page).expect("writable");
    let log = dir.join("access.log");
    let site = format!(
        "server {{ listen 127.0.0.1:{NGINX}; root {}; access_log {}; location /status {{ stub_status; }} }}\n",
        path(&dir),
        path(&log)
    );
    servers::needs("/usr/sbin/nginx");
    let file = "/etc/nginx/sites-enabled/default";
    let _ = fs::remove_file(file); // a link
    fs::write(file, site).expect("/etc is the machine's own");
    Started { app: Box::new(Nginx { log }), units: start(group, "/usr/sbin/nginx", "nginx", "") }
}

impl App for Nginx {
    fn client(&self) -> Box<dyn Client> {
        Box::new(Browser(Connection::new(NGINX)))
    }

    fn count(&self) -> Answer<u64> {
        let mut browser = Browser(Connection::new(NGINX));
        let first = browser.requests()?;
        let log = fs::read_to_string(&self.log).map_err(|e| format!("log: {e}"))?;
        let last = browser.requests()?;
        let lines = log.lines().count() as u64;
        // Requests are counted when they begin and have their line when they end.
        if lines + 4 < first || lines > last {
            return Err(format!("{first} to {last} requests, {lines} lines in the log"));
        }
        Ok(first)
    }
}

impl Browser {
    /// `server accepts handled requests\n 5 5 31 \n`.
    fn requests(&mut self) -> Answer<u64> {
        let page = self.0.http("/status", None)?;
        let said = text(&page.body);
        let line = said.lines().nth(2).unwrap_or("");
        number(line.split_whitespace().nth(2).unwrap_or(""))
    }
}

impl Client for Browser {
    fn step(&mut self) -> Answer<()> {
        let Page { status, body } = self.0.http("/page", None)?;
        let right = body.iter().enumerate().all(|(i, c)| *c == b'a' + (i % 26) as u8);
        (status == 200 && body.len() == PAGE_SIZE && right)
            .then_some(())
            .ok_or_else(|| format!("status {status}, {} bytes", body.len()))
    }
}

// memcached: threads and slabs.

const FIXED: usize = 200;

struct Memcached {
    next: Arc<AtomicU64>,
}

struct Cache {
    connection: Connection,
    next: Arc<AtomicU64>,
}

fn memcached(group: &Group) -> Started {
    let units = start(group, "/usr/bin/memcached", "memcached", "");
    Started { app: Box::new(Memcached { next: Arc::default() }), units }
}

impl Memcached {
    fn cache(&self) -> Cache {
        Cache { connection: Connection::new(MEMCACHED), next: self.next.clone() }
    }
}

impl App for Memcached {
    fn client(&self) -> Box<dyn Client> {
        Box::new(self.cache())
    }

    /// Fixed items have their data, and each step has its item.
    fn count(&self) -> Answer<u64> {
        let mut cache = self.cache();
        if cache.get("count")?.is_none() {
            for n in 0..FIXED {
                cache.set(&format!("fixed-{n}"), &fixed(n))?;
            }
            cache.set("count", "0")?;
        }
        for n in 0..FIXED {
            if cache.get(&format!("fixed-{n}"))? != Some(fixed(n)) {
                return Err(format!("item {n} has changed"));
            }
        }
        let count = number(&cache.get("count")?.unwrap_or_default())?;
        let items = cache.items()?;
        if items < count + FIXED as u64 + 1 {
            return Err(format!("{count} steps, {items} items"));
        }
        Ok(count)
    }
}

fn fixed(n: usize) -> String {
    format!("{n:04} ").repeat(n % 50 + 1)
}

impl Client for Cache {
    fn step(&mut self) -> Answer<()> {
        let key = format!("step-{}", self.next.fetch_add(1, Ordering::Relaxed));
        self.set(&key, &key)?;
        if self.get(&key)?.as_ref() != Some(&key) {
            return Err(format!("{key} is lost"));
        }
        number(&self.connection.line("incr count 1")?).map(drop)
    }
}

impl Cache {
    fn set(&mut self, key: &str, value: &str) -> Answer<()> {
        let said = self.connection.line(&format!("set {key} 0 0 {}\r\n{value}\r", value.len()))?;
        (said == "STORED").then_some(()).ok_or_else(|| other("set", &said))
    }

    fn get(&mut self, key: &str) -> Answer<Option<String>> {
        // VALUE KEY FLAGS LENGTH, data, END; or END.
        let more =
            |line: &str| line.rsplit(' ').next().and_then(|n| n.parse::<usize>().ok()).map_or(0, |n| n + 7);
        let (line, mut body) = self.connection.exchange(&format!("get {key}\r\n"), more)?;
        if line == "END" {
            return Ok(None);
        }
        let kept = body.len().saturating_sub(7);
        let end = body.split_off(kept);
        (end == b"\r\nEND\r\n").then(|| Some(text(&body))).ok_or_else(|| other("get", &line))
    }

    fn items(&mut self) -> Answer<u64> {
        let mut line = self.connection.line("stats\r")?;
        let mut found = None;
        while line != "END" {
            found = found.or(line.strip_prefix("STAT curr_items ").map(str::to_string));
            line = self.connection.next_line()?;
        }
        number(&found.unwrap_or_default())
    }
}

// etcd, a Go program: each put is one revision and one key, in memory and in a mapped file.

struct Etcd {
    next: Arc<AtomicU64>,
}

struct Keys {
    connection: Connection,
    next: Arc<AtomicU64>,
}

fn etcd(group: &Group) -> Started {
    let dir = group.directory("etcd");
    must(&["chown", "etcd:", path(&dir)]);
    let units =
        start(group, "/usr/bin/etcd", "etcd", &format!("Environment=ETCD_DATA_DIR={}/default", path(&dir)));
    Started { app: Box::new(Etcd { next: Arc::new(1.into()) }), units }
}

impl Etcd {
    fn keys(&self) -> Keys {
        Keys { connection: Connection::new(ETCD), next: self.next.clone() }
    }
}

impl App for Etcd {
    fn client(&self) -> Box<dyn Client> {
        Box::new(self.keys())
    }

    fn count(&self) -> Answer<u64> {
        // From the first key to the last.
        let all = r#"{"key":"AA==","range_end":"AA==","count_only":true}"#;
        let said = self.keys().ask("range", all)?;
        let count = number(said["count"].as_str().unwrap_or("0"))?;
        let revision = number(said["header"]["revision"].as_str().unwrap_or(""))?;
        (revision == count + 1).then_some(count).ok_or_else(|| format!("{count} keys, revision {revision}"))
    }
}

impl Client for Keys {
    fn step(&mut self) -> Answer<()> {
        // Sixteen digits are twelve bytes in base 64.
        let key = format!("{:016}", self.next.fetch_add(1, Ordering::Relaxed));
        self.ask("put", &format!(r#"{{"key":"{key}","value":"{key}"}}"#))?;
        let said = self.ask("range", &format!(r#"{{"key":"{key}"}}"#))?;
        (said["kvs"][0]["value"] == key.as_str())
            .then_some(())
            .ok_or_else(|| format!("{key} is lost: {said}"))
    }
}

impl Keys {
    fn ask(&mut self, verb: &str, body: &str) -> Answer<Value> {
        let page = self.connection.http(&format!("/v3/kv/{verb}"), Some(body))?;
        let said = text(&page.body);
        let json = serde_json::from_str(&said).map_err(|_| other(verb, &said))?;
        (page.status == 200).then_some(json).ok_or_else(|| other(verb, &said))
    }
}

// beanstalkd: jobs in memory and in its binlog.

struct Beanstalkd;
struct Tube(Connection);

fn beanstalkd(group: &Group) -> Started {
    let dir = group.directory("beanstalkd");
    must(&["chown", "beanstalkd:", path(&dir)]);
    let settings = format!(
        "[Service]\nEnvironment=DIR={0}\nExecStart=\nExecStart=/usr/bin/beanstalkd -l 127.0.0.1 -p {BEANSTALKD} -b {0}",
        path(&dir)
    );
    let units = start(group, "/usr/bin/beanstalkd", "beanstalkd", &settings);
    Started { app: Box::new(Beanstalkd), units }
}

impl App for Beanstalkd {
    fn client(&self) -> Box<dyn Client> {
        Box::new(Tube(Connection::new(BEANSTALKD)))
    }

    fn count(&self) -> Answer<u64> {
        let mut connection = Connection::new(BEANSTALKD);
        // OK BYTES, then so many bytes and an end of line.
        let more =
            |line: &str| line.strip_prefix("OK ").and_then(|n| n.parse::<usize>().ok()).map_or(0, |n| n + 2);
        let (line, body) = connection.exchange("stats-tube default\r\n", more)?;
        let said = text(&body);
        let ready = said.lines().find_map(|l| l.strip_prefix("current-jobs-ready: "));
        number(ready.ok_or_else(|| other("stats-tube", &line))?)
    }
}

impl Client for Tube {
    fn step(&mut self) -> Answer<()> {
        let said = self.0.line("put 0 0 60 4\r\nwork\r")?;
        said.starts_with("INSERTED ").then_some(()).ok_or_else(|| other("put", &said))
    }
}

// haproxy: a proxy that keeps a connection inside the group, to a server in a unit of its own.

fn haproxy(group: &Group) -> Started {
    let behind = servers::start(group, "server.js", "/usr/bin/node", BEHIND_HAPROXY, true, "");
    let config = format!(
        "\noption dontlog-normal\nfrontend in\n bind 127.0.0.1:{HAPROXY}\n default_backend out\nbackend out\n \
         http-reuse always\n server one 127.0.0.1:{BEHIND_HAPROXY}\n"
    );
    servers::needs("/usr/sbin/haproxy");
    let file = "/etc/haproxy/haproxy.cfg";
    let before = fs::read_to_string(file).expect("haproxy has a configuration");
    fs::write(file, before + &config).expect("/etc is the machine's own");
    let mut units = start(group, "/usr/sbin/haproxy", "haproxy", "");
    units.extend(behind.units);
    let app = servers::Server { port: HAPROXY, http: true, dir: group.subvolume.join("server") };
    Started { app: Box::new(app), units }
}

// Apache: a forking service, with processes of many threads that count requests in a shared table.

struct Apache {
    log: PathBuf,
}

struct Visitor(Connection);

fn apache(group: &Group) -> Started {
    servers::needs("/usr/sbin/apache2");
    let dir = group.directory("apache");
    fs::write(dir.join("page"), PAGE).expect("writable");
    let log = dir.join("access.log");
    let site = format!(
        "Listen 127.0.0.1:{APACHE}\nExtendedStatus On\nMaxSpareThreads 1000\nMaxKeepAliveRequests 0\n\
         <VirtualHost 127.0.0.1:{APACHE}>\nDocumentRoot {0}\nCustomLog {1} common\n\
         <Directory {0}>\nRequire all granted\n</Directory>\n\
         <Location /status>\nSetHandler server-status\nRequire all granted\n</Location>\n</VirtualHost>\n",
        path(&dir),
        path(&log)
    );
    let file = "/etc/apache2/sites-enabled/000-default.conf";
    let _ = fs::remove_file(file); // a link
    fs::write(file, site).expect("/etc is the machine's own");
    Started { app: Box::new(Apache { log }), units: start(group, "/usr/sbin/apache2", "apache2", "") }
}

const PAGE: &str = "what the page says";

impl App for Apache {
    fn client(&self) -> Box<dyn Client> {
        Box::new(Visitor(Connection::new(APACHE)))
    }

    fn count(&self) -> Answer<u64> {
        let mut visitor = Visitor(Connection::new(APACHE));
        let first = visitor.requests()?;
        let log = fs::read_to_string(&self.log).map_err(|e| format!("log: {e}"))?;
        let last = visitor.requests()?;
        let lines = log.lines().count() as u64;
        // Requests have their line a moment before or after they are counted.
        if lines + 4 < first || lines > last + 4 {
            return Err(format!("{first} to {last} requests, {lines} lines in the log"));
        }
        Ok(first)
    }
}

impl Visitor {
    fn requests(&mut self) -> Answer<u64> {
        let said = text(&self.0.http("/status?auto", None)?.body);
        number(
            said.lines()
                .find_map(|l| l.strip_prefix("Total Accesses: "))
                .ok_or_else(|| other("status", &said))?,
        )
    }
}

impl Client for Visitor {
    fn step(&mut self) -> Answer<()> {
        let Page { status, body } = self.0.http("/page", None)?;
        (status == 200 && text(&body) == PAGE).then_some(()).ok_or_else(|| other("page", &text(&body)))
    }
}
