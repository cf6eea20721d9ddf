//! `monitor`: signals as they come, until Ctrl-C.

use std::collections::HashMap;

use ckpt_dbus::names::{BUS_NAME, MANAGER_PATH};
use futures_util::StreamExt;
use jiff::Timestamp;
use serde_json::json;
use zbus::message::{Message, Type as MessageType};
use zbus::{MatchRule, MessageStream, OwnedObjectPath, OwnedVariant, Variant};

use crate::context::Context;
use crate::failure::Failure;
use crate::output::{clean, local, write_out};

/// Nothing to say.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// What a signal says.
#[derive(Debug, PartialEq)]
struct Event {
    text: String,
    fields: serde_json::Value,
}

pub async fn run(_: Args, context: &Context) -> Result<(), Failure> {
    let bus = context.bus().await?;
    let mut owner = bus.owner.to_string();
    let ours = MatchRule::builder().msg_type(MessageType::Signal).path_namespace(MANAGER_PATH).build()?;
    let owners = MatchRule::builder()
        .msg_type(MessageType::Signal)
        .sender("org.freedesktop.DBus")
        .interface("org.freedesktop.DBus")
        .member("NameOwnerChanged")
        .add_arg(BUS_NAME)
        .build()?;
    let mut signals = MessageStream::for_match_rule(ours, &bus.connection, None).await?;
    let mut owners = MessageStream::for_match_rule(owners, &bus.connection, None).await?;
    loop {
        tokio::select! {
            message = signals.next() => {
                let message = message.ok_or_else(closed)??;
                // Anybody may send a signal that looks like ours.
                if message.header().sender().map(|s| s.as_str()) != Some(owner.as_str()) {
                    continue;
                }
                if let Some(event) = event(&message) {
                    print(&event, context)?;
                }
            }
            change = owners.next() => {
                let change = change.ok_or_else(closed)??;
                let body = change.body();
                let (_, _, new): (String, String, String) = body.deserialize()?;
                let text = if new.is_empty() { "ckptd ended" } else { "ckptd started" };
                print(&Event { text: text.into(), fields: json!({"signal": "NameOwnerChanged", "owner": new}) }, context)?;
                owner = new;
            }
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
}

fn closed() -> Failure {
    Failure::failed("the connection to the bus ended".into())
}

fn print(event: &Event, context: &Context) -> Result<(), Failure> {
    let now = Timestamp::now();
    if context.json {
        let mut fields = event.fields.clone();
        fields["time"] = json!(now.to_string());
        return write_out(&format!("{fields}\n"));
    }
    write_out(&format!("{}  {}\n", local(now), clean(&event.text)))
}

fn last(path: &OwnedObjectPath) -> String {
    path.as_str().rsplit('/').next().unwrap_or("").to_string()
}

fn event(message: &Message) -> Option<Event> {
    let header = message.header();
    let (member, path) = (header.member()?.as_str(), header.path()?.as_str());
    let body = message.body();
    let event = |text: String, mut fields: serde_json::Value| {
        fields["signal"] = json!(member);
        Some(Event { text, fields })
    };
    match member {
        "JobNew" => {
            let (number, _): (u32, OwnedObjectPath) = body.deserialize().ok()?;
            event(format!("job {number} begins"), json!({"job": number}))
        }
        "JobRemoved" => {
            let (number, _, result, _): (u32, OwnedObjectPath, String, HashMap<String, OwnedVariant>) =
                body.deserialize().ok()?;
            event(format!("job {number} ends: {result}"), json!({"job": number, "result": result}))
        }
        "CheckpointAdded" => {
            let (group, path): (String, OwnedObjectPath) = body.deserialize().ok()?;
            let id = last(&path);
            event(format!("{group}: checkpoint {id} is there"), json!({"group": group, "id": id}))
        }
        "CheckpointRemoved" => {
            let (group, id): (String, String) = body.deserialize().ok()?;
            event(format!("{group}: checkpoint {id} is gone"), json!({"group": group, "id": id}))
        }
        "Restored" => {
            let (group, id, success): (String, String, bool) = body.deserialize().ok()?;
            let outcome = if success { "is back at" } else { "could not be put back to" };
            event(format!("{group} {outcome} {id}"), json!({"group": group, "id": id, "success": success}))
        }
        "PrepareForCheckpoint" => {
            let (group, start): (String, bool) = body.deserialize().ok()?;
            let text = if start { "a checkpoint begins" } else { "runs on" };
            event(format!("{group}: {text}"), json!({"group": group, "start": start}))
        }
        "Completed" => {
            let (success, name, text, _): (bool, String, String, HashMap<String, OwnedVariant>) =
                body.deserialize().ok()?;
            if success {
                return None;
            }
            let job = path.rsplit('/').next().unwrap_or("");
            event(format!("job {job} failed: {text}"), json!({"job": job, "error": name, "message": text}))
        }
        "PropertiesChanged" => {
            let (_, changed, _): (String, HashMap<String, OwnedVariant>, Vec<String>) =
                body.deserialize().ok()?;
            let Some(Variant::Str(stage)) = changed.get("Stage").map(|v| &**v) else { return None };
            let job = path.rsplit('/').next().unwrap_or("");
            event(format!("job {job}: {stage}"), json!({"job": job, "stage": stage.as_str()}))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_become_lines() {
        let signal = |member: &'static str| Message::signal("/org/ckpt", "org.ckpt.Manager1", member);
        let id = OwnedObjectPath::try_from("/org/ckpt/checkpoint/X").unwrap();
        let added = signal("CheckpointAdded").build(&("web", id)).unwrap();
        let added = event(&added).unwrap();
        assert_eq!(added.text, "web: checkpoint X is there");
        assert_eq!(added.fields, json!({"signal": "CheckpointAdded", "group": "web", "id": "X"}));
        let wrong = signal("Restored").build(&("web",)).unwrap();
        assert_eq!(event(&wrong), None);
    }
}
