//! Prints `docs/messages.md`.

fn main() {
    print!("{}", integration_tests::message_table::render());
}
