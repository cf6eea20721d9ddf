//! Small servers, one a language: `tests/apps/`, which tells what they answer.

use std::path::{Path, PathBuf};

use crate::fixture::{Group, path};
use crate::runner::{Test, skip};

use super::client::Connection;
use super::drive::{Answer, App, Client, Started, app};

/// Name of the test, file in tests/apps, interpreter with its arguments, port, whether it speaks HTTP.
const SERVERS: [(&str, &str, &str, u16, bool); 6] = [
    ("apps-python", "server.py", "/usr/bin/python3", 7101, false),
    ("apps-node", "server.js", "/usr/bin/node", 7102, true),
    ("apps-perl", "server.pl", "/usr/bin/perl", 7103, false),
    ("apps-ruby", "server.rb", "/usr/bin/ruby", 7104, false),
    ("apps-lua", "server.lua", "/usr/bin/lua5.4", 7105, false),
    // Memory for two cores and a small service.
    ("apps-java", "Server.java", "/usr/bin/java -Xmx64m -XX:+UseSerialGC", 7106, false),
];

/// A server in a language.
pub(crate) struct Server {
    pub(crate) port: u16,
    pub(crate) http: bool,
    pub(crate) dir: PathBuf,
}

pub(crate) fn tests() -> Vec<Test> {
    SERVERS
        .iter()
        .map(|&(name, file, interpreter, port, http)| {
            app(name, move |group| start(group, file, interpreter, port, http, ""))
        })
        .collect()
}

/// Starts a server of tests/apps as `GROUP-server.service` with these lines for [Service].
pub(crate) fn start(
    group: &Group,
    file: &str,
    interpreter: &str,
    port: u16,
    http: bool,
    settings: &str,
) -> Started {
    needs(interpreter.split(' ').next().unwrap_or(interpreter));
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("apps").join(file);
    let dir = group.directory("server");
    let command = format!("{interpreter} {} {port} {}", path(&program), path(&dir));
    let unit = group.write_unit("server", &command, settings);
    group.start(&unit);
    Started { app: Box::new(Server { port, http, dir }), units: vec![unit] }
}

/// Ends the test as skipped if a program is not installed.
pub(crate) fn needs(program: &str) {
    if !Path::new(program).exists() {
        skip(&format!("{program} is not installed"));
    }
}

impl App for Server {
    fn client(&self) -> Box<dyn Client> {
        Box::new(Talk { connection: Connection::new(self.port), http: self.http })
    }

    /// Each number has one line in the log, in their order.
    fn count(&self) -> Answer<u64> {
        let mut talk = Talk { connection: Connection::new(self.port), http: self.http };
        let first = talk.ask("check")?;
        let text = std::fs::read_to_string(self.dir.join("log")).map_err(|e| format!("log: {e}"))?;
        let last = talk.ask("check")?;
        let mut lines = 0;
        for (n, line) in text.lines().enumerate() {
            if line.parse() != Ok(n + 1) {
                return Err(format!("line {} of the log says {line}", n + 1));
            }
            lines += 1;
        }
        // The one that is being added may have its line already, or not yet.
        if lines + 1 < first || lines > last + 1 {
            return Err(format!("counted {first} to {last}, {lines} lines on disk"));
        }
        Ok(first)
    }
}

struct Talk {
    connection: Connection,
    http: bool,
}

impl Client for Talk {
    fn step(&mut self) -> Answer<()> {
        self.ask("add").map(drop)
    }
}

impl Talk {
    fn ask(&mut self, word: &str) -> Answer<u64> {
        let said = if self.http {
            let page = self.connection.http(&format!("/{word}"), None)?;
            String::from_utf8_lossy(&page.body).trim_end().to_string()
        } else {
            self.connection.line(word)?
        };
        said.strip_prefix("ok ").and_then(|n| n.parse().ok()).ok_or(said)
    }
}
