//! `a{sv}` options of the methods, parsed to requests. An unknown key and a value of another type are InvalidArgs.

use std::collections::HashMap;

use ckpt_engine::{CheckpointRequest, Mode, RestoreRequest, Wait};
use zbus::{OwnedVariant, Variant};

use super::error::BusError;

/// Options as they came.
pub type Dict = HashMap<String, OwnedVariant>;

/// Longest description; it is kept in the manifest and shown in tables.
const MAX_DESCRIPTION: usize = 4096;
/// Most tags.
const MAX_TAGS: usize = 64;

/// Takes options out one by one; what is left at the end is unknown.
struct Reader {
    dict: Dict,
}

impl Reader {
    fn boolean(&mut self, key: &str) -> Result<Option<bool>, BusError> {
        match self.dict.remove(key).as_deref() {
            None => Ok(None),
            Some(Variant::Bool(b)) => Ok(Some(*b)),
            Some(other) => Err(wrong_type(key, "b", other)),
        }
    }

    fn text(&mut self, key: &str) -> Result<Option<String>, BusError> {
        match self.dict.remove(key).as_deref() {
            None => Ok(None),
            Some(Variant::Str(s)) => Ok(Some(s.to_string())),
            Some(other) => Err(wrong_type(key, "s", other)),
        }
    }

    fn texts(&mut self, key: &str) -> Result<Option<Vec<String>>, BusError> {
        let Some(value) = self.dict.remove(key) else { return Ok(None) };
        strings(&value).map(Some).ok_or_else(|| wrong_type(key, "as", &value))
    }

    fn finish(self) -> Result<(), BusError> {
        match self.dict.keys().min() {
            None => Ok(()),
            Some(key) => Err(BusError::invalid(format!("option `{key}` is not known here"))),
        }
    }
}

fn wrong_type(key: &str, expected: &str, got: &Variant<'_>) -> BusError {
    BusError::invalid(format!("option `{key}` is of type {}, not {expected}", got.value_signature()))
}

/// The strings of an `as`; `None` if it is something else.
pub fn strings(value: &Variant<'_>) -> Option<Vec<String>> {
    let Variant::Array(array) = value else { return None };
    if array.element_signature() != &zbus::Signature::Str {
        return None;
    }
    array
        .inner()
        .iter()
        .map(|element| match element {
            Variant::Str(s) => Some(s.to_string()),
            _ => None,
        })
        .collect()
}

/// `mode s, wait s, stop b, description s, tags as`
pub fn checkpoint(dict: Dict) -> Result<(CheckpointRequest, Wait), BusError> {
    let mut options = Reader { dict };
    let mode = match options.text("mode")?.as_deref() {
        None | Some("auto") => Mode::Auto,
        Some("full") => Mode::Full,
        Some("incremental") => Mode::Incremental,
        Some(other) => {
            return Err(BusError::invalid(format!("mode `{other}` is none of auto, full, incremental")));
        }
    };
    let wait = match options.text("wait")?.as_deref() {
        None | Some("durable") => Wait::Durable,
        Some("captured") => Wait::Captured,
        Some("none") => Wait::None,
        Some(other) => {
            return Err(BusError::invalid(format!("wait `{other}` is none of durable, captured, none")));
        }
    };
    let request = CheckpointRequest {
        id: String::new(),
        mode,
        stop: options.boolean("stop")?.unwrap_or(false),
        description: described(options.text("description")?.unwrap_or_default())?,
        tags: tagged(options.texts("tags")?.unwrap_or_default())?,
    };
    options.finish()?;
    Ok((request, wait))
}

/// `lazy b, wait s durable|none`; an empty checkpoint is the newest durable one.
pub fn restore(checkpoint: &str, dict: Dict) -> Result<(RestoreRequest, Wait), BusError> {
    let mut options = Reader { dict };
    let lazy = options.boolean("lazy")?;
    let wait = wait(&mut options)?;
    options.finish()?;
    Ok((RestoreRequest { checkpoint: checkpoint.to_owned(), lazy }, wait))
}

/// `wait s durable|none`, for the other methods that start a job.
pub fn job(dict: Dict) -> Result<Wait, BusError> {
    let mut options = Reader { dict };
    let wait = wait(&mut options)?;
    options.finish()?;
    Ok(wait)
}

fn wait(options: &mut Reader) -> Result<Wait, BusError> {
    match options.text("wait")?.as_deref() {
        None | Some("durable") => Ok(Wait::Durable),
        Some("none") => Ok(Wait::None),
        Some(other) => Err(BusError::invalid(format!("wait `{other}` is none of durable, none"))),
    }
}

/// `dry-run b`
pub fn prune(dict: Dict) -> Result<bool, BusError> {
    let mut options = Reader { dict };
    let dry_run = options.boolean("dry-run")?.unwrap_or(false);
    options.finish()?;
    Ok(dry_run)
}

/// No options at all.
pub fn none(dict: Dict) -> Result<(), BusError> {
    Reader { dict }.finish()
}

/// A description fit for the manifest.
pub fn described(text: String) -> Result<String, BusError> {
    if text.len() > MAX_DESCRIPTION {
        return Err(BusError::invalid(format!("the description is longer than {MAX_DESCRIPTION} bytes")));
    }
    Ok(text)
}

/// Tags fit for the manifest.
pub fn tagged(tags: Vec<String>) -> Result<Vec<String>, BusError> {
    if tags.len() > MAX_TAGS || tags.iter().any(|t| t.is_empty() || t.len() > 256) {
        return Err(BusError::invalid(format!(
            "at most {MAX_TAGS} tags, each of 1 to 256 bytes, can be kept"
        )));
    }
    Ok(tags)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dict(entries: &[(&str, Variant<'static>)]) -> Dict {
        entries.iter().map(|(k, v)| ((*k).into(), v.try_to_owned().unwrap())).collect()
    }

    #[test]
    fn nothing_given_is_a_durable_checkpoint_of_mode_auto() {
        assert_eq!(checkpoint(Dict::new()).unwrap(), (CheckpointRequest::default(), Wait::Durable));
    }

    #[test]
    fn every_option_of_the_contract_is_read() {
        let (request, wait) = checkpoint(dict(&[
            ("mode", "full".into()),
            ("wait", "captured".into()),
            ("stop", true.into()),
            ("description", "before the upgrade".into()),
            ("tags", vec!["a", "b"].into()),
        ]))
        .unwrap();
        assert_eq!(wait, Wait::Captured);
        assert_eq!(request.mode, Mode::Full);
        assert!(request.stop);
        assert_eq!(request.description, "before the upgrade");
        assert_eq!(request.tags, ["a", "b"]);
        let (request, wait) = restore("X", dict(&[("lazy", true.into()), ("wait", "none".into())])).unwrap();
        assert_eq!((request.lazy, wait), (Some(true), Wait::None));
    }

    #[test]
    fn unknown_keys_wrong_types_and_bad_values_are_invalid_args() {
        for bad in [
            dict(&[("mod", "full".into())]),
            dict(&[("mode", 1u32.into())]),
            dict(&[("mode", "half".into())]),
            dict(&[("wait", "forever".into())]),
            dict(&[("stop", "yes".into())]),
            dict(&[("tags", "a".into())]),
            dict(&[("tags", vec![1u32].into())]),
            dict(&[("description", "x".repeat(5000).into())]),
        ] {
            let error = checkpoint(bad).unwrap_err();
            assert_eq!(error.name, "org.freedesktop.DBus.Error.InvalidArgs", "{error}");
        }
        assert!(restore("", dict(&[("wait", "captured".into())])).is_err());
        assert!(none(dict(&[("x", true.into())])).is_err());
    }
}
