//! Tables, numbers, the pager.

use std::io::{IsTerminal, Write};
use std::process::{Command, Stdio};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

use crate::context::Context;
use crate::failure::Failure;

/// Text from elsewhere without what a terminal would take for a command.
pub fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { if c == '\n' { ' ' } else { '\u{fffd}' } } else { c }).collect()
}

/// A value as JSON, pretty on a terminal.
pub fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = if std::io::stdout().is_terminal() {
        serde_json::to_string_pretty(value)
    } else {
        serde_json::to_string(value)
    };
    let text = text.map_err(|e| Failure::failed(format!("cannot print JSON: {e}")))?;
    write_out(&format!("{text}\n"))
}

/// Writes to stdout; a reader that went away is no error.
pub fn write_out(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::failed(format!("cannot write to standard output: {e}")))
        }
        _ => Ok(()),
    }
}

/// Prints what may be long: through a pager where stdout is a terminal.
pub fn page(context: &Context, text: &str) -> Result<(), Failure> {
    if !context.pager || !std::io::stdout().is_terminal() {
        return write_out(text);
    }
    let pager =
        ["SYSTEMD_PAGER", "PAGER"].iter().find_map(|v| std::env::var(v).ok()).unwrap_or("less".into());
    let mut words = pager.split_whitespace();
    let Some(program) = words.next().filter(|p| *p != "cat") else { return write_out(text) };
    let child = Command::new(program)
        .args(words)
        // Quit if it fits, keep colours, no wrapping; secure: less runs with our rights and must not start a shell.
        .env("LESS", "FRSXMK")
        .env("LESSSECURE", "1")
        .stdin(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else { return write_out(text) };
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(text.as_bytes());
    }
    let _ = child.wait();
    Ok(())
}

/// A table without lines. `right` are the columns of numbers.
pub fn table(header: &[&str], right: &[usize], rows: Vec<Vec<String>>) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().copied());
    for row in rows {
        table.add_row(row.iter().map(|cell| clean(cell)));
    }
    for &column in right {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let lines: Vec<_> = table.lines().map(|l| l.trim_end().to_string()).collect();
    // The preset leaves one blank before the first column.
    let indent = lines.iter().map(|l| l.len() - l.trim_start().len()).min().unwrap_or(0);
    lines.iter().map(|l| format!("{}\n", l.get(indent..).unwrap_or(""))).collect()
}

/// `label: value` lines, labels to the right.
pub fn properties(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(label, _)| label.len()).max().unwrap_or(0);
    pairs.iter().map(|(label, value)| format!("{label:>width$}: {}\n", clean(value))).collect()
}

/// Bytes in binary units.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{count} B"),
        _ if value < 10.0 => format!("{value:.1} {}", UNITS[unit]),
        _ => format!("{value:.0} {}", UNITS[unit]),
    }
}

/// A duration given in microseconds.
pub fn duration(usec: u64) -> String {
    match usec {
        0..1_000 => format!("{usec} µs"),
        1_000..100_000 => format!("{:.1} ms", usec as f64 / 1e3),
        100_000..1_000_000 => format!("{} ms", usec / 1_000),
        _ => format!("{:.1} s", usec as f64 / 1e6),
    }
}

/// A number and a noun, in the plural where it must be.
pub fn count(number: u64, noun: &str) -> String {
    let plural = match (number, noun) {
        (1, _) => noun.to_string(),
        (_, "process") => "processes".into(),
        _ => format!("{noun}s"),
    };
    format!("{number} {plural}")
}

/// A moment in local time.
pub fn local(moment: Timestamp) -> String {
    moment.to_zoned_datetime(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// RFC 3339 in local time; as it is if it is not RFC 3339.
pub fn local_text(rfc3339: &str) -> String {
    rfc3339.parse().map_or_else(|_| rfc3339.to_string(), local)
}

/// How long ago, roughly.
pub fn ago(moment: Timestamp, now: Timestamp) -> String {
    let seconds = now.as_second().saturating_sub(moment.as_second());
    match seconds {
        ..1 => "now".into(),
        1..120 => format!("{seconds} s ago"),
        120..7_200 => format!("{} min ago", seconds / 60),
        7_200..172_800 => format!("{} h ago", seconds / 3_600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_for_people() {
        assert_eq!(["0 B", "1023 B", "1.0 KiB", "64 MiB"], [0, 1023, 1024, 64 << 20].map(bytes).as_slice());
        assert_eq!(
            ["7 µs", "1.5 ms", "120 ms", "2.0 s"],
            [7, 1500, 120_000, 2_000_000].map(duration).as_slice()
        );
        assert_eq!((count(1, "process"), count(2, "process")), ("1 process".into(), "2 processes".into()));
        let at = |s| Timestamp::from_second(s).unwrap();
        assert_eq!((ago(at(0), at(90)), ago(at(0), at(7_200))), ("90 s ago".into(), "2 h ago".into()));
    }

    #[test]
    fn a_table_begins_at_the_left_and_keeps_terminals_safe() {
        let text = table(&["ID", "SIZE"], &[1], vec![vec!["a\u{1b}[2Jb".into(), "7".into()]]);
        assert!(text.starts_with("ID"), "{text:?}");
        assert!(!text.contains('\u{1b}'));
        assert_eq!(table(&["ID"], &[], vec![]), "");
    }
}
