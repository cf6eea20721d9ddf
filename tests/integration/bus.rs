//! The bus interface as a caller sees it: names, signatures, errors, authorization.

use std::fs;
use std::path::Path;

use crate::fixture::Group;
use crate::runner::{Test, skip, test};
use ckpt_tests::system::{must, run, text};

const MANAGER: [&str; 6] = ["busctl", "call", "org.ckpt", "/org/ckpt", "org.ckpt.Manager1", ""];

pub(crate) fn tests() -> Vec<Test> {
    vec![
        test("bus-activation", activation),
        test("bus-literal-call", literal_call),
        test("bus-introspection", introspection),
        test("bus-access-denied", access_denied),
        test("bus-errors", errors),
        test("bus-objects", objects),
        test("bus-journal-entry", journal_entry),
    ]
}

fn call(method: &str, arguments: &[&str]) -> std::process::Output {
    let mut words = MANAGER.to_vec();
    words[5] = method;
    words.extend(arguments);
    run(&words)
}

/// A first call starts the daemon, which tells its version.
fn activation(_: &str) {
    must(&["systemctl", "stop", "ckptd.service"]);
    let out = call("ListGroups", &["a{sv}", "0"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(must(&["systemctl", "is-active", "ckptd.service"]).trim(), "active");
    let version = must(&["busctl", "get-property", "org.ckpt", "/org/ckpt", "org.ckpt.Manager1", "Version"]);
    assert!(version.starts_with("s \""), "{version}");
}

/// The call of the manual, word for word.
fn literal_call(name: &str) {
    let group = Group::new(name);
    group.enable();
    let victim = group.victim("memory", "", "");
    let said = must(&[
        "busctl",
        "call",
        "org.ckpt",
        "/org/ckpt",
        "org.ckpt.Manager1",
        "Checkpoint",
        "sa{sv}",
        name,
        "0",
    ]);
    assert!(said.starts_with("oo \"/org/ckpt/job/"), "{said}");
    assert!(said.contains("\"/org/ckpt/checkpoint/"), "{said}");
    victim.ask();
    let list = ckpt_tests::system::ckptctl(&["list", name]);
    assert_eq!(list.as_array().map(Vec::len), Some(1), "{list}");
}

/// The shipped interface files are what the daemon says of itself.
fn introspection(_: &str) {
    let dir = Path::new("/usr/share/dbus-1/interfaces");
    let live = must(&["busctl", "introspect", "--xml-interface", "org.ckpt", "/org/ckpt"]);
    let shipped = fs::read_to_string(dir.join("org.ckpt.Manager1.xml")).expect("the interface is installed");
    let name = "org.ckpt.Manager1";
    assert_eq!(interface(&live, name), interface(&shipped, name));
}

/// The words of one interface's element, without the space between tags.
fn interface(xml: &str, name: &str) -> Vec<String> {
    let from =
        xml.find(&format!("<interface name=\"{name}\"")).unwrap_or_else(|| panic!("no {name} in:\n{xml}"));
    let len = xml[from..].find("</interface>").expect("a closing tag");
    xml[from..from + len].split_whitespace().map(str::to_string).collect()
}

/// Without authorization every mutating method answers AccessDenied.
fn access_denied(name: &str) {
    let group = Group::new(name);
    group.enable();
    let calls: [(&str, &[&str]); 9] = [
        ("Checkpoint", &["sa{sv}", name, "0"]),
        ("Restore", &["ssa{sv}", name, "", "0"]),
        ("Merge", &["ssa{sv}", name, "", "0"]),
        ("Delete", &["sasa{sv}", name, "0", "0"]),
        ("Prune", &["sa{sv}", name, "0"]),
        ("Enable", &["sa{sv}", "other", "0"]),
        ("Disable", &["sa{sv}", name, "0"]),
        ("Verify", &["ssa{sv}", name, "", "0"]),
        ("Reload", &[]),
    ];
    for (method, arguments) in calls {
        let mut words = vec!["runuser", "-u", "nobody", "--"];
        words.extend(&MANAGER[..5]);
        words.push(method);
        words.extend(arguments);
        let out = run(&words);
        let said = text(&out.stderr);
        // Verify only reads: who may look may verify.
        if method == "Verify" && !said.contains("Access") {
            continue;
        }
        assert!(!out.status.success(), "{method} is allowed");
        assert!(said.contains("Access denied") || said.contains("AccessDenied"), "{method}: {said}");
    }
    let out = run(&["runuser", "-u", "nobody", "--", "ckptctl", "checkpoint", name]);
    assert_eq!(out.status.code(), Some(77), "{}", text(&out.stderr));
    let out = run(&["runuser", "-u", "nobody", "--", "ckptctl", "list", name]);
    assert!(out.status.success(), "looking is allowed: {}", text(&out.stderr));
}

/// What does not exist and what is misused is told apart, with one line and the manual's exit status.
fn errors(_: &str) {
    let out = call("Checkpoint", &["sa{sv}", "no-such-group", "0"]);
    assert!(!out.status.success());
    for (words, status) in [
        (&["ckptctl", "checkpoint", "no-such-group"][..], 3),
        (&["ckptctl", "restore", "no-such-group"], 3),
        (&["ckptctl", "list", "no-such-group"], 3),
        (&["ckptctl", "no-such-verb"], 2),
    ] {
        let out = run(words);
        assert_eq!(out.status.code(), Some(status), "{words:?}: {}", text(&out.stderr));
        if status != 2 {
            assert_eq!(text(&out.stderr).trim().lines().count(), 1, "{}", text(&out.stderr));
        }
    }
}

/// Groups and checkpoints are objects that the object manager lists.
fn objects(name: &str) {
    let group = Group::new(name);
    group.enable();
    let _victim = group.victim("memory", "", "");
    let made = group.checkpoint(&["--description", "a word"]);
    let id = made["id"].as_str().expect("an id");
    let all = must(&[
        "busctl",
        "call",
        "org.ckpt",
        "/org/ckpt",
        "org.freedesktop.DBus.ObjectManager",
        "GetManagedObjects",
    ]);
    assert!(all.contains(&format!("/org/ckpt/checkpoint/{id}")), "{all}");
    let path = must(&["busctl", "call", "org.ckpt", "/org/ckpt", "org.ckpt.Manager1", "GetGroup", "s", name]);
    let path = path.trim().trim_start_matches("o ").trim_matches('"').to_string();
    let slice = must(&["busctl", "get-property", "org.ckpt", &path, "org.ckpt.Group1", "Slice"]);
    assert_eq!(slice.trim(), format!("s \"{}\"", group.slice));
    let description = must(&[
        "busctl",
        "get-property",
        "org.ckpt",
        &format!("/org/ckpt/checkpoint/{id}"),
        "org.ckpt.Checkpoint1",
        "Description",
    ]);
    assert_eq!(description.trim(), "s \"a word\"");
}

/// A checkpoint leaves one structured entry in the journal.
fn journal_entry(name: &str) {
    let group = Group::new(name);
    group.enable();
    let _victim = group.victim("memory", "", "");
    let made = group.checkpoint(&[]);
    let id = made["id"].as_str().unwrap_or_else(|| skip("a checkpoint has no id"));
    let found = must(&[
        "journalctl",
        "-q",
        "--no-pager",
        "-o",
        "json",
        &format!("CKPT_GROUP={name}"),
        &format!("CKPT_ID={id}"),
    ]);
    assert!(found.contains("MESSAGE_ID"), "{found}");
}
