//! The library for units that start before ckptd has seen them: what systemd's generator (systemd.generator(7)) writes.
//!
//! ```text
//!  systemd reads its unit files (at boot, daemon-reload)
//!    └ ckpt-generator DIR …  ─►  ckptd --generate DIR
//!        groups.d/NAME.toml, unit files and their drop-ins  ─►  DIR/UNIT.d/50-ckpt.conf
//! ```
//! It cannot ask systemd anything, which waits for it: unit files are read here, as far as slice and environment go. What it writes has the
//! name of ckptd's own drop-in, so that the latter, which knows more, hides it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use ckpt_engine::{Error, Group};

use super::{dropin, list};

/// Where unit files lie, the first that has a name wins (systemd.unit(5)).
const PLACES: [&str; 6] = [
    "/run/systemd/system.control",
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// Where others make unit files while systemd runs; the rest of what systemd.unit(5) lists.
const MADE_PLACES: [&str; 7] = [
    "/run/systemd/transient",
    "/run/systemd/generator.early",
    "/etc/systemd/system.attached",
    "/run/systemd/system.attached",
    "/run/systemd/generator",
    "/run/systemd/generator.late",
    "/etc/systemd/system.control",
];

/// The units that systemd would load, by name, and their drop-in directories.
#[derive(Debug, Default)]
struct Shelf {
    places: Vec<PathBuf>,
    /// Services and templates, by name, with their file.
    units: BTreeMap<String, PathBuf>,
}

/// What of a unit's text matters.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Said {
    slice: String,
    preload: Option<String>,
}

/// Writes the drop-ins of all members of the groups that have unit files now, also of templates. A list of units is taken by its names.
pub fn write(groups: &[Group], library: &Path, into: &Path) -> Result<(), Error> {
    let places: Vec<_> = PLACES.iter().map(PathBuf::from).collect();
    write_from(groups, library, into, Shelf::look(places))
}

/// Services with a unit file that may be in this slice or one below it, as far as files alone tell: systemd is to be asked about these, not
/// for all unit files, which costs it half a second. `None` where files do not tell: services that name no slice may be in it.
pub fn candidates(slice: &str) -> Option<Vec<String>> {
    let places = PLACES.iter().chain(&MADE_PLACES).map(PathBuf::from).collect();
    candidates_from(slice, &Shelf::look(places))
}

fn candidates_from(slice: &str, shelf: &Shelf) -> Option<Vec<String>> {
    let stem = slice.trim_end_matches(".slice");
    if stem == "-" || stem == "system" || stem.starts_with("system-") {
        return None;
    }
    let may_be = |name: &&String| {
        let said = shelf.read(name).filter(|said| !said.slice.is_empty() && !said.slice.contains('%'));
        said.is_none_or(|said| list::is_below(&said.slice, slice))
    };
    Some(shelf.units.keys().filter(|name| !name.contains("@.")).filter(may_be).cloned().collect())
}

fn write_from(groups: &[Group], library: &Path, into: &Path, shelf: Shelf) -> Result<(), Error> {
    let mut names: BTreeSet<String> = shelf.units.keys().cloned().collect();
    names.extend(shelf.instances());
    for name in names.iter().filter(|name| *name != "ckptd.service") {
        let Some(said) = shelf.read(name) else { continue };
        let Some(group) = groups.iter().find(|g| has(g, name, &said.slice)) else { continue };
        let environment: Vec<_> = said.preload.iter().map(|p| format!("LD_PRELOAD={p}")).collect();
        dropin::write(into, name, dropin::ENABLED, &dropin::enabled(group, library, &environment))?;
    }
    Ok(())
}

/// Whether a service of this name in this slice is of the group.
fn has(group: &Group, name: &str, slice: &str) -> bool {
    match &group.config.slice {
        None => group.config.units.iter().any(|unit| unit == name),
        Some(own) => {
            let stem = own.trim_end_matches(".slice");
            // The root slice holds systemd's own services, too.
            stem != "-"
                && (slice == own || slice.strip_prefix(stem).is_some_and(|rest| rest.starts_with('-')))
        }
    }
}

impl Shelf {
    fn look(places: Vec<PathBuf>) -> Self {
        let mut units = BTreeMap::new();
        for place in &places {
            for (name, path) in entries(place) {
                if name.ends_with(".service") {
                    units.entry(name).or_insert(path);
                }
            }
        }
        // Another name of a unit has its drop-ins under the unit's own name; a masked unit does not start.
        units.retain(|name, path| {
            std::fs::read_link(&*path).is_ok_and(|to| to.file_name() == Some(name.as_ref()))
                || !path.is_symlink()
        });
        Self { places, units }
    }

    /// Instances of templates that have drop-ins of their own, which may put them into another slice.
    fn instances(&self) -> impl Iterator<Item = String> {
        let names = self.places.iter().flat_map(|place| entries(place)).map(|(name, _)| name);
        names.filter_map(|name| {
            let unit = name.strip_suffix(".d")?;
            let template = template_of(unit)?;
            self.units.contains_key(&template).then(|| unit.to_owned())
        })
    }

    /// Reads a unit with its drop-ins. `None`: it cannot be read.
    fn read(&self, name: &str) -> Option<Said> {
        let file = self.units.get(name).or_else(|| self.units.get(&template_of(name)?))?;
        let mut said = Said { slice: default_slice(name), preload: None };
        said.take(&std::fs::read_to_string(file).ok()?);
        for file in self.drop_ins(name).into_values() {
            // One that is masked is empty.
            said.take(&std::fs::read_to_string(file).unwrap_or_default());
        }
        Some(said)
    }

    /// By name, which is their order; of equal names the most special wins.
    fn drop_ins(&self, name: &str) -> BTreeMap<String, PathBuf> {
        let mut found = BTreeMap::new();
        for directory in drop_in_directories(name) {
            for place in &self.places {
                for (name, path) in entries(&place.join(&directory)) {
                    if name.ends_with(".conf") && name != dropin::ENABLED {
                        found.entry(name).or_insert(path);
                    }
                }
            }
        }
        found
    }
}

impl Said {
    /// Later settings win (systemd.syntax(7)).
    fn take(&mut self, text: &str) {
        let mut section = "";
        for line in text.replace("\\\n", " ").lines().map(str::trim) {
            if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
                section = if name == "Service" { "Service" } else { "" };
                continue;
            }
            let Some((key, value)) = line.split_once('=').filter(|_| section == "Service") else { continue };
            match (key.trim(), value.trim()) {
                ("Slice", value) => self.slice = value.to_owned(),
                ("Environment", "") => self.preload = None,
                ("Environment", value) => {
                    let words = words(value);
                    let last = words.iter().rev().find_map(|word| word.strip_prefix("LD_PRELOAD="));
                    self.preload = last.map(str::to_owned).or(self.preload.take());
                }
                _ => {}
            }
        }
    }
}

/// Splits at spaces, but not within quotes.
fn words(value: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', _) => word.extend(chars.next()),
            (c, Some(q)) if c == q => quote = None,
            ('"' | '\'', None) => quote = Some(c),
            (' ' | '\t', None) => words.push(std::mem::take(&mut word)),
            (c, _) => word.push(c),
        }
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    words
}

/// The template of an instance: `a@.service` of `a@b.service`.
fn template_of(name: &str) -> Option<String> {
    let (prefix, rest) = name.split_once('@')?;
    let instance = rest.strip_suffix(".service").filter(|instance| !instance.is_empty())?;
    (!instance.contains('/')).then(|| format!("{prefix}@.service"))
}

/// The slice of a service that names none: one of its own for the instances of a template (systemd.service(5)).
fn default_slice(name: &str) -> String {
    match name.split_once('@') {
        Some((prefix, _)) => format!("system-{}.slice", prefix.replace('-', "\\x2d")),
        None => "system.slice".to_owned(),
    }
}

/// The most special first: its own, its template's, those of the prefixes that end in a dash, that of all services.
fn drop_in_directories(name: &str) -> Vec<String> {
    let mut directories = vec![format!("{name}.d")];
    directories.extend(template_of(name).map(|template| format!("{template}.d")));
    let stem = name.strip_suffix(".service").unwrap_or(name);
    let stem = stem.split_once('@').map_or(stem, |(prefix, _)| prefix);
    let dashes: Vec<_> = stem.match_indices('-').map(|(at, _)| at).collect();
    for at in dashes.into_iter().rev() {
        directories.push(format!("{}-.service.d", &stem[..at]));
    }
    directories.push("service.d".to_owned());
    directories
}

fn entries(directory: &Path) -> Vec<(String, PathBuf)> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut entries: Vec<_> =
        entries.filter_map(|e| Some((e.file_name().into_string().ok()?, e.path()))).collect();
    entries.sort();
    entries
}

#[cfg(test)]
mod tests {
    use ckpt_engine::config::GroupConfig;

    use super::*;

    fn group(name: &str, slice: Option<&str>, units: &[&str]) -> Group {
        let mut config = GroupConfig { slice: slice.map(str::to_owned), ..GroupConfig::default() };
        config.units = units.iter().map(|u| (*u).to_owned()).collect();
        Group { name: name.into(), config }
    }

    #[test]
    fn a_slice_holds_its_own_services_and_those_of_slices_in_it() {
        let web = group("web", Some("web.slice"), &[]);
        assert!(has(&web, "a.service", "web.slice") && has(&web, "a.service", "web-front.slice"));
        assert!(!has(&web, "a.service", "website.slice") && !has(&web, "a.service", "system.slice"));
        assert!(!has(&group("all", Some("-.slice"), &[]), "a.service", "system.slice"));
        assert!(has(&group("one", None, &["a.service"]), "a.service", "system.slice"));
        assert_eq!(default_slice("post-gres@x.service"), "system-post\\x2dgres.slice");
    }

    #[test]
    fn the_last_setting_counts_and_other_sections_do_not() {
        let mut said = Said { slice: "system.slice".into(), preload: None };
        said.take("[Unit]\nSlice=no.slice\n[Service]\nSlice = web.slice\nEnvironment=A=1 \"LD_PRELOAD=/a b.so\" \\\n C=2\n");
        assert_eq!(said, Said { slice: "web.slice".into(), preload: Some("/a b.so".into()) });
        said.take("[Service]\nEnvironment=B=1\n[Install]\nEnvironment=\n");
        assert_eq!(said.preload.as_deref(), Some("/a b.so"));
        said.take("[Service]\nEnvironment=\n");
        assert_eq!(said.preload, None);
    }

    #[test]
    fn drop_in_directories_are_those_that_systemd_reads() {
        assert_eq!(
            drop_in_directories("a-b@c.service"),
            ["a-b@c.service.d", "a-b@.service.d", "a-.service.d", "service.d"]
        );
    }

    #[test]
    fn units_templates_and_instances_get_the_library_and_others_do_not() {
        let dir = std::env::temp_dir().join(format!("ckptd-generator-{}", std::process::id()));
        let (etc, lib, out) = (dir.join("etc"), dir.join("lib"), dir.join("out"));
        let write = |path: &Path, text: &str| {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write(&lib.join("a.service"), "[Service]\nSlice=web.slice\nEnvironment=LD_PRELOAD=/x.so\n");
        write(&lib.join("b@.service"), "[Service]\nSlice=web.slice\n");
        write(&lib.join("c@.service"), "[Service]\n");
        write(&etc.join("c@1.service.d/s.conf"), "[Service]\nSlice=web-1.slice\n");
        write(&lib.join("d.service"), "[Service]\nSlice=web.slice\n");
        write(&etc.join("d.service.d/s.conf"), "[Service]\nSlice=other.slice\n");
        std::os::unix::fs::symlink("/dev/null", lib.join("e.service")).unwrap();
        let groups = [group("web", Some("web.slice"), &[])];
        let shelf = Shelf::look(vec![etc, lib]);
        assert_eq!(candidates_from("web.slice", &shelf).unwrap(), ["a.service"]);
        assert_eq!(candidates_from("other.slice", &shelf).unwrap(), ["d.service"]);
        assert_eq!(candidates_from("system.slice", &shelf), None, "systemd is to be asked");
        write_from(&groups, Path::new("/lib.so"), &out, shelf).unwrap();
        let names: Vec<_> = entries(&out).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["a.service.d", "b@.service.d", "c@1.service.d"]);
        let text = std::fs::read_to_string(out.join("a.service.d/50-ckpt.conf")).unwrap();
        assert!(text.contains("LD_PRELOAD=/x.so:/lib.so"), "{text}");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
