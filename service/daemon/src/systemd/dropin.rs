//! Drop-ins: texts (pure) and files.
//!
//! ```text
//! /etc/systemd/system/UNIT.d/50-ckpt.conf             of an enabled group: the preload library, OnFailure=
//! /run/systemd/system/UNIT.d/zz-ckpt-restore.conf     while a group is stopped or restored: the stub in place of the program
//! ```

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use ckpt_engine::{Error, Group};

use crate::groups::file::replace;

/// Drop-in of an enabled group.
pub const ENABLED: &str = "50-ckpt.conf";
/// Drop-in while a group is stopped or restored. Sorts after what people write (systemd.unit(5)).
pub const RESTORE: &str = "zz-ckpt-restore.conf";

/// The drop-in of an enabled group's unit. `environment` is what the unit has without it (`Environment=`, one variable an element).
pub fn enabled(group: &Group, library: &Path, environment: &[String]) -> String {
    let preload = preload(environment, library);
    let mut text = format!("{}\n", marker(&group.name));
    if group.config.restore.on_failure {
        text.push_str(&format!("[Unit]\nOnFailure=ckpt-restore@{}.service\n", group.name));
    }
    // One Environment=LD_PRELOAD= replaces a former one: what the unit had comes first in ours.
    text.push_str(&format!("[Service]\nEnvironment={}\n", quote(&format!("LD_PRELOAD={preload}"))));
    text
}

/// The first line of a drop-in that belongs to a group.
fn marker(group: &str) -> String {
    format!("# Written by ckptd for group {group}; `ckptctl disable {group}` takes it away.")
}

/// The unit's LD_PRELOAD with ours at the end, once. ld.so(8): separated by spaces or colons.
fn preload(environment: &[String], library: &Path) -> String {
    let library = library.display().to_string();
    let had = environment.iter().rev().find_map(|e| e.strip_prefix("LD_PRELOAD=")).unwrap_or_default();
    let mut all: Vec<&str> = had.split([' ', ':']).filter(|l| !l.is_empty() && *l != library).collect();
    all.push(&library);
    all.join(":")
}

/// A word for a unit file: quoted, and with no specifier (systemd.syntax(7), systemd.unit(5)).
fn quote(word: &str) -> String {
    let escaped = word.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('\n', "\\n");
    format!("\"{escaped}\"")
}

/// While the group is stopped: whatever happens to its processes, nothing is run, restarted or triggered.
const QUIET: &str = "\
[Unit]
OnFailure=
OnSuccess=
RefuseManualStop=no
[Service]
Restart=no
SuccessExitStatus=SIGKILL SIGTERM
ExecStop=
ExecStopPost=
";

/// In place of the unit's program: everything that systemd sets up is the unit's own, only what runs is not.
/// `bound_to`: other units have BindsTo= to it, which systemd does not start before it is active. `extra` are further lines of [Service].
pub fn stub(stub: &Path, bound_to: bool, extra: &str) -> String {
    let stub = stub.display();
    let kind = if bound_to { "exec" } else { "notify" };
    format!(
        "# Written by ckptd for a restore that is under way; it goes when the restore ends.
{QUIET}Type={kind}
NotifyAccess=all
ExecCondition=
ExecStartPre=
ExecStart=
ExecStart={stub}
ExecStartPost=
PIDFile=
RemainAfterExit=no
# Ends a stub whose ckptd died; filling terabytes of memory takes less.
TimeoutStartSec=1h
{extra}[Unit]
# What has to hold before the program's first start; an empty one resets all.
ConditionPathExists=
AssertPathExists=
StartLimitIntervalSec=0
RefuseManualStart=no
JobTimeoutSec=infinity
"
    )
}

/// The lines that let the stub be executed in a unit that sees another root or may execute little.
pub fn sandbox_lines(stub: &Path, other_root: bool, no_exec: bool) -> String {
    let stub = stub.display();
    let mut lines = String::new();
    if other_root {
        lines.push_str(&format!("BindReadOnlyPaths={stub}\n"));
    }
    if no_exec {
        lines.push_str(&format!("ExecPaths={stub}\n"));
    }
    lines
}

/// The line that keeps the unit's name in the journal: the members inherit the stub's stream, whose name is that of the program where the
/// unit does not give one (systemd.exec(5), SyslogIdentifier=).
pub fn identifier_line(identifier: &str, program: &str) -> String {
    let program = Path::new(program).file_name().unwrap_or_default().to_string_lossy();
    let name = if identifier.is_empty() { &*program } else { identifier };
    if name.is_empty() { String::new() } else { format!("SyslogIdentifier={}\n", name.replace('%', "%%")) }
}

/// Where a drop-in of a unit lies.
pub fn path(dir: &Path, unit: &str, name: &str) -> PathBuf {
    dir.join(format!("{unit}.d")).join(name)
}

/// Writes a drop-in; whether anything changed.
pub fn write(dir: &Path, unit: &str, name: &str, text: &str) -> Result<bool, Error> {
    let path = path(dir, unit, name);
    if fs::read_to_string(&path).is_ok_and(|old| old == text) {
        return Ok(false);
    }
    if let Some(parent) = path.parent() {
        let failed = |e| Error::io(format!("create {}", parent.display()), e);
        if !parent.exists() {
            fs::create_dir_all(parent).map_err(failed)?;
            // The daemon's umask is that of its images; systemd warns of configuration that not everybody can read.
            fs::set_permissions(parent, fs::Permissions::from_mode(0o755)).map_err(failed)?;
        }
    }
    replace(&path, text.as_bytes())?;
    // ckptd's umask keeps its store to root; of a unit file nobody but systemd would be told by that, with a warning.
    for (place, mode) in [(path.parent().unwrap_or(dir), 0o755), (path.as_path(), 0o644)] {
        let public = fs::Permissions::from_mode(mode);
        fs::set_permissions(place, public)
            .map_err(|e| Error::io(format!("publish {}", place.display()), e))?;
    }
    Ok(true)
}

/// Removes a drop-in and its directory if that is empty then; whether there was one.
pub fn remove(dir: &Path, unit: &str, name: &str) -> Result<bool, Error> {
    let path = path(dir, unit, name);
    match fs::remove_file(&path) {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(Error::io(format!("remove {}", path.display()), e)),
    }
    // Not empty: someone else's drop-ins are there.
    let _ = fs::remove_dir(path.parent().unwrap_or(dir));
    Ok(true)
}

/// The units that have a drop-in of this name; of this group only, if one is given.
pub fn units_with(dir: &Path, name: &str, group: Option<&str>) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.filter_map(|e| e.file_name().into_string().ok());
    let mut units: Vec<_> = names.filter_map(|n| n.strip_suffix(".d").map(str::to_owned)).collect();
    units.retain(|unit| match fs::read_to_string(path(dir, unit, name)) {
        Ok(text) => group.is_none_or(|g| text.lines().next() == Some(marker(g).as_str())),
        Err(_) => false,
    });
    units.sort();
    units
}

#[cfg(test)]
mod tests {
    use ckpt_engine::config::GroupConfig;

    use super::*;

    const LIBRARY: &str = "/usr/lib/ckpt/libckpt_preload.so";

    fn web() -> Group {
        Group { name: "web".into(), config: GroupConfig::default() }
    }

    #[test]
    fn a_preload_that_the_unit_has_is_kept_and_ours_is_there_once() {
        let text = |environment: &[&str]| {
            let environment: Vec<String> = environment.iter().map(|e| (*e).to_owned()).collect();
            enabled(&web(), Path::new(LIBRARY), &environment)
        };
        let line = |value: &str| format!("[Service]\nEnvironment=\"LD_PRELOAD={value}\"\n");
        assert!(text(&[]).ends_with(&line(LIBRARY)));
        assert!(text(&["A=b", "LD_PRELOAD=/a.so /b.so"]).ends_with(&line(&format!("/a.so:/b.so:{LIBRARY}"))));
        assert!(
            text(&[&format!("LD_PRELOAD={LIBRARY}:/a.so")]).ends_with(&line(&format!("/a.so:{LIBRARY}")))
        );
        assert!(text(&["LD_PRELOAD=/50%.so"]).ends_with(&line(&format!("/50%%.so:{LIBRARY}"))));
    }

    #[test]
    fn the_journal_goes_on_under_the_same_name() {
        assert_eq!(identifier_line("", "/usr/bin/redis-server"), "SyslogIdentifier=redis-server\n");
        assert_eq!(identifier_line("my 50%", "/usr/bin/x"), "SyslogIdentifier=my 50%%\n");
        assert_eq!(identifier_line("", ""), "");
    }

    #[test]
    fn on_failure_is_written_where_it_is_asked_for() {
        assert!(!enabled(&web(), Path::new(LIBRARY), &[]).contains("OnFailure"));
        let mut group = web();
        group.config.restore.on_failure = true;
        let text = enabled(&group, Path::new(LIBRARY), &[]);
        assert!(text.contains("[Unit]\nOnFailure=ckpt-restore@web.service\n"));
    }

    #[test]
    fn writing_and_removing_leaves_no_trace() {
        let dir = std::env::temp_dir().join(format!("ckptd-dropin-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let text = enabled(&web(), Path::new(LIBRARY), &[]);
        assert!(write(&dir, "a@1.service", ENABLED, &text).unwrap());
        assert!(!write(&dir, "a@1.service", ENABLED, &text).unwrap(), "twice is once");
        assert_eq!(units_with(&dir, ENABLED, Some("web")), ["a@1.service"]);
        assert!(units_with(&dir, ENABLED, Some("we")).is_empty());
        assert!(remove(&dir, "a@1.service", ENABLED).unwrap());
        assert!(!remove(&dir, "a@1.service", ENABLED).unwrap());
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        fs::remove_dir(&dir).unwrap();
    }
}
