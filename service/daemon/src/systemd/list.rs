//! The units of a group as systemd knows them.

use std::path::PathBuf;

use ckpt_engine::{Error, Group, Unit};
use futures_util::{StreamExt, try_join};

use super::bridge::{Bridge, failed};
use super::generator;

/// The unit that we are: it cannot freeze itself.
const OURSELVES: &str = "ckptd.service";
/// Questions to systemd in flight.
const AT_ONCE: usize = 16;

/// The services of the slice and its nested slices that run or are about to, or the units listed; ordered by name.
pub async fn units(bridge: &Bridge, group: &Group) -> Result<Vec<Unit>, Error> {
    let slice = group.config.slice.as_deref();
    let mut names = match slice {
        Some(slice) => services_of(bridge, slice).await?,
        None => group.config.units.clone(),
    };
    names.sort();
    names.dedup();
    refuse_ourselves(group, &names)?;
    let mut units = Vec::new();
    for name in names {
        let unit = describe(bridge, &name).await?;
        // A slice is what is in it now; a list is what was listed.
        if slice.is_none() || !unit.cgroup.is_empty() {
            units.push(unit);
        }
    }
    units.sort_by(|a, b| a.name.cmp(&b.name));
    units.dedup_by(|a, b| a.name == b.name);
    Ok(units)
}

/// ckptd must not be a member of what it freezes.
pub fn refuse_ourselves(group: &Group, units: &[String]) -> Result<(), Error> {
    match units.iter().any(|u| u == OURSELVES) {
        false => Ok(()),
        true => Err(Error::InvalidArgs(format!(
            "group {} holds {OURSELVES}, which cannot freeze itself; put the group's units into a slice of their own (Slice=)",
            group.name
        ))),
    }
}

/// Loaded services below a slice.
pub async fn services_of(bridge: &Bridge, slice: &str) -> Result<Vec<String>, Error> {
    let mut slices = vec![slice.to_owned()];
    let mut services = Vec::new();
    while let Some(slice) = slices.pop() {
        let below = bridge.unit(&slice).await?.slice_of().await.map_err(|e| failed(&slice, &e))?;
        for unit in below {
            if unit.ends_with(".slice") {
                slices.push(unit);
            } else if unit.ends_with(".service") {
                services.push(unit);
            }
        }
    }
    Ok(services)
}

/// All services that belong below the slice: loaded ones, and those of unit files on disk.
pub async fn all_services_of(bridge: &Bridge, slice: &str) -> Result<Vec<String>, Error> {
    let mut services = services_of(bridge, slice).await?;
    let files = match generator::candidates(slice) {
        Some(names) => names,
        None => unit_files(bridge).await?,
    };
    // A template has no slice; its instances are seen when they are loaded.
    let names = files.iter().filter(|n| !n.contains("@.") && !services.contains(n));
    // systemd forgets a unit that nothing refers to at once: the question loads it and asks in one go.
    let slices = names.map(|name| async move { (name.clone(), slice_of(bridge, name).await) });
    let slices: Vec<_> = futures_util::stream::iter(slices).buffer_unordered(AT_ONCE).collect().await;
    let below = slices.into_iter().filter(|(_, s)| s.as_deref().is_some_and(|s| is_below(s, slice)));
    services.extend(below.map(|(name, _)| name).collect::<Vec<_>>());
    Ok(services)
}

/// The names of all services that have a unit file.
async fn unit_files(bridge: &Bridge) -> Result<Vec<String>, Error> {
    let files = bridge.manager().await?.list_unit_files_by_patterns(&[], &["*.service"]).await;
    let files = files.map_err(|e| failed("unit files", &e))?;
    Ok(files.iter().filter_map(|(file, _)| Some(file.rsplit('/').next()?.to_owned())).collect())
}

/// The slice of a service; none if it cannot be loaded, then it has no process either.
async fn slice_of(bridge: &Bridge, unit: &str) -> Option<String> {
    bridge.service(unit).await.ok()?.slice().await.ok()
}

/// Whether a slice is another or nested in it: the name says so (systemd.slice(5)).
pub(super) fn is_below(slice: &str, top: &str) -> bool {
    let stem = top.strip_suffix(".slice").unwrap_or(top);
    slice == top || slice.strip_prefix(stem).is_some_and(|rest| rest.starts_with('-'))
}

async fn describe(bridge: &Bridge, name: &str) -> Result<Unit, Error> {
    let service = bridge.service(name).await?;
    let unit = bridge.unit(name).await?;
    let of = |e: zbus::Error| failed(name, &e);
    let (
        id,
        active_state,
        cgroup,
        main_pid,
        runtime,
        temporary,
        kind,
        private_tmp,
        private_users,
        watchdog,
        stored,
    ) = try_join!(
        unit.id(),
        unit.active_state(),
        service.control_group(),
        service.main_pid(),
        service.runtime_directory(),
        service.temporary_file_system(),
        service.kind(),
        service.private_tmp(),
        service.private_users(),
        service.watchdog_usec(),
        service.stored_descriptors(),
    )
    .map_err(of)?;
    let main_pid = i32::try_from(main_pid).unwrap_or(0);
    Ok(Unit {
        // A unit may have been named by an alias (redis.service): one unit has one name.
        name: id,
        cgroup,
        active_state,
        main_pid,
        // Since v250 a directory may have symlinks, `name:link` (systemd.exec(5)).
        runtime_directories: runtime
            .iter()
            .map(|d| PathBuf::from("/run").join(d.split(':').next().unwrap_or(d)))
            .collect(),
        temporary_file_systems: temporary
            .into_iter()
            .filter(|(_, options)| !options.split(',').any(|option| option == "ro"))
            .map(|(path, _)| path.into())
            .collect(),
        private_tmp,
        private_users,
        // USEC_INFINITY: no watchdog.
        watchdog_usec: if watchdog == u64::MAX { 0 } else { watchdog },
        stored_descriptors: stored,
        bus_name: if kind == "dbus" { service.bus_name().await.map_err(of)? } else { String::new() },
        preloaded: main_pid > 0 && preloaded(main_pid),
    })
}

/// Whether the process has the preload library mapped.
fn preloaded(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/maps")).is_ok_and(|m| m.contains("/libckpt_preload.so"))
}

/// Whether systemd can load the unit. A slice can always be loaded: it exists if it has a file or runs.
pub async fn exists(bridge: &Bridge, unit: &str) -> Result<bool, Error> {
    // Not a valid name.
    if bridge.manager().await?.load_unit(unit).await.is_err() {
        return Ok(false);
    }
    let of = |e: zbus::Error| failed(unit, &e);
    let unit = bridge.unit(unit).await?;
    if unit.load_state().await.map_err(of)? != "loaded" {
        return Ok(false);
    }
    let runs = unit.active_state().await.map_err(of)? != "inactive";
    Ok(runs || !unit.fragment_path().await.map_err(of)?.is_empty())
}

#[cfg(test)]
mod tests {
    use super::is_below;

    #[test]
    fn slices_are_nested_by_name() {
        assert!(is_below("web.slice", "web.slice"));
        assert!(is_below("web-db.slice", "web.slice"));
        assert!(is_below("web-db-x.slice", "web-db.slice"));
        assert!(!is_below("webby.slice", "web.slice"));
        assert!(!is_below("web.slice", "web-db.slice"));
    }
}
