//! `runtime man`: manual pages of the command line.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Command};
use clap_mangen::Man;

/// The options of `man`.
#[derive(Debug, Args)]
pub struct ManOptions {
    /// Folder to write the pages into, one for each command, such as share/man/man1 [default: print the main page]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

impl ManOptions {
    /// Prints the main page of the command line that `command` describes, or writes all pages.
    ///
    /// # Errors
    /// Standard output, or a file in the folder, cannot be written.
    pub fn run(&self, command: Command) -> anyhow::Result<()> {
        match &self.out {
            Some(folder) => write_pages(command, folder)
                .with_context(|| format!("cannot write manual pages into {}", folder.display())),
            None => {
                let mut page = Vec::new();
                Man::new(command).render(&mut page)?;
                Ok(io::stdout().write_all(&page)?)
            }
        }
    }
}

/// Writes `runtime.1`, and a page such as `runtime-bench-serve.1` for each command.
fn write_pages(command: Command, folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    clap_mangen::generate_to(command, folder)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    /// The page of a command, with its hyphens as a reader sees them.
    fn page(folder: &Path, name: &str) -> String {
        let path = folder.join(format!("{name}.1"));
        fs::read_to_string(&path).expect(name).replace("\\-", "-")
    }

    /// Checks the page of `command`, whose page is `name`, and those of its commands. Returns their number.
    fn check(folder: &Path, command: &Command, name: &str) -> usize {
        let text = page(folder, name);
        for option in command.get_arguments().filter(|option| !option.is_hide_set()) {
            let Some(long) = option.get_long() else { continue };
            assert!(text.contains(&format!("--{long}")), "{name}.1 does not explain --{long}");
        }
        let below =
            command.get_subcommands().map(|one| check(folder, one, &format!("{name}-{}", one.get_name())));
        1 + below.sum::<usize>()
    }

    #[test]
    fn each_command_has_a_page_with_its_options() {
        let folder = std::env::temp_dir().join(format!("baton-man-{}", std::process::id()));
        write_pages(Cli::command(), &folder).expect("the folder of temporary files is writable");
        let pages = check(&folder, &Cli::command(), "runtime");
        let written = fs::read_dir(&folder).expect("the folder exists").count();
        let sweep = page(&folder, "runtime-bench-sweep");
        fs::remove_dir_all(&folder).expect("the folder exists");
        assert_eq!(written, pages, "one page for each command");
        assert!(pages > 8 && sweep.contains("bench-sweep"), "{pages} pages; {sweep}");
    }
}
