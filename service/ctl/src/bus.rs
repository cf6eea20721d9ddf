//! The connection to ckptd, on this host or on another.

use ckpt_dbus::names::BUS_NAME;
use ckpt_dbus::{CheckpointRow, GroupRow, Manager1Proxy};
use zbus::address::Address;
use zbus::address::transport::{Transport, Unixexec};
use zbus::connection::{Builder, Connection};
use zbus::fdo::DBusProxy;
use zbus::names::{BusName, OwnedUniqueName, WellKnownName};
use zbus::proxy::CacheProperties;

use crate::failure::Failure;

/// ckptd, running: the bus starts it if need be.
#[derive(Debug)]
pub struct Bus {
    /// The connection.
    pub connection: Connection,
    /// Manager1.
    pub manager: Manager1Proxy<'static>,
    /// ckptd's unique name: signals of other senders are not believed.
    pub owner: OwnedUniqueName,
}

/// No options.
pub fn none() -> ckpt_dbus::proxy::Options<'static> {
    ckpt_dbus::proxy::Options::new()
}

impl Bus {
    /// Connects to the system bus, over ssh if a host is given, and starts ckptd.
    pub async fn connect(host: Option<&str>) -> Result<Self, Failure> {
        let connection = connection(host).await?;
        let owner = owner(&connection).await?;
        let manager =
            Manager1Proxy::builder(&connection).cache_properties(CacheProperties::No).build().await?;
        Ok(Self { connection, manager, owner })
    }

    /// The row of a group. Errors: exit status 3 if there is none.
    pub async fn group(&self, name: &str) -> Result<GroupRow, Failure> {
        let rows = self.manager.list_groups(&none()).await?;
        if let Some(row) = rows.into_iter().find(|r| r.name == name) {
            return Ok(row);
        }
        // The daemon knows more spellings of a name, and says best what is wrong with it.
        let path = self.manager.get_group(name).await?;
        let escaped = path.as_str().rsplit('/').next().unwrap_or("");
        let meant = ckpt_dbus::names::unescape(escaped).unwrap_or_default();
        let rows = self.manager.list_groups(&none()).await?;
        rows.into_iter().find(|r| r.name == meant).ok_or_else(|| {
            Failure::not_found(format!(
                "no group is called {name}; `ckptctl status` shows the groups, `ckptctl enable` makes one"
            ))
        })
    }

    /// A checkpoint of a group: the newest durable one where no id is given.
    pub async fn checkpoint(&self, group: &str, id: &str) -> Result<CheckpointRow, Failure> {
        let rows = self.manager.list_checkpoints(group, &none()).await?;
        let found = rows.into_iter().find(|r| if id.is_empty() { r.state == "durable" } else { r.id == id });
        found.ok_or_else(|| {
            Failure::not_found(match id {
                "" => format!("group {group} has no checkpoint; `ckptctl checkpoint {group}` takes one"),
                id => format!(
                    "group {group} has no checkpoint {id}; `ckptctl list {group}` shows what there is"
                ),
            })
        })
    }
}

/// The system bus, without asking for ckptd.
pub async fn connection(host: Option<&str>) -> Result<Connection, Failure> {
    let Some(host) = host else {
        return Connection::system().await.map_err(|e| {
            Failure::failed(format!(
                "no connection to the system bus: {e}; does dbus run? (`systemctl status dbus`)"
            ))
        });
    };
    Builder::address(Address::from(Transport::Unixexec(ssh(host)?)))
        // systemd-stdio-bridge speaks for the user that ssh logged in; nobody can look at us through a pipe.
        .auth_mechanism(zbus::connection::AuthMechanism::Anonymous)
        .build()
        .await
        .map_err(|e| {
            Failure::failed(format!(
                "no connection to the bus of {host}: {e}; does `ssh {host} systemd-stdio-bridge` work?"
            ))
        })
}

async fn owner(connection: &Connection) -> Result<OwnedUniqueName, Failure> {
    let dbus = DBusProxy::new(connection).await?;
    let name = BusName::WellKnown(WellKnownName::try_from(BUS_NAME)?);
    if let Ok(owner) = dbus.get_name_owner(name.clone()).await {
        return Ok(owner);
    }
    dbus.start_service_by_name(WellKnownName::try_from(BUS_NAME)?, 0).await?;
    Ok(dbus.get_name_owner(name).await?)
}

/// The way to the bus of another host, as `systemctl -H` goes it.
fn ssh(host: &str) -> Result<Unixexec, Failure> {
    let (target, port) = match host.rsplit_once(':') {
        // An address of IPv6 in brackets, or none.
        Some((target, port)) if !target.contains(':') || target.ends_with(']') => (target, Some(port)),
        _ => (host, None),
    };
    if port.is_some_and(|p| p.parse::<u16>().is_err()) {
        return Err(Failure::usage(format!("-H {host}: what follows the colon is no port")));
    }
    let mut args = vec!["-xT"];
    if let Some(port) = port {
        args.extend(["-p", port]);
    }
    let target = target.replace(['[', ']'], "");
    args.extend(["--", &target, "systemd-stdio-bridge"]);
    Ok(Unixexec::new("ssh".into(), None, args.into_iter().map(Into::into).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(host: &str) -> Vec<String> {
        ssh(host).unwrap().args().iter().map(|a| a.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn hosts_become_calls_of_ssh() {
        assert_eq!(args("root@db:2222"), ["-xT", "-p", "2222", "--", "root@db", "systemd-stdio-bridge"]);
        assert_eq!(args("fe80::1"), ["-xT", "--", "fe80::1", "systemd-stdio-bridge"]);
        assert_eq!(args("[fe80::1]:22"), ["-xT", "-p", "22", "--", "fe80::1", "systemd-stdio-bridge"]);
        assert_eq!(ssh("db:x").unwrap_err().status, crate::failure::USAGE);
    }
}
