//! Who may do what: the sender of the message is asked about, for every method.
#![allow(missing_docs)]

mod common;

use std::collections::HashMap;

use ckpt_dbus::names::actions;
use ckpt_dbus::proxy::Options;
use common::engine::Hold;
use common::{World, error_name};

fn none() -> Options<'static> {
    HashMap::new()
}

const DENIED: &str = "org.freedesktop.DBus.Error.AccessDenied";

#[tokio::test]
async fn every_mutating_method_is_denied_without_authorization() {
    let world = World::with_web().await;
    world.manager.checkpoint("web", &none()).await.unwrap();
    world.engine.hold(Hold::Barrier);
    let (job, _) = world.manager.checkpoint("web", &HashMap::from([("wait", "none".into())])).await.unwrap();
    world.rules.deny_all();
    let m = &world.manager;
    assert_eq!(error_name(m.checkpoint("web", &none()).await), DENIED);
    assert_eq!(error_name(m.checkpoint("nope", &none()).await), DENIED, "and learns nothing by it");
    assert_eq!(error_name(m.restore("web", "", &none()).await), DENIED);
    assert_eq!(error_name(m.merge("web", "", &none()).await), DENIED);
    assert_eq!(error_name(m.verify("web", "", &none()).await), DENIED);
    assert_eq!(error_name(m.delete("web", &[], &none()).await), DENIED);
    assert_eq!(error_name(m.prune("web", &none()).await), DENIED);
    assert_eq!(error_name(m.enable("web", &none()).await), DENIED);
    assert_eq!(error_name(m.disable("web", &none()).await), DENIED);
    assert_eq!(error_name(m.reload().await), DENIED);
    let group = m.get_group("web").await.unwrap();
    let group = ckpt_dbus::Group1Proxy::builder(&world.client).path(&group).build().await.unwrap();
    assert_eq!(error_name(group.checkpoint(&none()).await), DENIED);
    assert_eq!(error_name(group.restore("", &none()).await), DENIED);
    let job = ckpt_dbus::Job1Proxy::builder(&world.client).path(&job).build().await.unwrap();
    assert_eq!(error_name(job.cancel().await), DENIED);
    // Looking is free.
    assert_eq!(m.list_groups(&none()).await.unwrap().len(), 1);
    assert_eq!(m.list_checkpoints("web", &none()).await.unwrap().len(), 1);
    assert!(m.check("web", &none()).await.unwrap().0);
    world.engine.hold(Hold::Nowhere);
}

#[tokio::test]
async fn polkit_is_asked_about_the_sender() {
    let world = World::with_web().await;
    world.manager.checkpoint("web", &none()).await.unwrap();
    let question = world.rules.last();
    assert_eq!(question.kind, "system-bus-name");
    assert_eq!(question.name, world.client.unique_name().unwrap().as_str());
    assert_ne!(question.name, world.connection.unique_name().unwrap().as_str());
    assert_eq!((question.action.as_str(), question.group.as_str()), (actions::CHECKPOINT, "web"));
    assert!(question.interactive, "the proxies allow it");
    let options: HashMap<&str, zbus::Variant<'_>> = HashMap::new();
    world
        .client
        .call_method(
            Some("org.ckpt"),
            "/org/ckpt",
            Some("org.ckpt.Manager1"),
            "Restore",
            &("web", "", options),
        )
        .await
        .unwrap();
    let question = world.rules.last();
    assert_eq!((question.action.as_str(), question.interactive), (actions::RESTORE, false));
}

#[tokio::test]
async fn without_polkit_only_root_passes() {
    let world = World::with_web().await;
    world.polkit.release_name("org.freedesktop.PolicyKit1").await.unwrap();
    let result = world.manager.checkpoint("web", &none()).await;
    let own = std::fs::metadata("/proc/self").map(|m| std::os::unix::fs::MetadataExt::uid(&m)).unwrap();
    match own {
        0 => drop(result.unwrap()),
        _ => assert_eq!(error_name(result), DENIED),
    }
}

#[test]
fn the_policy_has_the_actions_and_defaults_of_the_contract() {
    let policy = include_str!("../../../dbus/org.ckpt.policy");
    assert_eq!(policy.matches("<action id=").count(), actions::ALL.len());
    for action in actions::ALL {
        let (_, rest) = policy.split_once(&format!("<action id=\"{action}\">")).expect(action);
        let (body, _) = rest.split_once("</action>").unwrap();
        let expected = match action {
            actions::INSPECT => "yes",
            actions::CHECKPOINT | actions::MANAGE_GROUPS => "auth_admin_keep",
            _ => "auth_admin",
        };
        for who in ["any", "inactive", "active"] {
            assert!(body.contains(&format!("<allow_{who}>{expected}</allow_{who}>")), "{action} {who}");
        }
    }
}
