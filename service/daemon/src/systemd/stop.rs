//! Stopping units so that nothing restarts them.

use std::path::Path;
use std::time::Duration;

use ckpt_engine::Error;
use ckpt_engine::host::{cgroup_mount, kill_cgroup as kill};
use futures_util::future::try_join_all;

use super::Systemd;
use super::bridge::{Bridge, Verb, failed};

/// Killed processes are gone in milliseconds; a core dump or a device that does not answer takes longer.
const KILLED: Duration = Duration::from_secs(60);
/// A unit's own TimeoutStopSec= ends it (90 s unless it says otherwise).
const GENTLE: Duration = Duration::from_secs(600);

impl Systemd {
    /// `systemctl stop`: ExecStop=, SIGTERM, patience.
    pub(super) fn stop_gently(&self, units: &[String]) -> Result<(), Error> {
        self.bridge.run(async {
            self.bridge.jobs(Verb::Stop, "replace", units, GENTLE, || ()).await?;
            self.verify_stopped(units).await
        })
    }

    /// Stops the units without asking their programs. Where a unit has any, the restore drop-in takes OnFailure=, ExecStop= and ExecStopPost=
    /// out of the way first, and where something may trigger it, that starts no more than a stub; then systemd is told, so that the end of
    /// the processes is no failure and Restart= does nothing; then they are killed, frozen or not.
    ///
    /// The caller does not trace the processes: systemd would not hear of their end (ptrace(2): a tracee's zombie is the tracer's).
    pub(super) fn stop_at_once(&self, units: &[String]) -> Result<(), Error> {
        let last_words = units.iter().map(|unit| async move {
            self.refuse_unknown(unit).await?;
            self.has_last_words(unit).await
        });
        let last_words: Vec<bool> = self.bridge.run(try_join_all(last_words))?;
        self.hold(units, last_words.contains(&true))?;
        self.kill_and_wait(units)
    }

    /// With the drop-in in place.
    pub(super) fn kill_and_wait(&self, units: &[String]) -> Result<(), Error> {
        let mount = cgroup_mount()?;
        self.bridge.run(async {
            let cgroups = self.cgroups(units).await?;
            let kill = || cgroups.iter().for_each(|cgroup| kill_cgroup(&mount, cgroup));
            self.bridge.jobs(Verb::Stop, "ignore-dependencies", units, KILLED, kill).await?;
            self.verify_stopped(units).await
        })
    }

    /// Whether a socket, path, timer or automount unit starts the unit.
    async fn is_triggered(&self, unit: &str) -> Result<bool, Error> {
        let triggers = self.bridge.unit(unit).await?.triggered_by().await;
        Ok(!triggers.map_err(|e| failed(unit, &e))?.is_empty())
    }

    async fn cgroups(&self, units: &[String]) -> Result<Vec<String>, Error> {
        let mut cgroups = Vec::new();
        for unit in units {
            let cgroup = self.bridge.service(unit).await?.control_group().await;
            cgroups.push(cgroup.map_err(|e| failed(unit, &e))?);
        }
        cgroups.retain(|c| !c.is_empty());
        Ok(cgroups)
    }

    async fn verify_stopped(&self, units: &[String]) -> Result<(), Error> {
        let manager = self.bridge.manager().await?;
        for unit in units {
            // systemd forgets a unit that nobody refers to when it has stopped. A question for its state would load it again.
            if !self.bridge.is_loaded(unit).await? {
                continue;
            }
            let state = active_state(&self.bridge, unit).await?;
            if !matches!(state.as_str(), "inactive" | "failed") {
                // Who stops a service whose socket goes on listening gets a new one with the next client: systemctl(1) warns of it.
                if self.is_triggered(unit).await? {
                    continue;
                }
                return Err(Error::Failed(format!(
                    "{unit} was stopped and is {state}; something starts it again"
                )));
            }
            // A unit that was killed counts as failed: it is not, and its start limit begins anew.
            let _ = manager.reset_failed_unit(unit).await;
        }
        Ok(())
    }
}

/// ActiveState=.
pub async fn active_state(bridge: &Bridge, unit: &str) -> Result<String, Error> {
    bridge.unit(unit).await?.active_state().await.map_err(|e| failed(unit, &e))
}

/// Kills every process below the cgroup. A cgroup that is gone has none.
fn kill_cgroup(mount: &Path, cgroup: &str) {
    // Where that cannot be, systemd's own SIGKILL comes after TimeoutStopSec=.
    let _ = kill(mount.join(cgroup.trim_start_matches('/')));
}
