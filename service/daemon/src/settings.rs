//! ckptd.toml (ckptd(8)): the shipped defaults, `/etc/ckpt/ckptd.toml` and `/etc/ckpt/ckptd.toml.d/*.toml`, later ones win key by key.

use std::path::{Path, PathBuf};

use ckpt_engine::config::Settings;

/// Why the settings could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file is there and cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not TOML, or a key or value in it is wrong.
    #[error("{0}")]
    Parse(String),
}

/// The files in the order in which they apply: `lib/ckptd.toml`, `etc/ckptd.toml`, `etc/ckptd.toml.d/*.toml` by name. Those that are not there are left out.
pub fn files(lib: &Path, etc: &Path) -> Vec<PathBuf> {
    let mut files = vec![lib.join("ckptd.toml"), etc.join("ckptd.toml")];
    let mut extra: Vec<_> = std::fs::read_dir(etc.join("ckptd.toml.d"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "toml"))
        .collect();
    extra.sort();
    files.append(&mut extra);
    files.retain(|p| p.exists());
    files
}

/// Reads [`files`] and merges them. A file that is wrong is left out, and told: a daemon that does not start protects nothing.
pub fn load(lib: &Path, etc: &Path) -> (Settings, Vec<Error>) {
    let mut texts = Vec::new();
    let mut errors = Vec::new();
    for path in files(lib, etc) {
        match std::fs::read_to_string(&path) {
            Ok(text) => texts.push((path.display().to_string(), text)),
            Err(source) => errors.push(Error::Read { path, source }),
        }
    }
    let (settings, mut more) = merge(&texts);
    errors.append(&mut more);
    (settings, errors)
}

/// Merges texts of files, given with their names, later ones over earlier ones.
pub fn merge(texts: &[(String, String)]) -> (Settings, Vec<Error>) {
    let mut all = toml::Table::new();
    let mut errors = Vec::new();
    for (name, text) in texts {
        // Each file is checked on its own, so that an error names its place in it.
        match toml::from_str::<Settings>(text).and_then(|_| toml::from_str::<toml::Table>(text)) {
            Ok(table) => all.extend(table),
            Err(error) => errors.push(Error::Parse(place(name, text, &error))),
        }
    }
    let settings = toml::Value::Table(all).try_into().unwrap_or_default();
    (settings, errors)
}

fn place(name: &str, text: &str, error: &toml::de::Error) -> String {
    let before = &text[..error.span().map_or(0, |s| s.start).min(text.len())];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |l| l.chars().count()) + 1;
    format!("{name}:{line}:{column}: {}", error.message().replace('\n', " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(name: &str, text: &str) -> (String, String) {
        (name.into(), text.into())
    }

    #[test]
    fn later_files_win_key_by_key() {
        let (settings, errors) = merge(&[
            text("a", "store = \"/a\"\nsnapshots = \".snap\"\n"),
            text("b", "store = \"/b\"\n"),
            text("c", ""),
        ]);
        assert!(errors.is_empty());
        assert_eq!(settings.store, Path::new("/b"));
        assert_eq!(settings.snapshots, Path::new(".snap"));
        assert_eq!(settings.libdir, Settings::default().libdir);
    }

    #[test]
    fn a_wrong_file_is_told_with_its_place_and_left_out() {
        let (settings, errors) =
            merge(&[text("a", "store = \"/a\"\n"), text("b.toml", "store = \"/b\"\n stor = 1\n")]);
        assert_eq!(settings.store, Path::new("/a"));
        assert!(errors[0].to_string().starts_with("b.toml:2:2: unknown field"), "{}", errors[0]);
    }

    #[test]
    fn the_shipped_defaults_are_the_built_in_ones() {
        let (settings, errors) = merge(&[text("ckptd.toml", include_str!("../ckptd.toml"))]);
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!(settings, Settings::default());
    }
}
