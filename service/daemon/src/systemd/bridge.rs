//! Calls of systemd's bus from threads that block.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::time::Duration;

use ckpt_dbus::names::escape;
use ckpt_engine::Error;
use futures_util::{Stream, StreamExt};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::timeout;
use zbus::{Connection, OwnedObjectPath};

use super::proxy::{ManagerProxy, ServiceProxy, UnitProxy};

/// systemd's bus for a worker thread.
pub struct Bridge {
    connection: Connection,
    handle: Handle,
}

/// What is asked of systemd for a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// StartUnit.
    Start,
    /// StopUnit.
    Stop,
}

impl Bridge {
    /// From within the runtime that the connection lives on.
    pub fn new(connection: Connection) -> Self {
        Self { connection, handle: Handle::current() }
    }

    /// Runs a future to its end, from a thread that is not the runtime's.
    pub fn run<T>(&self, future: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        self.handle.block_on(future)
    }

    /// The manager object.
    pub async fn manager(&self) -> Result<ManagerProxy<'static>, Error> {
        ManagerProxy::new(&self.connection).await.map_err(|e| failed("systemd", &e))
    }

    /// systemd-wide: reads all unit files anew.
    pub async fn reload(&self) -> Result<(), Error> {
        self.manager().await?.reload().await.map_err(|e| failed("daemon-reload", &e))
    }

    /// Same, without waiting until it is done: systemd does it before it answers what comes after.
    pub async fn begin_reload(&self) -> Result<(), Error> {
        let manager = self.manager().await?;
        manager.inner().call_noreply("Reload", &()).await.map_err(|e| failed("daemon-reload", &e))
    }

    /// Whether a unit is loaded.
    pub async fn is_loaded(&self, unit: &str) -> Result<bool, Error> {
        match self.manager().await?.get_unit(unit).await {
            Ok(_) => Ok(true),
            Err(error) if is_no_such_unit(&error) => Ok(false),
            Err(error) => Err(failed(unit, &error)),
        }
    }

    /// Properties of any unit. Whoever asks for one has systemd load the unit where it is not loaded.
    pub async fn unit(&self, unit: &str) -> Result<UnitProxy<'static>, Error> {
        let builder = UnitProxy::builder(&self.connection).path(object(unit));
        let proxy = builder.cache_properties(zbus::proxy::CacheProperties::No).build().await;
        proxy.map_err(|e| failed(unit, &e))
    }

    /// Properties of a service, in the same way.
    pub async fn service(&self, unit: &str) -> Result<ServiceProxy<'static>, Error> {
        let builder = ServiceProxy::builder(&self.connection).path(object(unit));
        let proxy = builder.cache_properties(zbus::proxy::CacheProperties::No).build().await;
        proxy.map_err(|e| failed(unit, &e))
    }

    /// Starts jobs for the units and, when `settle` returned, waits until all of them are done. Answers the result of each.
    pub async fn jobs(
        &self,
        verb: Verb,
        mode: &str,
        units: &[String],
        patience: Duration,
        settle: impl FnOnce(),
    ) -> Result<BTreeMap<String, String>, Error> {
        let manager = self.manager().await?;
        // Before the call: the job may be gone when it returns.
        let mut removed = pump(manager.receive_job_removed().await.map_err(|e| failed("JobRemoved", &e))?);
        let mut open = HashMap::new();
        for unit in units {
            let job = match verb {
                Verb::Start => manager.start_unit(unit, mode).await,
                Verb::Stop => manager.stop_unit(unit, mode).await,
            };
            match job {
                Ok(job) => drop(open.insert(job, unit.clone())),
                Err(error) if verb == Verb::Stop && is_no_such_unit(&error) => {}
                Err(error) => return Err(failed(unit, &error)),
            }
        }
        settle();
        let mut results = BTreeMap::new();
        let all = async {
            while !open.is_empty() {
                let Some(signal) = removed.recv().await else { break };
                let Ok(args) = signal.args() else { continue };
                if let Some(unit) = open.remove(&args.job) {
                    results.insert(unit, args.result.clone());
                }
            }
        };
        match timeout(patience, all).await {
            Ok(()) => Ok(results),
            Err(_) => {
                let late: Vec<_> = open.into_values().collect();
                Err(Error::Failed(format!(
                    "systemd did not {verb:?} {} within {patience:?}",
                    late.join(", ")
                )))
            }
        }
    }

    /// Waits until the condition, looked at anew at each change of the unit's properties, answers something.
    pub async fn until<T, F>(
        &self,
        unit: &str,
        patience: Duration,
        what: &str,
        condition: impl Fn() -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<Option<T>, Error>>,
    {
        let builder = zbus::fdo::PropertiesProxy::builder(&self.connection)
            .destination("org.freedesktop.systemd1")
            .path(object(unit));
        let properties = builder.build().await.map_err(|e| failed(unit, &e))?;
        let mut changes = pump(properties.receive_properties_changed().await.map_err(|e| failed(unit, &e))?);
        let wait = async {
            loop {
                if let Some(found) = condition().await? {
                    return Ok(found);
                }
                // systemd tells changes of state; what it does not tell (an exec, a MainPID on its own) is looked for every few milliseconds.
                let _ = timeout(Duration::from_millis(5), changes.recv()).await;
            }
        };
        match timeout(patience, wait).await {
            Ok(found) => found,
            Err(_) => Err(Error::Failed(format!("{what} did not happen within {patience:?}"))),
        }
    }
}

/// The object of a unit (org.freedesktop.systemd1(5)): its name says it, without a question.
fn object(unit: &str) -> OwnedObjectPath {
    OwnedObjectPath::try_from(format!("/org/freedesktop/systemd1/unit/{}", escape(unit))).unwrap_or_default()
}

/// Takes signals off a stream as they come. A stream that nobody reads fills up and then holds all messages of the connection back, also
/// the replies that its reader waits for.
pub fn pump<S>(mut stream: S) -> mpsc::UnboundedReceiver<S::Item>
where
    S: Stream<Item: Send> + Unpin + Send + 'static,
{
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = sender.closed() => return,
                item = stream.next() => match item {
                    Some(item) => drop(sender.send(item)),
                    None => return,
                },
            }
        }
    });
    receiver
}

/// An error of systemd, with what it is about.
pub fn failed(what: &str, error: &zbus::Error) -> Error {
    match ckpt_dbus::errors::reply(error) {
        Some((_, text)) if !text.is_empty() => Error::Failed(format!("{what}: {text}")),
        _ => Error::Failed(format!("{what}: {error}")),
    }
}

/// Whether the unit is not loaded and so cannot run.
pub fn is_no_such_unit(error: &zbus::Error) -> bool {
    ckpt_dbus::errors::reply(error).is_some_and(|(name, _)| name == "org.freedesktop.systemd1.NoSuchUnit")
}
