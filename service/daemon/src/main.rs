//! The checkpoint daemon, ckptd(8).
#![forbid(unsafe_code)]

use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use ckpt_engine::Group;
use ckpt_engine::config::Settings;
use ckpt_engine::local::LocalEngine;
use ckptd::bus::{self, error::BusError, introspect};
use ckptd::service::Service;
use ckptd::systemd::{Systemd, generator};
use ckptd::{groups, journal, settings};
use libsystemd::daemon::{NotifyState, notify, watchdog_enabled};
use tokio::signal::unix::{SignalKind, signal};

/// Messages that may wait to be taken.
const SIGNALS: NonZeroUsize = NonZeroUsize::new(1 << 16).unwrap();
/// Descriptors of members that a window holds in ckptd, most of the time.
const DESCRIPTORS: i32 = 1 << 15;
const LIB: &str = "/usr/lib/ckpt";
const ETC: &str = "/etc/ckpt";

const USAGE: &str =
    "usage: ckptd [--print-introspection [INTERFACE] | --print-support | --thaw | --generate DIR | --version | --help]

The checkpoint daemon: serves org.ckpt on the system bus. systemd starts it (ckptd.service), and so does the
first call to org.ckpt. Without an option it runs; it must be root.

  --print-introspection   print the D-Bus introspection XML of all interfaces, or of INTERFACE
  --print-support         print the table of ckpt-support(7), as mdoc(7)
  --thaw                  thaw what a ckptd that ended left frozen, and exit
  --generate DIR          write the drop-ins of enabled groups into DIR, for systemd.generator(7), and exit
  --version               print the version
  --help                  print this

See ckptd(8), org.ckpt(5), ckptctl(1).";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        [] => run(),
        ["--thaw"] => thaw(),
        ["--generate", into] => generate(Path::new(into)),
        ["--help" | "-h"] => print(USAGE),
        ["--version" | "-V"] => print(&format!("ckptd {}", env!("CARGO_PKG_VERSION"))),
        ["--print-support"] => print(ckpt_engine::support::mdoc().trim_end()),
        ["--print-introspection"] => print(introspect::all().trim_end()),
        ["--print-introspection", interface] => match introspect::xml(interface) {
            Some(xml) => print(xml.trim_end()),
            None => usage(&format!("there is no interface {interface}")),
        },
        [other, ..] => usage(&format!("{other}: unknown option")),
    }
}

/// What systemd's generator runs: it must end soon, and ask nobody.
fn generate(into: &Path) -> ExitCode {
    let (settings, _) = settings::load(Path::new(LIB), Path::new(ETC));
    let (groups, _) = groups::load::all(&Path::new(ETC).join("groups.d"));
    let groups: Vec<_> = groups.into_iter().map(|(name, config)| Group { name, config }).collect();
    match generator::write(&groups, &settings.libdir.join("libckpt_preload.so"), into) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("ckpt-generator: {e}");
            ExitCode::FAILURE
        }
    }
}

fn print(text: &str) -> ExitCode {
    use std::io::Write;
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn usage(why: &str) -> ExitCode {
    eprintln!("ckptd: {why}\n{USAGE}");
    ExitCode::from(2)
}

fn run() -> ExitCode {
    let passed = ckpt_engine::host::passed();
    ckpt_engine::host::make_room_for_descriptors(DESCRIPTORS);
    journal::init();
    let (settings, errors) = settings::load(Path::new(LIB), Path::new(ETC));
    errors.iter().for_each(journal::bad_settings);
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("no runtime: {error}")),
    };
    match runtime.block_on(serve(settings, passed)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error.to_string()),
    }
}

/// For ExecStopPost=: does what the start of the daemon would do, at once and without the bus.
fn thaw() -> ExitCode {
    journal::init();
    let (settings, _) = settings::load(Path::new(LIB), Path::new(ETC));
    let thawed = ckpt_engine::host::cgroup_mount()
        .and_then(|mount| ckpt_engine::frozen::thaw_recorded(&settings.run, &mount));
    match thawed {
        Ok(events) => {
            events.iter().for_each(|event| journal::event("", event));
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error.to_string()),
    }
}

fn fail(why: &str) -> ExitCode {
    journal::fatal(why);
    eprintln!("ckptd: {why}");
    ExitCode::FAILURE
}

/// Serves the bus until SIGTERM. The name comes after the objects, READY after the name.
async fn serve(settings: Settings, passed: Vec<(String, OwnedFd)>) -> Result<(), BusError> {
    // A signal that comes while we start must not kill us half-way.
    let mut terminate = signals(SignalKind::terminate())?;
    let mut interrupt = signals(SignalKind::interrupt())?;
    // systemd tells a burst of signals at each reload; a full queue would keep replies from being read.
    let connection = bus::connect(zbus::connection::Builder::system().max_queued(SIGNALS)).await?;
    let host = Arc::new(Systemd::new(connection.clone(), &settings));
    let engine = Arc::new(LocalEngine::new(settings.clone(), host.clone(), passed));
    let service = Service::new(engine, host.clone(), PathBuf::from(ETC).join("groups.d"));
    bus::serve(&service, &connection, stored(&settings.store)).await?;
    bus::take_name(&connection).await?;
    host.watch(&service).await;
    tell(&[NotifyState::Ready]);
    let watchdog = tokio::spawn(watchdog());
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        // Without the bus nobody can ask us anything; systemd starts us again.
        () = connection.closed() => {
            service.stop().await;
            return Err(BusError::from(ckpt_engine::Error::Failed("the system bus is gone".into())));
        }
    }
    tell(&[NotifyState::Stopping]);
    service.stop().await;
    watchdog.abort();
    Ok(())
}

fn signals(kind: SignalKind) -> Result<tokio::signal::unix::Signal, BusError> {
    signal(kind).map_err(|e| BusError::from(ckpt_engine::Error::io("signal handler", e)))
}

/// Names of the groups that have a directory in the store.
fn stored(store: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(store).into_iter().flatten().flatten();
    entries.filter(|e| e.path().is_dir()).filter_map(|e| e.file_name().into_string().ok()).collect()
}

/// sd_notify(3); without a NOTIFY_SOCKET nothing happens, and nothing is to be done about an error.
fn tell(states: &[NotifyState]) {
    let _ = notify(false, states);
}

/// WATCHDOG=1 at half the interval that systemd asks for (sd_watchdog_enabled(3)).
async fn watchdog() {
    let Some(interval) = watchdog_enabled(false) else { return };
    let mut ticks = tokio::time::interval((interval / 2).max(Duration::from_millis(100)));
    loop {
        ticks.tick().await;
        tell(&[NotifyState::Watchdog]);
    }
}
