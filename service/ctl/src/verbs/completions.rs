//! `completions SHELL`: what `make install` puts into the shells' directories.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Cli;
use crate::failure::Failure;
use crate::output::write_out;

/// Which shell.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell
    shell: Shell,
}

pub fn run(args: Args) -> Result<(), Failure> {
    write_out(&script(args.shell))
}

fn script(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "ckptctl", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `make install` installs the files in completions/.
    #[test]
    fn the_files_in_completions_are_what_is_generated() {
        for (shell, file) in
            [(Shell::Bash, "ckptctl.bash"), (Shell::Zsh, "_ckptctl"), (Shell::Fish, "ckptctl.fish")]
        {
            let path = format!("{}/../../completions/{file}", env!("CARGO_MANIFEST_DIR"));
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text == script(shell), "ckptctl completions {shell} > completions/{file}");
        }
    }
}
