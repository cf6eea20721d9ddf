//! Following a job from its start to its end.
//!
//! Signals are subscribed before the job is started, and the start does not wait (`wait` = `none`): so nothing is missed, and
//! the progress can be shown.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::Duration;

use ckpt_dbus::Job1Proxy;
use ckpt_dbus::names::JOB_PREFIX;
use futures_util::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};
use zbus::message::{Message, Type as MessageType};
use zbus::{MatchRule, MessageStream, OwnedObjectPath, OwnedVariant, Variant};

use crate::bus::Bus;
use crate::failure::Failure;
use crate::output::clean;

/// Signals of all jobs, from before the one of interest was started.
pub struct Follower<'b> {
    bus: &'b Bus,
    signals: MessageStream,
    owners: MessageStream,
}

/// How a job ended well: the message with its statistics.
pub struct Completed(Message);

impl Completed {
    /// The statistics as a row.
    pub fn stats<T>(&self) -> Result<T, Failure>
    where
        T: zbus::Type + for<'a> serde::Deserialize<'a>,
    {
        let body = self.0.body();
        let (_, _, _, stats): (bool, String, String, T) = body.deserialize()?;
        Ok(stats)
    }
}

impl<'b> Follower<'b> {
    /// Subscribes.
    pub async fn new(bus: &'b Bus) -> Result<Self, Failure> {
        let jobs = JOB_PREFIX.trim_end_matches('/');
        let signals = MatchRule::builder()
            .msg_type(MessageType::Signal)
            .sender(bus.owner.as_str())
            .path_namespace(jobs)
            .build()?;
        let owners = MatchRule::builder()
            .msg_type(MessageType::Signal)
            .sender("org.freedesktop.DBus")
            .interface("org.freedesktop.DBus")
            .member("NameOwnerChanged")
            .add_arg(ckpt_dbus::names::BUS_NAME)
            .build()?;
        Ok(Self {
            bus,
            signals: MessageStream::for_match_rule(signals, &bus.connection, None).await?,
            owners: MessageStream::for_match_rule(owners, &bus.connection, None).await?,
        })
    }

    /// Waits for the end of a job and shows its progress on stderr if that is a terminal. Ctrl-C and SIGTERM ask for its end,
    /// a second one ends this program.
    pub async fn follow(mut self, job: &OwnedObjectPath, what: &str) -> Result<Completed, Failure> {
        let bar = Bar::new(what);
        let mut canceled = false;
        let mut terminate = signal(SignalKind::terminate())
            .map_err(|e| Failure::failed(format!("cannot wait for SIGTERM: {e}")))?;
        loop {
            tokio::select! {
                message = self.signals.next() => {
                    let message = message.ok_or_else(gone)??;
                    let header = message.header();
                    if header.path().map(|p| p.as_str()) != Some(job.as_str()) {
                        continue;
                    }
                    match header.member().map(|m| m.as_str()) {
                        Some("PropertiesChanged") => bar.update(&message),
                        Some("Completed") => return completed(message.clone()),
                        _ => {}
                    }
                    continue;
                }
                change = self.owners.next() => {
                    change.ok_or_else(gone)??;
                    return Err(gone());
                }
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            // Only the two signals come here.
            if std::mem::replace(&mut canceled, true) {
                return Err(Failure::failed(format!("{what}: left alone while it is canceled")));
            }
            bar.say("canceling");
            let proxy = Job1Proxy::builder(&self.bus.connection).path(job.clone()).build().await?;
            // Too late is no error: then its end comes.
            let _ = proxy.cancel().await;
        }
    }
}

fn gone() -> Failure {
    Failure::failed(
        "ckptd ended while it worked; whether it was done is in `journalctl -u ckptd` and `ckptctl list`"
            .into(),
    )
}

fn completed(message: Message) -> Result<Completed, Failure> {
    let body = message.body();
    let (success, name, text, _): (bool, String, String, HashMap<String, OwnedVariant>) =
        body.deserialize()?;
    if success { Ok(Completed(message)) } else { Err(Failure::reply(&name, &text)) }
}

/// The progress on a terminal; nothing elsewhere.
struct Bar(Option<ProgressBar>);

impl Bar {
    fn new(what: &str) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self(None);
        }
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix}: {msg}") {
            bar.set_style(style);
        }
        bar.set_prefix(clean(what));
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(Some(bar))
    }

    fn say(&self, text: &str) {
        if let Some(bar) = &self.0 {
            bar.set_message(clean(text));
        }
    }

    /// What PropertiesChanged says: stage and bytes.
    fn update(&self, message: &Message) {
        let Some(bar) = &self.0 else { return };
        let body = message.body();
        let Ok((_, changed, _)) = body.deserialize::<(String, HashMap<String, OwnedVariant>, Vec<String>)>()
        else {
            return;
        };
        let number = |key: &str| match changed.get(key).map(|v| &**v) {
            Some(Variant::U64(n)) => Some(*n),
            _ => None,
        };
        if let Some(Variant::Str(stage)) = changed.get("Stage").map(|v| &**v) {
            bar.set_message(clean(stage.as_str()));
        }
        if let Some(total) = number("BytesTotal").filter(|t| *t > 0) {
            bar.set_length(total);
            let style =
                ProgressStyle::with_template("{spinner} {prefix}: {msg} {bar:30} {bytes}/{total_bytes}");
            if let Ok(style) = style {
                bar.set_style(style);
            }
        }
        if let Some(done) = number("BytesDone") {
            bar.set_position(done);
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
