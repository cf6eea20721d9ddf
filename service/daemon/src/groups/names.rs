//! Names of groups. A name is a directory in the store, an element of an object path when escaped, and an instance of `ckpt@.service`.

/// Longest name: with `.toml` it is one file name (NAME_MAX), and with the rest a unit name (256).
const MAX: usize = 200;

/// Whether a group can be called that.
pub fn valid(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.@\\:".contains(&b))
}

/// What a caller may mean by a name, best first: the name itself, without `.service`, and unescaped like an instance.
pub fn candidates(name: &str) -> Vec<String> {
    let plain = name.strip_suffix(".service").unwrap_or(name);
    let mut candidates = vec![name.to_owned(), plain.to_owned()];
    candidates.extend(unescape(plain));
    candidates.dedup();
    candidates.retain(|c| valid(c) && !c.ends_with(".service"));
    candidates
}

/// Undoes `\xNN` (systemd-escape(1)). `-` stays: a name has no `/` that it could stand for. `None` if nothing was escaped or it is not UTF-8.
fn unescape(name: &str) -> Option<String> {
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let Some((&b, tail)) = rest.split_first() {
        let code = tail.strip_prefix(b"x").and_then(|hex| hex.get(..2)).filter(|_| b == b'\\');
        let code = code.and_then(|hex| std::str::from_utf8(hex).ok());
        match code.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(code) => {
                out.push(code);
                rest = &tail[3..];
            }
            None => {
                out.push(b);
                rest = tail;
            }
        }
    }
    String::from_utf8(out).ok().filter(|out| out != name)
}

/// The name of a group made of one slice or one service.
pub fn of_unit(unit: &str) -> &str {
    unit.strip_suffix(".slice").or_else(|| unit.strip_suffix(".service")).unwrap_or(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_the_store() {
        for bad in ["", ".", "..", "a/b", "../x", "a b", "a\0", "é", &"x".repeat(300)] {
            assert!(!valid(bad), "{bad:?}");
        }
        for good in ["web", "postgresql@15-main", "a.b_c:d", "systemd\\x2dx"] {
            assert!(valid(good), "{good:?}");
        }
    }

    #[test]
    fn a_name_may_be_escaped_like_an_instance() {
        assert_eq!(candidates("web"), ["web"]);
        assert_eq!(candidates("redis-server.service"), ["redis-server"]);
        assert_eq!(candidates("postgresql\\x4015-main"), ["postgresql\\x4015-main", "postgresql@15-main"]);
        assert_eq!(candidates("a\\x2fb"), ["a\\x2fb"], "a slash is no name");
        assert_eq!(candidates("a\\x"), ["a\\x"]);
        assert!(candidates("../etc").is_empty());
    }
}
