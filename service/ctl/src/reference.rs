//! `NAME[@ID]`: a group, or a checkpoint of it.

use std::str::FromStr;

/// A group and, where given, a checkpoint's id. The name itself may hold `@` (`postgresql@15-main`), so what follows the last
/// one is an id only if it looks like one: a ULID, or `undo-` and a ULID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Group name.
    pub group: String,
    /// Checkpoint id; empty where none was given.
    pub id: String,
}

impl FromStr for Reference {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (group, id) = match text.rsplit_once('@') {
            Some((group, id)) if is_id(id) => (group, canonical(id)),
            _ => (text, String::new()),
        };
        if group.is_empty() {
            return Err("the name of the group is missing".into());
        }
        Ok(Self { group: group.to_string(), id })
    }
}

/// `NAME@ID`, both given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exact(pub Reference);

impl FromStr for Exact {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let reference: Reference = text.parse()?;
        if reference.id.is_empty() {
            return Err(format!(
                "`{text}` names no checkpoint: NAME@ID is needed, `ckptctl list` shows the ids"
            ));
        }
        Ok(Self(reference))
    }
}

/// Ids are shown in upper case, `undo-` excepted, and taken in any.
fn canonical(id: &str) -> String {
    match id.get(..5) {
        Some(prefix) if prefix.eq_ignore_ascii_case("undo-") => {
            format!("undo-{}", id[5..].to_ascii_uppercase())
        }
        _ => id.to_ascii_uppercase(),
    }
}

fn is_id(text: &str) -> bool {
    let ulid = match text.get(..5) {
        Some(prefix) if prefix.eq_ignore_ascii_case("undo-") => &text[5..],
        _ => text,
    };
    // Crockford's base 32: no I, L, O, U.
    ulid.len() == 26
        && ulid.bytes().all(|b| b.is_ascii_alphanumeric() && !b"ILOU".contains(&b.to_ascii_uppercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_at_signs_and_ids_are_told_apart() {
        let id = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
        for (text, group, expected) in [
            ("web".to_string(), "web", ""),
            (format!("web@{id}"), "web", id),
            ("postgresql@15-main".into(), "postgresql@15-main", ""),
            (format!("postgresql@15-main@{}", id.to_lowercase()), "postgresql@15-main", id),
            (format!("web@undo-{id}"), "web", &format!("undo-{id}")),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!((reference.group.as_str(), reference.id.as_str()), (group, expected), "{text}");
        }
        assert!("web".parse::<Exact>().is_err());
        assert!(format!("@{id}").parse::<Reference>().is_err());
    }
}
