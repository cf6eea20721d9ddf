//! The value of LD_PRELOAD (ld.so(8)): a list separated by spaces or colons.

/// What an environment entry begins with.
pub const PREFIX: &[u8] = b"LD_PRELOAD=";

/// Whether a list names the library: by this path, or by its file name at another place (never load it twice).
pub fn names(list: &[u8], path: &[u8]) -> bool {
    list.split(|&byte| byte == b' ' || byte == b':')
        .any(|item| !item.is_empty() && file_name(item) == file_name(path))
}

fn file_name(path: &[u8]) -> &[u8] {
    path.rsplit(|&byte| byte == b'/').next().unwrap_or(path)
}

/// The length of what [`write_entry`] writes, with its zero.
pub fn entry_length(list: &[u8], path: &[u8]) -> usize {
    PREFIX.len() + list.len() + 1 + path.len() + 1
}

/// Writes `LD_PRELOAD=list:path` with a zero at its end and gives its length without. The library comes last: what
/// must come first (a sanitizer, an allocator) stays first. Nothing is written if `to` is shorter than [`entry_length`].
pub fn write_entry(to: &mut [u8], list: &[u8], path: &[u8]) -> usize {
    if to.len() < entry_length(list, path) {
        return 0;
    }
    let mut at = 0;
    let separator: &[u8] = if list.is_empty() { b"" } else { b":" };
    for part in [PREFIX, list, separator, path, b"\0"] {
        to[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    at - 1
}

/// Writes `LD_PRELOAD=` and what a list holds besides the path, with a zero at its end, and gives its length without;
/// 0 if nothing else is in the list, or `to` is shorter than [`entry_length`].
pub fn write_entry_without(to: &mut [u8], list: &[u8], path: &[u8]) -> usize {
    if to.len() < entry_length(list, path) {
        return 0;
    }
    to[..PREFIX.len()].copy_from_slice(PREFIX);
    let mut at = PREFIX.len();
    for item in
        list.split(|&byte| byte == b' ' || byte == b':').filter(|item| !item.is_empty() && *item != path)
    {
        if at > PREFIX.len() {
            to[at] = b':';
            at += 1;
        }
        to[at..at + item.len()].copy_from_slice(item);
        at += item.len();
    }
    to[at] = 0;
    if at > PREFIX.len() { at } else { 0 }
}
