//! What we call of org.freedesktop.systemd1(5).
#![allow(missing_docs)] // methods of systemd, documented there

use zbus::OwnedObjectPath;

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
pub trait Manager {
    fn subscribe(&self) -> zbus::Result<()>;
    fn reload(&self) -> zbus::Result<()>;
    fn get_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
    fn load_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
    fn start_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn stop_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn start_transient_unit(
        &self,
        name: &str,
        mode: &str,
        properties: &[(&str, zbus::Variant<'_>)],
        aux: &[(&str, Vec<(&str, zbus::Variant<'_>)>)],
    ) -> zbus::Result<OwnedObjectPath>;
    fn reset_failed_unit(&self, name: &str) -> zbus::Result<()>;
    fn list_unit_files_by_patterns(
        &self,
        states: &[&str],
        patterns: &[&str],
    ) -> zbus::Result<Vec<(String, String)>>;

    #[zbus(signal)]
    fn job_removed(&self, id: u32, job: OwnedObjectPath, unit: String, result: String) -> zbus::Result<()>;
    #[zbus(signal)]
    fn unit_new(&self, id: String, unit: OwnedObjectPath) -> zbus::Result<()>;
    #[zbus(signal)]
    fn reloading(&self, active: bool) -> zbus::Result<()>;
}

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Unit",
    default_service = "org.freedesktop.systemd1",
    assume_defaults = false
)]
pub trait Unit {
    #[zbus(name = "Ref")]
    fn refer(&self) -> zbus::Result<()>;
    #[zbus(name = "Unref")]
    fn dismiss(&self) -> zbus::Result<()>;
    #[zbus(property)]
    fn id(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn load_state(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn active_state(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn sub_state(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn drop_in_paths(&self) -> zbus::Result<Vec<String>>;
    #[zbus(property)]
    fn triggered_by(&self) -> zbus::Result<Vec<String>>;
    #[zbus(property)]
    fn binds_to(&self) -> zbus::Result<Vec<String>>;
    #[zbus(property)]
    fn on_failure(&self) -> zbus::Result<Vec<String>>;
    #[zbus(property)]
    fn on_success(&self) -> zbus::Result<Vec<String>>;
    #[zbus(property)]
    fn failure_action(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn success_action(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn refuse_manual_stop(&self) -> zbus::Result<bool>;
    #[zbus(property)]
    fn fragment_path(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn slice_of(&self) -> zbus::Result<Vec<String>>;
}

/// One command of ExecStart=: path, arguments, whether a failure is ignored, when it was started and exited (realtime and monotonic), pid,
/// code, status.
pub type Exec = (String, Vec<String>, bool, u64, u64, u64, u64, u32, i32, i32);

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Service",
    default_service = "org.freedesktop.systemd1",
    assume_defaults = false
)]
pub trait Service {
    #[zbus(property)]
    fn slice(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn control_group(&self) -> zbus::Result<String>;
    #[zbus(property, name = "MainPID")]
    fn main_pid(&self) -> zbus::Result<u32>;
    #[zbus(property)]
    fn runtime_directory(&self) -> zbus::Result<Vec<String>>;
    #[zbus(property)]
    fn temporary_file_system(&self) -> zbus::Result<Vec<(String, String)>>;
    #[zbus(property)]
    fn private_tmp(&self) -> zbus::Result<bool>;
    #[zbus(property)]
    fn private_users(&self) -> zbus::Result<bool>;
    #[zbus(property, name = "Type")]
    fn kind(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn bus_name(&self) -> zbus::Result<String>;
    #[zbus(property, name = "NFileDescriptorStore")]
    fn stored_descriptors(&self) -> zbus::Result<u32>;
    #[zbus(property, name = "WatchdogUSec")]
    fn watchdog_usec(&self) -> zbus::Result<u64>;
    #[zbus(property)]
    fn environment(&self) -> zbus::Result<Vec<String>>;
    #[zbus(property)]
    fn no_exec_paths(&self) -> zbus::Result<Vec<String>>;
    #[zbus(property)]
    fn syslog_identifier(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn exec_start(&self) -> zbus::Result<Vec<Exec>>;
    #[zbus(property)]
    fn exec_stop(&self) -> zbus::Result<Vec<Exec>>;
    #[zbus(property)]
    fn exec_stop_post(&self) -> zbus::Result<Vec<Exec>>;
    #[zbus(property)]
    fn root_directory(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn root_image(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn result(&self) -> zbus::Result<String>;
}
