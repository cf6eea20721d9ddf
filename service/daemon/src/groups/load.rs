//! Reads groups.d.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ckpt_engine::config::GroupConfig;

use super::names;

/// A file of groups.d that is no group.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct Error {
    /// The file.
    pub file: PathBuf,
    /// The group that it would be.
    pub group: String,
    /// What is wrong, with file, line and column.
    pub text: String,
}

/// All groups of the directory, and what is wrong with the files that are none. A directory that is not there is empty.
pub fn all(dir: &Path) -> (BTreeMap<String, GroupConfig>, Vec<Error>) {
    let (mut groups, mut errors) = (BTreeMap::new(), Vec::new());
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut files: Vec<_> = entries.map(|e| e.path()).collect();
    files.retain(|p| p.extension().is_some_and(|e| e == "toml"));
    files.sort();
    for file in files {
        let group = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        match one(&file, &group) {
            Ok(config) => drop(groups.insert(group, config)),
            Err(text) => errors.push(Error { file, group, text }),
        }
    }
    (groups, errors)
}

/// What is wrong with the file of this group, if there is one and it is.
pub fn wrong(dir: &Path, group: &str) -> Option<String> {
    let file = super::file::path(dir, group);
    if !names::valid(group) || !file.exists() {
        return None;
    }
    one(&file, group).err()
}

fn one(file: &Path, group: &str) -> Result<GroupConfig, String> {
    if !names::valid(group) {
        return Err(format!("{}: `{group}` cannot be the name of a group", file.display()));
    }
    let text = std::fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
    GroupConfig::parse(&file.display().to_string(), &text).map_err(|e| e.to_string())
}
