//! Sandboxed services, and services with settings of every kind: systemd builds the same around the restored processes.

use std::path::{Path, PathBuf};

use ckpt_tests::system::{eventually, must, run};

use crate::fixture::{Group, Victim, path, victim_program};
use crate::runner::{Test, test};
use crate::victims::goes_back;

/// A name for the test, the victim, lines for [Service].
const SANDBOXES: [(&str, &str, &str); 36] = [
    ("user", "signals", "User=nobody"),
    ("dynamic-user", "signals", "DynamicUser=yes\nReadWritePaths=/srv\nStateDirectory=victim"),
    ("private-tmp", "signals", "PrivateTmp=yes"),
    (
        "protect-system",
        "signals",
        "ProtectSystem=strict\nReadWritePaths=/srv\nProtectHome=yes\nPrivateTmp=yes",
    ),
    ("private-devices", "signals", "PrivateDevices=yes\nProtectKernelTunables=yes\nProtectControlGroups=yes"),
    ("no-new-privileges", "signals", "NoNewPrivileges=yes\nUser=nobody"),
    (
        "syscall-filter",
        "signals",
        "SystemCallFilter=@system-service\nSystemCallErrorNumber=EPERM\nNoNewPrivileges=yes",
    ),
    (
        "capabilities",
        "signals",
        "CapabilityBoundingSet=CAP_CHOWN\nAmbientCapabilities=CAP_CHOWN\nUser=nobody",
    ),
    ("runtime-directory", "files", "RuntimeDirectory=victim\nLimitNOFILE=2048\nNice=5\nUMask=0007"),
    ("no-capabilities", "processes", "CapabilityBoundingSet="),
    ("network", "tcp", "PrivateNetwork=yes"),
    ("write-or-execute", "threads", "MemoryDenyWriteExecute=yes\nUser=nobody"),
    (
        "restricted",
        "processes",
        "RestrictNamespaces=yes\nRestrictRealtime=yes\nRestrictSUIDSGID=yes\nLockPersonality=yes\n\
         SystemCallArchitectures=native\nRestrictAddressFamilies=AF_UNIX",
    ),
    ("proc", "processes", "ProtectProc=invisible\nProcSubset=pid\nUser=nobody"),
    ("ipc", "shared", "PrivateIPC=yes"),
    (
        "host-name",
        "identity",
        "ProtectHostname=yes\nProtectClock=yes\nProtectKernelLogs=yes\nProtectKernelModules=yes",
    ),
    (
        "mounts",
        "files",
        "TemporaryFileSystem=/mnt\nBindPaths=/usr:/mnt/usr\nInaccessiblePaths=/opt\nReadOnlyPaths=/etc",
    ),
    (
        "scheduling",
        "threads",
        "CPUSchedulingPolicy=batch\nCPUAffinity=0\nIOSchedulingClass=idle\nTimerSlackNSec=1ms",
    ),
    (
        "limits",
        "threads",
        "LimitNOFILE=1000:2000\nLimitCORE=0\nLimitSTACK=4M\nLimitMEMLOCK=1M\nOOMScoreAdjust=300",
    ),
    ("resources", "processes", "MemoryHigh=1G\nTasksMax=64\nCPUWeight=20\nIOWeight=20\nCPUQuota=80%"),
    ("groups", "identity", "User=nobody\nGroup=nogroup\nSupplementaryGroups=audio video\nUMask=0027"),
    ("keyring", "identity", "KeyringMode=shared"),
    ("credentials", "files", "SetCredential=word:secret\nUser=nobody\nPrivateMounts=yes"),
    (
        "directories",
        "files",
        "StateDirectory=v\nCacheDirectory=v\nLogsDirectory=v\nConfigurationDirectory=v\nDynamicUser=yes\nReadWritePaths=/srv",
    ),
    ("working-directory", "files", "WorkingDirectory=/srv\nPrivateTmp=yes\nEnvironment=LANG=C"),
    ("personality", "memory", "Personality=x86-64\nSecureBits=no-setuid-fixup"),
    ("users", "users", "PrivateUsers=yes"),
    ("users-nobody", "users", "PrivateUsers=yes\nUser=nobody\nSupplementaryGroups=audio video"),
    ("users-threads", "threads", "PrivateUsers=yes\nUser=nobody\nPrivateTmp=yes"),
    (
        "users-capabilities",
        "users",
        "PrivateUsers=yes\nUser=nobody\nAmbientCapabilities=CAP_SYS_ADMIN CAP_CHOWN\nCapabilityBoundingSet=CAP_SYS_ADMIN CAP_CHOWN CAP_SYS_PTRACE\n\
         SecureBits=keep-caps",
    ),
    (
        "users-processes",
        "processes",
        "PrivateUsers=yes\nProtectSystem=strict\nReadWritePaths=/srv\nPrivateTmp=yes",
    ),
    (
        "users-dynamic",
        "users",
        "PrivateUsers=yes\nDynamicUser=yes\nReadWritePaths=/srv\nStateDirectory=victim",
    ),
    (
        "users-scheduling",
        "users",
        "PrivateUsers=yes\nUser=nobody\nNice=-5\nCPUSchedulingPolicy=rr\nCPUSchedulingPriority=3\nLimitNOFILE=4000",
    ),
    (
        "users-filter",
        "users",
        "PrivateUsers=yes\nUser=nobody\nNoNewPrivileges=yes\nSystemCallFilter=@system-service\nSystemCallErrorNumber=EPERM\n\
         PrivateDevices=yes\nProtectKernelTunables=yes\nPrivateNetwork=yes",
    ),
    (
        "filter-list",
        "registers",
        "SystemCallFilter=~@mount @swap @reboot @module @raw-io @debug @obsolete\nNoNewPrivileges=yes\nUser=nobody",
    ),
    (
        "everything",
        "pipes",
        "DynamicUser=yes\nReadWritePaths=/srv\nProtectSystem=strict\nProtectHome=yes\nPrivateTmp=yes\nPrivateDevices=yes\n\
         PrivateNetwork=yes\nPrivateIPC=yes\nProtectHostname=yes\nProtectClock=yes\nProtectKernelTunables=yes\n\
         ProtectKernelModules=yes\nProtectKernelLogs=yes\nProtectControlGroups=yes\nProtectProc=invisible\nProcSubset=pid\n\
         RestrictNamespaces=yes\nRestrictRealtime=yes\nRestrictSUIDSGID=yes\nRestrictAddressFamilies=AF_UNIX\n\
         LockPersonality=yes\nMemoryDenyWriteExecute=yes\nNoNewPrivileges=yes\nCapabilityBoundingSet=\n\
         SystemCallFilter=@system-service\nSystemCallArchitectures=native\nRemoveIPC=yes\nUMask=0077",
    ),
];

/// How a restore tells of mounts that a service has made itself.
const OWN_MOUNTS: &str = "had mounted in its mount namespace by itself";

/// What the daemon warned of the group.
fn warned(group: &str) -> String {
    must(&["journalctl", "-q", "--no-pager", "-u", "ckptd", "-o", "cat", &format!("CKPT_GROUP={group}")])
}

pub(crate) fn tests() -> Vec<Test> {
    let one = |&(sandbox, victim, settings): &(&str, &'static str, &'static str)| {
        // The port of the victim `tcp`.
        let arguments = if victim == "tcp" { "7702" } else { "" };
        test(&format!("sandbox-{sandbox}"), move |name| {
            goes_back(name, victim, arguments, settings);
            let said = warned(name);
            assert!(!said.contains(OWN_MOUNTS), "{said}");
        })
    };
    let mut tests: Vec<Test> = SANDBOXES.iter().map(one).collect();
    tests.push(test("sandbox-no-exec", nothing_else_may_run));
    tests.push(test("sandbox-users-of-its-own", a_user_namespace_of_its_own_is_refused));
    tests.push(test("sandbox-root-directory", another_root));
    tests.push(test("sandbox-temporary-file-system", temporary_file_system));
    tests.push(test("sandbox-own-mounts", mounts_of_its_own_are_told));
    tests.push(test("sandbox-other-commands", what_other_commands_left_comes_back));
    tests.push(test("sandbox-other-mounts", another_sandbox_is_refused));
    tests
}

/// Only the victim, wherever this tree is, and what it needs.
fn nothing_else_may_run(name: &str) {
    let victim = victim_program("memory");
    let settings = format!("NoExecPaths=/\nExecPaths=/usr /lib /lib64 /srv {}", victim.display());
    goes_back(name, "memory", "", &settings);
}

/// One that the service made itself is refused by name, and goes on.
fn a_user_namespace_of_its_own_is_refused(name: &str) {
    let group = Group::new(name);
    group.enable();
    let program = format!("/usr/bin/unshare --user --map-root-user {}", victim_program("memory").display());
    let victim = group.victim_at("memory", Path::new(&program), "", "");
    let said = group.check();
    assert_eq!(
        (&said["problems"][0]["code"], &said["problems"][0]["object"]),
        (&"namespace".into(), &"ns/user".into())
    );
    assert_eq!(run(&["ckptctl", "checkpoint", name]).status.code(), Some(4));
    assert_eq!(victim.ask(), 0);
}

/// What a service has put into a TemporaryFileSystem= of its own is there again, beside what is mounted in it.
fn temporary_file_system(name: &str) {
    let group = Group::new(name);
    group.enable();
    let settings =
        "TemporaryFileSystem=/mnt /opt:ro\nBindReadOnlyPaths=/usr:/mnt/deep/usr /etc/passwd:/mnt/deep/file";
    let victim = group.victim("case-files", "temporary_file_system", settings);
    for _ in 0..2 {
        group.checkpoint(&["--stop"]);
        group.restore();
    }
    assert_eq!(victim.ask(), 0);
}

/// What a service has mounted in its namespace by itself is not made again, but told.
fn mounts_of_its_own_are_told(name: &str) {
    let group = Group::new(name);
    group.enable();
    let program =
        format!("/bin/sh -c 'mount -t tmpfs own /mnt; exec {} \"$$0\"'", victim_program("memory").display());
    let victim = group.victim_at("memory", Path::new(&program), "", "PrivateMounts=yes");
    group.checkpoint(&["--stop"]);
    group.restore();
    let said = warned(name);
    assert!(said.contains(&format!("{OWN_MOUNTS} is not there: /mnt (tmpfs)")), "{said}");
    assert_eq!(victim.ask(), 0);
}

/// A unit in a sandbox whose ExecStartPost= leaves a process that counts: in a mount namespace, with a host name and users, of its own.
fn with_another_command(group: &Group, more: &str, before: &str) -> (Victim, PathBuf) {
    let count = group.subvolume.join("count");
    let loops = format!(
        "while :; do i=$$((i+1)); echo $$i >{}; echo $$i >/tmp/count; sleep 0.02; done",
        path(&count)
    );
    let settings = format!(
        "ProtectSystem=full\nPrivateTmp=yes\nPrivateDevices=yes\nProtectHostname=yes\nProtectProc=invisible\n{more}\n\
         ExecStartPost=/bin/sh -c '{before} ({loops}) >/dev/null 2>&1 &'"
    );
    let victim = group.victim("memory", "", &settings);
    (victim, count)
}

fn counted(count: &Path) -> u64 {
    eventually("it counts", 20, || std::fs::read_to_string(count).ok()?.trim().parse().ok())
}

/// systemd makes namespaces anew for each command of a unit: what they show is the same.
fn what_other_commands_left_comes_back(name: &str) {
    let group = Group::new(name);
    group.enable();
    let (victim, count) = with_another_command(&group, "PrivateUsers=yes", "");
    let others = || {
        let all = must(&["systemctl", "show", "--value", "-p", "ControlGroup", &victim.unit]);
        let pids =
            std::fs::read_to_string(format!("/sys/fs/cgroup{}/cgroup.procs", all.trim())).expect("it runs");
        pids.lines()
            .filter_map(|pid| pid.parse().ok())
            .filter(|pid| *pid != victim.pid())
            .collect::<Vec<u32>>()
    };
    let space = |pid| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    counted(&count);
    let counter = others()[0];
    assert_ne!(space(counter), space(victim.pid()), "it is no test");
    for _ in 0..2 {
        group.checkpoint(&["--stop"]);
        let before = counted(&count);
        group.restore();
        eventually("it goes on", 20, || (counted(&count) > before).then_some(()));
        assert!(others().contains(&counter));
        assert_eq!(space(counter), space(victim.pid()));
        assert_eq!(victim.ask(), 0);
    }
}

/// One in which something else is mounted cannot be made again.
fn another_sandbox_is_refused(name: &str) {
    let group = Group::new(name);
    group.enable();
    let (victim, count) = with_another_command(&group, "", "mount -t tmpfs own /mnt;");
    counted(&count);
    let said = group.check();
    let first = &said["problems"][0];
    assert_eq!((&first["code"], &first["object"]), (&"namespace".into(), &"ns/mnt".into()), "{said}");
    assert_eq!(run(&["ckptctl", "checkpoint", name]).status.code(), Some(4));
    assert_eq!(victim.ask(), 0);
}

/// A service with a root directory of its own, into which systemd binds what it needs.
fn another_root(name: &str) {
    let root = format!("/run/{name}-root");
    must(&["mkdir", "-p", &format!("{root}/usr"), &format!("{root}/srv"), &format!("{root}/tmp")]);
    for link in ["bin", "lib", "lib64"] {
        must(&["ln", "-s", &format!("usr/{link}"), &format!("{root}/{link}")]);
    }
    let target = std::env::current_exe().expect("this program's path");
    let target = target.parent().and_then(Path::parent).expect("target/debug/integration");
    let settings = format!(
        "RootDirectory={root}\nMountAPIVFS=yes\nBindReadOnlyPaths=/usr {}\nBindPaths=/srv /run/systemd/notify",
        target.display()
    );
    must(&["mkdir", "-p", &format!("{root}{}", target.display())]);
    goes_back(name, "files", "", &settings);
}
