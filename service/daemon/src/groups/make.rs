//! A group from what came over the bus: `Enable(s name, a{sv} config)`, where `config` has the keys of the file, sections as `a{sv}`.

use std::path::Path;

use ckpt_engine::config::GroupConfig;
use ckpt_engine::{Error, Group};
use zbus::Variant;

use super::{file, names};
use crate::bus::options::Dict;

/// The dictionary as the table of a group file.
pub fn from_dict(dict: Dict) -> Result<toml::Table, Error> {
    dict.iter().map(|(key, value)| Ok((key.clone(), to_toml(key, value)?))).collect()
}

fn to_toml(key: &str, value: &Variant<'_>) -> Result<toml::Value, Error> {
    let wrong = || Error::InvalidArgs(format!("`{key}` is of type {}", value.value_signature()));
    Ok(match value {
        Variant::Bool(b) => toml::Value::Boolean(*b),
        Variant::U8(n) => i64::from(*n).into(),
        Variant::I16(n) => i64::from(*n).into(),
        Variant::U16(n) => i64::from(*n).into(),
        Variant::I32(n) => i64::from(*n).into(),
        Variant::U32(n) => i64::from(*n).into(),
        Variant::I64(n) => (*n).into(),
        Variant::U64(n) => i64::try_from(*n).map_err(|_| wrong())?.into(),
        Variant::Str(s) => s.as_str().into(),
        Variant::ObjectPath(s) => s.as_str().into(),
        Variant::Variant(inner) => return to_toml(key, inner),
        Variant::Array(array) => {
            let values = array.inner().iter().map(|v| to_toml(key, v));
            toml::Value::Array(values.collect::<Result<_, _>>()?)
        }
        Variant::Dict(dict) => {
            let mut table = toml::Table::new();
            for (k, v) in dict.iter() {
                let Variant::Str(k) = k else { return Err(wrong()) };
                table.insert(k.to_string(), to_toml(&format!("{key}.{k}"), v)?);
            }
            toml::Value::Table(table)
        }
        _ => return Err(wrong()),
    })
}

/// The group that `Enable` is about. `given` empty and a file there: the file. `given` without members: `name` is the slice or the service.
/// `exists` tells whether systemd can load a unit.
pub fn group(
    name: &str,
    mut given: toml::Table,
    dir: &Path,
    exists: impl Fn(&str) -> Result<bool, Error>,
) -> Result<Group, Error> {
    let group = names::of_unit(name).to_owned();
    if !names::valid(&group) {
        return Err(Error::InvalidArgs(format!(
            "`{name}` cannot be the name of a group: letters, digits and - _ . @ : \\ make a name"
        )));
    }
    let path = file::path(dir, &group);
    let there = match std::fs::read_to_string(&path) {
        Ok(text) => Some(GroupConfig::parse(&path.display().to_string(), &text)?),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => return Err(Error::io(path.display().to_string(), e)),
    };
    if given.is_empty()
        && let Some(config) = there
    {
        return Ok(Group { name: group, config });
    }
    if !given.contains_key("slice") && !given.contains_key("units") {
        let (key, value) = members(name, &exists)?;
        given.insert(key.into(), value);
    }
    let config = parse(&group, given)?;
    if let Some(unit) = missing(&config, &exists)? {
        return Err(Error::InvalidArgs(format!(
            "systemd knows no unit {unit}; `systemctl cat {unit}` shows why"
        )));
    }
    match there {
        Some(old) if old != config => Err(Error::Exists(format!(
            "group {group} with another configuration ({}), disable it first or edit that file; it",
            path.display()
        ))),
        _ => Ok(Group { name: group, config }),
    }
}

/// What a name without a configuration means.
fn members(
    name: &str,
    exists: &impl Fn(&str) -> Result<bool, Error>,
) -> Result<(&'static str, toml::Value), Error> {
    let service = |unit: String| ("units", toml::Value::Array(vec![unit.into()]));
    if name.ends_with(".slice") {
        return Ok(("slice", name.into()));
    }
    if name.ends_with(".service") {
        return Ok(service(name.to_owned()));
    }
    let unit = format!("{name}.service");
    if exists(&unit)? {
        return Ok(service(unit));
    }
    let slice = format!("{name}.slice");
    if exists(&slice)? {
        return Ok(("slice", slice.into()));
    }
    Err(Error::InvalidArgs(format!(
        "there is neither {name}.service nor {name}.slice; say which slice or units group {name} is made of"
    )))
}

/// Listed units must be there; a slice comes into being with its first unit.
fn missing<'c>(
    config: &'c GroupConfig,
    exists: &impl Fn(&str) -> Result<bool, Error>,
) -> Result<Option<&'c str>, Error> {
    for unit in &config.units {
        if !exists(unit)? {
            return Ok(Some(unit));
        }
    }
    Ok(None)
}

/// By way of the text of the file: the same checks, the same words.
fn parse(group: &str, table: toml::Table) -> Result<GroupConfig, Error> {
    if let Err(error) = toml::Value::Table(table.clone()).try_into::<GroupConfig>() {
        let text = error.message().replace('\n', " ");
        return Err(Error::InvalidArgs(format!("the configuration of {group}: {text}")));
    }
    GroupConfig::parse(&format!("the configuration of {group}"), &table.to_string())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn none(_: &str) -> Result<bool, Error> {
        Ok(false)
    }

    fn dir() -> std::path::PathBuf {
        "/nonexistent/groups.d".into()
    }

    #[test]
    fn the_name_of_a_slice_or_a_service_is_enough() {
        let web = group("web.slice", toml::Table::new(), &dir(), none).unwrap();
        assert_eq!((web.name.as_str(), web.config.slice.as_deref()), ("web", Some("web.slice")));
        let pg = "postgresql@15-main.service";
        let one = group(pg, toml::Table::new(), &dir(), |u| Ok(u == pg)).unwrap();
        assert_eq!(
            (one.name.as_str(), one.config.units.as_slice()),
            ("postgresql@15-main", &[pg.to_owned()][..])
        );
        let one = group("redis", toml::Table::new(), &dir(), |u| Ok(u == "redis.service")).unwrap();
        assert_eq!(one.config.units, ["redis.service"]);
        let error = group("redis", toml::Table::new(), &dir(), none).unwrap_err();
        assert_eq!(error.name(), "InvalidArgs");
    }

    #[test]
    fn sections_come_as_dictionaries() {
        let capture: HashMap<&str, Variant<'_>> =
            HashMap::from([("max_freeze", "200ms".into()), ("max_chain", 4u32.into())]);
        let dict: Dict = HashMap::from([
            ("slice".to_owned(), Variant::from("web.slice").try_into_owned().unwrap()),
            ("subvolumes".to_owned(), Variant::from(vec!["/srv/web"]).try_into_owned().unwrap()),
            ("capture".to_owned(), Variant::from(capture).try_into_owned().unwrap()),
        ]);
        let group = group("web", from_dict(dict).unwrap(), &dir(), none).unwrap();
        assert_eq!(group.config.capture.max_chain, 4);
        assert_eq!(group.config.capture.max_freeze.as_millis(), 200);
        assert_eq!(group.config.subvolumes, [Path::new("/srv/web")]);
    }

    #[test]
    fn wrong_keys_types_and_names_are_refused() {
        let table = |text: &str| text.parse::<toml::Table>().unwrap();
        for (name, bad) in [
            ("web", "slice = \"web.slice\"\nsubvolume = [\"/srv\"]"),
            ("web", "slice = 3"),
            ("web", "slice = \"web.slice\"\nunits = [\"a.service\"]"),
            ("web", "units = [\"gone.service\"]"),
            ("web", "slice = \"web.slice\"\nsubvolumes = [\"srv\"]"),
            ("../web", "slice = \"web.slice\""),
        ] {
            let error = group(name, table(bad), &dir(), none).unwrap_err();
            assert_eq!(error.name(), "InvalidArgs", "{bad}: {error}");
        }
    }
}
