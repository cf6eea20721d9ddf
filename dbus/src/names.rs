//! Well-known names and object paths.

use zbus::OwnedObjectPath;

/// The bus name.
pub const BUS_NAME: &str = "org.ckpt";
/// Object of Manager1 and ObjectManager.
pub const MANAGER_PATH: &str = "/org/ckpt";
/// Parent of all groups.
pub const GROUP_PREFIX: &str = "/org/ckpt/group/";
/// Parent of all checkpoints.
pub const CHECKPOINT_PREFIX: &str = "/org/ckpt/checkpoint/";
/// Parent of all jobs.
pub const JOB_PREFIX: &str = "/org/ckpt/job/";
/// What a property of type `o` says when there is no such object.
pub const NO_OBJECT: &str = "/";

/// Interfaces in the order in which they are documented.
pub const INTERFACES: [&str; 4] =
    ["org.ckpt.Manager1", "org.ckpt.Group1", "org.ckpt.Checkpoint1", "org.ckpt.Job1"];

/// The polkit actions (org.ckpt.policy).
pub mod actions {
    /// Look at groups and checkpoints.
    pub const INSPECT: &str = "org.ckpt.inspect";
    /// Take, verify, annotate and merge checkpoints; cancel such a job.
    pub const CHECKPOINT: &str = "org.ckpt.checkpoint";
    /// Put a group back.
    pub const RESTORE: &str = "org.ckpt.restore";
    /// Remove checkpoints.
    pub const DELETE: &str = "org.ckpt.delete";
    /// Read images: they hold the memory of the members.
    pub const EXPORT: &str = "org.ckpt.export";
    /// Enable and disable groups.
    pub const MANAGE_GROUPS: &str = "org.ckpt.manage-groups";
    /// All of them.
    pub const ALL: [&str; 6] = [INSPECT, CHECKPOINT, RESTORE, DELETE, EXPORT, MANAGE_GROUPS];
}

/// Escapes text to one element of an object path: ASCII letters and digits stay (a digit not at the front), every other byte
/// is `_` and two hexadecimal digits, nothing is `_`. The same as sd_bus_path_encode(3).
pub fn escape(text: &str) -> String {
    if text.is_empty() {
        return "_".into();
    }
    let mut out = String::with_capacity(text.len());
    for (i, b) in text.bytes().enumerate() {
        if b.is_ascii_alphabetic() || (i > 0 && b.is_ascii_digit()) {
            out.push(b as char);
        } else {
            out.push_str(&format!("_{b:02x}"));
        }
    }
    out
}

/// The text that [`escape`] made an element of; `None` if it did not make it.
pub fn unescape(element: &str) -> Option<String> {
    if element == "_" {
        return Some(String::new());
    }
    let mut out = Vec::with_capacity(element.len());
    let mut bytes = element.bytes();
    while let Some(b) = bytes.next() {
        match b {
            b'_' => {
                let high = (bytes.next()? as char).to_digit(16)?;
                let low = (bytes.next()? as char).to_digit(16)?;
                out.push((high * 16 + low) as u8);
            }
            b if b.is_ascii_alphanumeric() => out.push(b),
            _ => return None,
        }
    }
    String::from_utf8(out).ok()
}

fn path(prefix: &str, element: &str) -> OwnedObjectPath {
    // An escaped element and a prefix of ours make a valid path whatever the text was.
    OwnedObjectPath::try_from(format!("{prefix}{element}")).unwrap_or_default()
}

/// The object of a group.
pub fn group_path(group: &str) -> OwnedObjectPath {
    path(GROUP_PREFIX, &escape(group))
}

/// The object of a checkpoint. A ULID begins with a digit and is one valid element of a path as it is.
pub fn checkpoint_path(id: &str) -> OwnedObjectPath {
    if !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric()) {
        path(CHECKPOINT_PREFIX, id)
    } else {
        path(CHECKPOINT_PREFIX, &escape(id))
    }
}

/// The object of a job.
pub fn job_path(number: u32) -> OwnedObjectPath {
    path(JOB_PREFIX, &number.to_string())
}

/// `/`: no object.
pub fn no_object() -> OwnedObjectPath {
    path(NO_OBJECT, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaping_is_sd_bus_path_encode() {
        for (text, escaped) in [
            ("", "_"),
            ("web", "web"),
            ("9p", "_39p"),
            ("postgresql@15-main", "postgresql_4015_2dmain"),
            ("a_b", "a_5fb"),
            ("ü", "_c3_bc"),
        ] {
            assert_eq!(escape(text), escaped);
            assert_eq!(unescape(escaped).as_deref(), Some(text));
        }
        assert_eq!(unescape("a_4"), None);
        assert_eq!(unescape("a-b"), None);
    }

    #[test]
    fn every_name_has_a_path() {
        assert_eq!(group_path("x y/..").as_str(), "/org/ckpt/group/x_20y_2f_2e_2e");
        assert_eq!(
            checkpoint_path("01ARZ3NDEKTSV4RRFFQ69G5FAV").as_str(),
            "/org/ckpt/checkpoint/01ARZ3NDEKTSV4RRFFQ69G5FAV"
        );
        assert_eq!(job_path(7).as_str(), "/org/ckpt/job/7");
        assert_eq!(no_object().as_str(), "/");
    }
}
