//! The error names of the contract.

/// What every name of ours begins with.
pub const PREFIX: &str = "org.ckpt.Error.";
/// Wrong type, unknown option, bad value.
pub const INVALID_ARGS: &str = "org.freedesktop.DBus.Error.InvalidArgs";
/// polkit says no.
pub const ACCESS_DENIED: &str = "org.freedesktop.DBus.Error.AccessDenied";

/// The last parts of all errors of ours. `Failed` is for what has no name: an input or output error of the host.
pub const NAMES: [&str; 16] = [
    "NoSuchGroup",
    "NoSuchCheckpoint",
    "GroupBusy",
    "NotCheckpointable",
    "NotRestorable",
    "FreezeTimeout",
    "SnapshotFailed",
    "NoSpace",
    "Corrupt",
    "IncompatibleKernel",
    "FileMismatch",
    "HookFailed",
    "Canceled",
    "Exists",
    "Unsupported",
    "Failed",
];

/// The error name on the bus of an error of the engine, given by the last part of its name.
pub fn full_name(name: &str) -> String {
    match name {
        "InvalidArgs" => INVALID_ARGS.into(),
        "AccessDenied" => ACCESS_DENIED.into(),
        name => format!("{PREFIX}{name}"),
    }
}

/// The D-Bus error name and text of a failed call; `None` if it failed for another reason than an error reply.
pub fn reply(error: &zbus::Error) -> Option<(String, String)> {
    match error {
        zbus::Error::MethodError(name, text, _) => Some((name.to_string(), text.clone().unwrap_or_default())),
        zbus::Error::FDO(fdo) => {
            use zbus::DBusError;
            Some((fdo.name().to_string(), fdo.description().unwrap_or_default().to_owned()))
        }
        _ => None,
    }
}
