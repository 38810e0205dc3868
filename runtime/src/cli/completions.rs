//! `runtime completions`: scripts that complete the command line in a shell.

use std::io::{self, Write};

use clap::{Args, Command};
use clap_complete::{Shell, generate};

/// The options of `completions`.
#[derive(Debug, Args)]
pub struct CompletionsOptions {
    /// Shell that reads the script
    #[arg(value_enum)]
    pub shell: Shell,
}

impl CompletionsOptions {
    /// Prints the script for the command line that `command` describes.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn run(&self, command: Command) -> io::Result<()> {
        io::stdout().write_all(&script(self.shell, command))
    }
}

fn script(shell: Shell, mut command: Command) -> Vec<u8> {
    let mut script = Vec::new();
    let name = command.get_name().to_owned();
    generate(shell, &mut command, name, &mut script);
    script
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn the_scripts_name_every_option_and_command() {
        let command = Cli::command();
        let options = command.get_arguments().filter_map(|option| option.get_long());
        let commands = command.get_subcommands().map(Command::get_name);
        let names: Vec<&str> = options.chain(commands).collect();
        assert!(names.contains(&"kv-transfer-config") && names.contains(&"doctor"), "{names:?}");
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = String::from_utf8(script(shell, Cli::command())).expect("a script is text");
            for name in &names {
                assert!(script.contains(name), "{shell} does not complete {name}");
            }
            assert!(script.contains("receiver"), "{shell} does not complete the values of --role");
        }
    }
}
