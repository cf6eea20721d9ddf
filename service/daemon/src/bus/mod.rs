//! The interface `org.ckpt` (org.ckpt(5)): one interface a file. A method is four lines: authorize, parse, ask the service, map the result.

mod checkpoint;
pub mod error;
mod group;
pub mod introspect;
pub mod job;
pub mod manager;
pub mod options;
pub mod rows;

use std::sync::Arc;

use ckpt_dbus::names::{BUS_NAME, MANAGER_PATH};
use zbus::Connection;
use zbus::connection::Builder;
use zbus::fdo::ObjectManager;

use crate::service::Service;
use error::BusError;

pub use checkpoint::CheckpointObject;
pub use group::GroupObject;
pub use job::JobObject;
pub use manager::ManagerObject;

/// Makes the daemon's connection.
///
/// The object manager is there from the first message on: zbus answers calls from a task of its own, and only where a connection is
/// built with an object does it wait until that task listens. A call that had started us, and came before, would never be answered.
pub async fn connect(builder: Builder<'_>) -> zbus::Result<Connection> {
    builder.serve_at(MANAGER_PATH, ObjectManager).build().await
}

/// Serves the objects on a connection; `stored` as in [`Service::start_up`]. The name comes after: see [`take_name`].
pub async fn serve(
    service: &Arc<Service>,
    connection: &Connection,
    stored: Vec<String>,
) -> Result<(), BusError> {
    service.connect(connection.clone());
    let server = connection.object_server();
    server.at(MANAGER_PATH, ManagerObject::new(Arc::clone(service))).await?;
    service.start_up(stored).await?;
    Ok(())
}

/// Takes the name `org.ckpt`; from here on calls come.
pub async fn take_name(connection: &Connection) -> zbus::Result<()> {
    connection.request_name(BUS_NAME).await
}
