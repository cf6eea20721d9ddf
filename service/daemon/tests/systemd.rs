//! Stopping, stubs, adoption and drop-ins on a real systemd. Runs in the throwaway machine only; elsewhere it says so and passes.
#![allow(missing_docs)]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use ckpt_engine::config::{GroupConfig, Settings};
use ckpt_engine::{Group, UnitMain, Units};
use ckptd::service::Host;
use ckptd::systemd::Systemd;

/// What a property needs: a systemd that may be used up.
fn in_machine() -> bool {
    let there = std::env::var_os("CKPT_MACHINE").is_some();
    if !there {
        eprintln!("skipped: needs a systemd of its own; run it in the throwaway machine with CKPT_MACHINE=1");
    }
    there
}

fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert!(output.status.success(), "{script}: {text} {}", String::from_utf8_lossy(&output.stderr));
    text
}

fn show(unit: &str, property: &str) -> String {
    sh(&format!("systemctl show --value -p {property} '{unit}'"))
}

fn unit(name: &str, text: &str) {
    std::fs::create_dir_all("/run/systemd/system").unwrap();
    std::fs::write(Path::new("/run/systemd/system").join(name), text).unwrap();
    sh("systemctl daemon-reload");
}

async fn systemd() -> Arc<Systemd> {
    let connection = zbus::connection::Builder::system().build().await.unwrap();
    Arc::new(Systemd::new(connection, &Settings::default()))
}

async fn blocking<T: Send + 'static>(
    systemd: &Arc<Systemd>,
    work: impl FnOnce(&Systemd) -> Result<T, ckpt_engine::Error> + Send + 'static,
) -> Result<T, ckpt_engine::Error> {
    let systemd = Arc::clone(systemd);
    tokio::task::spawn_blocking(move || work(&systemd)).await.unwrap()
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|n| (*n).to_owned()).collect()
}

/// Moves a `sleep` into the stub's cgroup and lets it be the unit's Main PID, as ckpt-restore does with the members.
fn move_in(cgroup: &str) -> i32 {
    let script = format!(
        "echo $$ > /sys/fs/cgroup{cgroup}/cgroup.procs\n\
         sleep 1000 </dev/null >/dev/null 2>&1 & pid=$!\n\
         NOTIFY_SOCKET=/run/systemd/notify systemd-notify --pid=$pid --ready\n\
         echo $pid"
    );
    sh(&script).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stub_stands_in_and_the_moved_in_process_is_the_units_own() {
    if !in_machine() {
        return;
    }
    unit("boom.service", "[Service]\nType=oneshot\nExecStart=touch /run/boom\n");
    unit(
        "victim@.service",
        "[Unit]\nOnFailure=boom.service\nRequires=never.service\nAfter=never.service\n[Service]\nExecStartPre=+touch /run/pre-%i\n\
         ExecStart=sleep 1000\nExecStop=+touch /run/stop-%i\nExecStopPost=+touch /run/post-%i\nRestart=always\nRestartSec=0\n\
         DynamicUser=yes\nPrivateTmp=yes\nProtectSystem=strict\nSystemCallFilter=@system-service\nRuntimeDirectory=victim-%i\n\
         MemoryDenyWriteExecute=yes\nSlice=vic-tim.slice\nWatchdogSec=10min\n",
    );
    unit("never.service", "[Service]\nExecStart=sleep 1000\n");
    let all = ["victim@a.service", "victim@b-x.service"];
    sh("systemctl start victim@a victim@b-x; rm -f /run/pre-* /run/stop-* /run/post-* /run/boom");
    let systemd = systemd().await;
    let group = Group {
        name: "vic".into(),
        config: GroupConfig { slice: Some("vic.slice".into()), ..GroupConfig::default() },
    };
    let seen = blocking(&systemd, move |s| s.units(&group)).await.unwrap();
    assert_eq!(seen.iter().map(|u| u.name.as_str()).collect::<Vec<_>>(), all);
    assert!(seen[0].private_tmp && seen[0].main_pid > 0 && seen[0].watchdog_usec == 600_000_000);
    assert_eq!(seen[0].cgroup, "/vic.slice/vic-tim.slice/victim@a.service");
    assert_eq!(seen[0].runtime_directories, [Path::new("/run/victim-a")]);

    // Stopped, though one is frozen, and nothing was run or triggered.
    sh(&format!("echo 1 > /sys/fs/cgroup{}/cgroup.freeze", seen[0].cgroup));
    blocking(&systemd, move |s| s.stop(&names(&all), true)).await.unwrap();
    for unit in all {
        assert_eq!(show(unit, "ActiveState"), "inactive");
    }
    let mut stubs = blocking(&systemd, move |s| s.start_stubs(&names(&all))).await.unwrap();
    assert_eq!(stubs.len(), 2);
    for stub in &stubs {
        assert_eq!(show(&stub.unit, "MainPID"), stub.pid.to_string());
        assert_eq!(show(&stub.unit, "ActiveState"), "activating");
        assert_eq!(sh(&format!("readlink /proc/{}/exe", stub.pid)), "/usr/lib/ckpt/ckpt-stub");
    }
    let mains: Vec<_> =
        stubs.drain(..).map(|stub| UnitMain { main_pid: move_in(&stub.cgroup), unit: stub.unit }).collect();
    let told = mains.clone();
    blocking(&systemd, move |s| s.adopt(&told)).await.unwrap();
    for main in &mains {
        assert_eq!(show(&main.unit, "ActiveState"), "active");
        assert_eq!(show(&main.unit, "MainPID"), main.main_pid.to_string());
        assert!(show(&main.unit, "DropInPaths").is_empty());
        assert_eq!(show(&main.unit, "Restart"), "always");
        assert_eq!(show(&main.unit, "NRestarts"), "0");
    }
    sh("test ! -e /run/pre-a && test ! -e /run/stop-a && test ! -e /run/post-a && test ! -e /run/boom");
    // The unit is the unit again: Restart= starts its program, stop stops it with its ExecStop=.
    sh(&format!("kill -9 {}", mains[0].main_pid));
    sh(
        "for i in $(seq 500); do [ \"$(systemctl show --value -p NRestarts victim@a)\" = 1 ] && exit 0; sleep 0.01; done; exit 1",
    );
    sh("systemctl stop victim@a victim@b-x");
    assert!(Path::new("/run/stop-b-x").exists(), "ExecStop= did not run");
    assert!(!Path::new("/run/boom").exists(), "OnFailure= was triggered");
    assert!(!Path::new("/run/systemd/system/victim@a.service.d").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn abandoned_and_forgotten_stubs_leave_nothing() {
    if !in_machine() {
        return;
    }
    unit(
        "lost.service",
        "[Unit]\nOnFailure=lost-boom.service\n[Service]\nExecStart=sleep 1000\nRestart=always\n",
    );
    let systemd = systemd().await;
    for end in 0..2 {
        blocking(&systemd, |s| s.start_stubs(&names(&["lost.service"])).map(drop)).await.unwrap();
        assert_eq!(show("lost.service", "ActiveState"), "activating");
        match end {
            0 => blocking(&systemd, |s| s.abandon(&names(&["lost.service"]))).await.unwrap(),
            _ => blocking(&systemd, Host::tidy_leftovers).await.unwrap(),
        }
        assert_eq!(show("lost.service", "ActiveState"), "inactive");
        assert!(show("lost.service", "DropInPaths").is_empty());
    }
    // A stop without a restore after it leaves nothing either, once the job ends.
    sh("systemctl start lost");
    blocking(&systemd, |s| s.stop(&names(&["lost.service"]), true).and_then(|()| s.tidy())).await.unwrap();
    assert_eq!(show("lost.service", "ActiveState"), "inactive");
    assert!(show("lost.service", "DropInPaths").is_empty());
    sh("systemctl start lost && systemctl is-active lost && systemctl stop lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_kills_the_stub_is_told() {
    if !in_machine() {
        return;
    }
    unit("bad.service", "[Service]\nExecStart=sleep 1000\nUser=nobody-of-that-name\n");
    let systemd = systemd().await;
    let error = blocking(&systemd, |s| s.start_stubs(&names(&["bad.service"])).map(drop)).await.unwrap_err();
    assert!(error.to_string().contains("bad.service"), "{error}");
    blocking(&systemd, |s| s.abandon(&names(&["bad.service"]))).await.unwrap();
    assert!(show("bad.service", "DropInPaths").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn enabled_units_get_the_library_and_lose_it_without_a_trace() {
    if !in_machine() {
        return;
    }
    unit(
        "pre@.service",
        "[Service]\nExecStart=sleep 1000\nSlice=pre.slice\nEnvironment=A=1 LD_PRELOAD=/lib/x.so\n",
    );
    unit("pre-file.service", "[Service]\nExecStart=sleep 1000\nSlice=pre-in.slice\n");
    unit("pre-other.service", "[Service]\nExecStart=sleep 1000\nSlice=prefix.slice\n");
    sh("systemctl start pre@1");
    let before = sh("find /etc/systemd/system | sort");
    let systemd = systemd().await;
    let group = Group {
        name: "pre".into(),
        config: GroupConfig { slice: Some("pre.slice".into()), ..GroupConfig::default() },
    };
    for _ in 0..2 {
        let group = group.clone();
        blocking(&systemd, move |s| s.install(&group)).await.unwrap();
        let with: BTreeSet<_> =
            sh("cd /etc/systemd/system; ls -d *.d/50-ckpt.conf").lines().map(str::to_owned).collect();
        assert_eq!(
            with,
            ["pre-file.service.d/50-ckpt.conf".to_owned(), "pre@1.service.d/50-ckpt.conf".to_owned()].into()
        );
        assert_eq!(show("pre@1", "Environment"), "A=1 LD_PRELOAD=/lib/x.so:/usr/lib/ckpt/libckpt_preload.so");
        assert_eq!(show("pre-file", "Environment"), "LD_PRELOAD=/usr/lib/ckpt/libckpt_preload.so");
    }
    blocking(&systemd, move |s| s.remove(&group)).await.unwrap();
    assert_eq!(sh("find /etc/systemd/system | sort"), before);
    assert_eq!(show("pre@1", "Environment"), "A=1 LD_PRELOAD=/lib/x.so");
    assert_eq!(show("pre@1", "ActiveState"), "active", "it was not restarted behind anyone's back");
    let system = Group {
        name: "s".into(),
        config: GroupConfig { units: names(&["ckptd.service"]), ..GroupConfig::default() },
    };
    assert!(blocking(&systemd, move |s| s.install(&system)).await.is_err());
    sh("systemctl stop pre@1");
}
