//! A failed verb: its exit status and one line.

use ckpt_dbus::errors;
use serde_json::json;

use crate::output::clean;

/// Failed.
pub const FAILED: u8 = 1;
/// The command line was wrong.
pub const USAGE: u8 = 2;
/// No such group or checkpoint.
pub const NOT_FOUND: u8 = 3;
/// Not checkpointable or not restorable.
pub const REFUSED: u8 = 4;
/// The group is busy.
pub const BUSY: u8 = 6;
/// Not permitted.
pub const NOT_PERMITTED: u8 = 77;

/// Why a verb failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Failure {
    /// Exit status.
    pub status: u8,
    /// D-Bus error name; empty if the error did not come over the bus.
    pub name: String,
    /// One line.
    pub text: String,
}

impl Failure {
    /// Exit status 1.
    pub fn failed(text: String) -> Self {
        Self { status: FAILED, name: String::new(), text }
    }

    /// Exit status 2.
    pub fn usage(text: String) -> Self {
        Self { status: USAGE, name: String::new(), text }
    }

    /// Exit status 3.
    pub fn not_found(text: String) -> Self {
        Self { status: NOT_FOUND, name: String::new(), text }
    }

    /// An error that came over the bus.
    pub fn reply(name: &str, text: &str) -> Self {
        let text = match (name, text) {
            (errors::ACCESS_DENIED | AUTH_REQUIRED | AUTH_FAILED, "") => {
                "not permitted; run it as root, or let polkit authorize you".to_string()
            }
            (AUTH_REQUIRED, text) => format!("{text}; run it as root, or where a polkit agent can ask you"),
            ("org.freedesktop.DBus.Error.UnknownMethod", text) => {
                format!("not supported: the ckptd that runs does not know this yet ({text})")
            }
            ("org.freedesktop.DBus.Error.ServiceUnknown", _) => {
                "ckptd does not run and cannot be started: nothing provides org.ckpt on the bus; install ckpt, see `ckptctl doctor`".into()
            }
            (_, "") => name.to_string(),
            (_, text) => text.to_string(),
        };
        Self { status: status(name), name: name.to_string(), text }
    }

    /// The line on stderr; with JSON an object.
    pub fn print(&self, as_json: bool) {
        if as_json {
            eprintln!(
                "{}",
                json!({"error": {"name": self.name, "message": self.text, "status": self.status}})
            );
        } else {
            eprintln!("ckptctl: {}", clean(&self.text));
        }
    }
}

const AUTH_REQUIRED: &str = "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired";
const AUTH_FAILED: &str = "org.freedesktop.DBus.Error.AuthFailed";

/// The exit status for a D-Bus error name.
fn status(name: &str) -> u8 {
    match name.strip_prefix(errors::PREFIX) {
        Some("NoSuchGroup" | "NoSuchCheckpoint") => NOT_FOUND,
        Some("NotCheckpointable" | "NotRestorable" | "IncompatibleKernel" | "FileMismatch") => REFUSED,
        Some("GroupBusy") => BUSY,
        Some(_) => FAILED,
        None => match name {
            errors::INVALID_ARGS => USAGE,
            errors::ACCESS_DENIED | AUTH_REQUIRED | AUTH_FAILED => NOT_PERMITTED,
            _ => FAILED,
        },
    }
}

impl From<zbus::Error> for Failure {
    fn from(error: zbus::Error) -> Self {
        match errors::reply(&error) {
            Some((name, text)) => Self::reply(&name, &text),
            None => Self::failed(format!("the bus: {error}")),
        }
    }
}

impl From<zbus::fdo::Error> for Failure {
    fn from(error: zbus::fdo::Error) -> Self {
        zbus::Error::from(error).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_of_the_contract_has_its_exit_status() {
        for (name, expected) in [
            ("org.ckpt.Error.NoSuchGroup", 3),
            ("org.ckpt.Error.NoSuchCheckpoint", 3),
            ("org.ckpt.Error.NotCheckpointable", 4),
            ("org.ckpt.Error.NotRestorable", 4),
            ("org.ckpt.Error.IncompatibleKernel", 4),
            ("org.ckpt.Error.FileMismatch", 4),
            ("org.ckpt.Error.GroupBusy", 6),
            ("org.ckpt.Error.FreezeTimeout", 1),
            ("org.ckpt.Error.Unsupported", 1),
            ("org.freedesktop.DBus.Error.AccessDenied", 77),
            ("org.freedesktop.DBus.Error.InteractiveAuthorizationRequired", 77),
            ("org.freedesktop.DBus.Error.InvalidArgs", 2),
            ("org.freedesktop.DBus.Error.NoReply", 1),
        ] {
            assert_eq!(Failure::reply(name, "text").status, expected, "{name}");
        }
        assert!(Failure::reply(AUTH_REQUIRED, "").text.contains("root"));
    }
}
