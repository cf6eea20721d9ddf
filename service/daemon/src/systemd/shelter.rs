//! A scope for PID 1 of a group's own PID namespace: with it all members would end, so it is in no unit of the group, nor in ours.

use std::time::Duration;

use ckpt_engine::Error;
use zbus::Variant;

use super::Systemd;
use super::bridge::failed;

/// systemd moves one process.
const PATIENCE: Duration = Duration::from_secs(30);

impl Systemd {
    /// Moves init into a scope of its own and waits until it is there. The scope ends with init; it is ordered so that a shutdown stops the
    /// units first.
    pub(super) fn shelter_init(&self, group: &str, init: i32, units: &[String]) -> Result<(), Error> {
        let name = scope(group, init);
        let pid = u32::try_from(init).map_err(|_| Error::Failed(format!("{init} is no process id")))?;
        let properties = [
            (
                "Description",
                Variant::from(format!("What keeps group {group} going after its restore by ckptd(8)")),
            ),
            ("PIDs", Variant::from(vec![pid])),
            ("Before", Variant::from(units.to_vec())),
            ("CollectMode", Variant::from("inactive-or-failed")),
        ];
        self.bridge.run(async {
            let manager = self.bridge.manager().await?;
            let made = manager.start_transient_unit(&name, "fail", &properties, &[]).await;
            made.map_err(|e| failed(&name, &e))?;
            let unit = self.bridge.unit(&name).await?;
            let (unit, what) = (&unit, format!("the start of {name}"));
            let active = || async move {
                let state = unit.active_state().await.map_err(|e| failed("the scope", &e))?;
                Ok((state == "active").then_some(()))
            };
            self.bridge.until(&name, PATIENCE, &what, active).await
        })
    }
}

/// The scope's name: groups are restored more than once, and an older init may be about to end.
fn scope(group: &str, init: i32) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "_.".contains(c) { c } else { '_' };
    format!("ckpt-pids-{}-{init}.scope", group.chars().map(plain).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scope_is_named_after_group_and_init() {
        assert_eq!(scope("web-1@x", 42), "ckpt-pids-web_1_x-42.scope");
    }
}
