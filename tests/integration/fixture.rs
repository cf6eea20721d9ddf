//! A group for a test: a slice, a btrfs subvolume, units in it, and victims in the units.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use ckpt_tests::system::{ckptctl, eventually, main_pid, must, property, run};

const UNITS: &str = "/run/systemd/system";

/// A group named after its test. The runner cleans up by that name.
pub(crate) struct Group {
    pub(crate) name: String,
    pub(crate) slice: String,
    pub(crate) subvolume: PathBuf,
}

/// A service of a group that runs a victim.
pub(crate) struct Victim {
    pub(crate) unit: String,
    dir: PathBuf,
}

impl Group {
    /// Makes the slice's name and the subvolume; registers nothing yet.
    pub(crate) fn new(name: &str) -> Self {
        let subvolume = Path::new("/srv").join(name);
        must(&["btrfs", "-q", "subvolume", "create", path(&subvolume)]);
        Self { name: name.into(), slice: slice_of(name), subvolume }
    }

    /// Registers the group with `ckptctl enable`, and gives it a freeze window that a loaded machine does not miss: figures are for
    /// the benches.
    pub(crate) fn enable(&self) {
        self.enable_as_shipped();
        self.set_max_freeze();
    }

    /// Registers the group with `ckptctl enable`.
    pub(crate) fn enable_as_shipped(&self) {
        must(&["ckptctl", "enable", &self.slice, "--name", &self.name, "--subvolume", path(&self.subvolume)]);
    }

    fn set_max_freeze(&self) {
        let file = format!("/etc/ckpt/groups.d/{}.toml", self.name);
        let config = fs::read_to_string(&file).expect("enable writes it");
        let (_, window) = config.split_once("max_freeze = ").expect("enable writes all settings");
        let window = window.lines().next().unwrap_or("");
        let config = config.replace(&format!("max_freeze = {window}"), "max_freeze = \"10s\"");
        fs::write(&file, config).expect("/etc is the machine's own");
        must(&["systemctl", "reload", "ckptd.service"]);
    }

    /// Makes a directory in the subvolume that everybody may write.
    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        let dir = self.subvolume.join(name);
        fs::create_dir(&dir).expect("a directory in the subvolume");
        fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("permissions");
        dir
    }

    /// Writes a service of the group, `NAME-ROLE.service`; gives the unit's name.
    pub(crate) fn write_unit(&self, role: &str, command: &str, settings: &str) -> String {
        let unit = format!("{}-{role}.service", self.name);
        let text = format!(
            "[Unit]\nDescription=Victim {role}\n[Service]\nSlice={}\nExecStart={command}\n{settings}\n",
            self.slice
        );
        fs::write(Path::new(UNITS).join(&unit), text).expect("a unit can be written");
        must(&["systemctl", "daemon-reload"]);
        unit
    }

    /// Puts a unit of somebody else into the group by a drop-in, with more lines for [Service].
    pub(crate) fn adopt(&self, unit: &str, settings: &str) {
        let dir = Path::new(UNITS).join(format!("{unit}.d"));
        fs::create_dir_all(&dir).expect("/run is the machine's own");
        let text = format!("[Service]\nSlice={}\n{settings}\n", self.slice);
        fs::write(dir.join(drop_in(&self.name)), text).expect("/run is the machine's own");
        must(&["systemctl", "daemon-reload"]);
    }

    /// Starts a unit of the enabled group when it has the drop-in with the preload library, which comes soon after the unit.
    pub(crate) fn start(&self, unit: &str) {
        eventually(&format!("{unit} gets its drop-in"), 20, || {
            property(unit, "DropInPaths").contains("50-ckpt.conf").then_some(())
        });
        must(&["systemctl", "start", unit]);
    }

    /// Starts a victim as a service of the group and waits until it is ready. `settings` are lines for [Service].
    pub(crate) fn victim(&self, program: &str, arguments: &str, settings: &str) -> Victim {
        self.victim_as(program, program, arguments, settings)
    }

    /// Like [`Group::victim`], for several of the same program: `role` tells them apart.
    pub(crate) fn victim_as(&self, role: &str, program: &str, arguments: &str, settings: &str) -> Victim {
        let access = if program == "forker" { "NotifyAccess=all\n" } else { "" };
        self.victim_at(role, &victim_program(program), arguments, &format!("{access}{settings}"))
    }

    /// Like [`Group::victim_as`], with the program at a path.
    pub(crate) fn victim_at(&self, role: &str, program: &Path, arguments: &str, settings: &str) -> Victim {
        let dir = self.directory(role);
        let command = format!("{} {} {arguments}", program.display(), dir.display());
        let unit = self.write_unit(role, &command, &format!("Type=notify\n{settings}"));
        must(&["systemctl", "start", &unit]);
        Victim { unit, dir }
    }

    /// Takes a checkpoint; gives what ckptctl tells of it.
    pub(crate) fn checkpoint(&self, flags: &[&str]) -> Value {
        let made = ckptctl(&[&["checkpoint", self.name.as_str()], flags].concat());
        assert_eq!(made["state"], "durable", "{made}");
        assert_eq!(made["group"], self.name.as_str(), "{made}");
        made
    }

    /// Restores the newest checkpoint; gives what ckptctl tells.
    pub(crate) fn restore(&self) -> Value {
        ckptctl(&["restore", &self.name])
    }

    /// Restores one checkpoint.
    pub(crate) fn restore_id(&self, id: &str) -> Value {
        ckptctl(&["restore", &format!("{}@{id}", self.name)])
    }

    /// Kills every process of the group and waits until its units have ended.
    pub(crate) fn kill(&self) {
        // SIGKILL may meet units that have ended already.
        let _ = run(&["systemctl", "kill", "--signal=KILL", &self.slice]);
        must(&["systemctl", "stop", &self.slice]);
    }

    /// Writes nonsense over the files of the group's subvolume.
    pub(crate) fn wreck(&self) {
        for entry in fs::read_dir(&self.subvolume).expect("readable").flatten() {
            let _ = fs::remove_dir_all(entry.path());
        }
        fs::write(self.subvolume.join("nonsense"), "not from the checkpoint").expect("writable");
    }

    /// What `ckptctl check` tells.
    pub(crate) fn check(&self) -> Value {
        let out = run(&["ckptctl", "--json", "check", &self.name]);
        serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("check: {e}: {out:?}"))
    }
}

impl Victim {
    /// Asks the victim to check itself; gives its generation. Fails with its reason.
    pub(crate) fn ask(&self) -> u64 {
        let report = self.dir.join("report");
        let _ = fs::remove_file(&report);
        self.signal("USR1");
        let said = eventually(&format!("{} answers", self.unit), 20, || {
            let alive = property(&self.unit, "ActiveState");
            assert!(alive == "active" || alive == "reloading", "{} is {alive}", self.unit);
            fs::read_to_string(&report).ok()
        });
        let mut words = said.split_whitespace();
        assert_eq!(words.next(), Some("ok"), "{}: {}", self.unit, said.trim());
        let memory = words.next().unwrap_or("");
        assert_eq!(words.next(), Some(memory), "{}: memory and file differ: {said}", self.unit);
        memory.parse().expect("a number")
    }

    /// What it has reported without being asked.
    pub(crate) fn said(&self) -> Option<String> {
        fs::read_to_string(self.dir.join("report")).ok()
    }

    /// Moves the victim's state on by a generation, in memory and on disk.
    pub(crate) fn change(&self) {
        let file = self.dir.join("generation");
        let before = fs::read_to_string(&file).unwrap_or_default();
        self.signal("USR2");
        eventually(&format!("{} changes", self.unit), 20, || {
            fs::read_to_string(&file).ok().filter(|now| *now != before)
        });
    }

    /// The victim's Main PID.
    pub(crate) fn pid(&self) -> u32 {
        main_pid(&self.unit)
    }

    fn signal(&self, name: &str) {
        must(&["systemctl", "kill", "--kill-who=main", &format!("--signal={name}"), &self.unit]);
    }
}

/// A path as text: those of the tests are ASCII.
pub(crate) fn path(path: &Path) -> &str {
    path.to_str().expect("ASCII")
}

fn slice_of(name: &str) -> String {
    // A dash in a slice's name makes a slice inside another.
    format!("{}.slice", name.replace('-', "_"))
}

/// The drop-in that puts a unit of somebody else into group `name`.
fn drop_in(name: &str) -> String {
    format!("40-{name}.conf")
}

pub(crate) fn victim_program(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("this program's path");
    let target = own.parent().and_then(Path::parent).expect("target/debug/integration");
    target.join("victims").join(name)
}

/// Removes what a test left: runs after each, whatever became of it.
pub(crate) fn clean_up(name: &str) {
    within(20, &["systemctl", "kill", "--signal=KILL", &slice_of(name)]);
    within(20, &["systemctl", "stop", &slice_of(name)]);
    if !within(20, &["ckptctl", "disable", name]) {
        // A daemon that does not answer would fail every later test as well.
        within(20, &["systemctl", "kill", "--signal=ABRT", "ckptd.service"]);
    }
    for entry in fs::read_dir(UNITS).into_iter().flatten().flatten() {
        let file = entry.file_name().to_string_lossy().into_owned();
        if file.starts_with(&format!("{name}-")) {
            if file.ends_with(".socket") {
                within(20, &["systemctl", "stop", &file]);
            }
            let _ = fs::remove_file(entry.path());
            let _ = fs::remove_dir_all(entry.path());
        }
        let _ = fs::remove_file(entry.path().join(drop_in(name)));
    }
    within(20, &["systemctl", "daemon-reload"]);
    within(20, &["systemctl", "reset-failed"]);
    free_space(name);
}

/// Removes a test's images, snapshots and subvolume: those of all tests together would fill a disk.
fn free_space(name: &str) {
    let _ = fs::remove_dir_all(Path::new("/var/lib/ckpt").join(name));
    let below = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let snapshots = below(Path::new("/srv/.ckpt").join(name)).filter(|path| path.is_dir()).flat_map(below);
    for subvolume in snapshots.chain([Path::new("/srv").join(name)]).filter(|path| path.is_dir()) {
        within(20, &["btrfs", "-q", "subvolume", "delete", path(&subvolume)]);
    }
}

/// Runs a program for at most `seconds`. False: it did not end by itself.
fn within(seconds: u32, words: &[&str]) -> bool {
    let limit = seconds.to_string();
    let out = run(&[&["timeout", "--kill-after=1", &limit], words].concat());
    !matches!(out.status.code(), Some(124 | 137) | None)
}
