//! Errors as replies: `org.ckpt.Error.*` and the two of freedesktop.org that the contract names.

use ckpt_dbus::errors::{ACCESS_DENIED, INVALID_ARGS, full_name};
use zbus::message::{Header, Message};
use zbus::names::ErrorName;

/// A failed call: what the caller reads.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct BusError {
    /// D-Bus error name.
    pub name: String,
    /// One line: what, on which object, why, what to do.
    pub text: String,
}

impl BusError {
    /// AccessDenied.
    pub fn access_denied(text: String) -> Self {
        Self { name: ACCESS_DENIED.into(), text }
    }

    /// InvalidArgs.
    pub fn invalid(text: String) -> Self {
        Self { name: INVALID_ARGS.into(), text }
    }
}

impl From<ckpt_engine::Error> for BusError {
    fn from(error: ckpt_engine::Error) -> Self {
        Self { name: full_name(error.name()), text: error.to_string() }
    }
}

impl From<zbus::Error> for BusError {
    fn from(error: zbus::Error) -> Self {
        Self { name: full_name("Failed"), text: error.to_string() }
    }
}

impl From<zbus::fdo::Error> for BusError {
    fn from(error: zbus::fdo::Error) -> Self {
        use zbus::DBusError;
        Self { name: error.name().to_string(), text: error.description().unwrap_or_default().into() }
    }
}

impl zbus::DBusError for BusError {
    fn create_reply(&self, call: &Header<'_>) -> zbus::Result<Message> {
        Message::error(call, self.name()).build(&(self.text.as_str(),))
    }

    fn name(&self) -> ErrorName<'_> {
        ErrorName::try_from(self.name.as_str())
            .unwrap_or_else(|_| ErrorName::from_static_str_unchecked("org.ckpt.Error.Failed"))
    }

    fn description(&self) -> Option<&str> {
        Some(&self.text)
    }
}
