//! `/etc/ckpt/groups.d/NAME.toml` (ckpt-group(5)) and the settings of the daemon that the engine needs.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// One group's configuration. Unknown keys are errors.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GroupConfig {
    /// The slice whose services are the group; excludes `units`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slice: Option<String>,
    /// The units that are the group; excludes `slice`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub units: Vec<String>,
    /// Subvolumes snapshotted together, absolute paths.
    pub subvolumes: Vec<PathBuf>,
    /// How memory is captured.
    pub capture: CaptureConfig,
    /// What happens to sockets.
    pub sockets: SocketsConfig,
    /// What is kept.
    pub retention: RetentionConfig,
    /// Automatic restores.
    pub restore: RestoreConfig,
}

/// `[capture]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CaptureConfig {
    /// auto, wp-async, soft-dirty, write-protect, none.
    pub tracker: TrackerChoice,
    /// Incrementals before the next full or a merge.
    pub max_chain: u32,
    /// Longest freeze window: past it the group is thawed and the checkpoint fails.
    #[serde(with = "humantime_serde")]
    pub max_freeze: Duration,
    /// Compression of pages.
    pub compress: Compress,
}

impl Default for CaptureConfig {
    fn default() -> Self {
        Self {
            tracker: TrackerChoice::Auto,
            max_chain: 32,
            max_freeze: Duration::from_millis(500),
            compress: Compress::None,
        }
    }
}

/// Which tracker a group asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum TrackerChoice {
    Auto,
    WpAsync,
    SoftDirty,
    WriteProtect,
    None,
}

/// Compression of pages in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum Compress {
    None,
    Lz4,
    Zstd,
}

impl Compress {
    /// What the image calls it.
    pub fn codec(self) -> Option<ckpt_image::Codec> {
        match self {
            Compress::None => None,
            Compress::Lz4 => Some(ckpt_image::Codec::Lz4),
            Compress::Zstd => Some(ckpt_image::Codec::Zstd),
        }
    }
}

/// `[sockets]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SocketsConfig {
    /// Established connections to outside the group.
    pub tcp: TcpChoice,
}

impl Default for SocketsConfig {
    fn default() -> Self {
        Self { tcp: TcpChoice::Close }
    }
}

/// What becomes of TCP connections to outside the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TcpChoice {
    /// A reset to the application at the restore.
    Close,
    /// TCP_REPAIR: the connection goes on.
    Repair,
}

/// `[retention]`: how many are kept by each rule (see `retention`). Nothing set: nothing is pruned.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionConfig {
    /// The newest checkpoints.
    pub keep_last: u32,
    /// The newest of each of so many hours that have one.
    pub keep_hourly: u32,
    /// The newest of each of so many days.
    pub keep_daily: u32,
    /// The newest of each of so many weeks (ISO 8601: from Monday).
    pub keep_weekly: u32,
    /// The newest of each of so many months.
    pub keep_monthly: u32,
    /// The newest of each of so many years.
    pub keep_yearly: u32,
    /// The newest of the snapshots that restores put aside; `None`: 3 if another rule is set, else all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_undo: Option<u32>,
}

/// `[restore]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RestoreConfig {
    /// Write `OnFailure=ckpt-restore@NAME.service` into the units' drop-ins.
    pub on_failure: bool,
}

impl GroupConfig {
    /// Parses a group file. Errors carry file, line and column.
    pub fn parse(file: &str, text: &str) -> Result<Self, Error> {
        let config: Self = toml::from_str(text).map_err(|e| {
            let (line, column) = e.span().map_or((1, 1), |s| position(text, s.start));
            Error::InvalidArgs(format!("{file}:{line}:{column}: {}", e.message().replace('\n', " ")))
        })?;
        config.validate().map_err(|why| Error::InvalidArgs(format!("{file}: {why}")))?;
        Ok(config)
    }

    fn validate(&self) -> Result<(), String> {
        match (&self.slice, self.units.is_empty()) {
            (None, true) => return Err("names neither `slice` nor `units`; a group needs one of them".into()),
            (Some(_), false) => {
                return Err("names both `slice` and `units`; a group is one or the other".into());
            }
            (Some(s), true) if !s.ends_with(".slice") => {
                return Err(format!("slice = \"{s}\" does not end in .slice"));
            }
            _ => {}
        }
        if let Some(unit) = self.units.iter().find(|u| !u.ends_with(".service")) {
            return Err(format!(
                "unit \"{unit}\" does not end in .service; only services can be members of a group"
            ));
        }
        if let Some(path) = self.subvolumes.iter().find(|p| !p.is_absolute()) {
            return Err(format!("subvolume \"{}\" is not an absolute path", path.display()));
        }
        if self.capture.max_freeze.is_zero() {
            return Err("capture.max_freeze is zero; nothing can be captured in no time".into());
        }
        Ok(())
    }
}

/// Line and column, from 1, of a byte offset.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = &text[..offset.min(text.len())];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |l| l.chars().count()) + 1;
    (line, column)
}

/// The daemon's settings that the engine needs (ckptd.toml, ckptd(8)).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Where images are kept.
    pub store: PathBuf,
    /// Where snapshots are kept, relative to the top directory of the mount of their file system.
    pub snapshots: PathBuf,
    /// Directory of ckpt-restore, ckpt-stub and the preload library.
    pub libdir: PathBuf,
    /// Run-time state: what is frozen now.
    pub run: PathBuf,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            store: "/var/lib/ckpt".into(),
            snapshots: ".ckpt".into(),
            libdir: "/usr/lib/ckpt".into(),
            run: "/run/ckpt".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_contract_parses() {
        let text = r#"
slice = "web.slice"
subvolumes = ["/srv/web"]
[capture]
tracker = "auto"
max_chain = 32
max_freeze = "500ms"
compress = "none"
[sockets]
tcp = "close"
[retention]
keep_last = 10
keep_hourly = 24
keep_daily = 7
[restore]
on_failure = false
"#;
        let config = GroupConfig::parse("web.toml", text).unwrap();
        assert_eq!(config.slice.as_deref(), Some("web.slice"));
        assert_eq!(config.capture, CaptureConfig::default());
    }

    #[test]
    fn errors_say_file_line_and_column() {
        let error = GroupConfig::parse("web.toml", "slice = \"web.slice\"\n[capture]\n  trackr = \"auto\"\n")
            .unwrap_err();
        assert!(error.to_string().starts_with("web.toml:3:3: "), "{error}");
        let error =
            GroupConfig::parse("web.toml", "slice = \"web.slice\"\n[capture]\nmax_freeze = \"soon\"\n")
                .unwrap_err();
        assert!(error.to_string().starts_with("web.toml:3:14: "), "{error}");
    }
}
