//! Properties of the bus interface, on a bus of our own: no root, no systemd.
#![allow(missing_docs)]

mod common;

use std::collections::HashMap;

use ckpt_dbus::proxy::Options;
use ckpt_dbus::{Checkpoint1Proxy, Group1Proxy, Job1Proxy};
use ckpt_engine::{Error, Problem, Severity};
use common::engine::Hold;
use common::{World, error_name};
use futures_util::StreamExt;
use zbus::Variant;

fn none() -> Options<'static> {
    HashMap::new()
}

fn with<'a>(key: &'a str, value: impl Into<Variant<'a>>) -> Options<'a> {
    HashMap::from([(key, value.into())])
}

#[tokio::test]
async fn a_checkpoint_is_there_when_the_call_returns() {
    let world = World::with_web().await;
    let mut added = world.manager.receive_checkpoint_added().await.unwrap();
    let (job, path) = world.manager.checkpoint("web", &none()).await.unwrap();
    assert!(job.as_str().starts_with("/org/ckpt/job/"));
    let signal = added.next().await.unwrap();
    assert_eq!(signal.args().unwrap().checkpoint().as_str(), path.as_str());
    let checkpoint = Checkpoint1Proxy::builder(&world.client).path(&path).build().await.unwrap();
    assert_eq!(checkpoint.group().await.unwrap(), "web");
    assert_eq!(checkpoint.freeze_usec().await.unwrap(), 1234);
    assert_eq!(checkpoint.state().await.unwrap(), "durable");
    assert_eq!(checkpoint.parent().await.unwrap().as_str(), "/");
    let rows = world.manager.list_checkpoints("web", &none()).await.unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!(world.manager.get_checkpoint("web", &rows[0].id).await.unwrap(), path);
    assert_eq!(world.manager.get_checkpoint("web", "").await.unwrap(), path);
    let group = world.manager.get_group("web").await.unwrap();
    let group = Group1Proxy::builder(&world.client).path(&group).build().await.unwrap();
    assert_eq!(group.last_checkpoint().await.unwrap(), path);
    assert_eq!(group.last_freeze_usec().await.unwrap(), 1234);
    assert_eq!(group.state().await.unwrap(), "idle");
}

#[tokio::test]
async fn prune_names_the_rule_of_each_decision_and_a_dry_run_removes_nothing() {
    let world = World::with(|dir| {
        std::fs::write(dir.join("web.toml"), "slice = \"web.slice\"\n[retention]\nkeep_last = 2\n").unwrap();
        std::fs::write(dir.join("db.toml"), "slice = \"db.slice\"\n").unwrap();
    })
    .await;
    for _ in 0..4 {
        world.manager.checkpoint("web", &none()).await.unwrap();
        world.manager.checkpoint("db", &none()).await.unwrap();
    }
    let dry = world.manager.prune("web", &with("dry-run", true)).await.unwrap();
    let told = |rows: &[ckpt_dbus::PruneRow]| -> Vec<(String, String)> {
        rows.iter().map(|r| (r.action.clone(), r.rule.clone())).collect()
    };
    let expected = [("keep", "newest"), ("keep", "keep_last"), ("remove", "none"), ("remove", "none")];
    assert_eq!(told(&dry), expected.map(|(a, r)| (a.to_owned(), r.to_owned())));
    assert_eq!(world.manager.list_checkpoints("web", &none()).await.unwrap().len(), 4);
    assert_eq!(world.manager.prune("web", &none()).await.unwrap(), dry);
    let left = world.manager.list_checkpoints("web", &none()).await.unwrap();
    assert_eq!(left.iter().map(|r| &r.id).collect::<Vec<_>>(), [&dry[0].id, &dry[1].id]);
    // Nothing configured, nothing pruned.
    let decisions = world.manager.prune("db", &none()).await.unwrap();
    assert!(decisions.iter().all(|d| d.action == "keep" && d.rule == "not-configured"));
    assert_eq!(decisions.len(), 4);
}

#[tokio::test]
async fn options_reach_the_engine() {
    let world = World::with_web().await;
    let options: Options<'_> = HashMap::from([
        ("stop", true.into()),
        ("description", "before".into()),
        ("tags", vec!["a"].into()),
        ("mode", "full".into()),
    ]);
    world.manager.checkpoint("web", &options).await.unwrap();
    let request = world.engine.requests.lock().unwrap()[0].clone();
    assert!(request.stop);
    assert_eq!((request.description.as_str(), request.tags.as_slice()), ("before", &["a".to_owned()][..]));
    for bad in [with("mode", 1u32), with("colour", "red"), with("wait", "forever")] {
        let name = error_name(world.manager.checkpoint("web", &bad).await);
        assert_eq!(name, "org.freedesktop.DBus.Error.InvalidArgs");
    }
    let wrong = world
        .client
        .call_method(Some("org.ckpt"), "/org/ckpt", Some("org.ckpt.Manager1"), "Checkpoint", &("web",))
        .await;
    assert_eq!(error_name(wrong), "org.freedesktop.DBus.Error.InvalidArgs");
}

#[tokio::test]
async fn a_group_does_one_thing_at_a_time_and_others_go_on() {
    let world = World::with(|dir| {
        std::fs::write(dir.join("web.toml"), "slice = \"web.slice\"\n").unwrap();
        std::fs::write(dir.join("db.toml"), "slice = \"db.slice\"\n").unwrap();
    })
    .await;
    world.engine.hold(Hold::Barrier);
    let (job, path) = world.manager.checkpoint("web", &with("wait", "none")).await.unwrap();
    assert_eq!(error_name(world.manager.checkpoint("web", &none()).await), "org.ckpt.Error.GroupBusy");
    assert_eq!(error_name(world.manager.disable("web", &none()).await), "org.ckpt.Error.GroupBusy");
    let rows = world.manager.list_groups(&none()).await.unwrap();
    assert_eq!(rows.iter().find(|r| r.name == "web").unwrap().state, "checkpointing");
    assert_eq!(rows.iter().find(|r| r.name == "db").unwrap().state, "idle");
    let proxy = Job1Proxy::builder(&world.client).path(&job).build().await.unwrap();
    assert_eq!(proxy.kind().await.unwrap(), "checkpoint");
    let mut completed = proxy.receive_completed().await.unwrap();
    world.engine.hold(Hold::Nowhere);
    let signal = completed.next().await.unwrap();
    let args = signal.args().unwrap();
    assert!(args.success, "{}", args.message);
    assert_eq!(args.stats.len(), 16, "the row of the checkpoint, without the parent that it has not");
    // The id that was promised at the start is the checkpoint's.
    assert!(path.as_str().ends_with(&world.manager.list_checkpoints("web", &none()).await.unwrap()[0].id));
    // The moment the caller has its answer the group is free again.
    world.manager.checkpoint("web", &none()).await.unwrap();
    world.manager.checkpoint("web", &none()).await.unwrap();
}

#[tokio::test]
async fn a_unit_is_in_one_job_at_a_time() {
    let world = World::with_web().await;
    world.host.has("a.service");
    world.host.has("b.service");
    world.engine.hold(Hold::Barrier);
    world.manager.checkpoint("a", &with("wait", "none")).await.unwrap();
    assert_eq!(error_name(world.manager.checkpoint("web", &none()).await), "org.ckpt.Error.GroupBusy");
    world.manager.checkpoint("b", &with("wait", "none")).await.unwrap();
    world.engine.hold(Hold::Nowhere);
}

#[tokio::test]
async fn wait_captured_returns_when_the_group_runs_again() {
    let world = World::with_web().await;
    let mut prepare = world.manager.receive_prepare_for_checkpoint().await.unwrap();
    world.engine.hold(Hold::Writing);
    world.manager.checkpoint("web", &with("wait", "captured")).await.unwrap();
    assert!(world.manager.list_checkpoints("web", &none()).await.unwrap().is_empty(), "not durable yet");
    let mut removed = world.manager.receive_job_removed().await.unwrap();
    world.engine.hold(Hold::Nowhere);
    assert_eq!(removed.next().await.unwrap().args().unwrap().result, "done");
    assert_eq!(world.manager.list_checkpoints("web", &none()).await.unwrap().len(), 1);
    let mut starts = Vec::new();
    for _ in 0..2 {
        starts.push(prepare.next().await.unwrap().args().unwrap().start);
    }
    assert_eq!(starts, [true, false]);
}

#[tokio::test]
async fn a_canceled_job_leaves_nothing() {
    let world = World::with_web().await;
    world.engine.hold(Hold::Barrier);
    let mut removed = world.manager.receive_job_removed().await.unwrap();
    let (job, _) = world.manager.checkpoint("web", &with("wait", "none")).await.unwrap();
    let proxy = Job1Proxy::builder(&world.client).path(&job).build().await.unwrap();
    proxy.cancel().await.unwrap();
    assert_eq!(removed.next().await.unwrap().args().unwrap().result, "Canceled");
    assert!(world.manager.list_checkpoints("web", &none()).await.unwrap().is_empty());
    assert!(proxy.cancel().await.is_err(), "the job's object is gone");
}

#[tokio::test]
async fn progress_is_seen_on_the_way() {
    let world = World::with_web().await;
    world.engine.hold(Hold::Writing);
    let (job, _) = world.manager.checkpoint("web", &with("wait", "none")).await.unwrap();
    let proxy = Job1Proxy::builder(&world.client).path(&job).build().await.unwrap();
    let mut stages = proxy.receive_stage_changed().await;
    while proxy.stage().await.unwrap() != "writing" {
        stages.next().await.unwrap();
    }
    let mut done = proxy.receive_bytes_done_changed().await;
    while proxy.bytes_done().await.unwrap() != 512 {
        done.next().await.unwrap();
    }
    assert_eq!(proxy.bytes_total().await.unwrap(), 4096);
    assert!(proxy.progress().await.unwrap() > 0.1);
    world.engine.hold(Hold::Nowhere);
}

#[tokio::test]
async fn failures_carry_the_names_of_the_contract() {
    let world = World::with_web().await;
    assert_eq!(error_name(world.manager.checkpoint("nope", &none()).await), "org.ckpt.Error.NoSuchGroup");
    assert_eq!(error_name(world.manager.checkpoint("../x", &none()).await), "org.ckpt.Error.NoSuchGroup");
    assert_eq!(error_name(world.manager.get_group("nope").await), "org.ckpt.Error.NoSuchGroup");
    assert_eq!(
        error_name(world.manager.restore("web", "X", &none()).await),
        "org.ckpt.Error.NoSuchCheckpoint"
    );
    assert_eq!(error_name(world.manager.verify("web", "", &none()).await), "org.ckpt.Error.NoSuchCheckpoint");
    assert_eq!(
        error_name(world.manager.delete("web", &["X"], &none()).await),
        "org.ckpt.Error.NoSuchCheckpoint"
    );
    assert_eq!(error_name(world.manager.merge("web", "X", &none()).await), "org.ckpt.Error.NoSuchCheckpoint");
    type Failure = (fn() -> Error, &'static str);
    let failures: [Failure; 4] = [
        (|| Error::FreezeTimeout { group: "web".into(), why: "x".into() }, "org.ckpt.Error.FreezeTimeout"),
        (|| Error::NoSpace("x".into()), "org.ckpt.Error.NoSpace"),
        (|| Error::InvalidArgs("x".into()), "org.freedesktop.DBus.Error.InvalidArgs"),
        (|| Error::Failed("x".into()), "org.ckpt.Error.Failed"),
    ];
    for (make, name) in failures {
        *world.engine.fail.lock().unwrap() = Some(make);
        assert_eq!(error_name(world.manager.checkpoint("web", &none()).await), name);
    }
    world.manager.checkpoint("web", &none()).await.unwrap();
}

#[tokio::test]
async fn a_service_without_a_group_is_a_group_of_one() {
    let world = World::start().await;
    world.host.has("redis-server.service");
    world.host.has("postgresql@15-main.service");
    let (_, path) = world.manager.checkpoint("redis-server", &none()).await.unwrap();
    world.manager.checkpoint("postgresql\\x4015-main", &none()).await.unwrap();
    let groups = world.engine.groups.lock().unwrap().clone();
    assert_eq!(
        (groups[0].name.as_str(), groups[0].config.units[0].as_str()),
        ("redis-server", "redis-server.service")
    );
    assert_eq!(groups[1].name, "postgresql@15-main");
    world.manager.restore("redis-server", "", &none()).await.unwrap();
    assert_eq!(world.manager.get_checkpoint("redis-server", "").await.unwrap(), path);
    let rows = world.manager.list_groups(&none()).await.unwrap();
    let row = rows.iter().find(|r| r.name == "redis-server").unwrap();
    assert!(!row.enabled && row.units == ["redis-server.service"] && row.checkpoints == 1);
}

#[tokio::test]
async fn restore_tells_how_it_went() {
    let world = World::with_web().await;
    world.manager.checkpoint("web", &none()).await.unwrap();
    let mut restored = world.manager.receive_restored().await.unwrap();
    world.manager.restore("web", "", &none()).await.unwrap();
    let signal = restored.next().await.unwrap();
    let id = world.manager.list_checkpoints("web", &none()).await.unwrap()[0].id.clone();
    assert_eq!(
        (signal.args().unwrap().checkpoint.as_str(), signal.args().unwrap().success),
        (id.as_str(), true)
    );
    *world.engine.fail.lock().unwrap() =
        Some(|| Error::NotRestorable { group: "web".into(), id: "X".into(), why: "no".into() });
    assert_eq!(error_name(world.manager.restore("web", &id, &none()).await), "org.ckpt.Error.NotRestorable");
    assert!(!restored.next().await.unwrap().args().unwrap().success);
}

#[tokio::test]
async fn deleted_checkpoints_lose_their_objects() {
    let world = World::with_web().await;
    let (_, path) = world.manager.checkpoint("web", &none()).await.unwrap();
    let id = world.manager.list_checkpoints("web", &none()).await.unwrap()[0].id.clone();
    let mut removed = world.manager.receive_checkpoint_removed().await.unwrap();
    world.manager.delete("web", &[&id], &none()).await.unwrap();
    assert_eq!(removed.next().await.unwrap().args().unwrap().checkpoint, id);
    let proxy = Checkpoint1Proxy::builder(&world.client)
        .path(&path)
        .cache_properties(zbus::proxy::CacheProperties::No)
        .build()
        .await
        .unwrap();
    assert!(proxy.id().await.is_err());
}

#[tokio::test]
async fn description_and_tags_can_be_changed() {
    let world = World::with_web().await;
    let (_, path) = world.manager.checkpoint("web", &none()).await.unwrap();
    let proxy = Checkpoint1Proxy::builder(&world.client).path(&path).build().await.unwrap();
    let mut changed = proxy.receive_description_changed().await;
    proxy.set_description("good").await.unwrap();
    proxy.set_tags(&["a", "b"]).await.unwrap();
    while changed.next().await.unwrap().get().await.unwrap() != "good" {}
    let row = world.manager.list_checkpoints("web", &none()).await.unwrap().remove(0);
    assert_eq!((row.description.as_str(), row.tags.len()), ("good", 2));
    world.rules.deny_all();
    assert!(error_name(proxy.set_description("bad").await).ends_with(".AccessDenied"));
    assert_eq!(world.manager.list_checkpoints("web", &none()).await.unwrap()[0].description, "good");
}

#[tokio::test]
async fn check_says_what_stands_against_a_checkpoint() {
    let world = World::with_web().await;
    assert_eq!(world.manager.check("web", &none()).await.unwrap(), (true, Vec::new()));
    world.engine.problems.lock().unwrap().push(Problem {
        code: "io-uring".into(),
        severity: Severity::Error,
        unit: "a.service".into(),
        pid: 7,
        object: "fd 3".into(),
        text: "an io_uring".into(),
        remedy: "turn it off".into(),
    });
    let (ok, problems) = world.manager.check("web", &none()).await.unwrap();
    assert!(!ok);
    assert_eq!(
        (problems[0].code.as_str(), problems[0].severity.as_str(), problems[0].pid),
        ("io-uring", "error", 7)
    );
}

#[tokio::test]
async fn enable_and_disable_leave_what_they_should() {
    let world = World::start().await;
    let options: Options<'_> =
        HashMap::from([("slice", "web.slice".into()), ("subvolumes", vec!["/srv/web"].into())]);
    let path = world.manager.enable("web", &options).await.unwrap();
    assert_eq!(path.as_str(), "/org/ckpt/group/web");
    assert_eq!(world.manager.enable("web", &options).await.unwrap(), path, "twice is once");
    let file = world.groups_d().join("web.toml");
    assert!(std::fs::read_to_string(&file).unwrap().contains("slice = \"web.slice\""));
    assert!(world.host.installed.lock().unwrap().contains("web"));
    let other = with("slice", "other.slice");
    assert_eq!(error_name(world.manager.enable("web", &other).await), "org.ckpt.Error.Exists");
    assert_eq!(
        error_name(world.manager.enable("web2", &with("slice", "web.slice")).await),
        "org.ckpt.Error.Exists"
    );
    world.manager.disable("web", &none()).await.unwrap();
    assert!(!file.exists());
    assert_eq!(std::fs::read_dir(world.groups_d()).unwrap().count(), 0);
    assert!(world.host.installed.lock().unwrap().is_empty());
    assert_eq!(error_name(world.manager.get_group("web").await), "org.ckpt.Error.NoSuchGroup");
    assert_eq!(error_name(world.manager.disable("web", &none()).await), "org.ckpt.Error.NoSuchGroup");
}

#[tokio::test]
async fn an_enable_that_fails_leaves_no_trace() {
    let world = World::start().await;
    *world.host.broken.lock().unwrap() = true;
    assert_eq!(error_name(world.manager.enable("web.slice", &none()).await), "org.ckpt.Error.Failed");
    let bad = HashMap::from([("slice", "web.slice".into()), ("subvolumes", vec!["/etc"].into())]);
    assert!(error_name(world.manager.enable("web", &bad).await).ends_with(".InvalidArgs"));
    assert!(error_name(world.manager.enable("web", &with("colour", "red")).await).ends_with(".InvalidArgs"));
    assert_eq!(std::fs::read_dir(world.groups_d()).unwrap().count(), 0);
    assert!(world.manager.list_groups(&none()).await.unwrap().is_empty());
}

#[tokio::test]
async fn bad_group_files_do_not_end_the_daemon_and_enable_tells_the_place() {
    let world = World::with(|dir| {
        std::fs::write(dir.join("good.toml"), "slice = \"good.slice\"\n").unwrap();
        std::fs::write(dir.join("bad.toml"), "slice = \"bad.slice\"\n[capture]\nmax_freze = \"1s\"\n")
            .unwrap();
    })
    .await;
    let rows = world.manager.list_groups(&none()).await.unwrap();
    assert_eq!(rows.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), ["good"]);
    let error = world.manager.enable("bad", &none()).await.unwrap_err();
    let (name, text) = ckpt_dbus::errors::reply(&error).unwrap();
    assert!(name.ends_with(".InvalidArgs") && text.contains("bad.toml:3:1: "), "{name}: {text}");
    std::fs::write(world.groups_d().join("bad.toml"), "slice = \"bad.slice\"\n").unwrap();
    world.manager.reload().await.unwrap();
    assert_eq!(world.manager.list_groups(&none()).await.unwrap().len(), 2);
}

#[tokio::test]
async fn the_object_manager_shows_the_tree() {
    let world = World::with_web().await;
    world.manager.checkpoint("web", &none()).await.unwrap();
    let proxy = zbus::fdo::ObjectManagerProxy::builder(&world.client)
        .destination("org.ckpt")
        .path("/org/ckpt")
        .build()
        .await
        .unwrap();
    let objects = proxy.get_managed_objects().await.unwrap();
    let has = |prefix: &str, interface: &str| {
        objects
            .iter()
            .any(|(p, i)| p.as_str().starts_with(prefix) && i.keys().any(|i| i.as_str() == interface))
    };
    assert!(has("/org/ckpt/group/web", "org.ckpt.Group1"));
    assert!(has("/org/ckpt/checkpoint/", "org.ckpt.Checkpoint1"));
}

#[tokio::test]
async fn stopping_cancels_what_runs_and_takes_no_more() {
    let world = World::with_web().await;
    world.engine.hold(Hold::Barrier);
    let (_, _) = world.manager.checkpoint("web", &with("wait", "none")).await.unwrap();
    world.service.stop().await;
    assert!(world.manager.list_checkpoints("web", &none()).await.unwrap().is_empty());
    assert_eq!(error_name(world.manager.checkpoint("web", &none()).await), "org.ckpt.Error.Failed");
}
