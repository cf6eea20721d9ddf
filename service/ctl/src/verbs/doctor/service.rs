//! The bus, the daemon on it, and what it says of the kernel.

use ckpt_dbus::names::BUS_NAME;
use zbus::fdo::DBusProxy;

use super::Finding;
use crate::bus::{Bus, connection, none};
use crate::context::Context;

/// The word in KernelFeatures.
const SOCK_DIAG: &str = "sock-diag";

pub(super) async fn findings(context: &Context) -> Vec<Finding> {
    let host = context.host.as_deref();
    let connection = match connection(host).await {
        Ok(connection) => connection,
        Err(e) => return vec![Finding::error("bus", e.text, "nothing of ckpt works without the system bus")],
    };
    let mut findings = vec![Finding::ok("bus", "connected")];
    let names = names(&connection).await;
    if !names.iter().any(|n| n == "org.freedesktop.PolicyKit1") {
        findings.push(Finding::warning(
            "polkit",
            "not installed, so only root may do anything",
            "install polkitd if others are to be authorized",
        ));
    }
    if !names.iter().any(|n| n == BUS_NAME) {
        findings.push(Finding::error(
            "ckptd",
            format!("nothing provides {BUS_NAME}"),
            "install ckpt, then `systemctl reload dbus`",
        ));
        return findings;
    }
    drop(connection);
    match Bus::connect(host).await {
        Ok(bus) => findings.extend(daemon(&bus).await),
        Err(e) => findings.push(Finding::error("ckptd", e.text, "see `journalctl -u ckptd`")),
    }
    findings
}

/// Names that are owned or can be started.
async fn names(connection: &zbus::Connection) -> Vec<String> {
    let Ok(dbus) = DBusProxy::new(connection).await else { return Vec::new() };
    let mut names: Vec<String> = Vec::new();
    if let Ok(owned) = dbus.list_names().await {
        names.extend(owned.iter().map(|n| n.to_string()));
    }
    if let Ok(activatable) = dbus.list_activatable_names().await {
        names.extend(activatable.iter().map(|n| n.to_string()));
    }
    names
}

async fn daemon(bus: &Bus) -> Vec<Finding> {
    let mut findings = Vec::new();
    match bus.manager.version().await {
        Ok(version) if version == env!("CARGO_PKG_VERSION") => findings.push(Finding::ok("ckptd", version)),
        Ok(version) => findings.push(Finding::warning(
            "ckptd",
            format!("version {version}, this ckptctl is {}", env!("CARGO_PKG_VERSION")),
            "systemctl restart ckptd",
        )),
        Err(e) => findings.push(Finding::error("ckptd", e.to_string(), "see `journalctl -u ckptd`")),
    }
    if let Ok(features) = bus.manager.features().await {
        findings.push(Finding::ok("features", features.join(" ")));
    }
    match bus.manager.kernel_features().await {
        Ok(features) if features.is_empty() => findings.push(Finding::warning(
            "kernel",
            "ckptd found none of the optional features",
            "everything works, slower; see ckpt(7)",
        )),
        Ok(features) => {
            if !features.iter().any(|feature| feature == SOCK_DIAG) {
                findings.push(Finding::warning(
                    SOCK_DIAG,
                    "the kernel does not tell of sockets: services with connections cannot be checkpointed",
                    "load the modules unix_diag and tcp_diag (CONFIG_UNIX_DIAG, CONFIG_INET_TCP_DIAG)",
                ));
            }
            findings.push(Finding::ok("kernel", features.join(" ")));
        }
        Err(_) => {}
    }
    match bus.manager.list_groups(&none()).await {
        Ok(groups) => findings.push(Finding::ok("groups", groups.len().to_string())),
        Err(e) => {
            let failure = crate::failure::Failure::from(e);
            findings.push(Finding::error("groups", failure.text, "see `journalctl -u ckptd`"));
        }
    }
    findings
}
