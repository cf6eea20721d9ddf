//! A bus of our own, a polkit of our own, an engine in memory and a host of paper: the bus layer without root and without systemd.
#![allow(dead_code, missing_docs)]

pub mod engine;
pub mod host;
pub mod polkit;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use ckpt_dbus::Manager1Proxy;
use ckptd::service::Service;
use zbus::Connection;

pub use engine::MemoryEngine;
pub use host::PaperHost;
pub use polkit::Rules;

/// A dbus-daemon that ends with the test.
pub struct Bus {
    child: Child,
    pub address: String,
    dir: std::path::PathBuf,
}

impl Bus {
    pub fn start() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("ckptd-test-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let config = dir.join("bus.conf");
        let text = format!(
            "<busconfig><type>session</type><listen>unix:path={}</listen><auth>EXTERNAL</auth>\
             <policy context=\"default\"><allow send_destination=\"*\" eavesdrop=\"true\"/><allow eavesdrop=\"true\"/>\
             <allow own=\"*\"/></policy></busconfig>",
            dir.join("bus").display()
        );
        std::fs::write(&config, text).unwrap();
        let mut child = Command::new("dbus-daemon")
            .arg(format!("--config-file={}", config.display()))
            .args(["--nofork", "--nopidfile", "--print-address"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("dbus-daemon runs (Debian package dbus-daemon)");
        let mut address = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut address).unwrap();
        Self { child, address: address.trim().to_owned(), dir }
    }

    pub async fn connect(&self) -> Connection {
        self.builder().build().await.unwrap()
    }

    pub fn builder(&self) -> zbus::connection::Builder<'_> {
        zbus::connection::Builder::address(self.address.as_str())
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A daemon on a bus of its own, with a client and the strings to pull.
pub struct World {
    pub client: Connection,
    pub manager: Manager1Proxy<'static>,
    pub engine: Arc<MemoryEngine>,
    pub host: Arc<PaperHost>,
    pub rules: Arc<Rules>,
    pub service: Arc<Service>,
    pub connection: Connection,
    pub polkit: Connection,
    pub bus: Bus,
}

impl World {
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// `prepare` gets the directory of groups.d before the daemon starts.
    pub async fn with(prepare: impl FnOnce(&Path)) -> Self {
        let bus = Bus::start();
        let groups = bus.dir().join("groups.d");
        std::fs::create_dir_all(&groups).unwrap();
        prepare(&groups);
        let rules = Arc::new(Rules::default());
        let polkit = polkit::serve(&bus, Arc::clone(&rules)).await;
        let engine = Arc::new(MemoryEngine::default());
        let host = Arc::new(PaperHost::default());
        let service = Service::new(engine.clone(), host.clone(), groups);
        let connection = ckptd::bus::connect(bus.builder()).await.unwrap();
        ckptd::bus::serve(&service, &connection, Vec::new()).await.unwrap();
        ckptd::bus::take_name(&connection).await.unwrap();
        let client = bus.connect().await;
        let manager = Manager1Proxy::new(&client).await.unwrap();
        Self { client, manager, engine, host, rules, service, connection, polkit, bus }
    }

    /// A world with the group `web` of web.slice.
    pub async fn with_web() -> Self {
        Self::with(|dir| std::fs::write(dir.join("web.toml"), "slice = \"web.slice\"\n").unwrap()).await
    }

    pub fn groups_d(&self) -> std::path::PathBuf {
        self.bus.dir().join("groups.d")
    }
}

/// The name of the D-Bus error that a call failed with.
pub fn error_name<T: std::fmt::Debug>(result: zbus::Result<T>) -> String {
    let error = result.expect_err("the call must fail");
    ckpt_dbus::errors::reply(&error).unwrap_or_else(|| panic!("no error reply: {error}")).0
}
