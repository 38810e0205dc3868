//! Prints `docs/command-line.md`.

fn main() {
    print!("{}", runtime::cli::command_line_page());
}
