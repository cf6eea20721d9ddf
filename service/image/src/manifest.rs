use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use ulid::Ulid;

use crate::frame::{create, read_bounded};
use crate::{ImageError, Result};

/// Its name in the checkpoint's directory.
pub const MANIFEST_FILE: &str = "manifest.json";

/// The version that this program writes, and the newest that it reads.
pub const MANIFEST_VERSION: u32 = 1;

/// Manifests are small; more is hostile.
const LIMIT: u64 = 16 << 20;

/// The record whose rename commits a checkpoint. The JSON has at least what `ckptctl list --json` shows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Format version; looked at before anything else is decoded.
    pub version: u32,
    /// The checkpoint's id; never used again.
    pub id: Ulid,
    /// The group's name.
    pub group: String,
    /// Full or incremental.
    pub kind: Kind,
    /// What an incremental rests on.
    pub parent: Option<Ulid>,
    /// The instant it shows, RFC 3339.
    pub created: jiff::Timestamp,
    /// Freeze window, microseconds.
    pub freeze_usec: u64,
    /// Processes, zombies included.
    pub processes: u64,
    /// Threads.
    pub threads: u64,
    /// Pages whose content is in `pages`.
    pub pages_written: u64,
    /// Bytes of all files of the checkpoint.
    pub image_bytes: u64,
    /// The paired snapshots.
    pub snapshots: Vec<SnapshotEntry>,
    /// Durable once it is committed.
    pub state: CheckpointState,
    /// What told which pages were written.
    pub tracker: Tracker,
    /// The user's words.
    #[serde(default)]
    pub description: String,
    /// The user's tags.
    #[serde(default)]
    pub tags: Vec<String>,
    /// The units, in the order of `UnitIndex`.
    pub units: Vec<UnitEntry>,
    /// The files of the checkpoint by their name in its directory, this one excepted.
    pub files: BTreeMap<String, Digest>,
    /// uname(2) release of the kernel that ran.
    pub kernel: String,
}

/// Whether a checkpoint stands alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It stands alone.
    Full,
    /// It holds what was written since its parent.
    Incremental,
}

/// How far a checkpoint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckpointState {
    /// The group runs on, the image is still being written. Never in a committed manifest.
    Captured,
    /// Committed.
    Durable,
}

/// What knows which pages were written since the parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tracker {
    /// userfaultfd write-protect async + PAGEMAP_SCAN (Linux 6.7).
    WpAsync,
    /// /proc/PID/clear_refs.
    SoftDirty,
    /// Write protection in user space.
    WriteProtect,
    /// Nothing: content is compared, or every page is stored.
    None,
}

/// One btrfs snapshot that belongs to the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotEntry {
    /// The subvolume it is of, as the group's configuration names it.
    pub subvolume: PathBuf,
    /// Where it lies.
    pub path: PathBuf,
    /// UUID of the snapshot subvolume.
    pub uuid: String,
    /// UUID of the subvolume it was taken of.
    pub subvolume_uuid: String,
    /// UUID of the file system.
    pub fs_uuid: String,
    /// Generation of the subvolume at the snapshot.
    pub generation: u64,
}

/// One unit of the group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitEntry {
    /// Its name with its suffix.
    pub name: String,
    /// Its Main PID, `None` where it had none.
    pub main_pid: Option<i32>,
}

/// Size and content of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// Size in bytes.
    pub bytes: u64,
    /// BLAKE3 of all its bytes in hex; `None` for `pages`, whose blocks have checksums in the index.
    #[serde(default)]
    pub blake3: Option<String>,
}

impl Manifest {
    /// Writes the manifest under a temporary name, fsyncs it, renames it and fsyncs the directory: with that the checkpoint exists.
    /// Also replaces a manifest that is there (new description or tags). The other files must have been fsynced before.
    ///
    /// Errors: Io, Encode. After an error of the last fsync the manifest may or may not be there after a crash.
    pub fn commit(&self, dir: &Path) -> Result<()> {
        let path = dir.join(MANIFEST_FILE);
        let tmp = dir.join("manifest.json.tmp");
        let mut text = serde_json::to_vec_pretty(self)
            .map_err(|e| ImageError::Encode { path: path.clone(), what: e.to_string() })?;
        text.push(b'\n');
        match std::fs::remove_file(&tmp) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(ImageError::io("remove", &tmp)(e));
            }
            _ => {}
        }
        let mut file = create(&tmp)?;
        file.write_all(&text).map_err(ImageError::io("write", &tmp))?;
        file.sync_all().map_err(ImageError::io("fsync", &tmp))?;
        let open = File::open(dir).map_err(ImageError::io("open", dir))?;
        open.sync_all().map_err(ImageError::io("fsync", dir))?;
        std::fs::rename(&tmp, &path).map_err(ImageError::io("rename", &tmp))?;
        open.sync_all().map_err(ImageError::io("fsync", dir))
    }

    /// Reads the manifest of a checkpoint's directory: its version first.
    ///
    /// Errors: Io (ENOENT: there is no checkpoint), TooLarge, Version, Corrupt.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(MANIFEST_FILE);
        Self::decode(&path, &read_bounded(&path, LIMIT)?)
    }

    /// The manifest in a text that lies in no directory. Errors: TooLarge, Version, Corrupt.
    pub fn parse(text: &[u8]) -> Result<Self> {
        let path = Path::new(MANIFEST_FILE);
        match text.len() as u64 > LIMIT {
            true => Err(ImageError::TooLarge { path: path.into(), found: text.len() as u64, limit: LIMIT }),
            false => Self::decode(path, text),
        }
    }

    fn decode(path: &Path, text: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let json = |e: serde_json::Error| ImageError::corrupt(path, e.to_string());
        let Version { version } = serde_json::from_slice(text).map_err(json)?;
        if version == 0 || version > MANIFEST_VERSION {
            return Err(ImageError::Version {
                path: path.to_path_buf(),
                found: version,
                supported: MANIFEST_VERSION,
            });
        }
        let manifest: Self = serde_json::from_slice(text).map_err(json)?;
        if (manifest.kind == Kind::Incremental) != manifest.parent.is_some() {
            return Err(ImageError::corrupt(path, "an incremental has a parent, a full has none"));
        }
        Ok(manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Manifest {
        Manifest {
            version: MANIFEST_VERSION,
            id: Ulid::new(),
            group: "web".into(),
            kind: Kind::Full,
            parent: None,
            created: "2026-01-02T03:04:05.123456Z".parse().unwrap(),
            freeze_usec: 4321,
            processes: 7,
            threads: 19,
            pages_written: 1000,
            image_bytes: 5_000_000,
            snapshots: vec![SnapshotEntry {
                subvolume: "/srv/web".into(),
                path: "/srv/.ckpt/web/x".into(),
                uuid: "u".into(),
                subvolume_uuid: "s".into(),
                fs_uuid: "f".into(),
                generation: 12,
            }],
            state: CheckpointState::Durable,
            tracker: Tracker::WpAsync,
            description: String::new(),
            tags: vec!["a".into()],
            units: vec![UnitEntry { name: "web.service".into(), main_pid: Some(12) }],
            files: [("state".to_string(), Digest { bytes: 3, blake3: None })].into(),
            kernel: "6.18".into(),
        }
    }

    /// The fields that `ckptctl list --json` promises.
    #[test]
    fn the_json_has_the_promised_fields() {
        let json = serde_json::to_value(sample()).unwrap();
        assert_eq!(json["kind"], "full");
        assert_eq!(json["parent"], serde_json::Value::Null);
        assert_eq!(json["created"], "2026-01-02T03:04:05.123456Z");
        assert_eq!(json["state"], "durable");
        assert_eq!(json["tracker"], "wp-async");
        assert_eq!(json["snapshots"][0]["subvolume"], "/srv/web");
        for key in ["id", "group", "freeze_usec", "processes", "threads", "pages_written", "image_bytes"] {
            assert!(!json[key].is_null(), "{key}");
        }
    }

    #[test]
    fn commit_makes_it_readable_and_can_be_repeated() {
        let dir = crate::tests::temp_dir("manifest");
        assert!(Manifest::read(&dir).is_err());
        let mut manifest = sample();
        manifest.commit(&dir).unwrap();
        assert_eq!(Manifest::read(&dir).unwrap(), manifest);
        manifest.description = "before the upgrade".into();
        std::fs::write(dir.join("manifest.json.tmp"), "left by a crash").unwrap();
        manifest.commit(&dir).unwrap();
        assert_eq!(Manifest::read(&dir).unwrap(), manifest);
    }

    #[test]
    fn the_version_is_looked_at_first() {
        let newer = br#"{"version": 9, "unknown": []}"#;
        let error = Manifest::decode(Path::new("m"), newer).unwrap_err();
        assert!(matches!(error, ImageError::Version { found: 9, .. }));
        let mut orphan = sample();
        orphan.kind = Kind::Incremental;
        assert!(Manifest::decode(Path::new("m"), &serde_json::to_vec(&orphan).unwrap()).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in ".{0,200}") {
            prop_assert!(Manifest::decode(Path::new("m"), text.as_bytes()).is_err());
        }
    }
}
