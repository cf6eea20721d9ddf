//! PHP as Debian ships it: php-fpm and its workers, and nginx before them, which talk through a unix socket. Only where PHP keeps its data
//! is ours.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::client::Connection;
use super::drive::{Answer, App, Client, Started, app};
use super::servers;
use crate::fixture::{Group, path};
use crate::runner::Test;
use ckpt_tests::system::{must, text};

const VERSION: &str = "8.2";
const PORT: u16 = 7114;

/// Each request is a line of the file, and a number of the visitor's own in its session.
const PAGE: &str = r#"<?php
$file = 'DIR/requests';
if (isset($_GET['add'])) {
    session_id($_GET['visitor']);
    session_start();
    $_SESSION['requests'] = ($_SESSION['requests'] ?? 0) + 1;
    file_put_contents($file, $_GET['add'] . "\n", FILE_APPEND | LOCK_EX);
    echo $_SESSION['requests'];
} else {
    $lines = file($file);
    echo count(array_unique($lines)), ' ', count($lines);
}
"#;

pub(crate) fn tests() -> Vec<Test> {
    vec![app("apps-php", php)]
}

struct Php {
    next: Arc<AtomicU64>,
}

struct Visitor {
    connection: Connection,
    next: Arc<AtomicU64>,
    name: String,
    requests: u64,
}

fn php(group: &Group) -> Started {
    let program = format!("/usr/sbin/php-fpm{VERSION}");
    servers::needs(&program);
    servers::needs("/usr/sbin/nginx");
    let (pages, sessions) = (group.directory("pages"), group.directory("sessions"));
    fs::write(pages.join("page.php"), PAGE.replace("DIR", path(&pages))).expect("writable");
    fs::write(pages.join("requests"), "").expect("writable");
    must(&["chmod", "666", path(&pages.join("requests"))]);
    must(&["install", "-d", "-o", "www-data", "-g", "www-data", "/run/php"]);
    let pool = PathBuf::from(format!("/etc/php/{VERSION}/fpm/pool.d/www.conf"));
    let before = fs::read_to_string(&pool).expect("the package's own");
    let place = format!("\nphp_admin_value[session.save_path] = {}\n", path(&sessions));
    fs::write(&pool, before + &place).expect("/etc is the machine's own");
    let site = format!(
        "server {{ listen 127.0.0.1:{PORT}; root {}; access_log off; location / {{ include snippets/fastcgi-php.conf; \
         fastcgi_pass unix:/run/php/php{VERSION}-fpm.sock; }} }}\n",
        path(&pages)
    );
    let file = "/etc/nginx/sites-enabled/default";
    let _ = fs::remove_file(file); // a link
    fs::write(file, site).expect("/etc is the machine's own");
    let units: Vec<_> = [format!("php{VERSION}-fpm.service"), "nginx.service".into()].into();
    for unit in &units {
        group.adopt(unit, "");
    }
    for unit in &units {
        group.start(unit);
    }
    Started { app: Box::new(Php { next: Arc::default() }), units }
}

impl App for Php {
    fn client(&self) -> Box<dyn Client> {
        let next = self.next.clone();
        let name = format!("visitor{}", next.fetch_add(1, Ordering::Relaxed));
        Box::new(Visitor { connection: Connection::new(PORT), next, name, requests: 0 })
    }

    /// No request is there twice.
    fn count(&self) -> Answer<u64> {
        let said = ask(&mut Connection::new(PORT), "")?;
        let (once, all) = said.split_once(' ').ok_or_else(|| format!("{said:?} requests"))?;
        if once != all {
            return Err(format!("{all} lines of {once} requests"));
        }
        all.parse().map_err(|_| format!("{all:?} requests"))
    }
}

impl Client for Visitor {
    fn step(&mut self) -> Answer<()> {
        let request = self.next.fetch_add(1, Ordering::Relaxed);
        let said = ask(&mut self.connection, &format!("?visitor={}&add={request}", self.name))?;
        self.requests += 1;
        let right = said.parse() == Ok(self.requests);
        right
            .then_some(())
            .ok_or_else(|| format!("request {} of {} was told {said:?}", self.requests, self.name))
    }
}

fn ask(connection: &mut Connection, question: &str) -> Answer<String> {
    let page = connection.http(&format!("/page.php{question}"), None)?;
    let said = text(&page.body).trim().to_owned();
    if page.status == 200 { Ok(said) } else { Err(format!("status {}: {said:?}", page.status)) }
}
