//! Units that join a slice later get their drop-in by themselves: at `UnitNew`, and when systemd has reloaded.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ckpt_engine::Error;
use futures_util::StreamExt;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::Systemd;
use super::bridge::failed;
use crate::journal;
use crate::service::Service;

/// Signals come in bursts: the slices are looked through when this long none came.
const QUIET: Duration = Duration::from_millis(100);

/// On a busy system there is always one.
const AT_MOST: Duration = Duration::from_secs(1);

impl Systemd {
    /// Watches from now on, in a task of its own.
    pub async fn watch(self: &Arc<Self>, service: &Arc<Service>) {
        if let Err(error) = self.start_watching(service).await {
            journal::problem("", &error);
        }
    }

    async fn start_watching(self: &Arc<Self>, service: &Arc<Service>) -> Result<(), Error> {
        let of = |e: zbus::Error| failed("systemd's signals", &e);
        let manager = self.bridge.manager().await?;
        // Without a subscriber systemd sends no signals (org.freedesktop.systemd1(5)).
        manager.subscribe().await.map_err(of)?;
        let mut new = manager.receive_unit_new().await.map_err(of)?;
        let mut reloading = manager.receive_reloading().await.map_err(of)?;
        // Taken off the connection at once, whatever the work takes: replies wait behind signals that nobody takes.
        let look = Arc::new(Notify::new());
        let wake = Arc::clone(&look);
        tokio::spawn(async move {
            loop {
                let joined = tokio::select! {
                    Some(unit) = new.next() => unit.args().is_ok_and(|a| a.id.ends_with(".service")),
                    Some(reload) = reloading.next() => reload.args().is_ok_and(|a| !a.active),
                    else => return,
                };
                if joined {
                    wake.notify_one();
                }
            }
        });
        tokio::spawn(Arc::clone(self).install_when(look, Arc::clone(service)));
        Ok(())
    }

    /// Looks through the slices whenever there is reason to.
    async fn install_when(self: Arc<Self>, look: Arc<Notify>, service: Arc<Service>) {
        loop {
            look.notified().await;
            let first = Instant::now();
            while first.elapsed() < AT_MOST && timeout(QUIET, look.notified()).await.is_ok() {}
            // While a group is stopped or restored systemd has other work; taking its drop-ins away ends in a reload, which comes here.
            if service.slices().is_empty() || !self.lock_held().is_empty() {
                continue;
            }
            let (systemd, service) = (Arc::clone(&self), Arc::clone(&service));
            let _ = tokio::task::spawn_blocking(move || {
                for group in service.slices() {
                    if let Err(error) = systemd.install_missing(&group, || service.has_file(&group.name)) {
                        journal::problem(&group.name, &error);
                    }
                }
            })
            .await;
        }
    }
}
