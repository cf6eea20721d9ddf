//! How the demo looks.

use std::cell::Cell;
use std::io::IsTerminal;
use std::time::Instant;

use ckpt_tests::system::must;

/// Prints acts, commands, facts and checks, in colour on a terminal.
pub(crate) struct Stage {
    colour: bool,
    acts: Cell<u32>,
    start: Instant,
}

impl Stage {
    pub(crate) fn new() -> Self {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { colour, acts: Cell::new(0), start: Instant::now() }
    }

    /// A heading with its number and the time since the start.
    pub(crate) fn act(&self, title: &str) {
        self.acts.set(self.acts.get() + 1);
        let head = self.paint("1;36", &format!("{}. {title}", self.acts.get()));
        println!("\n{head}  {}", self.paint("2", &format!("[{:.1} s]", self.start.elapsed().as_secs_f64())));
    }

    /// Shows a command, runs it, shows what it says.
    pub(crate) fn command(&self, words: &[&str]) {
        let shown: Vec<String> = words
            .iter()
            .map(|w| if w.contains(['{', ' ']) { format!("'{w}'") } else { (*w).to_string() })
            .collect();
        println!("   {} {}", self.paint("2", "#"), self.paint("1", &shown.join(" ")));
        for line in must(words).lines() {
            println!("   {}", self.paint("2", line));
        }
    }

    /// One named value.
    pub(crate) fn fact(&self, name: &str, value: &str) {
        println!("   {name:<42} {}", self.paint("1", value));
    }

    /// One named value that is as it must be, or not.
    pub(crate) fn check(&self, name: &str, value: &str, holds: bool) {
        let mark = if holds { self.paint("1;32", "✓") } else { self.paint("1;31", "✗") };
        println!(" {mark} {name:<42} {value}");
    }

    /// The last line.
    pub(crate) fn end(&self, good: bool) {
        let time = self.start.elapsed().as_secs_f64();
        let (colour, line) = if good {
            ("1;32", "Memory, processes and files are back at one and the same moment.")
        } else {
            ("1;31", "Something does not agree.")
        };
        println!("\n{}  [{time:.1} s]", self.paint(colour, line));
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.into() }
    }
}
