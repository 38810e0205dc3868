//! Prints `docs/parameters.md`.

fn main() {
    print!("{}", runtime::frontend::parameters_page());
}
