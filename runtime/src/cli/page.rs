//! `docs/command-line.md`, made from the command line itself.

use std::fmt::Write as _;

use clap::{Arg, ArgAction, Command, CommandFactory};

use super::Cli;

const HEAD: &str = "\
# Command line

The commands and options of `runtime`, from the program itself. A test compares this page with the program;
`cargo run -p integration-tests --example command_line_page > docs/command-line.md` writes it. `--help` prints the same, and
[packages](packages.md#completions-and-manual-pages) explains manual pages and completions. [Configuration](configuration.md) has the keys of `--set` and the exit codes.
";

/// The page `docs/command-line.md`.
pub fn command_line_page() -> String {
    let mut command = Cli::command();
    command.build();
    let mut page = HEAD.to_owned();
    describe(&mut page, &command, "runtime");
    page
}

/// Adds the section of a command and those of its commands.
fn describe(page: &mut String, command: &Command, name: &str) {
    let about = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
    let arguments = command.get_arguments().filter(|one| !one.is_hide_set() && one.get_id() != "help");
    let (options, operands): (Vec<&Arg>, Vec<&Arg>) = arguments.partition(|one| one.get_long().is_some());
    let is_own = |command: &&Command| command.get_name() != "help" && !command.is_hide_set();
    let commands: Vec<&Command> = command.get_subcommands().filter(is_own).collect();
    // Writing to a string cannot fail.
    let _ = write!(page, "\n## {name}\n\n{}\n", escape(&about));
    table(page, "command", commands.iter().map(|one| row_of_command(one, name)));
    table(page, "argument", operands.into_iter().map(|one| (format!("`{}`", operand(one)), meaning(one))));
    // In the order of their declaration, one table for each heading of the help text.
    let mut headings: Vec<Option<&str>> = Vec::new();
    for heading in options.iter().map(|one| one.get_help_heading()) {
        if !headings.contains(&heading) {
            headings.push(heading);
        }
    }
    headings.sort_by_key(Option::is_some);
    for heading in headings {
        if let Some(heading) = heading {
            let _ = write!(page, "\n{heading}:\n");
        }
        let own = options.iter().filter(|one| one.get_help_heading() == heading);
        table(page, "option", own.map(|one| (option(one), meaning(one))));
    }
    if let Some(after) = command.get_after_long_help().or(command.get_after_help()) {
        let _ = write!(page, "\n```text\n{after}\n```\n");
    }
    for one in commands {
        describe(page, one, &format!("{name} {}", one.get_name()));
    }
}

/// Adds a table with two columns, unless it has no rows.
fn table(page: &mut String, head: &str, rows: impl Iterator<Item = (String, String)>) {
    let mut rows = rows.peekable();
    if rows.peek().is_some() {
        let _ = write!(page, "\n| {head} | meaning |\n|---|---|\n");
    }
    for (name, meaning) in rows {
        let _ = writeln!(page, "| {name} | {meaning} |");
    }
}

fn row_of_command(command: &Command, above: &str) -> (String, String) {
    let name = command.get_name();
    let anchor = format!("{above} {name}").replace(' ', "-");
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    (format!("[`{name}`](#{anchor})"), cell(&about))
}

/// An option as it is typed.
fn option(option: &Arg) -> String {
    let long = option.get_long().unwrap_or_default();
    let short = option.get_short().map(|short| format!("`-{short}`, ")).unwrap_or_default();
    let takes_value = matches!(option.get_action(), ArgAction::Set | ArgAction::Append);
    let value = if takes_value { format!(" {}", operand(option)) } else { String::new() };
    format!("{short}`--{long}{}`", value.replace('|', "\\|"))
}

/// The name of the value of an argument.
fn operand(argument: &Arg) -> String {
    let names = argument.get_value_names().unwrap_or_default();
    names.iter().map(|name| format!("<{name}>")).collect::<Vec<_>>().join(" ")
}

/// The help text of an argument, with its values and its default.
fn meaning(argument: &Arg) -> String {
    let help = argument.get_long_help().or(argument.get_help());
    let mut text = cell(&help.map(ToString::to_string).unwrap_or_default());
    let takes_value = matches!(argument.get_action(), ArgAction::Set | ArgAction::Append);
    let values =
        argument.get_possible_values().into_iter().filter(|value| takes_value && !value.is_hide_set());
    let values: Vec<String> = values.map(|value| format!("`{}`", value.get_name())).collect();
    if !values.is_empty() {
        let _ = write!(text, ". Values: {}", values.join(", "));
    }
    let defaults: Vec<String> =
        argument.get_default_values().iter().map(|value| format!("`{}`", value.to_string_lossy())).collect();
    if takes_value && !defaults.is_empty() {
        let _ = write!(text, ". Default: {}", defaults.join(", "));
    }
    text
}

/// Text in a cell of a Markdown table.
fn cell(text: &str) -> String {
    escape(text).replace('\n', " ").replace('|', "\\|")
}

/// Text in Markdown. Text in backticks stays as it is.
fn escape(text: &str) -> String {
    let parts = text.split('`').enumerate();
    let escaped =
        parts.map(
            |(at, part)| {
                if at % 2 == 0 { part.replace('<', "\\<").replace('*', "\\*") } else { part.to_owned() }
            },
        );
    escaped.collect::<Vec<_>>().join("`")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn the_page_equals_the_command_line() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/command-line.md");
        let page = fs::read_to_string(page).expect("docs/command-line.md");
        assert!(
            page == command_line_page(),
            "write the page again: cargo run -p integration-tests --example command_line_page > docs/command-line.md"
        );
    }

    #[test]
    fn a_command_has_its_options_values_and_defaults() {
        let page = command_line_page();
        for line in [
            "## runtime bench serve",
            "| [`doctor`](#runtime-doctor) | ",
            "| `--set <KEY=VALUE>` | Sets one configuration key; may be repeated |",
            "| `--model <PATH\\|ID>` | ",
            "| `--log <FILTER>` | Log filter, such as `info` or `warn,runtime=debug`. Default: `info` |",
            "| `--print-config` | Prints the resolved configuration as YAML and exits |",
        ] {
            assert!(page.contains(line), "{line}\n{page}");
        }
        assert!(page.contains("Values: `receiver`, `sender`"), "{page}");
    }

    #[test]
    fn cells_are_escaped() {
        assert_eq!(cell("a|b <c>\n`<d>` *"), "a\\|b \\<c> `<d>` \\*");
    }
}
