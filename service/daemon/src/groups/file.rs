//! Writes and removes groups.d/NAME.toml.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ckpt_engine::{Error, Group};

/// groups.d/NAME.toml.
pub fn path(dir: &Path, group: &str) -> PathBuf {
    dir.join(format!("{group}.toml"))
}

/// Writes the group's file: whole or not at all.
pub fn write(dir: &Path, group: &Group) -> Result<(), Error> {
    let text = toml::to_string_pretty(&group.config)
        .map_err(|e| Error::Failed(format!("the configuration of {}: {e}", group.name)))?;
    fs::create_dir_all(dir).map_err(|e| Error::io(format!("create {}", dir.display()), e))?;
    let text = format!("# Written by `ckptctl enable`; see ckpt-group(5).\n{text}");
    replace(&path(dir, &group.name), text.as_bytes())
}

/// Removes the group's file; it may be gone already.
pub fn remove(dir: &Path, group: &str) -> Result<(), Error> {
    let path = path(dir, group);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io(format!("remove {}", path.display()), e)),
        _ => sync_dir(dir),
    }
}

/// Writes a file by renaming a finished one into its place: a reader sees the old text or the new one.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.new"));
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(&temporary)
        .and_then(|mut file| {
            // The daemon's umask is that of its images; these files are for everybody to read.
            file.set_permissions(fs::Permissions::from_mode(0o644))?;
            file.write_all(bytes).and_then(|()| file.sync_all())
        })
        .and_then(|()| fs::rename(&temporary, path));
    if let Err(e) = written {
        let _ = fs::remove_file(&temporary);
        return Err(Error::io(format!("write {}", path.display()), e));
    }
    path.parent().map_or(Ok(()), sync_dir)
}

fn sync_dir(dir: &Path) -> Result<(), Error> {
    match File::open(dir).and_then(|d| d.sync_all()) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io(format!("sync {}", dir.display()), e)),
        _ => Ok(()),
    }
}
