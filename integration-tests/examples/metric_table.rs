//! Prints `docs/metrics.md`.

fn main() {
    print!("{}", runtime::metrics_page::render());
}
