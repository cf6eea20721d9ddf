//! A host on which the test says which units there are, and which remembers the drop-ins.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Mutex;

use ckpt_engine::{Error, Group, Stub, Unit, UnitMain, Units};
use ckptd::service::Host;

#[derive(Default)]
pub struct PaperHost {
    pub units: Mutex<BTreeSet<String>>,
    pub installed: Mutex<BTreeSet<String>>,
    pub broken: Mutex<bool>,
}

impl PaperHost {
    pub fn has(&self, unit: &str) {
        self.units.lock().unwrap().insert(unit.into());
    }
}

impl Units for PaperHost {
    fn units(&self, group: &Group) -> Result<Vec<Unit>, Error> {
        let names: Vec<String> = match &group.config.slice {
            Some(_) => self.units.lock().unwrap().iter().cloned().collect(),
            None => group.config.units.clone(),
        };
        let unit = |name| Unit { name, active_state: "active".into(), main_pid: 7, ..Unit::default() };
        Ok(names.into_iter().map(unit).collect())
    }
    fn stop(&self, _: &[String], _: bool) -> Result<(), Error> {
        Ok(())
    }
    fn start_stubs(&self, _: &[String]) -> Result<Vec<Stub>, Error> {
        Ok(Vec::new())
    }
    fn adopt(&self, _: &[UnitMain]) -> Result<(), Error> {
        Ok(())
    }
    fn shelter(&self, _: &str, _: i32, _: &[String]) -> Result<(), Error> {
        Ok(())
    }
    fn start_keeper(&self, _: &str, _: &Path, _: &[String]) -> Result<(), Error> {
        Ok(())
    }
    fn abandon(&self, _: &[String]) -> Result<(), Error> {
        Ok(())
    }
}

impl Host for PaperHost {
    fn exists(&self, unit: &str) -> Result<bool, Error> {
        Ok(self.units.lock().unwrap().contains(unit))
    }
    fn install(&self, group: &Group) -> Result<(), Error> {
        if *self.broken.lock().unwrap() {
            return Err(Error::Failed("systemd does not answer".into()));
        }
        self.installed.lock().unwrap().insert(group.name.clone());
        Ok(())
    }
    fn remove(&self, group: &Group) -> Result<(), Error> {
        self.installed.lock().unwrap().remove(&group.name);
        Ok(())
    }
    fn tidy(&self) -> Result<(), Error> {
        Ok(())
    }
    fn tidy_leftovers(&self) -> Result<(), Error> {
        Ok(())
    }
    fn is_subvolume(&self, path: &Path) -> Result<(), Error> {
        match path.starts_with("/srv") {
            true => Ok(()),
            false => Err(Error::InvalidArgs(format!("{} is not a btrfs subvolume", path.display()))),
        }
    }
}
