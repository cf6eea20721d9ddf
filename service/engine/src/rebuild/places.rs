//! Where members are to live: the units with their stubs, cgroups and namespaces.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use ckpt_image::records::{GroupImage, UnitIndex};
use ckpt_sys::cgroup::Cgroup;
use ckpt_sys::clone::pidfd;
use ckpt_sys::namespace::{Namespaces, other_users, within};
use nix::sched::CloneFlags;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::Failure;

/// A unit as the caller has prepared it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitPlace {
    /// Its name.
    pub name: String,
    /// Its cgroup, relative to the cgroup2 mount, with a leading slash.
    pub cgroup: String,
    /// The stub that systemd started in it; `None` takes our own namespaces (tests without systemd).
    pub stub: Option<i32>,
}

/// A unit's place, opened.
#[derive(Debug)]
pub struct Place {
    /// The unit's name.
    pub name: String,
    /// The stub's pid and descriptor.
    pub stub: Option<(i32, OwnedFd)>,
    cgroup: Cgroup,
    directory: File,
    namespaces: Namespaces,
    users: Option<File>,
}

/// All places of a group, in the order of [`UnitIndex`].
#[derive(Debug)]
pub struct Places {
    places: Vec<Place>,
    home: Namespaces,
}

impl Places {
    /// Opens the places of an image's units; `units` may be in any order. Errors: a unit is missing, its cgroup or stub is gone.
    pub fn open(image: &GroupImage, units: &[UnitPlace]) -> Result<Self, Failure> {
        let find = |name: &str| {
            units.iter().find(|u| u.name == name).ok_or_else(|| {
                Failure::not_restorable("the unit was not started for the restore").of_unit(name)
            })
        };
        let places = image.units.iter().map(|unit| Place::open(find(&unit.name)?));
        Ok(Self { places: places.collect::<Result<_, _>>()?, home: Namespaces::own()? })
    }

    /// One place. Error: the image names a unit that it does not have.
    pub fn get(&self, unit: UnitIndex) -> Result<&Place, Failure> {
        self.places.get(unit.index()).ok_or_else(|| Failure::corrupt(format!("there is no unit {unit}")))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Place> {
        self.places.iter()
    }

    /// Does something in the namespaces of a unit: mount, network, IPC, host name, cgroup.
    pub fn within<T>(&self, unit: UnitIndex, deed: impl FnOnce() -> T) -> Result<T, Failure> {
        let place = self.get(unit)?;
        within(&place.namespaces, &self.home, deed).map_err(|e| Failure::from(e).of_unit(&place.name))
    }

    /// Moves this process into the namespaces of a unit; it must be at home, and go back by [`Places::leave`].
    pub fn enter(&self, unit: UnitIndex) -> Result<(), Failure> {
        let place = self.get(unit)?;
        place.namespaces.enter(&self.home).map_err(|e| Failure::from(e).of_unit(&place.name))
    }

    /// Moves this process back home from the namespaces of a unit.
    pub fn leave(&self, unit: UnitIndex) -> Result<(), Failure> {
        let place = self.get(unit)?;
        self.home.enter(&place.namespaces).map_err(|e| Failure::from(e).of_unit(&place.name))
    }

    /// Puts a unit into the namespace of one kind that a process is in, in place of that of its stub.
    pub fn take(&mut self, unit: UnitIndex, kind: CloneFlags, of: Pid) -> Result<(), Failure> {
        let other = Namespaces::of(of)?;
        match self.places.get_mut(unit.index()) {
            Some(place) => place.namespaces.take(kind, other),
            None => return Err(Failure::corrupt(format!("there is no unit {unit}"))),
        }
        Ok(())
    }

    /// Whether a unit has a mount namespace of its own.
    pub fn has_own_mounts(&self, unit: UnitIndex) -> Result<bool, Failure> {
        Ok(!self.get(unit)?.namespaces.same_mounts(&self.home))
    }

    /// The units, one of each mount namespace.
    pub fn by_mounts(&self) -> Vec<UnitIndex> {
        let mut seen = BTreeSet::new();
        let units = self.places.iter().enumerate();
        units.filter(|(_, p)| seen.insert(p.namespaces.mounts())).map(|(i, _)| UnitIndex(i as u32)).collect()
    }

    /// Whether two units have the same namespaces.
    pub fn together(&self, one: UnitIndex, other: UnitIndex) -> Result<bool, Failure> {
        Ok(one == other || self.get(one)?.namespaces.same(&self.get(other)?.namespaces))
    }
}

impl Place {
    fn open(unit: &UnitPlace) -> Result<Self, Failure> {
        let wrap = |e: ckpt_sys::Error| Failure::from(e).of_unit(&unit.name);
        let cgroup = Cgroup::open(&unit.cgroup).map_err(wrap)?;
        let directory = File::open(cgroup.dir()).map_err(|e| {
            Failure::not_restorable(format!("open {}: {e}", cgroup.dir().display())).of_unit(&unit.name)
        })?;
        let stub = match unit.stub {
            Some(pid) => Some((pid, pidfd(Pid::from_raw(pid)).map_err(wrap)?)),
            None => None,
        };
        let namespaces = match unit.stub {
            Some(pid) => Namespaces::of(Pid::from_raw(pid)),
            None => Namespaces::own(),
        };
        let users = match unit.stub {
            Some(pid) => other_users(Pid::from_raw(pid)).map_err(wrap)?,
            None => None,
        };
        let (name, namespaces) = (unit.name.clone(), namespaces.map_err(wrap)?);
        Ok(Self { name, stub, cgroup, directory, namespaces, users })
    }

    /// The user namespace that systemd made for the unit (PrivateUsers=), if it did.
    pub fn users(&self) -> Option<&File> {
        self.users.as_ref()
    }

    /// The descriptor of its cgroup's directory, for CLONE_INTO_CGROUP.
    pub fn cgroup_fd(&self) -> RawFd {
        self.directory.as_raw_fd()
    }

    /// The directory of its cgroup.
    pub fn cgroup_dir(&self) -> PathBuf {
        self.cgroup.dir().to_owned()
    }

    /// Moves a process into the unit's cgroup, or one below it, which is made if there is none.
    pub fn move_in(&self, tid: Pid, below: &str) -> Result<(), Failure> {
        let directory = self.below(below)?;
        let file = directory.join("cgroup.procs");
        let moved = fs::create_dir_all(&directory).and_then(|()| fs::write(&file, tid.to_string()));
        moved.map_err(|e| {
            Failure::not_restorable(format!("move into {}: {e}", file.display())).of_unit(&self.name)
        })
    }

    fn below(&self, below: &str) -> Result<PathBuf, Failure> {
        let relative = below.trim_matches('/');
        if relative.split('/').any(|part| part == "..") {
            return Err(Failure::corrupt(format!("a cgroup is called {below}")).of_unit(&self.name));
        }
        Ok(self.cgroup.dir().join(relative))
    }
}
