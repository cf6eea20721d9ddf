//! polkit, asked about the *sender of the message*: the bus vouches for who that is (polkit(8), D-Bus specification: sender).

use std::collections::HashMap;

use zbus::Connection;
use zbus::message::{Flags, Header};
use zbus::names::BusName;
use zbus_polkit::policykit1::{AuthorityProxy, CheckAuthorizationFlags, Subject};

use crate::bus::error::BusError;

/// Lets the call pass or answers AccessDenied. The sender's `ALLOW_INTERACTIVE_AUTHORIZATION` flag lets polkit ask the user.
pub async fn authorize(
    connection: &Connection,
    header: &Header<'_>,
    action: &str,
    group: &str,
) -> Result<(), BusError> {
    let subject = Subject::new_for_message_header(header)
        .map_err(|_| BusError::access_denied("the message has no sender".into()))?;
    let mut flags = CheckAuthorizationFlags::empty();
    if header.primary().flags().contains(Flags::ALLOW_INTERACTIVE_AUTH) {
        flags |= CheckAuthorizationFlags::ALLOW_USER_INTERACTION;
    }
    // The rules of an administrator may decide by group: action.lookup("group") (polkit(8)).
    let details = if group.is_empty() { HashMap::new() } else { HashMap::from([("group", group)]) };
    let answer = match AuthorityProxy::new(connection).await {
        Ok(authority) => authority.check_authorization(&subject, action, &details, flags, "").await,
        Err(error) => Err(error),
    };
    match answer {
        Ok(result) if result.is_authorized => Ok(()),
        Ok(result) if result.is_challenge => Err(BusError::access_denied(format!(
            "{action} needs an authentication that could not be asked for; run it as root or where a polkit agent runs"
        ))),
        Ok(_) => Err(BusError::access_denied(format!("{action} is not allowed to you"))),
        Err(error) => without_polkit(connection, header, action, &error).await,
    }
}

/// polkit could not be asked: only root passes.
async fn without_polkit(
    connection: &Connection,
    header: &Header<'_>,
    action: &str,
    error: &zbus::Error,
) -> Result<(), BusError> {
    match uid_of_sender(connection, header).await {
        Some(0) => Ok(()),
        _ => Err(BusError::access_denied(format!("{action}: polkit could not be asked: {error}"))),
    }
}

async fn uid_of_sender(connection: &Connection, header: &Header<'_>) -> Option<u32> {
    let sender = header.sender()?.clone();
    let bus = zbus::fdo::DBusProxy::new(connection).await.ok()?;
    bus.get_connection_unix_user(BusName::Unique(sender)).await.ok()
}
