//! ckpt-stub in place of a unit's program, so that systemd builds the unit's cgroup, namespaces and sandbox for the members to move in.

use std::collections::BTreeSet;
use std::path::Path;
use std::thread;
use std::time::Duration;

use ckpt_engine::host::pidfd;
use ckpt_engine::{Error, Stub, UnitMain};
use futures_util::future::try_join_all;
use futures_util::try_join;

use super::bridge::{Verb, failed};
use super::stop::active_state;
use super::{Systemd, dropin};

/// systemd forks and executes the stub; sandboxes with many mounts take longest.
const START: Duration = Duration::from_secs(60);
/// The members have said READY=1 already when adopt is called.
const ADOPT: Duration = Duration::from_secs(60);

impl Systemd {
    /// Writes the restore drop-ins of units that systemd knows. `now`: they are in effect when this returns, else from the next time that
    /// systemd loads the unit.
    pub(super) fn hold(&self, units: &[String], now: bool) -> Result<(), Error> {
        let _writing = self.lock_writing();
        let asked = units.iter().map(|unit| async move {
            // BoundBy= would not do: it names loaded units only.
            try_join!(self.binds_to(unit), self.sandbox_lines(unit))
        });
        let asked: Vec<(Vec<String>, String)> = self.bridge.run(try_join_all(asked))?;
        let bound_to: BTreeSet<&String> = asked.iter().flat_map(|(binds_to, _)| binds_to).collect();
        for (unit, (_, lines)) in units.iter().zip(&asked) {
            let bound_to = bound_to.contains(unit);
            self.lock_held().insert(unit.clone(), this_job());
            dropin::write(&self.run, unit, dropin::RESTORE, &dropin::stub(&self.stub(), bound_to, lines))?;
        }
        if now { self.bring_into_effect(units) } else { Ok(()) }
    }

    /// A reload costs tens of milliseconds, so it is only for units that stay loaded while they are stopped, because others want them. A unit
    /// that nobody refers to was forgotten, and has been loaded anew with its drop-in.
    fn bring_into_effect(&self, units: &[String]) -> Result<(), Error> {
        match self.bridge.run(self.all_held(units))? {
            true => Ok(()),
            false => self.bridge.run(self.bridge.reload()),
        }
    }

    /// Whether this job has written the restore drop-ins of all these units.
    fn has_held(&self, units: &[String]) -> bool {
        let (held, job) = (self.lock_held(), this_job());
        units.iter().all(|unit| held.get(unit) == Some(&job))
    }

    /// Whether systemd has the drop-ins of all these units in effect; loads what is not loaded.
    async fn all_held(&self, units: &[String]) -> Result<bool, Error> {
        for unit in units {
            if !self.is_held(unit).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether a loaded unit has its restore drop-in in effect.
    async fn is_held(&self, unit: &str) -> Result<bool, Error> {
        let paths = self.bridge.unit(unit).await?.drop_in_paths().await.map_err(|e| failed(unit, &e))?;
        let ours = dropin::path(&self.run, unit, dropin::RESTORE);
        Ok(paths.iter().any(|p| Path::new(p) == ours))
    }

    /// Takes the restore drop-ins away, and reloads if a unit is loaded with one.
    fn let_go(&self, units: &[String]) -> Result<(), Error> {
        match self.take_away(units)? {
            true => self.bridge.run(self.bridge.reload()),
            false => Ok(()),
        }
    }

    /// Takes the restore drop-ins away; whether systemd has one of them in effect.
    fn take_away(&self, units: &[String]) -> Result<bool, Error> {
        let _writing = self.lock_writing();
        let mut in_effect = false;
        for unit in units {
            if dropin::remove(&self.run, unit, dropin::RESTORE)? {
                in_effect |= self
                    .bridge
                    .run(async { Ok(self.bridge.is_loaded(unit).await? && self.is_held(unit).await?) })?;
            }
            self.lock_held().remove(unit);
        }
        Ok(in_effect)
    }

    /// Whether stopping the unit runs or starts anything that a restore must not, or something may start it again.
    pub(super) async fn has_last_words(&self, unit: &str) -> Result<bool, Error> {
        let (service, properties) = (self.bridge.service(unit).await?, self.bridge.unit(unit).await?);
        // All at once: one after the other, the ways to and from systemd would take longer than the answers.
        let (stop, stop_post, failure, success, actions, refuses, triggers) = try_join!(
            service.exec_stop(),
            service.exec_stop_post(),
            properties.on_failure(),
            properties.on_success(),
            async { Ok([properties.failure_action().await?, properties.success_action().await?]) },
            properties.refuse_manual_stop(),
            properties.triggered_by(),
        )
        .map_err(|e| failed(unit, &e))?;
        Ok(!stop.is_empty()
            || !stop_post.is_empty()
            || !failure.is_empty()
            || !success.is_empty()
            || actions.iter().any(|action| action != "none")
            || refuses
            || !triggers.is_empty())
    }

    /// Before anything is stopped: a unit that systemd does not know cannot be started again.
    pub(super) async fn refuse_unknown(&self, unit: &str) -> Result<(), Error> {
        self.keep_transient(unit).await?;
        self.bring_transient(unit).await?;
        match self.bridge.unit(unit).await?.load_state().await.map_err(|e| failed(unit, &e))?.as_str() {
            "loaded" => Ok(()),
            state => Err(Error::Failed(format!(
                "systemd cannot load {unit} ({state}): a unit made by systemd-run(1) is known until the next boot; give it a unit file"
            ))),
        }
    }

    async fn sandbox_lines(&self, unit: &str) -> Result<String, Error> {
        let service = self.bridge.service(unit).await?;
        let (root, image, no_exec, identifier, programs) = try_join!(
            service.root_directory(),
            service.root_image(),
            service.no_exec_paths(),
            service.syslog_identifier(),
            service.exec_start(),
        )
        .map_err(|e| failed(unit, &e))?;
        let other_root = !(root.is_empty() || root == "/") || !image.is_empty();
        let program = programs.into_iter().next().map(|exec| exec.0);
        let identifier = dropin::identifier_line(&identifier, &program.unwrap_or_default());
        Ok(identifier + &dropin::sandbox_lines(&self.stub(), other_root, !no_exec.is_empty()))
    }

    pub(super) fn start_stubs_of(&self, units: &[String]) -> Result<Vec<Stub>, Error> {
        // Whoever stopped the units at once has done that before.
        if !self.has_held(units) {
            self.bridge.run(try_join_all(units.iter().map(|unit| self.refuse_unknown(unit))))?;
            self.hold(units, false)?;
        }
        // systemd forgets a unit that has stopped between two questions, and for each it would read all files of the unit anew.
        self.bridge.run(self.refer(units))?;
        let stubs = self.start_stubs_of_loaded(units);
        let dismissed = self.bridge.run(self.dismiss(units));
        stubs.and_then(|stubs| dismissed.map(|()| stubs))
    }

    /// Keeps units loaded.
    async fn refer(&self, units: &[String]) -> Result<(), Error> {
        for unit in units {
            self.bridge.unit(unit).await?.refer().await.map_err(|e| failed(unit, &e))?;
        }
        Ok(())
    }

    /// The opposite.
    async fn dismiss(&self, units: &[String]) -> Result<(), Error> {
        for unit in units {
            // It may be gone; a reference that is left would end with our connection.
            let _ = self.bridge.unit(unit).await?.dismiss().await;
        }
        Ok(())
    }

    fn start_stubs_of_loaded(&self, units: &[String]) -> Result<Vec<Stub>, Error> {
        self.bridge.run(async {
            for unit in units {
                self.bring_transient(unit).await?;
            }
            Ok(())
        })?;
        self.bring_into_effect(units)?;
        self.end_early_stubs(units)?;
        self.bridge.run(async {
            self.start_slices(units).await?;
            let manager = self.bridge.manager().await?;
            for (unit, binds_to) in self.bound_last(units).await? {
                for other in &binds_to {
                    self.until_active(other, unit, units.contains(other)).await?;
                }
                // Failed before or often started: neither is a reason now.
                let _ = manager.reset_failed_unit(unit).await;
                // The units wait for each other's READY otherwise, which comes for all at once.
                manager.start_unit(unit, "ignore-dependencies").await.map_err(|e| failed(unit, &e))?;
            }
            let mut stubs = Vec::new();
            for unit in units {
                stubs.push(self.running_stub(unit).await?);
            }
            Ok(stubs)
        })
    }

    /// Ends what was triggered since the units were stopped: a stub that began before the subvolumes were exchanged sees the old ones.
    fn end_early_stubs(&self, units: &[String]) -> Result<(), Error> {
        let early = self.bridge.run(async {
            let mut early = Vec::new();
            for unit in units {
                if !matches!(active_state(&self.bridge, unit).await?.as_str(), "inactive" | "failed") {
                    early.push(unit.clone());
                }
            }
            Ok(early)
        })?;
        if early.is_empty() { Ok(()) } else { self.kill_and_wait(&early) }
    }

    /// What the unit has BindsTo= to.
    async fn binds_to(&self, unit: &str) -> Result<Vec<String>, Error> {
        self.bridge.unit(unit).await?.binds_to().await.map_err(|e| failed(unit, &e))
    }

    /// The units with what they have BindsTo= to, each after those of the others that it is bound to: systemd starts none before those are
    /// active, whatever the mode of the job.
    async fn bound_last<'u>(&self, units: &'u [String]) -> Result<Vec<(&'u String, Vec<String>)>, Error> {
        let mut waiting = Vec::new();
        for unit in units {
            waiting.push((unit, self.binds_to(unit).await?));
        }
        let mut ordered = Vec::with_capacity(waiting.len());
        while !waiting.is_empty() {
            let later: BTreeSet<String> = waiting.iter().map(|(unit, _)| (*unit).clone()).collect();
            let (first, rest): (Vec<_>, Vec<_>) =
                waiting.into_iter().partition(|(_, binds_to)| binds_to.iter().all(|b| !later.contains(b)));
            waiting = rest;
            if first.is_empty() {
                // A circle: systemd could not have started it either.
                ordered.append(&mut waiting);
            }
            ordered.extend(first);
        }
        Ok(ordered)
    }

    /// Waits until a unit that `bound` is bound to is active. Unless a job `starts` it, it does not become so by itself.
    async fn until_active(&self, unit: &str, bound: &str, starts: bool) -> Result<(), Error> {
        let properties = &self.bridge.unit(unit).await?;
        let what = format!("the start of {unit}, which {bound} has BindsTo= to,");
        let active = || async move {
            match properties.active_state().await.map_err(|e| failed(unit, &e))?.as_str() {
                "active" | "reloading" => Ok(Some(())),
                "activating" => Ok(None),
                "inactive" if starts => Ok(None),
                state => Err(Error::Failed(format!(
                    "{bound} has BindsTo= to {unit}, which is {state}: start that first, then restore again"
                ))),
            }
        };
        self.bridge.until(unit, START, &what, active).await
    }

    /// `ignore-dependencies` does not start the slice either.
    async fn start_slices(&self, units: &[String]) -> Result<(), Error> {
        let mut slices = BTreeSet::new();
        for unit in units {
            slices.insert(self.bridge.service(unit).await?.slice().await.map_err(|e| failed(unit, &e))?);
        }
        let mut inactive = Vec::new();
        for slice in slices.into_iter().filter(|s| !s.is_empty()) {
            if active_state(&self.bridge, &slice).await? != "active" {
                inactive.push(slice);
            }
        }
        if inactive.is_empty() {
            return Ok(());
        }
        self.bridge.jobs(Verb::Start, "replace", &inactive, START, || ()).await.map(drop)
    }

    /// Waits until the unit's Main PID has executed the stub: before that it is systemd's fork, and its sandbox is not finished.
    async fn running_stub(&self, unit: &str) -> Result<Stub, Error> {
        let service = self.bridge.service(unit).await?;
        let properties = self.bridge.unit(unit).await?;
        let of = |e: zbus::Error| failed(unit, &e);
        let (service, properties) = (&service, &properties);
        let what = format!("the start of ckpt-stub in {unit}");
        // systemd tells when it has forked; it does not tell when its child has executed the stub, a moment later.
        let executed = async |pid: i32| {
            for _ in 0..20 {
                if is_stub(pid) {
                    return true;
                }
                tokio::time::sleep(Duration::from_micros(200)).await;
            }
            false
        };
        let executed = &executed;
        let pid = self
            .bridge
            .until(unit, START, &what, || async move {
                if properties.active_state().await.map_err(of)? == "failed" {
                    let result = service.result().await.map_err(of)?;
                    return Err(Error::Failed(format!(
                        "ckpt-stub could not start in the sandbox of {unit} ({result}); `journalctl -u {unit}` tells more"
                    )));
                }
                let pid = i32::try_from(service.main_pid().await.map_err(of)?).unwrap_or(0);
                Ok((pid > 0 && executed(pid).await).then_some(pid))
            })
            .await?;
        let cgroup = service.control_group().await.map_err(of)?;
        Ok(Stub { unit: unit.to_owned(), pid, pidfd: pidfd(pid)?, cgroup })
    }

    pub(super) fn adopt_units(&self, units: &[UnitMain]) -> Result<(), Error> {
        self.bridge.run(self.until_adopted(units))?;
        let names: Vec<_> = units.iter().map(|u| u.unit.clone()).collect();
        if self.take_away(&names)? {
            // The members run: what is left is that systemd reads the units' own settings again. It does that before anything that is asked of
            // it from now on, so nobody needs to wait for it.
            self.bridge.run(self.bridge.begin_reload())?;
        }
        Ok(())
    }

    async fn until_adopted(&self, units: &[UnitMain]) -> Result<(), Error> {
        for UnitMain { unit, main_pid } in units {
            let service = self.bridge.service(unit).await?;
            let properties = self.bridge.unit(unit).await?;
            let (service, properties) = (&service, &properties);
            let of = |e: zbus::Error| failed(unit, &e);
            let what = format!("{unit} with Main PID {main_pid}");
            self.bridge
                .until(unit, ADOPT, &what, || async move {
                    let state = properties.active_state().await.map_err(of)?;
                    let pid = service.main_pid().await.map_err(of)?;
                    match state.as_str() {
                        "active" if i64::from(pid) == i64::from(*main_pid) => Ok(Some(())),
                        // Its program had little left to do, and has done it.
                        "active" | "inactive" if pid == 0 && is_over(*main_pid) => {
                            match service.result().await.map_err(of)?.as_str() {
                                "success" => Ok(Some(())),
                                result => Err(ended_badly(unit, &state, result)),
                            }
                        }
                        "failed" | "inactive" => {
                            let result = service.result().await.map_err(of)?;
                            Err(ended_badly(unit, &state, &result))
                        }
                        _ => Ok(None),
                    }
                })
                .await?;
        }
        Ok(())
    }

    pub(super) fn abandon_units(&self, units: &[String]) -> Result<(), Error> {
        let killed = self.kill_and_wait(units);
        self.let_go(units).and(killed)
    }

    /// Takes away what the job of this thread, and of others of its name, left: after `checkpoint --stop`, and after a restore that failed early.
    pub(super) fn tidy_thread(&self) -> Result<(), Error> {
        let job = this_job();
        let mine: Vec<_> =
            self.lock_held().iter().filter(|(_, j)| **j == job).map(|(unit, _)| unit.clone()).collect();
        self.let_go(&mine)
    }

    /// Takes away what a daemon that died left: stubs that wait for nobody, drop-ins that would start more of them.
    pub(super) fn tidy_all(&self) -> Result<(), Error> {
        let left = dropin::units_with(&self.run, dropin::RESTORE, None);
        let stubs = self.bridge.run(async {
            let mut stubs = Vec::new();
            for unit in &left {
                let pid = self.bridge.service(unit).await?.main_pid().await.map_err(|e| failed(unit, &e))?;
                if is_stub(i32::try_from(pid).unwrap_or(0)) {
                    stubs.push(unit.clone());
                }
            }
            Ok(stubs)
        })?;
        if !stubs.is_empty() {
            self.kill_and_wait(&stubs)?;
        }
        self.let_go(&left)
    }
}

/// The job that runs on this thread: job threads are named after their group, which has one job at a time.
fn this_job() -> String {
    thread::current().name().unwrap_or_default().to_owned()
}

fn ended_badly(unit: &str, state: &str, result: &str) -> Error {
    Error::Failed(format!("{unit} is {state} ({result}) just after its restore"))
}

/// Whether a main process that systemd was told of has ended.
fn is_over(main_pid: i32) -> bool {
    main_pid > 0 && !Path::new(&format!("/proc/{main_pid}")).exists()
}

/// Whether the process is a stub, by the file it executes.
fn is_stub(pid: i32) -> bool {
    std::fs::read_link(format!("/proc/{pid}/exe"))
        .is_ok_and(|exe| exe.file_name() == Path::new("ckpt-stub").file_name())
}
