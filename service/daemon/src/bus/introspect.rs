//! `ckptd --print-introspection [INTERFACE]`: the XML of the interfaces from the code that serves them; no bus, no root.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ckpt_dbus::names::INTERFACES;
use ckpt_engine::{
    CheckpointInfo, CheckpointRequest, Decision, Engine, Error, Event, Group, Incoming, Job as EngineJob,
    Problem, RestoreInfo, RestoreRequest, Stub, Unit, UnitMain, Units,
};
use jiff::Timestamp;
use zbus::object_server::Interface;

use super::{CheckpointObject, GroupObject, JobObject, ManagerObject};
use crate::service::{Host, Job, Service, Work};

const HEAD: &str = "<!DOCTYPE node PUBLIC \"-//freedesktop//DTD D-BUS Object Introspection 1.0//EN\"\n \
                    \"http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd\">\n";

/// One document for one interface; `None` if there is none of that name.
pub fn xml(interface: &str) -> Option<String> {
    INTERFACES.contains(&interface).then(|| document(&[interface]))
}

/// One document with all interfaces.
pub fn all() -> String {
    document(&INTERFACES)
}

fn document(interfaces: &[&str]) -> String {
    let service = Service::new(Arc::new(Nothing), Arc::new(Nothing), PathBuf::new());
    let mut out = format!("{HEAD}<node>\n");
    for name in interfaces {
        let body = match *name {
            "org.ckpt.Manager1" => body(&ManagerObject::new(Arc::clone(&service))),
            "org.ckpt.Group1" => body(&GroupObject::new(Arc::clone(&service), String::new())),
            "org.ckpt.Checkpoint1" => body(&CheckpointObject::new(Arc::clone(&service), nothing())),
            _ => {
                let work = Work::Delete(Vec::new());
                let (job, _) = Job::new(0, String::new(), work, Vec::new());
                body(&JobObject::new(Arc::clone(&service), job))
            }
        };
        out.push_str(&body);
    }
    out.push_str("</node>\n");
    out
}

fn body(interface: &dyn Interface) -> String {
    let mut body = String::new();
    interface.introspect_to_writer(&mut body, 2);
    body
}

fn nothing() -> CheckpointInfo {
    CheckpointInfo {
        id: String::new(),
        group: String::new(),
        kind: String::new(),
        parent: None,
        created: Timestamp::UNIX_EPOCH,
        freeze_usec: 0,
        processes: 0,
        threads: 0,
        pages_written: 0,
        image_bytes: 0,
        snapshots: Vec::new(),
        state: String::new(),
        tracker: String::new(),
        description: String::new(),
        tags: Vec::new(),
        units: Vec::new(),
        stages: Vec::new(),
    }
}

/// An engine and a host for objects that are only described, never called.
struct Nothing;

fn unsupported<T>() -> Result<T, Error> {
    Err(Error::Unsupported("this daemon only prints its interfaces".into()))
}

impl Engine for Nothing {
    fn checkpoint(
        &self,
        _: &Group,
        _: &CheckpointRequest,
        _: &dyn EngineJob,
    ) -> Result<CheckpointInfo, Error> {
        unsupported()
    }
    fn restore(&self, _: &Group, _: &RestoreRequest, _: &dyn EngineJob) -> Result<RestoreInfo, Error> {
        unsupported()
    }
    fn check(&self, _: &Group) -> Result<Vec<Problem>, Error> {
        unsupported()
    }
    fn list(&self, _: &str) -> Result<Vec<CheckpointInfo>, Error> {
        unsupported()
    }
    fn delete(&self, _: &Group, _: &[String], _: &dyn EngineJob) -> Result<(), Error> {
        unsupported()
    }
    fn merge(&self, _: &Group, _: &str, _: &dyn EngineJob) -> Result<CheckpointInfo, Error> {
        unsupported()
    }
    fn shorten(&self, _: &Group, _: &dyn EngineJob) -> Result<Option<CheckpointInfo>, Error> {
        unsupported()
    }
    fn prune(&self, _: &Group, _: bool, _: &dyn EngineJob) -> Result<Vec<Decision>, Error> {
        unsupported()
    }
    fn export(&self, _: &Group, _: &str, _: &std::fs::File, _: &dyn EngineJob) -> Result<(), Error> {
        unsupported()
    }
    fn import(&self, _: &Incoming, _: &dyn EngineJob) -> Result<CheckpointInfo, Error> {
        unsupported()
    }
    fn verify(&self, _: &Group, _: &str, _: &dyn EngineJob) -> Result<(), Error> {
        unsupported()
    }
    fn annotate(
        &self,
        _: &str,
        _: &str,
        _: Option<String>,
        _: Option<Vec<String>>,
    ) -> Result<CheckpointInfo, Error> {
        unsupported()
    }
    fn recover(&self, _: &[Group]) -> Result<Vec<Event>, Error> {
        unsupported()
    }
}

impl Units for Nothing {
    fn units(&self, _: &Group) -> Result<Vec<Unit>, Error> {
        unsupported()
    }
    fn stop(&self, _: &[String], _: bool) -> Result<(), Error> {
        unsupported()
    }
    fn start_stubs(&self, _: &[String]) -> Result<Vec<Stub>, Error> {
        unsupported()
    }
    fn adopt(&self, _: &[UnitMain]) -> Result<(), Error> {
        unsupported()
    }
    fn shelter(&self, _: &str, _: i32, _: &[String]) -> Result<(), Error> {
        unsupported()
    }
    fn start_keeper(&self, _: &str, _: &Path, _: &[String]) -> Result<(), Error> {
        unsupported()
    }
    fn abandon(&self, _: &[String]) -> Result<(), Error> {
        unsupported()
    }
}

impl Host for Nothing {
    fn exists(&self, _: &str) -> Result<bool, Error> {
        unsupported()
    }
    fn install(&self, _: &Group) -> Result<(), Error> {
        unsupported()
    }
    fn remove(&self, _: &Group) -> Result<(), Error> {
        unsupported()
    }
    fn tidy(&self) -> Result<(), Error> {
        unsupported()
    }
    fn tidy_leftovers(&self) -> Result<(), Error> {
        unsupported()
    }
    fn is_subvolume(&self, _: &Path) -> Result<(), Error> {
        unsupported()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `UPDATE_INTERFACES=1 cargo test -p ckptd` writes them anew.
    #[test]
    fn the_shipped_xml_is_what_the_daemon_serves() {
        for name in INTERFACES {
            let file =
                Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../dbus/interfaces/{name}.xml"));
            let served = xml(name).unwrap();
            if std::env::var_os("UPDATE_INTERFACES").is_some() {
                std::fs::write(&file, &served).unwrap();
            }
            let shipped = std::fs::read_to_string(&file).unwrap();
            assert!(shipped == served, "{} differs; see the comment of this test", file.display());
        }
        assert!(xml("org.ckpt.Manager2").is_none());
    }
}
