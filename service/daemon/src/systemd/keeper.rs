//! The service that brings the memory of a lazily restored group: a transient unit, of no unit of the group, nor ours.

use std::path::Path;

use ckpt_engine::Error;
use zbus::Variant;

use super::Systemd;
use super::bridge::failed;

/// Descriptors that systemd keeps for it: one for each address space, two for each image of the chain.
const KEPT: u32 = 65_536;
/// It ends by itself when all memory is there, and does not before; then it is needed no more.
const STOP_USEC: u64 = 600_000_000;

impl Systemd {
    /// Begins to start it. It is ordered so that a shutdown stops the units first.
    pub(super) fn start_keeper_of(&self, group: &str, socket: &Path, units: &[String]) -> Result<(), Error> {
        let name = unit(socket);
        let program = self.libdir.join("ckpt-restore").to_string_lossy().into_owned();
        let command = vec![program.clone(), "--keep".to_owned(), socket.to_string_lossy().into_owned()];
        let properties = [
            ("Description", Variant::from(format!("Memory of group {group} after its restore by ckptd(8)"))),
            ("Before", Variant::from(units.to_vec())),
            ("CollectMode", Variant::from("inactive-or-failed")),
            ("Type", Variant::from("notify")),
            // Its server is a child of its main process.
            ("NotifyAccess", Variant::from("all")),
            ("ExecStart", Variant::from(vec![(program, command, false)])),
            // Whatever ends it, the members wait for it.
            ("Restart", Variant::from("on-failure")),
            ("RestartUSec", Variant::from(0_u64)),
            ("StartLimitIntervalUSec", Variant::from(0_u64)),
            ("RefuseManualStop", Variant::from(true)),
            ("OOMPolicy", Variant::from("continue")),
            ("OOMScoreAdjust", Variant::from(-900_i32)),
            ("TimeoutStopUSec", Variant::from(STOP_USEC)),
            // What systemd has open does not end with the service.
            ("FileDescriptorStoreMax", Variant::from(KEPT)),
            ("LimitNOFILE", Variant::from(1_048_576_u64)),
            // Its memory is that of the members.
            ("UMask", Variant::from(0o077_u32)),
            ("LimitCORE", Variant::from(0_u64)),
        ];
        self.bridge.run(async {
            let manager = self.bridge.manager().await?;
            let made = manager.start_transient_unit(&name, "fail", &properties, &[]).await;
            made.map(drop).map_err(|e| failed(&name, &e))
        })
    }
}

/// The unit's name: that of the socket is unique.
fn unit(socket: &Path) -> String {
    let name = socket.file_name().unwrap_or_default().to_string_lossy();
    let plain = |c: char| if c.is_ascii_alphanumeric() || "_.".contains(c) { c } else { '_' };
    format!("ckpt-memory-{}.service", name.chars().map(plain).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_is_named_after_the_socket() {
        assert_eq!(unit(Path::new("/run/ckpt/keepers/we@b-17")), "ckpt-memory-we_b_17.service");
    }
}
