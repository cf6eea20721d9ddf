//! On a btrfs of its own, in a mount namespace of its own: what a test does is seen by no other.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ckpt_image::SnapshotEntry;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::*;
use crate::config::Settings;

/// A btrfs at `point` while the test runs: the mount ends with the thread's mount namespace, the loop device with the mount.
struct Scene {
    directory: PathBuf,
    point: PathBuf,
    place: Place,
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.point, nix::mount::MntFlags::MNT_DETACH);
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn run(program: &str, args: &[&str]) {
    let out = Command::new(program).args(args).output().unwrap();
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

impl Scene {
    /// `None`, with the reason on stderr, where this cannot be tested.
    fn new(name: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIP: {name}: mounting a file system needs root");
            return None;
        }
        if Command::new("mkfs.btrfs").arg("--version").output().is_err() {
            eprintln!("SKIP: {name}: mkfs.btrfs is missing (Debian package btrfs-progs)");
            return None;
        }
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let directory = std::env::temp_dir().join(format!("ckpt-storage-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        let point = directory.join("srv");
        fs::create_dir_all(&point).unwrap();
        let image = directory.join("image");
        fs::File::create(&image).unwrap().set_len(256 << 20).unwrap();
        let image = image.to_str().unwrap();
        run("mkfs.btrfs", &["-q", image]);
        run("mount", &["-o", "loop", image, point.to_str().unwrap()]);
        let place = Place::new(&Settings::default()).unwrap();
        Some(Self { directory, point, place })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.point.join(name)
    }

    fn subvolume(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        run("btrfs", &["-q", "subvolume", "create", path.to_str().unwrap()]);
        path
    }

    /// A committed checkpoint's snapshots.
    fn checkpoint(&self, id: &str, paths: &[&PathBuf]) -> Vec<SnapshotEntry> {
        let subvolumes: Vec<_> = paths.iter().map(|p| Subvolume::open(p).unwrap()).collect();
        let prepared = Prepared::new(&self.place, &subvolumes, "web", id).unwrap();
        subvolumes.iter().for_each(|s| s.flush().unwrap());
        let taken = prepared.take().unwrap();
        let entries = taken.make_durable().unwrap();
        taken.keep();
        entries
    }
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path.as_ref()).unwrap_or_else(|e| format!("{}: {e}", path.as_ref().display()))
}

const ID: &str = "01J00000000000000000000001";
const OTHER: &str = "01J00000000000000000000002";

#[test]
fn snapshots_of_all_subvolumes_or_none() {
    let Some(s) = Scene::new("all-or-none") else { return };
    let (web, db) = (s.subvolume("web"), s.subvolume("my db"));
    fs::write(web.join("f"), "web 1").unwrap();
    fs::write(db.join("f"), "db 1").unwrap();
    let entries = s.checkpoint(ID, &[&web, &db]);
    verify(&entries).unwrap();
    fs::write(web.join("f"), "web 2").unwrap();
    assert_eq!(read(entries[0].path.join("f")), "web 1");
    assert_eq!(read(entries[1].path.join("f")), "db 1");
    assert!(fs::write(entries[0].path.join("f"), "x").is_err(), "a snapshot is read-only");
    assert_eq!(entries[0].path, s.path(".ckpt/web").join(ID).join(escape(&web)));
    let mode = std::os::unix::fs::PermissionsExt::mode(&s.path(".ckpt").metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o700);

    // The second cannot be taken: its name is taken. So the first must not stay either.
    let subvolumes = [Subvolume::open(&web).unwrap(), Subvolume::open(&db).unwrap()];
    let prepared = Prepared::new(&s.place, &subvolumes, "web", OTHER).unwrap();
    let of = |subvolume: &Path| s.path(".ckpt/web").join(OTHER).join(escape(subvolume));
    fs::write(of(&db), "in the way").unwrap();
    let error = prepared.take().unwrap_err();
    assert!(
        matches!(&error, Error::SnapshotFailed { subvolume, .. } if Path::new(subvolume) == db),
        "{error}"
    );
    assert!(!of(&web).exists());
    fs::remove_file(of(&db)).unwrap();

    // A checkpoint that is given up takes its snapshots and directories with it.
    let prepared = Prepared::new(&s.place, &subvolumes, "web", OTHER).unwrap();
    let taken = prepared.take().unwrap();
    assert!(s.path(".ckpt/web").join(OTHER).join(escape(&web)).exists());
    drop(taken);
    assert!(!s.path(".ckpt/web").join(OTHER).exists());

    remove(&entries).unwrap();
    remove(&entries).unwrap();
    assert!(!s.path(".ckpt/web").exists());
    let error = verify(&entries).unwrap_err().to_string();
    assert!(error.contains("is gone"), "{error}");
}

#[test]
fn orphans_are_removed_and_checkpoints_stay() {
    let Some(s) = Scene::new("orphans") else { return };
    let web = s.subvolume("web");
    let kept = s.checkpoint(ID, &[&web]);
    let orphan = s.checkpoint(OTHER, &[&web]);
    fs::create_dir(s.path(".ckpt/web/notes")).unwrap();
    let removed = remove_orphans(&s.place, "web", std::slice::from_ref(&web), &|id| id == ID).unwrap();
    assert_eq!(removed, [orphan[0].path.clone()]);
    verify(&kept).unwrap();
    assert!(!s.path(".ckpt/web").join(OTHER).exists());
    assert!(s.path(".ckpt/web/notes").exists());
}

#[test]
fn an_exchange_can_be_kept_and_taken_back() {
    let Some(s) = Scene::new("exchange") else { return };
    let web = s.subvolume("web");
    fs::write(web.join("f"), "1").unwrap();
    let entries = s.checkpoint(ID, &[&web]);
    fs::write(web.join("f"), "2").unwrap();
    let open = fs::File::open(web.join("f")).unwrap();

    let mut undo = exchange(&entries).unwrap();
    assert_eq!(read(web.join("f")), "1");
    undo.revert().unwrap();
    assert_eq!(read(web.join("f")), "2");
    assert_eq!(fs::read_dir(s.path(".ckpt/web")).unwrap().count(), 1);

    let mut undo = exchange(&entries).unwrap();
    undo.commit().unwrap();
    fs::write(web.join("f"), "3").unwrap();
    assert_eq!(std::io::read_to_string(open).unwrap(), "2");
    let listed = undos(&s.place, "web", std::slice::from_ref(&web)).unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].id.as_str(), &listed[0].snapshots[0].subvolume), (undo.id(), &web));
    assert_eq!(read(listed[0].snapshots[0].path.join("f")), "2");
    assert!(interrupted(&s.place, "web", std::slice::from_ref(&web)).unwrap().is_empty());
    remove_undo(&listed[0]).unwrap();

    // Again and again, and of a restored subvolume.
    for round in 0..3 {
        let mut undo = exchange(&entries).unwrap();
        undo.commit().unwrap();
        assert_eq!(read(web.join("f")), "1", "round {round}");
        fs::write(web.join("f"), format!("round {round}")).unwrap();
    }
    let later = s.checkpoint(OTHER, &[&web]);
    fs::write(web.join("f"), "lost").unwrap();
    exchange(&later).unwrap().commit().unwrap();
    assert_eq!(read(web.join("f")), "round 2");
    // Committed, and taken back nonetheless.
    let mut undo = exchange(&entries).unwrap();
    undo.commit().unwrap();
    undo.revert().unwrap();
    assert_eq!(read(web.join("f")), "round 2");
    fs::write(web.join("f"), "writable").unwrap();
    assert_eq!(undos(&s.place, "web", &[web]).unwrap().len(), 4);
}

#[test]
fn what_an_operator_did_to_the_place_does_not_matter() {
    let Some(s) = Scene::new("operator") else { return };
    let web = s.subvolume("web");
    fs::write(web.join("f"), "1").unwrap();
    let entries = s.checkpoint(ID, &[&web]);
    let destroy = || run("btrfs", &["-q", "subvolume", "delete", web.to_str().unwrap()]);

    destroy();
    let mut undo = exchange(&entries).unwrap();
    assert_eq!(read(web.join("f")), "1");
    undo.revert().unwrap();
    assert!(!web.exists());
    exchange(&entries).unwrap().commit().unwrap();
    assert!(undos(&s.place, "web", std::slice::from_ref(&web)).unwrap().is_empty());

    destroy();
    fs::create_dir(&web).unwrap();
    fs::write(web.join("plain"), "directory").unwrap();
    let mut undo = exchange(&entries).unwrap();
    assert_eq!(read(web.join("f")), "1");
    undo.revert().unwrap();
    assert_eq!(read(web.join("plain")), "directory");
    let mut undo = exchange(&entries).unwrap();
    undo.commit().unwrap();
    let listed = undos(&s.place, "web", std::slice::from_ref(&web)).unwrap();
    assert_eq!(read(listed[0].snapshots[0].path.join("plain")), "directory");

    // A subvolume in a directory that is gone as a whole.
    fs::create_dir_all(s.path("a/b")).unwrap();
    let deep = s.subvolume("a/b/deep");
    let entries = s.checkpoint(OTHER, &[&deep]);
    run("btrfs", &["-q", "subvolume", "delete", deep.to_str().unwrap()]);
    fs::remove_dir_all(s.path("a")).unwrap();
    exchange(&entries).unwrap().commit().unwrap();
    assert!(deep.exists());
}

#[test]
fn all_subvolumes_are_exchanged_or_none() {
    let Some(s) = Scene::new("exchange-none") else { return };
    let (web, db) = (s.subvolume("web"), s.subvolume("db"));
    fs::write(web.join("f"), "1").unwrap();
    let mut entries = s.checkpoint(ID, &[&web, &db]);
    fs::write(web.join("f"), "2").unwrap();
    entries[1].uuid = "00000000-0000-0000-0000-000000000000".into();
    assert!(matches!(exchange(&entries), Err(Error::FileMismatch { .. })));
    assert_eq!(read(web.join("f")), "2");
    assert!(undos(&s.place, "web", &[web, db]).unwrap().is_empty());
}

#[test]
fn an_interrupted_exchange_is_found_and_reverted() {
    let Some(s) = Scene::new("interrupted") else { return };
    let (web, db) = (s.subvolume("web"), s.subvolume("db"));
    fs::write(web.join("f"), "1").unwrap();
    let entries = s.checkpoint(ID, &[&web, &db]);
    fs::write(web.join("f"), "2").unwrap();
    run("btrfs", &["-q", "subvolume", "delete", db.to_str().unwrap()]);
    let paths = [web.clone(), db.clone()];
    let lost = exchange(&entries).unwrap();
    let id = lost.id().to_string();
    drop(lost);
    assert_eq!(read(web.join("f")), "1");
    assert!(undos(&s.place, "web", &paths).unwrap().is_empty(), "not an undo snapshot yet");
    let mut found = interrupted(&s.place, "web", &paths).unwrap();
    assert_eq!((found.len(), found[0].id()), (1, id.as_str()));
    found[0].revert().unwrap();
    assert_eq!(read(web.join("f")), "2");
    assert!(!db.exists());
    assert!(interrupted(&s.place, "web", &paths).unwrap().is_empty());
    verify(&entries).unwrap();
}

#[test]
fn nested_subvolumes_are_named_and_stay_where_they_were() {
    let Some(s) = Scene::new("nested") else { return };
    let web = s.subvolume("web");
    let nested = s.subvolume("web/cache");
    fs::write(nested.join("n"), "nested").unwrap();
    let (subvolumes, problems) = check(&s.place, std::slice::from_ref(&web)).unwrap();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!((problems[0].code.as_str(), Path::new(&problems[0].object)), ("nested-subvolume", &*nested));
    use std::os::unix::fs::MetadataExt;
    fs::write(web.join("f"), "1").unwrap();
    assert!(covering(&subvolumes, web.join("f").metadata().unwrap().dev()).is_some());
    assert!(covering(&subvolumes, nested.join("n").metadata().unwrap().dev()).is_none());

    let entries = s.checkpoint(ID, &[&web]);
    let mut undo = exchange(&entries).unwrap();
    assert_eq!(read(nested.join("n")), "nested");
    undo.revert().unwrap();
    assert_eq!(read(nested.join("n")), "nested");
    drop(exchange(&entries).unwrap());
    interrupted(&s.place, "web", std::slice::from_ref(&web)).unwrap()[0].revert().unwrap();
    assert_eq!(read(nested.join("n")), "nested");
    exchange(&entries).unwrap().commit().unwrap();
    assert_eq!(read(nested.join("n")), "nested");
}

#[test]
fn what_cannot_be_paired_is_said() {
    let Some(s) = Scene::new("refused") else { return };
    fs::create_dir(s.path("plain")).unwrap();
    let paths = [s.path("plain"), s.path("missing"), "/proc".into(), s.point.clone()];
    let (opened, problems) = check(&s.place, &paths).unwrap();
    let codes: Vec<_> = problems.iter().map(|p| p.code.as_str()).collect();
    assert_eq!(codes, ["no-subvolume", "no-subvolume", "no-subvolume", "top-level-subvolume"]);
    assert_eq!(opened.len(), 1);
    let web = s.subvolume("web");
    let entries = s.checkpoint(ID, &[&web]);
    run("btrfs", &["property", "set", "-f", entries[0].path.to_str().unwrap(), "ro", "false"]);
    assert!(verify(&entries).unwrap_err().to_string().contains("writable"));
    fs::write(entries[0].path.join("x"), "x").unwrap();
    run("btrfs", &["property", "set", "-f", entries[0].path.to_str().unwrap(), "ro", "true"]);
    assert!(verify(&entries).unwrap_err().to_string().contains("changed"));
}

#[test]
fn a_subvolume_that_is_a_mount_of_its_own_is_mounted_again() {
    let Some(s) = Scene::new("mounted") else { return };
    let (inner, cache) = (s.subvolume("web"), s.subvolume("web/cache"));
    fs::write(cache.join("n"), "nested").unwrap();
    let web = s.directory.join("web");
    fs::create_dir(&web).unwrap();
    let device = device_of(&s.point);
    run("mount", &["-o", "subvol=web,noatime", &device, web.to_str().unwrap()]);
    fs::write(web.join("f"), "1").unwrap();
    let (subvolumes, problems) = check(&s.place, std::slice::from_ref(&web)).unwrap();
    assert!(subvolumes[0].is_mount_point());
    drop(subvolumes);
    assert_eq!(problems.len(), 1, "{problems:?}");
    let first = s.checkpoint(ID, &[&web]);
    assert!(first[0].path.starts_with(web.join(".ckpt")));
    fs::write(web.join("f"), "2").unwrap();
    let second = s.checkpoint(OTHER, &[&web]);

    let mut undo = exchange(&first).unwrap();
    assert_eq!((read(web.join("f")), read(inner.join("f"))), ("1".into(), "1".into()));
    assert_eq!(read(web.join("cache/n")), "nested");
    verify(&second).unwrap();
    undo.revert().unwrap();
    assert_eq!((read(web.join("f")), read(inner.join("f"))), ("2".into(), "2".into()));
    assert_eq!(read(web.join("cache/n")), "nested");

    drop(exchange(&first).unwrap());
    assert_eq!(read(web.join("f")), "1");
    interrupted(&s.place, "web", std::slice::from_ref(&web)).unwrap()[0].revert().unwrap();
    assert_eq!(read(web.join("f")), "2");

    for (entries, content) in [(&first, "1"), (&second, "2"), (&first, "1")] {
        let mut undo = exchange(entries).unwrap();
        undo.commit().unwrap();
        assert_eq!(read(web.join("f")), content);
        fs::write(web.join("g"), "writable").unwrap();
    }
    let listed = undos(&s.place, "web", std::slice::from_ref(&web)).unwrap();
    assert_eq!(listed.len(), 3);
    assert_eq!(read(listed[1].snapshots[0].path.join("f")), "1");
    listed.iter().for_each(|undo| remove_undo(undo).unwrap());
    let mounts = mounts::read().unwrap();
    let here: Vec<_> = mounts.iter().filter(|m| m.point == web).collect();
    assert_eq!(here.len(), 1, "{here:?}");
    assert!(here[0].options.contains("noatime"));
    remove(&first).unwrap();
    verify(&second).unwrap();
    assert_eq!(fs::read_dir(&s.point).unwrap().count(), 1, "nothing is left beside it");
    nix::mount::umount(&web).unwrap();
}

fn device_of(point: &Path) -> String {
    mounts::read().unwrap().into_iter().find(|m| m.point == point).unwrap().source
}
